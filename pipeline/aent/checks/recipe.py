"""Checks across a recipe's fields and against this machine, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aent.checkpoint import resume
from aent.checks import cluster as check_cluster
from aent.checks import colocation as check_colocation
from aent.checks import controls as check_controls
from aent.checks import engines as check_engines
from aent.checks import graders as check_graders
from aent.checks import megatron as check_megatron
from aent.checks import memory as check_memory
from aent.checks import model as check_model
from aent.checks import task as check_task
from aent.entropy import controllers
from aent.evaluation import suites
from aent.layout.parallel import ParallelLayout
from aent.models import model_source
from aent.recipe.folder import run_folder
from aent.recipe.schema import Recipe
from aent.recipe.training import AlgorithmSection
from aent.runtime import megatron
from aent.runtime.files import folder_problem
from aent.tracking import address


def check(recipe: Recipe, *, machine: bool = True) -> list[str]:
    """One sentence per fault, each naming its field; empty if the run may start.

    Reads folders and writes nothing. ``machine=False``, for a recipe that will run elsewhere, skips
    checks of this machine's files (the model's folder, questions, the run's folder). A model that
    is not here is then checked by its published sizes, if known; of a folder that is here, only
    config.json is read.
    """
    if homeless := list(_homes(recipe)):  # no path could be looked at
        return homeless
    faults = [
        *_batch(recipe),
        *_algorithm(recipe),
        *_staleness(recipe),
        *check_controls.faults(recipe),
        *_entropy(recipe),
        *controllers.faults(recipe.controller.model_dump()),
        *check_task.faults(recipe, machine),
        *check_graders.faults(recipe),
        *check_engines.faults(recipe, machine),
        *check_colocation.faults(recipe, machine),
        *_evaluation(recipe, machine),
        *_optimizer(recipe),
        *check_megatron.faults(recipe),
        *filter(None, [address.fault(recipe)]),
        *check_cluster.faults(recipe.cluster),
        *_timeouts(recipe),
        *_profile(recipe),
    ]
    faults += check_model.faults(recipe, machine=machine)
    if machine:
        faults += [*filter(None, [megatron.fault()]), *check_megatron.machine_faults(recipe)]
        faults += [*_run_folder(recipe), *_cache_folder(recipe)]
    return faults or list(check_memory.faults(recipe, machine))


def doubts(recipe: Recipe, *, machine: bool = True) -> list[str]:
    """One sentence for each reason why a run whose recipe has no fault may fail nevertheless."""
    return list(check_memory.doubts(recipe, machine))


def _homes(recipe: Recipe) -> Iterator[str]:
    """Paths that begin with ~ and a name that is no user's, such as ~runs/x."""
    for field, value in (
        ("run_dir", recipe.run_dir),
        ("model.path", recipe.model.path),
        ("model.tokenizer_path", recipe.model.tokenizer_path),
        ("task.path", recipe.task.path),
        ("rollout.token_file", recipe.rollout.token_file),
        ("cluster.env_file", recipe.cluster.env_file),
        *((f"task.sources[{i}].path", part.path) for i, part in enumerate(recipe.task.sources)),
    ):
        try:
            Path(value or "").expanduser()
        except RuntimeError:
            yield f"{field}: {value} names the home folder of a user who is not known here"


def _batch(recipe: Recipe) -> Iterator[str]:
    rollout, trainer = recipe.rollout, recipe.trainer
    if rollout.prompts_per_step % trainer.mini_batches:
        yield (
            f"trainer.mini_batches={trainer.mini_batches} does not divide "
            f"rollout.prompts_per_step={rollout.prompts_per_step} (a prompt's samples stay in one "
            "mini-batch)"
        )
    else:
        prompts = rollout.prompts_per_step // trainer.mini_batches
        sequences = prompts * rollout.samples_per_prompt
        if sequences < trainer.data_parallel:
            yield (
                f"trainer.data_parallel={trainer.data_parallel} is more than the {sequences} "
                "samples of a mini-batch: some ranks would have no work"
            )
    alone = rollout.samples_per_prompt == 1
    if alone and recipe.algorithm.advantage != "reinforce_plus_plus":
        yield (
            f"rollout.samples_per_prompt=1 gives algorithm.advantage={recipe.algorithm.advantage} "
            "nothing to compare: every advantage would be 0; it must be 2 or more"
        )
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if trainer.micro_batch_tokens < longest:
        yield (
            f"trainer.micro_batch_tokens={trainer.micro_batch_tokens} is less than "
            f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}"
        )


