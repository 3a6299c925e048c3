"""``aent status``, with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from aent.launch import starts
from aent.recipe.load import dump, load
from aent.runtime import failures, heartbeats
from aent.runtime.phases import Phases
from aent.slurm import status
from aent.slurm.submission import SlurmError
from aent.tracking import journal
from wording import assert_names, naming

TINY = "recipes/cpu/tiny.yaml"


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a run in its fourth step, which was requeued once and has lost an engine."""
    folder = tmp_path / "run"
    (folder / "engines").mkdir(parents=True)
    (folder / "heartbeats").mkdir()
    (folder / "recipe.yaml").write_text(
        dump(load(TINY, [f"run_dir={folder}", "steps=10", "rollout.engines=3"]))
    )
    points = [journal.Status(1, "RUNNING")]
    for step, total in enumerate((9.0, 4.0, 5.0)):
        for key, value in {"total": total, "trainer_idle": total / 2, "engines_idle": 1.0}.items():
            points.append(journal.Point(step, journal.now(), f"time/{key}", value))
    starts.note(folder, "7", None)
    starts.end(folder, "job 7: preempted")
    starts.note(folder, "7", "step_000002")
    starts.note(folder, "7", "step_000002")
    for text in ("since step 1: it is nan", "over with step 2: it is nan"):
        points.append(journal.Tag(1, "aent.alert.reward", text))
    points.append(journal.Tag(1, "aent.other", "not an alert"))
    journal.append(folder / journal.JOURNAL_FILE, points)
    phases = Phases.of(folder, 2, 600.0)
    phases.step = 3
    phases.begin("train")
    (folder / "engines" / "0.json").write_text(json.dumps({"url": "http://n1:8000"}))
    (folder / "engines" / "1.json").write_text(json.dumps({"url": "http://n2:8000"}))
    (folder / "engines" / "1.lost").touch()
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Takes {program: line of sh} for those of Slurm; others are not here."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(**lines: str) -> None:
        for name, line in lines.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)

    return make


@pytest.fixture
def silent(run_dir, monkeypatch):
    """Takes the seconds since the rank's last sign of life: the clock that they are read from
    stands, however long a test takes."""
    sign = heartbeats.file_of(run_dir, 2).stat().st_mtime
    return lambda seconds: monkeypatch.setattr(heartbeats, "_clock", lambda _: sign + seconds)


def test_a_run_is_told_from_its_folder_without_slurm(run_dir, programs, silent):
    silent(3)
    with pytest.raises(OSError, match="disk full"), failures.recorded(run_dir, 1):
        raise OSError("disk full")
    told = status.report(str(run_dir))
    assert_names(told[0], run_dir, "tiny", "RUNNING")
    assert_names(told[1], "step 3 of 10", "5.0 s", "0:35 left")
    assert_names(told[2], "trainer 50%", "engines 17%")
    assert told[3] == "alert over with step 2: it is nan"
    assert_names(told[4], "3 time", "job 7", "squeue")
    assert_names(told[5], "attempt 2", "step_000002", "job 7: preempted")
    assert_names(told[6], "attempt 3", "step_000002", "no process")
    assert_names(told[7], "rank 2", "step 3", "train", "sign of life", "3 s ago")
    assert_names(told[8], "engine 0", "http://n1:8000")
    text = "\n".join(told)
    assert_names(text, "engine 1: lost", "engine 2: not ready")
    assert_names(text, "OSError: disk full", run_dir / "logs")


def test_a_run_whose_start_has_ended_or_whose_ranks_are_silent_says_so(run_dir, programs, silent):
    silent(1000)
    assert_names(status.report(str(run_dir))[0], "RUNNING", "no rank", "16:40")
    starts.end(run_dir, "aent: engine 1 died; its last lines:\n  frame\nCUDA out of memory\n")
    ended = "engine 1 died; its last lines: ... CUDA out of memory"
    assert status.report(str(run_dir))[0].endswith(ended)
    starts.note(run_dir, None, "step_000002")  # aent train, in the job's folder
    told = status.report(str(run_dir))
    assert not any(ended in line for line in told[:1])
    assert any("attempt 4" in line and ended in line for line in told)
    programs(scancel="", squeue="echo '7|7|RUNNING|1|1|1|n1|x'")
    assert status.cancel(str(run_dir)) == "7"


def test_jobs_of_a_recipe_that_squeue_has_forgotten_are_asked_of_sacct(run_dir, programs):
    programs(squeue=":", sacct="echo '7|7|FAILED|00:00:12|1:0|n1'; echo '9|9|COMPLETED|1|0:0|n2'")
    told = status.report(os.path.abspath(TINY))
    assert_names(told[0], "job 7", "FAILED", "00:00:12")
    assert_names("\n".join(told), "job 9", "COMPLETED")
    programs(squeue=":", sacct=":")
    (said,) = status.report(os.path.abspath(TINY))
    assert_names(said, "tiny", "squeue", "sacct")


