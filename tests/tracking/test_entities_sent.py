"""To a real MLflow server: killed senders, servers that hang, and what a person sees of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from html import unescape
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aent.data.question import Question
from aent.recipe.load import dump, load
from aent.tracking import datasets, entities
from aent.tracking.policies import SavedPolicy
from aent.tracking.sender import everything_sent, sync
from aent.tracking.tracker import Tracker
from tracking.examples import PROMPT, RESPONSE, recipe_in, record, traced_step
from waiting import PATIENCE_S, wait_until
from wording import assert_names

pytestmark = pytest.mark.slow

QUESTIONS = {"training": [Question(0, "1 + 1 = ?", "2")]}


@pytest.fixture
def run_dir(tmp_path, server, monkeypatch) -> Path:
    """A run with something of everything in its journal; MLflow's server is there."""
    if not server.answers():
        server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = tmp_path / "trial"
    (folder / "policy").mkdir(parents=True)
    recipe = recipe_in(tmp_path, f"tracking.register_as={tmp_path.name}")
    (folder / "recipe.yaml").write_text(dump(recipe))
    (folder / "policy" / "model.safetensors").write_text("weights")
    return folder


def contents(run_dir: Path) -> list[tuple[str, str, str]]:
    """(kind, file, text) of what the run records."""
    described = datasets.described("sums", "reasoning_gym", {}, QUESTIONS)
    policy = SavedPolicy.of(run_dir / "policy", "trial", 1, run_dir.parent.name)
    return [
        ("datasets", "datasets/a.json", json.dumps(described)),
        ("traces", "traces/step_000000.json", traced_step(0).to_json()),
        ("policy", "policies/step_000001.json", policy.to_json()),
    ]


def send(run_dir: Path, environment: dict[str, str]) -> None:
    """A sender, which dies when it is killed."""
    os.environ.update(environment)
    sync(run_dir)


def test_a_sender_that_is_killed_before_it_hears_an_answer_leaves_nothing_twice(
    run_dir, server, before
) -> None:
    for entity, name, text in contents(run_dir):
        record(run_dir, entity, name, text)
    # each sender is a fork of one process, which has imported MLflow and has no thread
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "tracking.test_entities_sent"])
    killed_after = (
        "runs/create", "runs/log-inputs", "/v1/traces", "3.0/mlflow/traces", "3.0/mlflow/traces",
        "logged-models", "model-versions/create",
    )  # fmt: skip
    for path in killed_after:
        process = context.Process(target=send, args=(run_dir, dict(os.environ)))
        hits: list[str] = []

        def kill(method: str, asked: str) -> None:
            if method == "POST" and asked.endswith(path):  # noqa: B023
                hits.append(asked)  # noqa: B023
                os.kill(process.pid, signal.SIGKILL)  # noqa: B023
                # not join(): the exit code can be read once, and that is done below
                wait([process.sentinel], PATIENCE_S)  # noqa: B023

        before.taken = kill
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL, path
        assert len(hits) == 1
        assert not everything_sent(run_dir)
    before.taken = lambda method, path: None
    sync(run_dir)
    assert everything_sent(run_dir)

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(run_dir.parent.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    traces = client.search_traces(locations=[experiment.experiment_id])
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces} == {run.info.run_id}
    assert [(len(t.data.spans), len(t.info.assessments)) for t in traces] == [(4, 4)] * 2
    assert len(run.inputs.dataset_inputs) == 1
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert len(client.search_model_versions(f"name = '{run_dir.parent.name}'")) == 1


@pytest.mark.parametrize("hanging", ["/v1/traces", "mlflow-artifacts"])
def test_neither_traces_nor_files_wait_for_the_other_nor_points_for_either(
    run_dir, server, before, hanging, monkeypatch, capfd
) -> None:
    before.hanging = hanging
    before.free.clear()
    monkeypatch.setattr(entities, "ENTITY_S", 2.0)
    tracker = Tracker(run_dir, load(run_dir / "recipe.yaml"))
    tracker.log(0, {"loss": 1.0})
    tracker.log_samples(0, [{"response": "of step 0", "reward": 0.5}])
    for entity, name, text in contents(run_dir)[:2]:
        tracker.log_entity(entity, name, lambda text=text: text)
    client = MlflowClient(server.uri)

    def run_id() -> str:
        return (run_dir / "mlflow_run_id").read_text().strip()

    def arrived() -> bool:
        experiment = client.get_run(run_id()).info.experiment_id
        if hanging == "/v1/traces":
            return len(client.list_artifacts(run_id(), "samples")) == 1
        return len(client.search_traces(locations=[experiment])) == 2

    wait_until((run_dir / "mlflow_run_id").exists, "the run exists")
    wait_until(arrived, "what does not hang has arrived")
    if hanging == "/v1/traces":
        wait_until(lambda: tracker.failures > 0, "the traces have reached their deadline")
        assert_names(capfd.readouterr().err, "TimeoutError", "traces/step_000000.json")
    assert not tracker.finish("FINISHED", timeout_s=10)
    assert_names(capfd.readouterr().err, f"aent mlflow-sync {run_dir}")
    assert client.get_run(run_id()).info.status == "FINISHED"
    assert len(client.get_metric_history(run_id(), "loss")) == 1
    before.free.set()
    wait_until(lambda: everything_sent(run_dir), "all of it has arrived")


def test_the_browser_shows_a_response_its_rewards_and_its_grading(run_dir, server, browse) -> None:
    for entity, name, text in contents(run_dir)[:2]:
        record(run_dir, entity, name, text)
    sync(run_dir)
    client = MlflowClient(server.uri)
    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    experiment = client.get_run(run_id).info.experiment_id
    page = f"{server.uri}/#/experiments/{experiment}/runs/{run_id}/traces"

    def seen(address: str) -> str:
        """The text of the page when it has come to rest; virtual time stands while it loads."""
        dom = browse(address, "--window-size=2400,1200", "--virtual-time-budget=60000",
                     "--dump-dom")  # fmt: skip
        return unescape(re.sub(r"<(style|script).*?</\1>|<[^>]*>", "\n", dom, flags=re.S))

    table = seen(page)  # MLflow shows the first four assessments until it is asked for more
    for text in (PROMPT, RESPONSE, "reward", "right", "form", "form.short", "1.375", "Error"):
        assert text in table, text
    traces = client.search_traces(locations=[experiment])
    id_ = next(t.info.trace_id for t in traces if t.info.trace_metadata["aent.sample"] == "0")
    trace = seen(f"{page}?selectedEvaluationId={id_}")
    for text in ("grader/right", "grader/form", "17 tokens", "It is "):
        assert text in trace, text
    overview = seen(f"{server.uri}/#/experiments/{experiment}/runs/{run_id}")
    assert f"sums ({datasets.digest(QUESTIONS['training'])})" in overview
