"""The trained policy as an MLflow logged model, with its weights if it is to be registered.

The weights can be many gigabytes and are already in the run's folder. So without
``tracking.register_as`` MLflow gets the small files, and a tag that says where the weights are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aent.tracking.client import NotTaken, is_unknown_route
from aent.tracking.refused import deliver
from aent.tracking.store import Store

FOLDER_TAG, KEY_TAG = "aent.folder", "aent.policy_key"
VERSIONS_TAG = "mlflow.modelVersions"
WEIGHTS = ".safetensors"
BYTES_PER_S = 10e6  # an upload that is slower than this counts as stopped


@dataclass(frozen=True)
class SavedPolicy:
    """A policy in a folder, after ``steps`` steps of its run."""

    name: str  # the run's
    folder: str  # within the run's folder
    steps: int
    files: dict[str, int]  # bytes, by name
    register_as: str | None  # name in MLflow's registry

    @staticmethod
    def of(folder: Path, name: str, steps: int, register_as: str | None) -> SavedPolicy:
        """The policy in ``folder``, a subfolder of the run's folder."""
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        return SavedPolicy(name, folder.name, steps, files, register_as)

    @property
    def sent(self) -> dict[str, int]:
        """The files to upload."""
        whole = self.register_as is not None
        return {k: v for k, v in self.files.items() if whole or not k.endswith(WEIGHTS)}

    @property
    def seconds(self) -> float:
        """Seconds that its bytes may take."""
        return sum(self.sent.values()) / BYTES_PER_S

    def to_json(self) -> str:
        """JSON that ``from_json`` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> SavedPolicy:
        """The inverse of ``to_json``. Raises ValueError or TypeError for any other text."""
        return SavedPolicy(**json.loads(text))

    def is_there(self, run_dir: Path) -> bool:
        """Whether the folder still has these files."""
        paths = {name: run_dir / self.folder / name for name in self.files}
        return all(p.is_file() and p.stat().st_size == self.files[n] for n, p in paths.items())


def send(store: Store, run_dir: Path, policy: SavedPolicy) -> list[tuple[str, str]]:
    """Create the logged model, or continue with the one that an earlier attempt began. Returns the
    policy and the server's answer if it refuses it (or one of its files); else nothing.

    Raises NotTaken if the server does not support it, and what MLflow raises.
    """
    found = deliver([policy], lambda _: _send(store, run_dir, policy), store.prove_writable)
    return [(f"the policy after {policy.steps} steps", why) for _, why in found]


def _send(store: Store, run_dir: Path, policy: SavedPolicy) -> None:
    from mlflow.exceptions import MlflowException

    try:
        model = _model(store, run_dir, policy)
    except MlflowException as error:
        if is_unknown_route(error):
            raise NotTaken("it does not support logged models") from error
        raise
    if model.status.name != "READY":
        _upload(store, model.model_id, run_dir / policy.folder, policy)
        store.client.finalize_logged_model(model.model_id, "READY")
    _link(store, model.model_id, policy.steps)
    if policy.register_as is not None:
        _register(store, model, policy.register_as)


def _model(store: Store, run_dir: Path, policy: SavedPolicy) -> Any:
    """The logged model of this run and step, also if an earlier attempt created it but got no
    answer."""
    experiment = store.client.get_run(store.run_id).info.experiment_id
    key = f"{store.run_id}/{policy.steps}"
    found = store.client.search_logged_models([experiment], f"tags.`{KEY_TAG}` = '{key}'")
    if found:
        return min(found, key=lambda model: model.creation_timestamp)
    return store.client.create_logged_model(
        experiment,
        # MLflow refuses a model's name with a point, which a run's may have: qwen2.5-1.5b
        f"{policy.name.replace('.', '_')}-{policy.steps}",
        store.run_id,
        tags={KEY_TAG: key, FOLDER_TAG: str((run_dir / policy.folder).absolute())},
        params={"steps": str(policy.steps), "bytes": str(sum(policy.files.values()))},
        model_type="policy",
    )


def _upload(store: Store, model_id: str, folder: Path, policy: SavedPolicy) -> None:
    """The files that MLflow does not have yet with their full size."""
    for path, size, place in _files(folder, policy):
        there = store.client.list_logged_model_artifacts(model_id, place)
        if (f"{place}/{path.name}", size) not in {(file.path, file.file_size) for file in there}:
            store.client.log_model_artifact(model_id, str(path), place)
    if policy.register_as is not None:
        with tempfile.TemporaryDirectory() as made:
            (Path(made) / "MLmodel").write_text(_description(store.run_id, model_id))
            store.client.log_model_artifact(model_id, str(Path(made) / "MLmodel"))


def _files(folder: Path, policy: SavedPolicy) -> Iterator[tuple[Path, int, str]]:
    """(file, bytes, folder in the model's artifacts) in the layout of ``mlflow.transformers``,
    which keeps the tokenizer apart."""
    for name, size in policy.sent.items():
        yield folder / name, size, "model"
        if not name.endswith(WEIGHTS):
            yield folder / name, size, "components/tokenizer"


def _description(run_id: str, model_id: str) -> str:
    """The file that ``mlflow.transformers.load_model`` reads to load the files beside it."""
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
    """List the model among the run's outputs."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(store.run_id).outputs
    if model_id not in {output.model_id for output in outputs.model_outputs}:
        store.client.log_outputs(store.run_id, [LoggedModelOutput(model_id, steps)])


def _register(store: Store, model: Any, name: str) -> None:
    """Create a version of the registered model ``name``, unless this model already is one."""
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
    # the model's page names its versions by this tag; a server writes it, a SQL store does not
    shown = [
        {"name": name, "version": version.version}
        for version in versions
        if version.source == model.artifact_location
    ]
    store.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(shown)})
