"""The output of a command and of a run's process, and where it goes."""

import io
import os
import re
import subprocess
import sys

import pytest

from aent.runtime.log import OWN_ONLY, begin_section, log, logged

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def test_a_command_says_plain_sentences(capsys):
    log.info("aent: 7% done")
    log.warning("aent: careful")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("aent: 7% done\n", "aent: careful\n")


def test_a_line_of_a_run_has_time_level_process_and_attempt(capsys, tmp_path):
    begin_section(tmp_path / "engine0.log", "engine 0")  # an engine of no run
    assert not (tmp_path / "engine0.log").exists()
    with logged("launcher", 2):
        log.info("aent: begins")
        log.error("aent: two\nlines")
        begin_section(tmp_path / "logs" / "engine0.log", "engine 0")
    log.info("aent: plain again")
    said = capsys.readouterr()
    title, line, plain = said.out.splitlines()
    assert re.fullmatch(rf"=+ attempt 2, launcher: {STAMP} =+", title)
    assert re.fullmatch(rf"{STAMP} INFO \[launcher, attempt 2\] aent: begins", line)
    assert plain == "aent: plain again"
    first, second = said.err.splitlines()
    assert re.fullmatch(rf"{STAMP} ERROR \[launcher, attempt 2\] aent: two", first)
    assert second == "lines"
    written = (tmp_path / "logs" / "engine0.log").read_text()
    assert re.fullmatch(rf"=+ attempt 2, engine 0: {STAMP} =+\n", written)


def say_as_rank(rank: int) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from aent.runtime.log import *; from aent.runtime.log import begin_rank\n"
        f"begin_rank({rank}, 3); log.info('aent: step'); log.warning('aent: careful')\n"
        f"log.info('a row', extra={{{OWN_ONLY!r}: True}})"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )


def test_a_rank_writes_all_into_its_own_log_and_rank_0_is_seen():
    zero, other = say_as_rank(0), say_as_rank(5)
    for done, number in ((zero, 0), (other, 5)):
        title, *lines = done.stderr.splitlines()
        assert re.search(rf"attempt 3, rank {number}:", title)
        assert [line.split("] ")[1] for line in lines] == ["aent: step", "aent: careful", "a row"]
        assert re.match(rf"{STAMP} WARNING \[rank {number}, attempt 3\]", lines[1])
    assert zero.stdout.splitlines() == zero.stderr.splitlines()[1:3]
    assert other.stdout == ""


def test_what_cannot_be_written_ends_nobody(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as raw:
        full = io.TextIOWrapper(raw, write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(OSError, match="space"):
            print("aent: the disk is full", file=sys.stderr)
        log.warning("aent: the disk is full")
        monkeypatch.undo()
        full.detach()
