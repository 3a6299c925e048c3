"""Data sets, the policy and traces from the journal into a real SQLite store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from aent.data.question import Question
from aent.models import model_source
from aent.recipe.load import dump, load
from aent.recipe.schema import ModelSection, Recipe
from aent.tracking import datasets, entities
from aent.tracking.address import tracking_uri
from aent.tracking.client import NotTaken
from aent.tracking.entities import EntitySender, entities_left
from aent.tracking.policies import SavedPolicy
from aent.tracking.sender import Sender, everything_sent, sync
from aent.tracking.tracker import Tracker
from tracking.examples import record, traced_step
from wording import assert_names

RECIPE = """
name: trial
model: {bundled: tiny-qwen2}
controller: {initial: 0}
tracking: {system_metrics_every_s: 0, register_as: little-policy}
"""
QUESTIONS = [Question(i, f"{i} + 1 = ?", str(i + 1)) for i in range(5)]


@pytest.fixture
def run_dir(tmp_path, empty_store, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    (tmp_path / "trial").mkdir()
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "trial" / "recipe.yaml").write_text(dump(load(tmp_path / "r.yaml")))
    return tmp_path / "trial"


@pytest.fixture
def recipe(run_dir) -> Recipe:
    return load(run_dir / "recipe.yaml")


def client_of(run_dir: Path) -> tuple[MlflowClient, str]:
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    return MlflowClient(uri), (run_dir / "mlflow_run_id").read_text().strip()


def described(training: list[Question]) -> str:
    parts = {"training": training, "evaluation": QUESTIONS[:2], "nothing": []}
    return json.dumps(datasets.described("chain_sum", "reasoning_gym", {"seed": 0}, parts))


def made_policy(run_dir: Path) -> Path:
    """A folder like a policy's, of a few bytes."""
    folder = run_dir / "policy"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(f'{{"{name}": 1}}')
    return folder


def test_the_digest_is_of_questions_and_answers_in_any_order() -> None:
    digest = datasets.digest(QUESTIONS)
    assert 0 < len(digest) <= 36  # what MLflow takes
    assert datasets.digest(QUESTIONS[::-1]) == digest
    other = [*QUESTIONS[:4], Question(4, "4 + 1 = ?", "6")]
    assert datasets.digest(other) != digest
    assert datasets.digest(QUESTIONS[:4]) != digest


def test_a_run_shows_its_traces_data_sets_and_policy(run_dir, recipe) -> None:
    tracker = Tracker(run_dir, recipe)
    tracker.log_entity("datasets", "datasets/a.json", lambda: described(QUESTIONS))
    for _ in range(2):  # executed again after a resume: the first one stays
        tracker.log_entity("traces", "traces/step_000000.json", traced_step(0).to_json)
    folder = made_policy(run_dir)
    saved = SavedPolicy.of(folder, "trial", 3, "little-policy")
    tracker.log_entity("policy", "policies/step_000003.json", saved.to_json)
    assert tracker.finish("FINISHED", timeout_s=300)
    assert tracker.failures == 0
    for _ in range(2):
        assert everything_sent(run_dir)
        assert_shown_once(run_dir)
        sync(run_dir)  # from the first entry on


def assert_shown_once(run_dir: Path) -> None:
    client, run_id = client_of(run_dir)
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    assert len(client.search_traces(locations=[experiment])) == 2
    assert {
        (i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs
    } == {
        ("chain_sum", datasets.digest(QUESTIONS), "training"),
        ("chain_sum", datasets.digest(QUESTIONS[:2]), "evaluation"),
    }
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.source_run_id, model.status.name) == ("trial-3", run_id, "READY")
    assert [(m.model_id, m.step) for m in run.outputs.model_outputs] == [(model.model_id, 3)]
    assert model.tags["aent.folder"] == str(run_dir / "policy")
    (version,) = client.search_model_versions("name = 'little-policy'")
    assert (version.run_id, version.source) == (run_id, model.artifact_location)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [
        {"name": "little-policy", "version": version.version}
    ]


def test_weights_go_to_mlflow_for_the_registry_alone(run_dir, recipe) -> None:
    folder = made_policy(run_dir)
    record(run_dir, "policy", "policies/a.json", SavedPolicy.of(folder, "trial", 3, None).to_json())
    Sender(run_dir, recipe).send()
    EntitySender(run_dir, recipe).send()
    client, run_id = client_of(run_dir)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    sent = {f.path for f in client.list_logged_model_artifacts(model.model_id, "model")}
    assert sent == {"model/config.json", "model/tokenizer.json"}
    assert client.search_registered_models() == []


