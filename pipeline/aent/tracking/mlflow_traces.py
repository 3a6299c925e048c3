"""Responses as MLflow traces, under ids of our own, so that sending twice creates no duplicates.

MLflow's public functions choose ids themselves. The client below them accepts a trace with given
ids of its spans and assessments and merges it with an existing one: both its REST client
(``/v1/traces``, then ``/api/3.0/mlflow/traces``) and its SQL store do.
tests/tracking/test_mlflow_traces.py tests this module with the installed MLflow. Imported late,
because importing MLflow takes seconds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow.entities import AssessmentSource, Feedback, Span, SpanType, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import (
    AssessmentMetadataKey,
    SpanAttributeKey,
    TraceMetadataKey,
    TraceTagKey,
)
from mlflow.tracing.utils.otlp import OTLP_TRACES_PATH
from mlflow.utils.rest_utils import http_request
from packaging.version import InvalidVersion, Version

from aent.tracking.client import NotTaken, is_unknown_route
from aent.tracking.refused import deliver
from aent.tracking.store import Store
from aent.tracking.traced import Traced, TracedGrade, TracedStep

SINCE = Version("3.4")  # a server takes spans from this version on
ERROR_LENGTH = 500  # characters of a grader's error


def send(store: Store, step: TracedStep) -> list[tuple[str, str]]:
    """Write the step's traces to the run's experiment; existing ones stay as they are. Returns
    those that the server refuses, each with its answer.

    Raises NotTaken if the server does not support traces, and what MLflow raises.
    """
    client = TracingClient(store.uri)
    experiment = store.client.get_run(store.run_id).info.experiment_id
    refused = deliver(
        step.responses,
        lambda some: _send(client, experiment, store.run_id, step, some),
        store.prove_writable,
    )
    return [(f"the trace of sample {traced.sample}", why) for traced, why in refused]


def _send(
    client: TracingClient, experiment: str, run_id: str, step: TracedStep, some: Sequence[Traced]
) -> None:
    ids = [trace_id(run_id, step.step, traced.sample) for traced in some]
    spans = [s for id_, t in zip(ids, some) for s in _spans(id_, t, step)]
    try:
        client.log_spans(experiment, spans)
    except NotImplementedError as error:
        raise _refusal(client, str(error)) from error
    except MlflowException as error:
        if is_unknown_route(error):
            raise NotTaken(f"it has no route {OTLP_TRACES_PATH}") from error
        raise
    for id_, traced in zip(ids, some):
        client.start_trace(_info(id_, traced, step, experiment, run_id))


def trace_id(run_id: str, step: int, sample: int) -> str:
    """MLflow's id of the trace, unique for this run, step and sample."""
    return "tr-" + _hash(32, run_id, step, sample)


def _hash(digits: int, *parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:digits]


def _spans(id_: str, traced: Traced, step: TracedStep) -> Iterator[Span]:
    """The response's span, and one span per grading below it.

    A grading's span lasts as long as the grader took. When the response was sampled and graded is
    not recorded, so the gradings follow one another and end when the step was recorded.
    """
    end = step.time * 1_000_000
    at = start = end - sum(_nanoseconds(grade) for grade in traced.grades)
    root = _hash(16, id_, "response")
    prompt, response = _stored(traced.prompt), _stored(traced.response)
    attributes = {
        SpanAttributeKey.SPAN_TYPE: SpanType.LLM,
        SpanAttributeKey.INPUTS: {"messages": [{"role": "user", "content": prompt}]},
        SpanAttributeKey.OUTPUTS: {
            "choices": [{"message": {"role": "assistant", "content": response}}]
        },
        "step": step.step,
        "sample": traced.sample,
        "group": traced.group,
        "item": traced.item,
        "weight_version": traced.version,
        "first_weight_version": traced.first_version,
        "entropy": traced.entropy,
        "logprob": traced.logprob,
        "length": traced.tokens,
        "finish_reason": traced.finish_reason,
        "reward": traced.reward,
        SpanAttributeKey.CHAT_USAGE: {
            "input_tokens": traced.prompt_tokens,
            "output_tokens": traced.tokens,
            "total_tokens": traced.prompt_tokens + traced.tokens,
        },
    }
    yield _span(id_, root, None, "response", (start, end), attributes)
    for grade in traced.grades:
        attributes = {
            SpanAttributeKey.SPAN_TYPE: SpanType.EVALUATOR,
            SpanAttributeKey.INPUTS: {"response": response},
            SpanAttributeKey.OUTPUTS: {"reward": grade.reward, **grade.parts},
            "kind": grade.kind,
            "weight": grade.weight,
        }
        name, until = f"grader/{grade.name}", at + _nanoseconds(grade)
        error = grade.error[:ERROR_LENGTH]
        yield _span(id_, _hash(16, id_, name), root, name, (at, until), attributes, error)
        at = until


