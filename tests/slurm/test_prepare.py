"""Starts of a job: how many without progress, and whether anything is left to do."""

import errno
import fcntl
import os

import pytest

from aent.checkpoint.folders import CheckpointError
from aent.launch import starts
from aent.recipe.load import load
from aent.slurm.prepare import BusyError, count_start, finished, main, only_job
from wording import assert_names, naming


def start(run_dir, checkpoint, most=2):
    """One start of the job from this checkpoint."""
    starts.note(run_dir, os.environ["SLURM_JOB_ID"], checkpoint)
    count_start(run_dir, most)


def test_a_job_is_given_up_after_starts_in_a_row_without_a_new_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for checkpoint in (None, "step_000000", "step_000000", "step_000000", "step_000005"):
        start(tmp_path, checkpoint)  # at most two requeues in a row without progress
    start(tmp_path, "step_000005")
    start(tmp_path, "step_000005")
    with pytest.raises(CheckpointError, match=naming(3, "MAX_REQUEUES=2")):
        start(tmp_path, "step_000005")
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # a person has submitted it again
    start(tmp_path, "step_000005")


@pytest.mark.parametrize("name", ["it's", "1e3", "ä\U0001f600"])
def test_a_run_folder_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for folder in ("policy", "checkpoints/step_000004"):  # a finished run, in which nothing is made
        (tmp_path / name / folder).mkdir(parents=True)
    (tmp_path / name / "recipe.yaml").touch()
    assert main([name, "--nodes=1", "--gpus-per-node=0", "recipes/cpu/tiny.yaml"]) == 0
    assert (tmp_path / name / "job.env").read_text() == "FINISHED=1\n"


def test_a_folder_is_for_one_job_at_a_time(tmp_path, capfd, monkeypatch):
    starts.note(tmp_path, "7", None)
    (tmp_path / "recipe.yaml").touch()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    job = [str(tmp_path), "--nodes=1", "--gpus-per-node=0", "--alive=7 8", "recipes/cpu/tiny.yaml"]
    assert main(job) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert_names(said, tmp_path, "job 7")
    assert not (tmp_path / "job.env").exists()
    with only_job(tmp_path, ["8"]):  # job 7 is over, however it ended
        starts.note(tmp_path, "8", None)
    with only_job(tmp_path, ["8", "9"]):  # a requeued job is the same one
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(BusyError, match=naming("job 8")), only_job(tmp_path, ["7", "8"]):
        pass


@pytest.mark.parametrize(
    ("cpus", "names"),
    [
        (["--cpus=3", "--engine-cpus=1"], "4 rank 3 --cpus-per-task=4"),
        (["--cpus=4", "--engine-cpus=1", "rollout.engines=2"], "2 engine 1 --cpus-per-task=2"),
    ],
)
def test_fewer_cpus_than_tasks_are_a_sentence(tmp_path, capfd, monkeypatch, cpus, names):
    """Slurm takes no step whose tasks have no CPU."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = [str(tmp_path / "run"), "--nodes=1", "--gpus-per-node=0", *cpus[:2]]
    assert main([*job, "recipes/cpu/tiny.yaml", *cpus[2:]]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert_names(said, *names.split())
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_told_and_costs_no_job(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_job(tmp_path / "run", []):
        assert not (tmp_path / "run").exists()
    assert_names(capsys.readouterr().err, tmp_path / ".run.lock", os.strerror(errno.ENOLCK))


def test_a_run_is_finished_when_its_policy_is_there_and_no_step_is_missing(tmp_path):
    recipe = load("recipes/cpu/tiny.yaml", [f"run_dir={tmp_path}", "steps=4"])
    assert not finished(recipe)
    (tmp_path / "checkpoints" / "step_000004").mkdir(parents=True)
    assert not finished(recipe)
    (tmp_path / "policy").mkdir()
    assert finished(recipe)
    assert not finished(load("recipes/cpu/tiny.yaml", [f"run_dir={tmp_path}", "steps=8"]))


@pytest.mark.parametrize("torn", [b'{"job": "7', b"\0" * 30 + b"\n", b"[1]\n\xff\n"])
def test_a_torn_line_among_the_starts_is_none(tmp_path, torn):
    starts.note(tmp_path, "7", None)
    with (tmp_path / starts.STARTS_FILE).open("ab") as file:
        file.write(torn)
    assert [s["job"] for s in starts.noted(tmp_path)] == ["7"]
    starts.note(tmp_path, "8", "step_000010")
    assert [s["job"] for s in starts.noted(tmp_path)] == ["7", "8"]
    assert starts.noted(tmp_path / "none") == []


def test_what_cannot_be_written_is_one_sentence(tmp_path, capfd):
    job = ["--nodes=1", "--gpus-per-node=0", "recipes/cpu/tiny.yaml"]
    run_dir = tmp_path / "run"
    for folder in ("policy", "checkpoints/step_999999", "job.env"):  # a folder of the file's name
        (run_dir / folder).mkdir(parents=True)
    (run_dir / "recipe.yaml").touch()
    assert main([str(run_dir), *job]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(run_dir / "job.env") in said[0]
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "new"), f"--sweep={tmp_path / 'file' / 'sweep'}", *job]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(tmp_path / "file" / "sweep") in said[0]
    assert not (tmp_path / "new").exists()
