"""Prepares a run before its first process starts, on one machine and in a Slurm job alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from aent.checkpoint.resume import choose_start, chosen
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.entropy.paper import PAPER_DROP_FRACTION
from aent.inference import registry
from aent.launch import starts
from aent.layout.parallel import ParallelLayout
from aent.models import model_source
from aent.recipe.folder import run_folder
from aent.recipe.load import dump
from aent.recipe.schema import Recipe
from aent.runtime import failures, heartbeats, node_metrics
from aent.runtime.environment import device_kind
from aent.runtime.files import write_whole
from aent.runtime.log import log
from aent.tasks import trial
from aent.tasks.mixture import appointed
from aent.tracking import address, sqlite

DRIVEN = {
    "bonus": "entropy bonus: coefficient x {which}",
    "upper_clip": "upper clip: ratios may reach (1 + algorithm.clip_high) x (1 + coefficient); no "
    "bonus; measured: {which}",
    "advantage_zeta": "advantages x (1 -+ coefficient x log-prob), REPO-R; no bonus; measured: "
    "{which}",
    "gradient_share": "entropy bonus, whose share of the logits' gradient is the coefficient: on "
    "{which}",
}


def prepare(
    recipe: Recipe, job: str | None = None, digests: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Create the run's folder (resolved recipe, starting point, engines' token, MLflow's address)
    and a bundled model, and record the start.

    job: Slurm's job id, if the run is a job. digests: as for ``choose_start``.

    Returns the absolute paths (run folder, model's Hugging Face folder). Raises as
    ``model_source.resolve``, ``resume.choose_start`` and ``tracking.sqlite.check``, before anything
    is written.
    """
    run_dir = run_folder(recipe).absolute()
    model_path = model_source.resolve(recipe.model)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    store = sqlite.file_of_run(recipe, run_dir)
    if store is not None:
        sqlite.check(store)
    run_dir.mkdir(parents=True, exist_ok=True)
    choose_start(recipe, run_dir, digests)
    checkpoint = chosen(run_dir)
    starts.note(run_dir, job, None if checkpoint is None else checkpoint.name)
    address.keep(recipe, run_dir)
    write_whole(run_dir / "recipe.yaml", dump(recipe))
    registry.make_token(run_dir)
    registry.clear(run_dir)
    failures.clear(run_dir)
    heartbeats.clear(run_dir)
    node_metrics.clear(run_dir)
    say_what_starts(recipe, run_dir, model_path)
    return run_dir, model_path


def say_what_starts(recipe: Recipe, run_dir: Path, model_path: Path) -> None:
    """Print what is being started and where it writes, because loading then takes a while."""
    layout = ParallelLayout.of(recipe.trainer)
    look = address.look_command(address.tracking_uri(recipe, run_dir))
    for line in (
        f"aent: {recipe.name}: {layout.num_ranks} trainer ranks ({layout}), "
        f"{recipe.rollout.num_engines} vLLM engine(s), model {model_path}",
        *say_what_controls(recipe).splitlines(),
        *say_who_grades(recipe).splitlines(),
        *say_which_sources(recipe).splitlines(),
        f"aent: run folder {run_dir} (logs in logs/)",
        f"aent: MLflow: {look}",
    ):
        log.info(line)


def say_who_grades(recipe: Recipe) -> str:
    """Each grader with its weight, and the hash of a function's file."""
    files = trial.fingerprints(recipe.task)
    lines = []
    for judge in appointed(recipe.task):
        grader, of = judge.grader, f" (of {judge.source})" if judge.source else ""
        line = f"aent: grader: {grader.weight:g} x {grader.name}{of}"
        if grader.kind == "python":
            line += f" ({grader.function}, sha256 {files.get(grader.function, 'unknown')[:12]})"
        if grader.kind == "code":
            line += f" ({grader.url or f'sandbox: {grader.sandbox}'})"
        lines.append(line)
    return "\n".join(lines)


def say_which_sources(recipe: Recipe) -> str:
    """The sources of a mixture, with their share of a step's prompts; empty without sources."""
    n = recipe.rollout.prompts_per_step
    total = sum(source.weight for source in recipe.task.sources)
    return "".join(
        f"aent: source: {source.name}: {n * source.weight / total:.3g} of {n} prompts a step\n"
        for source in recipe.task.sources
    )


def say_what_controls(recipe: Recipe) -> str:
    """Which entropy the bonus is on, how its coefficient moves, and which other controls act."""
    settings = ControllerSettings(**recipe.controller.model_dump())
    paid = recipe.entropy.measure
    measured = settings.measure or paid
    if settings.kind == "constant" and settings.initial == 0:
        lines = [f"no entropy bonus (coefficient 0); measured: {_which(measured, recipe)}"]
    else:
        lines = [DRIVEN[settings.drives].format(which=_which(paid, recipe))]
        lines += [f"coefficient ({settings.kind}): {controllers.describe(settings)}"]
        if measured != paid:
            lines += [f"the controller measures another entropy: {_which(measured, recipe)}"]
    for control in recipe.entropy_controls:
        values = ", ".join(f"{k}={v:g}" for k, v in control.model_dump(exclude={"kind"}).items())
        lines.append(f"entropy control ({control.ACTS_ON}): {control.kind} {values}".rstrip())
    if k := recipe.rollout.max_staleness:
        lines.append(
            f"rollout.max_staleness={k}: a step's rollouts are planned (temperature, numbers of "
            f"responses) by what was known {k} steps before; the controller sees the entropy of "
            f"the present weights, on tokens of weights up to {k} updates older"
        )
    return "\n".join(f"aent: {line}" for line in lines)


def _which(measure: str, recipe: Recipe) -> str:
    """That entropy in words."""
    if measure == "full":
        return "the entropy over the whole vocabulary"
    if recipe.entropy.top_k is not None:
        return f"the entropy renormalized on the {recipe.entropy.top_k} likeliest tokens"
    dropped = recipe.entropy.drop_fraction
    if dropped is None:
        dropped = PAPER_DROP_FRACTION
    return f"the entropy renormalized without the {dropped:.3g} unlikeliest of the vocabulary"


def rank_environment(recipe: Recipe, ranks_here: int) -> dict[str, str]:
    """Environment variables that libraries read when a rank starts; ``ranks_here`` ranks share this
    machine."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "none",  # nemo-toolkit registers a plugin that prints warnings
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device_kind() == "cpu":
        cores = max(1, (os.cpu_count() or 1) // ranks_here)
        variables |= {
            "OMP_NUM_THREADS": str(recipe.trainer.threads_per_rank or cores),
            # several ranks share the cores: a waiting thread pool must not keep them busy
            "OMP_WAIT_POLICY": "PASSIVE",
            # torch maps every buffer above 32 MB anew; huge pages save most of the page faults
            "THP_MEM_ALLOC_ENABLE": "1",
        }
    return variables
