"""The phase that a rank reports, and for how long it reports that it lives."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from aent.runtime import heartbeats
from aent.runtime.phases import Phases
from waiting import wait_until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.01)


def test_heartbeat_says_step_and_phase_from_the_phase_begin(tmp_path: Path):
    phases = Phases.of(tmp_path, 0, 600)
    said = json.loads(phases.heartbeat.read_text())
    assert (said["step"], said["phase"]) == (0, "start")
    phases.step = 3
    before = time.time()
    with phases("train"):
        said = json.loads(phases.heartbeat.read_text())
    assert (said["step"], said["phase"]) == (3, "train")
    assert before <= said["since"] <= time.time()
    assert list(phases.take()) == ["train"]
    assert phases.take() == {}
    assert [p.name for p in (tmp_path / "heartbeats").iterdir()] == ["rank0.json"]


def test_a_rank_that_waits_long_gives_signs_and_leaves_none_after_a_good_end(tmp_path, quick):
    phases = Phases.of(tmp_path, 1, 600)
    file = phases.heartbeat
    with phases.beating():
        os.utime(file, (time.time() - 300,) * 2)
        wait_until(lambda: time.time() - file.stat().st_mtime < 200, "it beats")
    assert not file.exists()


def test_the_file_of_a_rank_that_fails_stays(tmp_path, quick):
    phases = Phases.of(tmp_path, 1, 600)
    with pytest.raises(ValueError, match="its reason"), phases.beating():
        raise ValueError("its reason")
    assert phases.heartbeat.exists()


def test_a_phase_that_gets_no_further_says_so_until_it_does(tmp_path, quick):
    phases = Phases.of(tmp_path, 0, deadline_s=0.5)

    def stuck() -> bool:
        return "stuck_s" in json.loads(phases.heartbeat.read_text())

    with phases.beating():
        wait_until(stuck, "the heartbeat says that it is stuck")
        phases.deadline_s = 600
        phases.begin("sync")
        assert not stuck()
        with phases._lock:  # no beat in between
            phases._progress -= 601
            phases.progress()
        time.sleep(0.1)  # some beats
        assert not stuck()


def test_a_beat_that_cannot_be_written_ends_nobody(tmp_path, quick, capsys, monkeypatch):
    phases = Phases.of(tmp_path, 0, 600)
    file = phases.heartbeat
    full = [True]
    replace = os.replace

    def no_room(source: Path, target: Path) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_room)
    with phases.beating():
        phases.begin("train")
        os.utime(file, (time.time() - 300,) * 2)
        wait_until(lambda: time.time() - file.stat().st_mtime < 200, "it lives all the same")
        assert json.loads(file.read_text())["phase"] == "start"
        full[0] = False
        wait_until(lambda: json.loads(file.read_text())["phase"] == "train", "it is written")
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_rank_that_is_stuck_and_cannot_say_so_gives_no_sign(tmp_path, quick, monkeypatch):
    phases = Phases.of(tmp_path, 0, deadline_s=600)

    def no_room(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "replace", no_room)
    with phases._lock:
        phases._progress -= 601
    os.utime(phases.heartbeat, (time.time() - 300,) * 2)
    with phases.beating():
        wait_until(lambda: "stuck_s" in phases._place, "it is stuck")
        time.sleep(0.1)  # some beats
        assert time.time() - phases.heartbeat.stat().st_mtime > 200
