"""A comparison's runs, read back from MLflow: metrics, recipes, held-out answers."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from aent.analysis import bottleneck
from aent.evaluation.pass_at_k import ks, pass_at_k
from aent.recipe.load import load_recorded
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.tracking.address import tracking_uri
from aent.tracking.recorded import Series, SourceError, open_source
from aent.tracking.store import known_run_id

PHASES = ("sample", "score", "train", "sync")  # evaluations and checkpoints do not count
METRICS = (
    "reward/mean",
    "policy/entropy",
    "policy/clamped_entropy",
    "policy/entropy_error",
    "entropy/change",
    "gradient/predicted_policy",
    "gradient/predicted_bonus",
    "controller/coefficient",
    "controller/low",
    "controller/high",
    "response/length_mean",
    "response/truncated_share",
    "response/distinct_answers",
    "tokens/total",
    *(f"time/{phase}" for phase in PHASES),
    *bottleneck.METRICS,
)
HELDOUT = "heldout"  # folder of the answers' tables in MLflow's artifacts


@dataclass(frozen=True)
class Evaluation:
    """Answers to the held-out questions at one evaluation."""

    correct: dict[str, int]  # by question (its text)
    samples: int  # per question

    def pass_at(self, k: int) -> dict[str, float]:
        """pass@k of each question."""
        return {q: pass_at_k(self.samples, c, k) for q, c in self.correct.items()}


@dataclass(frozen=True)
class Run:
    """One finished run of an arm."""

    arm: str
    seed: int
    recipe: Recipe
    metrics: dict[str, Series]
    evaluations: dict[int, Evaluation]  # by the number of steps trained before

    @cached_property
    def seconds(self) -> Series:
        """Wall time of each step's sampling, scoring, training and weight transfer."""
        phases = [self.metrics.get(f"time/{phase}", {}) for phase in PHASES]
        return {s: sum(p.get(s, 0.0) for p in phases) for s in self.metrics["reward/mean"]}

    @property
    def measured_entropy(self) -> Series:
        """The entropy that the controller measures."""
        return self.metrics[f"policy/{self.recipe.measured}"]

    @property
    def ks(self) -> list[int]:
        """The values of k for which the last evaluation has pass@k."""
        return ks(self.evaluations[max(self.evaluations)].samples) if self.evaluations else []


@dataclass(frozen=True)
class Comparison:
    """Every finished run, and the reasons why others are left out."""

    runs: list[Run]  # by seed; arms in the order in which they began
    left_out: list[str]  # a sentence each

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in that order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> dict[int, Run]:
        """An arm's runs by seed."""
        return {run.seed: run for run in self.runs if run.arm == arm}

    def is_uncontrolled(self, arm: str) -> bool:
        """Whether the arm has no bonus and no other control of the entropy."""
        recipe = next(iter(self.of(arm).values())).recipe
        controller = recipe.controller
        bonus = controller.kind != "constant" or controller.initial > 0
        return not (bonus or recipe.entropy_controls)


def read(source: str) -> Comparison:
    """Read a comparison from MLflow, given its folder or the id of its parent run.

    Raises SourceError if the source is neither, or has no finished run.
    """
    from mlflow.exceptions import MlflowException

    parent, uri = _of_folder(Path(source)) if Path(source).is_dir() else _of_id(source)
    client = open_source(uri)
    try:
        above = client.get_run(parent)
        children = client.search_runs(
            [above.info.experiment_id],
            f"tags.mlflow.parentRunId = '{parent}'",
            order_by=["attributes.start_time ASC"],
        )
        chosen, left_out = _chosen(children)
        runs = [_run(client, child) for child in chosen]
        runs, lacking = _with_last_answers(runs)
    except MlflowException as error:
        raise SourceError(f"MLflow run {parent} in {redacted(uri)}: {error.message}") from error
    if not runs:
        raise SourceError(f"{source}: no run below the MLflow run {parent} is finished")
    order = {run.arm: place for place, run in reversed(list(enumerate(runs)))}
    runs.sort(key=lambda run: (run.seed, order[run.arm]))
    return Comparison(runs, left_out + lacking)


def _of_folder(folder: Path) -> tuple[str, str]:
    """(id of the parent run in MLflow, store)."""
    recipe = next(iter(sorted(folder.glob("*/recipe.yaml"))), None)
    if recipe is None or not known_run_id(folder):
        raise SourceError(f"{folder} is not a comparison: no run has begun in it (aent compare)")
    uri = tracking_uri(load_recorded(recipe), recipe.parent)
    return known_run_id(folder), uri


def _of_id(run_id: str) -> tuple[str, str]:
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise SourceError(f"{run_id} is neither a comparison's folder nor an MLflow run id")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise SourceError(f"MLflow run {run_id}: MLFLOW_TRACKING_URI is not set")
    return run_id, uri


def _chosen(children: Any) -> tuple[list[Any], list[str]]:
    """The newest finished run of each arm and seed, and one sentence for each pair without one."""
    chosen: dict[tuple[str, str], Any] = {}
    status: dict[tuple[str, str], str] = {}
    left_out = []
    for child in children:
        arm, seed = key = (child.info.run_name, child.data.params.get("seed", "?"))
        status[key] = child.info.status
        if child.info.status == "FINISHED":
            if key in chosen:
                left_out.append(f"{arm}, seed {seed}: an earlier run of the same name and seed")
            chosen[key] = child
    left_out += [
        f"{arm}, seed {seed}: its run is {what}, not finished"
        for (arm, seed), what in status.items()
        if (arm, seed) not in chosen
    ]
    return list(chosen.values()), left_out


def _run(client: Any, found: Any) -> Run:
    run_id = found.info.run_id
    metrics = {
        key: {m.step: m.value for m in client.get_metric_history(run_id, key)}
        for key in METRICS
        if key in found.data.metrics
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recorded(client.download_artifacts(run_id, "recipe.yaml", folder))
        evaluations = dict(_evaluations(client, run_id, folder))
    return Run(found.info.run_name, recipe.seed, recipe, metrics, evaluations)


def _with_last_answers(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The runs, without the held-out answers of those whose last ones MLflow lacks (it has a run's
    end before its files), and a sentence for each: earlier answers are no substitute."""
    complete, sentences = [], []
    for run in runs:
        asked = run.evaluations or run.recipe.task.holds_out
        if asked and max(run.evaluations, default=-1) < run.recipe.steps:
            sentences.append(
                f"the held-out answers of {run.arm}, seed {run.seed}: MLflow lacks those after the "
                "last step (aent mlflow-sync)"
            )
            run = replace(run, evaluations={})
        complete.append(run)
    return complete, sentences


def _evaluations(client: Any, run_id: str, folder: str) -> Iterator[tuple[int, Evaluation]]:
    for artifact in client.list_artifacts(run_id, HELDOUT):
        table = json.loads(
            Path(client.download_artifacts(run_id, artifact.path, folder)).read_text()
        )
        scores: dict[str, list[float]] = {}
        for values in table["data"]:
            row: dict[str, Any] = dict(zip(table["columns"], values))
            # two conversations may end in the same words; tables of older runs have no "item", and
            # no "score" of the first grader, which decides what is right
            question = f"{row.get('item', '')}: {row['prompt']}"
            scores.setdefault(question, []).append(row.get("score", row["reward"]))
        correct = {q: sum(s >= 1 for s in of_q) for q, of_q in scores.items()}
        samples = len(next(iter(scores.values())))
        yield int(Path(artifact.path).stem.rpartition("_")[2]), Evaluation(correct, samples)