def test_a_policy_that_has_made_room_for_a_later_one_is_not_sent_in_its_place(
    run_dir, recipe, capfd
) -> None:
    folder = made_policy(run_dir)
    text = SavedPolicy.of(folder, "trial", 3, None).to_json()
    (folder / "model.safetensors").write_text("another one")
    record(run_dir, "policy", "policies/a.json", text)
    Sender(run_dir, recipe).send()
    EntitySender(run_dir, recipe).send()
    client, run_id = client_of(run_dir)
    assert client.search_logged_models([client.get_run(run_id).info.experiment_id]) == []
    assert_names(capfd.readouterr().err, folder, "3 steps")


def test_an_upload_that_was_cut_short_goes_on_where_it_was(run_dir, recipe, monkeypatch) -> None:
    folder = made_policy(run_dir)
    saved = SavedPolicy.of(folder, "trial", 3, "little-policy")
    record(run_dir, "policy", "policies/a.json", saved.to_json())
    Sender(run_dir, recipe).send()
    sent: list[str] = []
    upload = MlflowClient.log_model_artifact

    def cut(self, model_id, path, place=None):
        if len(sent) == 3:
            sent.append("cut")
            raise ConnectionError("cut")
        upload(self, model_id, path, place)
        sent.append(f"{place}/{Path(path).name}")

    monkeypatch.setattr(MlflowClient, "log_model_artifact", cut)
    with pytest.raises(ConnectionError):
        EntitySender(run_dir, recipe).send()
    EntitySender(run_dir, recipe).send()
    assert len(sent) == len(set(sent)) == 3 + 1 + 3  # and MLmodel
    client, run_id = client_of(run_dir)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert model.status.name == "READY"


@pytest.mark.slow
def test_the_registered_policy_is_loaded_by_mlflow_itself(run_dir, recipe, monkeypatch) -> None:
    import mlflow
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_source.resolve(ModelSection(bundled="tiny-qwen2"))
    (run_dir / "policy").symlink_to(folder)
    saved = SavedPolicy.of(run_dir / "policy", "trial", 3, "little-policy")
    record(run_dir, "policy", "policies/a.json", saved.to_json())
    Sender(run_dir, recipe).send()
    EntitySender(run_dir, recipe).send()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(recipe, run_dir))
    pipeline = mlflow.transformers.load_model("models:/little-policy/1")
    ids = pipeline.tokenizer("1 + 1 =", return_tensors="pt")["input_ids"]
    expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert torch.equal(pipeline.model.to("cpu")(ids).logits, expected)


def test_what_a_server_has_no_place_for_is_one_sentence_and_no_failure(
    run_dir, recipe, monkeypatch, capfd
) -> None:
    def refuse(store: object, content: object) -> None:
        raise NotTaken("it is MLflow 2.9.2, and takes spans from 3.4 on")

    from aent.tracking import mlflow_traces

    monkeypatch.setattr(mlflow_traces, "send", refuse)
    tracker = Tracker(run_dir, recipe)
    for step in range(3):
        name = f"traces/step_{step:06d}.json"
        tracker.log_entity("traces", name, traced_step(step).to_json)
    tracker.log_entity("datasets", "datasets/a.json", lambda: described(QUESTIONS))
    assert tracker.finish("FINISHED", timeout_s=300)
    assert tracker.failures == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert_names(line, "traces", "2.9.2", "3.4", run_dir)
    client, run_id = client_of(run_dir)
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 2


@pytest.mark.parametrize("entity", ["traces", "datasets", "policy"])
def test_a_damaged_file_is_named_and_costs_itself_only(run_dir, recipe, capfd, entity) -> None:
    record(run_dir, entity, "traces/a.json", "")
    record(run_dir, "traces", "traces/b.json", traced_step(1).to_json())
    Sender(run_dir, recipe).send()
    sender = EntitySender(run_dir, recipe)
    assert sender.patience() == 0
    sender.send()
    assert_names(capfd.readouterr().err, run_dir / "traces/a.json")
    client, run_id = client_of(run_dir)
    assert len(client.search_traces(locations=[client.get_run(run_id).info.experiment_id])) == 2


def test_how_long_the_end_waits_grows_with_what_is_to_be_uploaded(run_dir, recipe) -> None:
    folder = made_policy(run_dir)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(3_000_000_000)  # a hole
    sender = EntitySender(run_dir, recipe)
    for name, register_as in (("policies/a.json", None), ("policies/b.json", "x")):
        saved = SavedPolicy.of(folder, "trial", 3, register_as)
        record(run_dir, "policy", name, saved.to_json())
        expected = 0 if register_as is None else 300
        assert sender.patience() == pytest.approx(expected, abs=0.01)
    assert entities_left(run_dir) == 2
    assert entities.ENTITY_S == 300
