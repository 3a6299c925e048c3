"""The trained policy as MLflow's logged model; with its weights where the registry shall have it.

What MLflow has of a model can be many gigabytes, and those lie in the run's folder already: without
``tracking.register_as`` MLflow gets the small files and where the weights are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent.tracking.client import NotTaken, is_unknown_route
from aent.tracking.store import Store

FOLDER_TAG, KEY_TAG = "aent.folder", "aent.policy_key"
VERSIONS_TAG = "mlflow.modelVersions"
WEIGHTS = ".safetensors"
BYTES_PER_S = 10e6  # an upload that is slower than this has come to a halt


@dataclass(frozen=True)
class SavedPolicy:
    """A policy in a folder, after so many steps of its run."""

    name: str  # the run's
    folder: str  # within the run's folder
    steps: int
    files: dict[str, int]  # bytes, by name
    register_as: str | None  # name in MLflow's registry

    @staticmethod
    def of(folder: Path, name: str, steps: int, register_as: str | None) -> SavedPolicy:
        """The one in this folder of the run's folder."""
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        return SavedPolicy(name, folder.name, steps, files, register_as)

    @property
    def sent(self) -> dict[str, int]:
        """The files that MLflow shall have."""
        whole = self.register_as is not None
        return {k: v for k, v in self.files.items() if whole or not k.endswith(WEIGHTS)}

    @property
    def seconds(self) -> float:
        """How long its bytes may take."""
        return sum(self.sent.values()) / BYTES_PER_S

    def to_json(self) -> str:
        """JSON that ``from_json`` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> SavedPolicy:
        """What ``to_json`` has made. Raises ValueError or TypeError for another text."""
        return SavedPolicy(**json.loads(text))

    def is_there(self, run_dir: Path) -> bool:
        """Whether the folder has still these files."""
        paths = {name: run_dir / self.folder / name for name in self.files}
        return all(p.is_file() and p.stat().st_size == self.files[n] for n, p in paths.items())


def send(store: Store, run_dir: Path, policy: SavedPolicy) -> None:
    """Make the logged model, or go on with the one that an earlier attempt has begun.

    Raises NotTaken where the server has no such thing, and what MLflow raises.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = _model(store, run_dir, policy)
    except MlflowException as error:
        if is_unknown_route(error):
            raise NotTaken("it has no logged models") from error
        raise
    if model.status.name != "READY":
        _upload(store, model.model_id, run_dir / policy.folder, policy)
        store.client.finalize_logged_model(model.model_id, "READY")
    _link(store, model.model_id, policy.steps)
    if policy.register_as is not None:
        _register(store, model, policy.register_as)


def _model(store: Store, run_dir: Path, policy: SavedPolicy) -> Any:
    """The logged model of this run and step: an earlier attempt whose answer never came is found
    again."""
    experiment = store.client.get_run(store.run_id).info.experiment_id
    key = f"{store.run_id}/{policy.steps}"
    found = store.client.search_logged_models([experiment], f"tags.`{KEY_TAG}` = '{key}'")
    if found:
        return min(found, key=lambda model: model.creation_timestamp)
    return store.client.create_logged_model(
        experiment,
        f"{policy.name}-{policy.steps}",
        store.run_id,
        tags={KEY_TAG: key, FOLDER_TAG: str((run_dir / policy.folder).absolute())},
        params={"steps": str(policy.steps), "bytes": str(sum(policy.files.values()))},
        model_type="policy",
    )


def _upload(store: Store, model_id: str, folder: Path, policy: SavedPolicy) -> None:
    """The files that MLflow does not have in their size yet."""
    for path, size, place in _files(folder, policy):
        there = store.client.list_logged_model_artifacts(model_id, place)
        if (f"{place}/{path.name}", size) not in {(file.path, file.file_size) for file in there}:
            store.client.log_model_artifact(model_id, str(path), place)
    if policy.register_as is not None:
        with tempfile.TemporaryDirectory() as made:
            (Path(made) / "MLmodel").write_text(_description(store.run_id, model_id))
            store.client.log_model_artifact(model_id, str(Path(made) / "MLmodel"))


def _files(folder: Path, policy: SavedPolicy) -> Iterator[tuple[Path, int, str]]:
    """(file, bytes, folder among the model's artifacts) as ``mlflow.transformers`` has them: the
    tokenizer lies apart."""
    for name, size in policy.sent.items():
        yield folder / name, size, "model"
        if not name.endswith(WEIGHTS):
            yield folder / name, size, "components/tokenizer"


def _description(run_id: str, model_id: str) -> str:
    """The file with which ``mlflow.transformers.load_model`` loads what lies beside it."""
    from mlflow.models import Model

    model = Model(run_id=run_id, model_id=model_id)
    model.add_flavor(
        "transformers",
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
    )
    return model.to_yaml()


def _link(store: Store, model_id: str, steps: int) -> None:
    """Show the model among what the run has made."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(store.run_id).outputs
    if model_id not in {output.model_id for output in outputs.model_outputs}:
        store.client.log_outputs(store.run_id, [LoggedModelOutput(model_id, steps)])


def _register(store: Store, model: Any, name: str) -> None:
    """A version of the registered model ``name``, unless this model is one already."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    query = f"name = '{name}' and run_id = '{store.run_id}'"
    versions = store.client.search_model_versions(query)
    if model.artifact_location not in {version.source for version in versions}:
        store.client.create_model_version(
            name, model.artifact_location, store.run_id, model_id=model.model_id
        )
        versions = store.client.search_model_versions(query)
    # a server writes this tag, by which the model's page names its versions; a SQL store does not
    shown = [
        {"name": name, "version": version.version}
        for version in versions
        if version.source == model.artifact_location
    ]
    store.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(shown)})
