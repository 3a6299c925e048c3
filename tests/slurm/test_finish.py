"""The report of a job's last step, and the run that it closes."""

import json

import pytest

from aent.recipe.load import dump, load
from aent.runtime import failures
from aent.slurm import finish
from aent.tracking import journal


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """The folder of a run that job 7 started, and of whose ranks one failed."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    recipe = load("recipes/cpu/tiny.yaml", [f"run_dir={tmp_path}"])
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    (tmp_path / "starts.jsonl").write_text(json.dumps({"job": "7", "checkpoint": None}) + "\n")
    with pytest.raises(OSError, match="disk full"), failures.recorded(tmp_path, 2):
        raise OSError("disk full")
    return tmp_path


def closed(run_dir):
    path = run_dir / journal.JOURNAL_FILE
    return journal.last_status(path) if path.exists() else None


def test_a_rank_that_failed_while_the_job_was_asked_to_end_is_told_and_the_run_goes_on(
    run_dir, capsys
):
    finish.main(run_dir, "RUNNING", ranks_began=True)
    assert capsys.readouterr().err.endswith("OSError: disk full\n")
    assert closed(run_dir) is None


def test_a_failed_start_closes_the_run_and_leaves_the_words_to_the_step_that_failed(
    run_dir, capfd, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run_dir}/mlflow.db")
    finish.main(run_dir, "FAILED", ranks_began=False)
    assert capfd.readouterr().err == ""
    assert closed(run_dir) == "FAILED"


def test_a_job_that_was_refused_in_a_folder_does_not_close_the_run_of_another(run_dir, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    finish.main(run_dir, "FAILED", ranks_began=False)
    assert closed(run_dir) is None


def test_the_reason_is_told_before_slurm_kills_a_cancelled_job(run_dir, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(finish, "mark_ended", lambda *given: waited.append(given))
    for status in ("KILLED", "FAILED"):
        finish.main(run_dir, status, ranks_began=True)
        assert capsys.readouterr().err.endswith("OSError: disk full\n")
    (_, _, killed_s), (_, _, failed_s) = waited
    assert killed_s < 30 < failed_s
