"""Runs over lines of overrides, tasks of an array or jobs of their own: all below one in MLflow."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys

import pytest

from aent.recipe.load import RecipeError, dump, load
from aent.slurm import sweep as sweeps
from aent.tracking import journal
from slurm.conftest import SLURM, TINY
from waiting import PATIENCE_S
from wording import assert_names, naming


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_task_takes_its_line_and_mlflow_shows_them_together(sweep):
    plain, constant = sweep
    assert [job.status() for job in sweep] == ["FINISHED"] * 2
    runs = [job.mlflow()[1] for job in sweep]
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 1
    client, _ = plain.mlflow()
    assert client.get_run(parents.pop()).info.status == "FINISHED"
    assert runs[1].data.params["controller.kind"] == "constant"
    assert constant.curve(4)["controller/coefficient"] == [0.02] * 4
    assert plain.curve(4)["controller/coefficient"][-1] != 0.02


@pytest.fixture
def task(tmp_path):
    """Runs one task of sweep.sbatch, with a script that prints its arguments for train.sbatch."""
    (tmp_path / "train").write_text("printf '<%s>' \"$@\"")
    (tmp_path / "scontrol").write_text("#!/bin/sh\n")
    (tmp_path / "scontrol").chmod(0o755)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        variants = tmp_path / "variants.txt"
        variants.write_text(f"first=1\n{line}\n")
        job = {"JOB_ID": "7", "JOB_NAME": "s", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "1"}
        env = {f"SLURM_{name}": value for name, value in job.items()} | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TRAIN": str(tmp_path / "train"),
        }
        command = ["bash", str(SLURM / "sweep.sbatch"), "r.yaml", str(variants), "steps=2"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)

    return run


def test_a_task_gets_its_lines_words_or_nothing(task):
    done = task("a=1 'b=[1, 2]' c=\"d e\"")
    assert (done.returncode, done.stdout) == (0, "<r.yaml><steps=2><a=1><b=[1, 2]><c=d e>")
    done = task("a=1 'b=[1, 2] c=2")  # never with only the words before the quote
    assert (done.returncode, done.stdout) == (2, "")
    assert "variants.txt: line 2" in done.stderr


def test_each_line_of_a_file_is_a_run_of_its_own(tmp_path):
    variants = tmp_path / "variants.txt"
    variants.write_text("seed=1 'controller={kind: constant, initial: 0.02}'\n\nseed=2\nseed=3\n")
    (tmp_path / "line-3").mkdir()
    journal.append(tmp_path / "line-3" / journal.JOURNAL_FILE, [journal.Status(1, "FINISHED")])
    first, last = sweeps.planned(TINY, variants, ["steps=7"], tmp_path)
    assert first[1] == ["steps=7", "seed=1", "controller={kind: constant, initial: 0.02}"]
    assert (first[2].seed, first[2].controller.kind, first[2].steps) == (1, "constant", 7)
    assert [run[2].run_dir for run in (first, last)] == [f"{tmp_path}/line-{n}" for n in (1, 4)]
    assert {run[2].resume for run in (first, last)} == {"auto"}
    # the file was changed since a run of it began
    (tmp_path / "line-4").mkdir()
    (tmp_path / "line-4" / "recipe.yaml").write_text(dump(first[2]))
    with pytest.raises(RecipeError, match=naming("line 4", f"{tmp_path}/line-4", "seed", "--out")):
        sweeps.planned(TINY, variants, ["steps=7"], tmp_path)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("seed=1 'name=x", "line 2"),
        ("run_dir=x", "line 2 run_dir=x"),
        ("cluster.nodes=0", "line 2 cluster.nodes"),
        ("trainer.tensor_parallel=3", "line 2 trainer.tensor_parallel=3"),  # of the model
    ],
)
def test_a_line_that_makes_no_run_is_a_sentence_and_nothing_is_submitted(tmp_path, line, names):
    (tmp_path / "v.txt").write_text(f"seed=1\n{line}\n")
    command = (sys.executable, "-m", "aent", "slurm", "sweep", TINY, "v.txt")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    said = done.stderr.splitlines()[0]
    assert_names(said, "v.txt", *names.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_slurm_takes_a_job_for_each_line_where_engines_have_nodes_of_their_own(cluster, tmp_path):
    """They are held: what runs in such jobs is tested elsewhere."""
    (tmp_path / "v.txt").write_text("seed=1\nseed=2\n")
    groups = ("cluster.engine_nodes=1", "cluster.gpus_per_node=0", "cluster.flags=[--hold]")
    groups += ("cluster.engine_partition=urgent", "cluster.engine_flags=[--comment=mine]")
    command = (sys.executable, "-m", "aent", "slurm", "sweep", TINY, "v.txt", *groups)
    sent = cluster.run(*command, cwd=tmp_path).stdout
    folder = tmp_path / "runs" / "v"
    numbers = re.findall(rf"^job (\d+): {folder}/line-[12].sbatch$", sent, re.MULTILINE)
    try:
        assert len(numbers) == 2, sent
        for number in numbers:
            show = ("squeue", "--noheader", f"--jobs={number}", "--sort=i", "--format=%i %P %k")
            lines = cluster.run(*show).stdout.splitlines()
            assert lines == [f"{number}+0 batch (null)", f"{number}+1 urgent mine"]
        again = cluster.run(*command, cwd=tmp_path).stdout.splitlines()  # submits nothing
        for number, line in zip(numbers, again, strict=True):
            assert_names(line, f"job {number}")
    finally:
        cluster.run("scancel", *numbers)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_sent_again_gets_its_missing_runs_and_no_run_twice(cluster, tmp_path):
    """The arrays are held; the first has lost a task, the file has got a line."""
    held = ("cluster.gpus_per_node=0", "cluster.flags=[--hold]")
    command = (sys.executable, "-m", "aent", "slurm", "sweep", TINY, "v.txt", *held)
    folder, numbers = tmp_path / "runs" / "v", []

    def send(lines: int) -> str:
        (tmp_path / "v.txt").write_text("".join(f"seed={n}\n" for n in range(1, lines + 1)))
        sent = cluster.run(*command, cwd=tmp_path).stdout
        numbers.extend(re.findall(rf"^job (\d+): {folder}/array.sbatch$", sent, re.MULTILINE))
        return sent

    try:
        send(3)
        cluster.run("scancel", f"{numbers[0]}_1")
        said = send(4)
        assert_names(said, f"{folder}/line-1", f"{numbers[0]}_0", f"{folder}/line-3")
        assert len(numbers) == 2, said
        script = cluster.run("scontrol", "write", "batch_script", numbers[1], "-").stdout
        assert re.findall(r"RUN_DIR=(.*/line-\d)", script) == [f"{folder}/line-{n}" for n in (2, 4)]
        # the first array's tasks have the file of the second one by now
        said = send(4)
        assert len(numbers) == 2, said
        assert len(said.splitlines()) == 4
    finally:
        cluster.run("scancel", *numbers)


def test_a_job_that_hangs_while_it_makes_the_run_above_is_told_by_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "LOCK_S", 0.5)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(sweeps.SweepError, match=naming(tmp_path / "lock", "0.5 s")):
            sweeps.parent_run(tmp_path, load(TINY))
