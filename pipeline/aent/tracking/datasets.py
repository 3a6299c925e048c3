"""The questions of a run as MLflow's data sets: where they are from, how many, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from aent.data.question import Question
from aent.tracking.client import NotTaken, is_unknown_route
from aent.tracking.store import Store

DIGEST_LENGTH, NAME_LENGTH = 32, 500  # MLflow's limits: 36 and 500
CONTEXT_TAG = "mlflow.data.context"  # what a run uses the data set for
COLUMNS = [{"name": name, "type": "string", "required": True} for name in ("prompt", "answer")]


def described(
    name: str,
    source_type: str,
    source: Mapping[str, Any],
    questions: Mapping[str, Sequence[Question]],
) -> list[dict[str, str]]:
    """What MLflow shall have of the task's questions, those in use.

    questions: by context, "training" and "evaluation"; a context without any is left out.
    """
    return [
        {
            "context": context,
            "name": name[-NAME_LENGTH:],
            "digest": digest(each),
            "source_type": source_type,
            "source": json.dumps(source),
            "schema": json.dumps({"mlflow_colspec": COLUMNS}),
            "profile": json.dumps({"num_rows": len(each)}),
        }
        for context, each in questions.items()
        if each
    ]


def digest(questions: Sequence[Question]) -> str:
    """The same for the same questions with the same answers, in whatever order; else another."""
    lines = sorted(json.dumps([q.system, *q.earlier, q.prompt, q.answer]) for q in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]


def send(store: Store, described: Sequence[Mapping[str, str]]) -> None:
    """Make the data sets inputs of the run; the same twice is as once.

    Raises NotTaken where the server has no such thing, and what MLflow raises.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = []
    for each in described:
        fields = {key: value for key, value in each.items() if key != "context"}
        inputs.append(DatasetInput(Dataset(**fields), [InputTag(CONTEXT_TAG, each["context"])]))
    try:
        store.client.log_inputs(store.run_id, inputs)
    except MlflowException as error:
        if is_unknown_route(error):
            raise NotTaken("it has no data sets of runs") from error
        raise
