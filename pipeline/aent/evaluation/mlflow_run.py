"""Logs an evaluation to MLflow as a run below its training run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aent.evaluation.suite import Summary
from aent.recipe.load import load_recorded
from aent.recipe.redact import redacted
from aent.runtime.files import write_whole
from aent.tracking import journal
from aent.tracking.address import tracking_uri
from aent.tracking.store import RUN_ID_FILE, known_run_id, open_client


def is_run(folder: Path) -> bool:
    """Whether this is a run's folder."""
    return (folder / "recipe.yaml").is_file()


def log(run_dir: Path, summary: Summary, folder: Path) -> int:
    """Log the evaluation in ``folder``, only once even if called again; return an exit code.

    A failure is one sentence on stderr; the answers are on disk, and the same command retries.
    """
    try:
        _log(run_dir, summary, folder)
    except Exception as error:  # anything that MLflow and its store raise
        print(
            f"aent eval: MLflow did not take the result ({type(error).__name__}: "
            f"{redacted(str(error))}); the same command retries without sampling again",
            file=sys.stderr,
        )
        return 1
    return 0


def _log(run_dir: Path, summary: Summary, folder: Path) -> None:
    from mlflow.entities import Metric, Param

    parent = known_run_id(run_dir)
    if not parent:
        raise FileNotFoundError(f"{run_dir} has no {RUN_ID_FILE}: aent mlflow-sync {run_dir}")
    client = open_client(tracking_uri(load_recorded(run_dir / "recipe.yaml"), run_dir))
    if not known_run_id(folder):
        experiment = client.get_run(parent).info.experiment_id
        tags = {"mlflow.parentRunId": parent, "mlflow.source.name": "aent eval"}
        run = client.create_run(experiment, run_name=f"eval {summary.suite}", tags=tags)
        write_whole(folder / RUN_ID_FILE, run.info.run_id + "\n")
    run_id = known_run_id(folder)
    if client.get_run(run_id).info.status == "FINISHED":
        return
    settings = json.loads((folder / "settings.json").read_text())
    params = [Param(k, str(v)[:500]) for k, v in settings.items()]
    metrics = [Metric(k, v, journal.now(), 0) for k, v in summary.metrics().items()]
    client.log_batch(run_id, metrics=metrics, params=params)
    for name in ("answers.jsonl", "summary.json", "settings.json"):
        client.log_artifact(run_id, str(folder / name))
    client.set_terminated(run_id, "FINISHED")