def _staleness(recipe: Recipe) -> Iterator[str]:
    """What sampling ahead of the weights requires."""
    ahead = f"rollout.max_staleness={recipe.rollout.max_staleness}"
    if recipe.rollout.max_staleness == 0:
        return
    if recipe.algorithm.importance == "none":
        yield (
            f"{ahead} trains on responses of older weights: it needs algorithm.importance "
            "(truncated_token or masked_sequence) to correct for that"
        )
    if recipe.control("temperature_schedule") is not None:
        yield (
            f"entropy control temperature_schedule sets a step's temperature from the step before, "
            f"which is not known yet with {ahead}"
        )


def _algorithm(recipe: Recipe) -> Iterator[str]:
    algorithm, rollout = recipe.algorithm, recipe.rollout
    kind = f"algorithm.policy_loss={algorithm.policy_loss}"
    if algorithm.policy_loss != "ppo_clip" and recipe.trainer.mini_batches == 1:
        yield (
            f"{kind} changes nothing with trainer.mini_batches=1: the policy that learns is the "
            "one that sampled, and every ratio is 1"
        )
    if algorithm.policy_loss == "ppo_clip" and recipe.trainer.mini_batches == 1:
        for name in ("clip_low", "clip_high", "dual_clip"):
            value = getattr(algorithm, name)
            if value != AlgorithmSection.model_fields[name].default:
                yield (
                    f"algorithm.{name}={value:g} changes nothing with trainer.mini_batches=1: "
                    "every ratio is 1"
                )
    if algorithm.policy_loss == "gspo" and algorithm.aggregation != "sequence_mean":
        yield (
            f"{kind} needs algorithm.aggregation=sequence_mean: {algorithm.aggregation} would "
            "weight a response's single ratio by its length"
        )
    if algorithm.policy_loss == "cispo" and algorithm.dual_clip is not None:
        yield f"algorithm.dual_clip has no meaning with {kind}, which clips no token's gradient"
    if algorithm.overlong_buffer > rollout.max_response_tokens:
        yield (
            f"algorithm.overlong_buffer={algorithm.overlong_buffer} is more than "
            f"rollout.max_response_tokens={rollout.max_response_tokens}"
        )
    if rollout.replacement_prompts and algorithm.advantage == "reinforce_plus_plus":
        yield (
            "rollout.replacement_prompts has no meaning with algorithm.advantage="
            "reinforce_plus_plus: a group of equal rewards has a signal too"
        )


def _entropy(recipe: Recipe) -> Iterator[str]:
    entropy = recipe.entropy
    if entropy.drop_fraction is not None and entropy.top_k is not None:
        yield "entropy.drop_fraction and entropy.top_k are both given: give only one"
    if "clamped" not in (entropy.measure, recipe.controller.measure):
        for name in ("drop_fraction", "top_k"):
            if getattr(entropy, name) is not None:
                yield f"entropy.{name} has no meaning with entropy.measure=full"


def _timeouts(recipe: Recipe) -> Iterator[str]:
    """A wait that has its own time-out must end by that one, which reports what was waited for."""
    rollout, limit = recipe.rollout, recipe.trainer.phase_timeout_s
    for seconds, what in (
        (recipe.trainer.collective_timeout_s, "trainer.collective_timeout_s"),
        (
            rollout.progress_timeout_s + rollout.engine.start_timeout_s,
            "rollout.progress_timeout_s + rollout.engine.start_timeout_s",
        ),
    ):
        if limit <= seconds:
            yield f"trainer.phase_timeout_s={limit:g} must be above {what} = {seconds:g}"


