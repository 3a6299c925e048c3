"""The questions of a run as MLflow data sets: their source, number and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from aent.data.question import Question
from aent.tracking.client import NotTaken, is_unknown_route
from aent.tracking.refused import deliver
from aent.tracking.store import Store

DIGEST_LENGTH, NAME_LENGTH = 32, 500  # MLflow's limits: 36 and 500
CONTEXT_TAG = "mlflow.data.context"  # the run's use of the data set
COLUMNS = [{"name": name, "type": "string", "required": True} for name in ("prompt", "answer")]


def described(
    name: str,
    source_type: str,
    source: Mapping[str, Any],
    questions: Mapping[str, Sequence[Question]],
) -> list[dict[str, str]]:
    """The data sets of the questions that the task uses.

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
    """Equal for the same questions with the same answers in any order, else different."""
    lines = sorted(json.dumps([q.system, *q.earlier, q.prompt, q.answer]) for q in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]


def send(store: Store, described: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Make the data sets inputs of the run; repeating it changes nothing. Returns those that the
    server refuses, each with its answer.

    Raises NotTaken if the server does not support them, and what MLflow raises.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = []
    for each in described:
        fields = {key: value for key, value in each.items() if key != "context"}
        inputs.append(DatasetInput(Dataset(**fields), [InputTag(CONTEXT_TAG, each["context"])]))
    try:
        refused = deliver(
            inputs, lambda some: store.client.log_inputs(store.run_id, some), store.prove_writable
        )
    except MlflowException as error:
        if is_unknown_route(error):
            raise NotTaken("it does not support data sets of runs") from error
        raise
    return [(f"the data set {each.dataset.name}", why) for each, why in refused]