def test_a_job_that_waits_says_why_and_a_forgotten_one_is_asked_of_sacct(run_dir, programs):
    waits = f"7|7|PENDING|0:00|8:00:00|2|(Resources)|{run_dir}.sbatch"
    programs(squeue=f"echo '{waits}'")
    first, *of_run = status.report("7")
    assert_names(first, "job 7", "PENDING", "(Resources)", "8:00:00")
    assert_names(of_run[0], run_dir)
    programs(
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        sacct="echo '7|7|TIMEOUT|08:00:12|0:0|n[1-2]'",
    )
    first, *_ = status.report("7")
    assert_names(first, "job 7", "TIMEOUT", "08:00:12", "n[1-2]")
    programs(sacct=":")
    with pytest.raises(SlurmError, match=naming("job 7")):
        status.report("7")


def test_what_is_no_target_is_a_sentence(tmp_path, programs):
    with pytest.raises(ValueError, match=naming(tmp_path, "recipe.yaml")):
        status.report(str(tmp_path))


def test_a_job_is_found_to_be_cancelled_and_its_log(run_dir, programs):
    programs(
        scancel=f"echo $* >{run_dir}/cancelled",
        scontrol="printf 'JobId=7\\n   StdOut=/runs/a b.log\\n'",
        squeue="printf '7|7|RUNNING|1|1|1|n1|x\\n8|8|PENDING|1|1|1|n1|x\\n'",
    )
    assert status.cancel(str(run_dir)) == "7"
    assert (run_dir / "cancelled").read_text() == "7\n"
    assert status.log_of("7") == "/runs/a b.log"
    with pytest.raises(SlurmError, match=naming("tiny", "7, 8")):
        status.cancel(os.path.abspath(TINY))


def test_of_an_array_only_the_task_of_the_folder_is_told_and_cancelled(run_dir, programs):
    """The task that an array starts last has the array's number, by which all would end."""
    tasks = "'8|7_0|RUNNING|1|1|1|n1|x' '7|7_3|RUNNING|1|1|1|n4|x' '9|7_1|RUNNING|1|1|1|n2|x'"
    programs(scancel=f"echo $* >{run_dir}/cancelled", squeue=f"printf '%s\\n' {tasks}")
    assert any("last job 7_3: RUNNING on n4" in line for line in status.report(str(run_dir)))
    assert status.cancel(str(run_dir)) == "7_3"
    assert (run_dir / "cancelled").read_text() == "7_3\n"
    assert status.cancel("7_1") == "7_1"  # as squeue shows it
    gone = "echo '8|7_0|FAILED|1|1:0|n1'; echo '7|7_3|COMPLETED|1|0:0|n4'"
    programs(squeue=":", sacct=gone)
    assert status.job("7").number == "7_3"


def test_an_arrays_task_tells_of_its_run(run_dir, programs):
    tasks = (
        "'8|7_0|RUNNING|1|1|1|n1|/x/array.sbatch' '7|7_[1-3]|PENDING|1|1|1|none|/x/array.sbatch'"
    )
    programs(
        squeue=f"printf '%s\\n' {tasks}",
        scontrol=f"[ $4 = - ] && printf '%s\\n' \"0) RUN_DIR='{run_dir}'\" '  set -- a ;;'",
    )
    first, waiting = (status.report(number) for number in ("8", "7"))
    assert_names(first[1], f"run {run_dir}", "RUNNING")
    assert_names(waiting[1], "aent status RUN_DIR")
    programs(scontrol="exit 1")  # Slurm has forgotten the script
    assert_names(status.report("8")[1], "aent status RUN_DIR")


def test_a_recipes_only_job_may_have_two_groups(run_dir, programs):
    groups = "printf '7|7+0|RUNNING|1|1|1|n1|x\\n8|7+1|RUNNING|1|1|1|n2|x\\n'"
    programs(scancel=f"echo $* >{run_dir}/cancelled", squeue=groups)
    assert status.cancel(os.path.abspath(TINY)) == "7"
    assert status.cancel(str(run_dir)) == "7"  # both groups end with the first


def test_the_log_of_a_job_that_waits_is_followed_from_its_begin(tmp_path, programs):
    tail = shutil.which("tail", path=os.defpath)
    log = tmp_path / "run.log"
    programs(scontrol=f"echo '   StdOut={log}'", tail=f'exec {tail} --sleep-interval=.1 "$@"')
    command = [sys.executable, "-m", "aent", "slurm", "logs", "7"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as followed:
        try:
            assert str(log) in followed.stderr.readline()  # that it is not there
            log.write_text("the first line\n")
            assert followed.stdout.readline() == "the first line\n"
        finally:
            followed.kill()