def _profile(recipe: Recipe) -> Iterator[str]:
    profile, ranks = recipe.profile, ParallelLayout.of(recipe.trainer).num_ranks
    for step in profile.steps:
        if not 0 <= step < recipe.steps:
            yield f"profile.steps: there is no step {step}: the run's are 0 to {recipe.steps - 1}"
    for rank in profile.ranks:
        if not 0 <= rank < ranks:
            yield f"profile.ranks: there is no rank {rank}: the trainer's are 0 to {ranks - 1}"
    if profile.measure_peak and profile.peak_tflops is not None:
        yield "profile.peak_tflops is given and profile.measure_peak is true: give one of them"


def _evaluation(recipe: Recipe, machine: bool) -> Iterator[str]:
    evaluation = recipe.evaluation
    first = [g.kind for g in recipe.task.graders if not g.data_sources][:1]
    for name in evaluation.suites:
        try:
            suite = suites.find(name)
            judged_by = suite.graders[0].kind
            if suite.dataset is not None or [judged_by] != first:
                yield (
                    f"evaluation.suites: {name} is scored by {judged_by}, but in a run the first "
                    f"of "
                    f"task.graders without data_sources ({', '.join(first) or 'there is none'}) "
                    "decides what is right"
                )
            elif machine:
                suites.file(name)
        except (ValueError, FileNotFoundError) as error:
            yield f"evaluation.suites: {error}"
    if evaluation.every and not recipe.task.holds_out and not evaluation.suites:
        yield f"evaluation.every={evaluation.every} has nothing to score with task.heldout=0"
    if evaluation.samples > 1 and evaluation.temperature == 0:
        yield (
            f"evaluation.samples={evaluation.samples} with evaluation.temperature=0 (greedy) would "
            "score the same answer again and again"
        )


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer, schedule = recipe.trainer.optimizer, recipe.trainer.schedule
    if recipe.checkpoint.memory_efficient and not optimizer.distributed:
        yield (
            "checkpoint.memory_efficient has no meaning without trainer.optimizer.distributed=true"
        )
    for index, beta in enumerate(optimizer.betas):
        if not 0 <= beta < 1:
            yield f"trainer.optimizer.betas[{index}] must be in [0, 1), got {beta:g}"
    if schedule.min_lr > optimizer.lr:
        yield (
            f"trainer.schedule.min_lr={schedule.min_lr:g} is above "
            f"trainer.optimizer.lr={optimizer.lr:g}"
        )
    steps = recipe.steps * recipe.trainer.mini_batches
    if schedule.warmup_steps and schedule.warmup_steps >= steps:
        yield (
            f"trainer.schedule.warmup_steps={schedule.warmup_steps} leaves no step of the run's "
            f"{steps} optimizer steps"
        )


def _run_folder(recipe: Recipe) -> Iterator[str]:
    folder = run_folder(recipe)
    if recipe.resume == "required" and not folder.is_dir():
        yield f"run_dir: there is no folder {folder} to resume from"
    if folder.is_dir():
        is_run = resume.is_run(folder)
        if any(folder.iterdir()) and (recipe.resume == "never" or not is_run):
            hint = " (--resume continues the run in it)" if is_run else ""
            yield f"run_dir: the folder {folder} is not empty{hint}"
        elif not os.access(folder, os.W_OK | os.X_OK):
            yield f"run_dir: the folder {folder} is not writable"
    elif folder.exists():
        yield f"run_dir: {folder} is a file, not a folder"
    elif (why := folder_problem(folder)) is not None:
        yield f"run_dir: {why}"


def _cache_folder(recipe: Recipe) -> Iterator[str]:
    """The folder where a bundled model would be created, unless it exists already."""
    bundled = recipe.model.bundled
    try:
        if bundled is None or model_source.is_made(bundled):
            return
    except FileNotFoundError as error:
        yield str(error)
    else:
        if (why := folder_problem(model_source.cache_folder())) is not None:
            yield f"model.bundled: {why} (set AENT_CACHE to another folder)"