def _stored(text: str) -> str:
    """PostgreSQL has no text with a NUL, and MLflow stores the beginning of a response as such."""
    return text.replace("\0", "\N{SYMBOL FOR NULL}")


def _nanoseconds(grade: TracedGrade) -> int:
    return int(grade.seconds * 1e9)


def _span(
    id_: str, own: str, parent: str | None, name: str, times: tuple[int, int],
    attributes: Mapping[str, Any], error: str = "",
) -> Span:  # fmt: skip
    """A span of the trace ``id_``. own, parent: 16 hexadecimal digits. times: ns since 1970."""
    given = {SpanAttributeKey.REQUEST_ID: id_, **attributes}
    return Span.from_dict(
        {
            "trace_id": _base64(id_.removeprefix("tr-")),
            "span_id": _base64(own),
            "parent_span_id": _base64(parent or ""),
            "name": name,
            "start_time_unix_nano": times[0],
            "end_time_unix_nano": times[1],
            "events": [],
            "status": {
                "code": "STATUS_CODE_ERROR" if error else "STATUS_CODE_OK",
                "message": error,
            },
            "attributes": {k: json.dumps(v) for k, v in given.items() if v is not None},
        }
    )


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def _info(id_: str, traced: Traced, step: TracedStep, experiment: str, run_id: str) -> TraceInfo:
    seconds = sum(grade.seconds for grade in traced.grades)
    return TraceInfo(
        trace_id=id_,
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=step.time - int(1000 * seconds),
        execution_duration=int(1000 * seconds),
        state=TraceState.ERROR if any(g.error for g in traced.grades) else TraceState.OK,
        trace_metadata={
            TraceMetadataKey.SOURCE_RUN: run_id,
            "aent.step": str(step.step),
            "aent.sample": str(traced.sample),
            "aent.group": str(traced.group),
            "aent.item": str(traced.item),
            "aent.weight_version": str(traced.version),
        },
        tags={TraceTagKey.TRACE_NAME: f"step {step.step}, sample {traced.sample}"},
        assessments=list(_assessments(id_, traced, step, run_id)),
    )


def _assessments(id_: str, traced: Traced, step: TracedStep, run_id: str) -> Iterator[Feedback]:
    """The reward, each grader's reward, and each of its parts, if they are numbers.

    MLflow's page shows only what follows the last slash of a name, so these have no slash.
    """

    def feedback(
        key: str, name: str, value: float | None, span: str, source: AssessmentSource,
        error: str = "",
    ) -> Feedback:  # fmt: skip
        found = Feedback(
            name=name,
            value=value,
            error=error[:ERROR_LENGTH] or None,
            source=source,
            trace_id=id_,
            span_id=_hash(16, id_, span),
            create_time_ms=step.time,
            last_update_time_ms=step.time,
            metadata={AssessmentMetadataKey.SOURCE_RUN_ID: run_id},
        )
        found.assessment_id = "a-" + _hash(32, id_, key)
        return found

    total = AssessmentSource(source_type="CODE", source_id="task.graders")
    if traced.reward is not None:
        yield feedback("reward", "reward", traced.reward, "response", total)
    for grade in traced.grades:
        key = f"grader/{grade.name}"
        kind = "LLM_JUDGE" if grade.kind == "judge" else "CODE"
        source = AssessmentSource(source_type=kind, source_id=grade.name)
        if grade.error or grade.reward is not None:
            yield feedback(key, grade.name, grade.reward, key, source, grade.error)
        for part, value in grade.parts.items():
            if value is not None:
                name = f"{grade.name}.{part}"
                yield feedback(f"{key}/part/{part}", name, value, key, source)


def _refusal(client: TracingClient, said: str) -> Exception:
    """Why MLflow's client would not send spans: the server is too old, or did not report its
    version in time, which the client would never ask for again.

    Raises what MLflow raises if the server does not answer.
    """
    store = client.store
    if not isinstance(store, RestStore):
        return NotTaken(said)
    RestStore._get_server_version.cache_clear()
    answer = http_request(store.get_host_creds(), "/version", "GET", raise_on_status=False)
    if answer.status_code == 429 or answer.status_code >= 500:
        return RuntimeError(f"it answers {answer.status_code} when asked for its version")
    try:
        version = Version(answer.text)
    except InvalidVersion:
        return NotTaken(f"it does not report its version (answer {answer.status_code})")
    if version < SINCE:
        return NotTaken(f"it is MLflow {version}, and takes spans from {SINCE} on")
    return RuntimeError("it did not report its version in time")
