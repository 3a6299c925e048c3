"""Which runs have a job already: a second submission adds only those that have none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aent.recipe.load import load
from aent.slurm.render import ScriptedRun, render, render_several
from aent.slurm.submission import SlurmError, at_work
from slurm.conftest import TINY
from wording import assert_names, naming

SWEEP = (sys.executable, "-m", "aent", "slurm", "sweep", TINY, "v.txt", "cluster.gpus_per_node=0")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Takes what squeue shows and the script that Slurm keeps; what sbatch is given is kept in
    ``sent``."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")  # a user's own default, which hides jobs
    for name, does in (
        ("squeue", f'[ -n "$SQUEUE_STATES" ] || cat {programs}/jobs'),
        ("scontrol", f'echo "$*" >>{programs}/asked; cat {programs}/script'),
        ("sbatch", f'cp "${{@: -1}}" {programs}/sent; echo 9'),
    ):
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)

    def set_up(jobs: str, script: str = "") -> Path:
        (programs / "jobs").write_text(jobs)
        (programs / "script").write_text(script)
        return programs

    return set_up


def run_in(folder: Path, *overrides: str) -> ScriptedRun:
    return (TINY, overrides, load(TINY, [f"run_dir={folder}", "cluster.gpus_per_node=0"]))


def test_tasks_of_an_array_are_known_by_slurms_own_copy_of_the_script(tmp_path, slurm):
    folder = tmp_path / "all runs"
    runs = [folder / name for name in ("a", "b's", "c", "later")]
    (array,) = render_several([run_in(run, "seed=5", "name=x") for run in runs[:3]], folder, "")
    jobs = f"12|11|0|{array.path}\n11|11|2|{array.path}\n13|13|N/A|/x/array.sbatch\n"
    programs = slurm(jobs, array.text)  # task 1 is over
    assert at_work(runs) == {runs[0]: "11_0", runs[2]: "11_2"}
    assert (programs / "asked").read_text() == "write batch_script 12 -\n"  # once for an array
    (tmp_path / "link").symlink_to(folder)
    assert at_work([tmp_path / "link" / "c"]) == {tmp_path / "link" / "c": "11_2"}
    slurm(jobs, "echo of a script that is not ours")
    with pytest.raises(SlurmError, match=naming("job 11", array.path, "task 0")):
        at_work(runs)


def test_a_job_of_its_own_is_known_by_its_script(tmp_path, slurm):
    runs = [tmp_path / "runs" / name for name in ("a.1", "b")]
    source, overrides, recipe = run_in(runs[0])
    script = render(recipe, source, overrides)
    slurm(f"7|7|N/A|{script.path}\n8|7|N/A|{script.path}\n9|9|N/A|/x/b.sbatch\n10|10|N/A|(null)\n")
    assert at_work(runs) == {runs[0]: "7"}


def test_a_second_submission_of_a_sweep_has_only_the_runs_without_a_job(tmp_path, slurm):
    def aent(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    programs = slurm("")
    (tmp_path / "v.txt").write_text("seed=1\nseed=2\nseed=3\n")
    done = aent(*SWEEP)
    folder = tmp_path / "runs" / "v"
    assert (done.returncode, done.stdout) == (0, f"job 9: {folder}/array.sbatch\n"), done.stderr
    first = (programs / "sent").read_text()
    slurm(f"9|9|0|{folder}/array.sbatch\n9|9|2|{folder}/array.sbatch\n", first)  # line 2 failed
    done = aent(*SWEEP)
    assert (done.returncode, done.stderr) == (0, "")
    *busy, sent = done.stdout.splitlines()
    assert sent == f"job 9: {folder}/array.sbatch"
    for line, run, job in zip(busy, (1, 3), ("9_0", "9_2"), strict=True):
        assert_names(line, f"{folder}/line-{run}", f"job {job}")
    second = (programs / "sent").read_text()
    assert re.findall(r"RUN_DIR=(.*/line-\d)", second) == [f"{folder}/line-2"]
    assert "--array=0-0\n" in second
    (programs / "sent").unlink()
    one = (*SWEEP[:4], "submit", TINY, "cluster.gpus_per_node=0", "run_dir=runs/v/line-1")
    done = aent(*one)
    assert done.returncode == 1
    assert_names(done.stderr, f"{folder}/line-1", "job 9_0")
    assert not (programs / "sent").exists()
    outside = ("cluster.container=apptainer", "cluster.image=x.sif", "cluster.engine_image=x.sif")
    done = aent(*SWEEP, *outside, "--out", str(tmp_path.parent / "runs"))
    assert (done.returncode, done.stdout) == (2, "")
    assert_names(done.stderr.splitlines()[0], tmp_path.parent / "runs" / "line-1", "mounts")
