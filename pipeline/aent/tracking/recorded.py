"""Reads what a run recorded about its entropy from its folder, from MLflow or from a CSV."""

from __future__ import annotations

import csv
import math
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.recipe.load import RecipeError, load_recorded, resolve
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.machines import SYSTEM

MAX_STEPS = 10_000_000  # a larger step number is a mistake
ROUNDING = 1e-6  # nats: by so much a computed entropy may be below 0
Series = dict[int, float]  # value by step


class SourceError(ValueError):
    """The source cannot be read; one sentence naming it."""


@dataclass(frozen=True)
class Recorded:
    """One run, or a CSV.

    recipe: the run's, with overrides applied; for a CSV only its ``controller`` has a meaning.
    metrics: every metric by step, without those of machines.
    entropy: as the controller measured it, nats.
    """

    recipe: Recipe
    controller: ControllerSettings
    entropy: Series
    metrics: dict[str, Series] = field(default_factory=dict)

    def steps(self) -> range:
        """Values from step 0 to the last recorded step."""
        return range(max(self.entropy, default=-1) + 1)


def read(source: str, overrides: Sequence[str] = ()) -> Recorded:
    """Read a run folder, a CSV with the columns step and entropy, or an MLflow run id.

    Overrides are ``controller.key=value``. If they choose another kind, the recipe's fields without
    a meaning for it are left out.

    Raises:
        SourceError: the source cannot be read.
        RecipeError: an override, or the resulting controller, is wrong.
    """
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] != "controller":
            raise RecipeError(
                f"override {override}: only fields of the controller can be changed here"
            )
    path = Path(source)
    if path.is_dir():
        recipe, metrics = _from_folder(path, overrides)
    elif path.is_file():
        nothing = {"name": "csv", "model": {}, "controller": {}}
        recipe, metrics = resolve(nothing, source, overrides), {}
    elif re.fullmatch("[0-9a-f]{32}", source):
        recipe, metrics = _from_mlflow(source, overrides)
    else:
        raise SourceError(f"{source} is not a run folder, a CSV file or an MLflow run id")
    name = f"policy/{recipe.measured}"
    entropy = _from_csv(path) if path.is_file() else metrics.get(name, {})
    if not entropy:
        raise SourceError(f"{source} has no recorded entropy ({name})")
    return Recorded(recipe, _settings(recipe, overrides), entropy, metrics)


def _settings(recipe: Recipe, overrides: Sequence[str]) -> ControllerSettings:
    values = recipe.controller.model_dump()
    given = {override.partition("=")[0] for override in overrides}
    if "controller.kind" in given:
        meant = _kept_for_another_kind(values["kind"], given)
        values |= {
            key: None for key in values if key not in meant and f"controller.{key}" not in given
        }
        if "warmup_steps" not in meant and "controller.warmup_steps" not in given:
            values["warmup_steps"] = 0
    found = list(controllers.faults(values))
    if found:
        raise RecipeError("\n".join(found))
    return ControllerSettings(**values)


def _kept_for_another_kind(name: str, given: set[str]) -> set[str]:
    """The recipe's fields that mean the same for a controller of the kind ``name``, without those
    that have a default for it."""
    if name not in controllers.KINDS:  # ``faults`` will report it
        return set()
    kind = controllers.KINDS[name]
    chosen = [g for g in kind.either if any(f"controller.{field}" in given for field in g)]
    either = {field for group in chosen or kind.either for field in group}
    return (kind.fields - kind.defaults.keys() - {f for g in kind.either for f in g}) | either


def _from_folder(folder: Path, overrides: Sequence[str]) -> tuple[Recipe, dict[str, Series]]:
    for name in ("recipe.yaml", JOURNAL_FILE):
        if not (folder / name).is_file():
            raise SourceError(f"{folder} is not a run folder: it has no {name}")
    metrics: dict[str, Series] = {}
    for point in journal.read(folder / JOURNAL_FILE):
        if point.key.startswith(SYSTEM):  # weeks of many machines would not fit into memory
            continue
        metrics.setdefault(point.key, {}).setdefault(point.step, point.value)
    return load_recorded(folder / "recipe.yaml", overrides), metrics


def _from_mlflow(run_id: str, overrides: Sequence[str]) -> tuple[Recipe, dict[str, Series]]:
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        local = Path("runs/mlflow.db").absolute()
        if not local.is_file():
            raise SourceError(
                f"MLflow run {run_id}: MLFLOW_TRACKING_URI is not set, and there is no {local}"
            )
        uri = f"sqlite:///{local}"
    client = open_source(uri)
    try:
        keys = client.get_run(run_id).data.metrics
        metrics = {
            key: {m.step: m.value for m in client.get_metric_history(run_id, key)}
            for key in keys
            if key.partition("/")[0] in ("policy", "controller", "gradient")
        }
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, "recipe.yaml", folder)
            return load_recorded(path, overrides), metrics
    except MlflowException as error:
        raise SourceError(f"MLflow run {run_id} in {redacted(uri)}: {error.message}") from error


def open_source(uri: str) -> Any:
    """MLflow's client for reading a store. Raises SourceError."""
    from aent.tracking.store import open_client

    try:
        return open_client(uri)
    except Exception as error:  # anything that MLflow and its store raise
        why = redacted(" ".join(str(error).split()))
        raise SourceError(f"MLflow's store {redacted(uri)} cannot be opened: {why}") from error


def _from_csv(path: Path) -> Series:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"step", "entropy"} - set(rows.fieldnames or ())
            if missing:
                raise SourceError(f"{path} has no column {' and no column '.join(sorted(missing))}")
            return _checked(path, rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error


def _checked(path: Path, rows: Iterable[dict[str, str]]) -> Series:
    entropy: Series = {}
    for number, row in enumerate(rows, start=2):
        try:
            step = int(row["step"])
            value = float(row["entropy"]) if row["entropy"] else math.nan
        except (TypeError, ValueError):
            raise SourceError(
                f"{path}: line {number} is not a step and an entropy: "
                f"{row['step']},{row['entropy']}"
            ) from None
        if not 0 <= step < MAX_STEPS:
            raise SourceError(f"{path}: line {number}: step {step} is not in [0, {MAX_STEPS})")
        if value < -ROUNDING:
            raise SourceError(f"{path}: line {number}: entropy {value:g} is below 0")
        if step in entropy:
            raise SourceError(f"{path}: line {number}: step {step} appears twice")
        entropy[step] = value
    return entropy
