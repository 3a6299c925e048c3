"""Checks of a recipe's questions: sources, curriculum, files."""

from __future__ import annotations

from collections.abc import Iterator

from aent import tasks
from aent.recipe.schema import Recipe, TaskSection
from aent.recipe.sources import CurriculumSection
from aent.runtime.environment import data_path
from aent.tasks import choice, mixture, sources, trial

# fields of a task without sources; with sources, each has its own
ONE_SOURCE = ("kind", "name", "config", "path", "split", "subset", "columns", "size", "heldout")


def faults(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence per fault, naming the field; ``machine``: also check this machine's files."""
    found = [*_sections(recipe.task), *_curriculum(recipe)] or [*_sizes(recipe)]
    yield from found
    if machine and not found:
        yield from _questions(recipe)


def _sizes(recipe: Recipe) -> Iterator[str]:
    """Sources with too few questions for a step's prompts and their replacements."""
    rollout, task = recipe.rollout, recipe.task
    n = rollout.prompts_per_step
    counts = choice.most({s.name: s.weight for s in task.sources} or {"": 1.0}, n)
    for index, (name, part) in enumerate(mixture.by_source(task).items()):
        count = counts[name]
        field = f"task.sources[{index}].size={part.size}" if name else f"task.size={part.size}"
        of = f"the {count} that a step may need from {name}" if name else "a step's prompts"
        if part.size < count:
            yield f"rollout.prompts_per_step={n}: {field} is less than {of}"
        elif rollout.replacement_prompts and part.size == count:
            yield (
                f"rollout.replacement_prompts={rollout.replacement_prompts}: {field} leaves no "
                f"question besides {of} (rollout.prompts_per_step={n})"
            )


def _sections(task: TaskSection) -> Iterator[str]:
    if not task.sources:
        yield from _of_one(task, "task")
        return
    for field in ONE_SOURCE:
        if getattr(task, field) != TaskSection.model_fields[field].get_default():
            yield f"task.{field} has no meaning with task.sources: each source has its own"
    names = [source.name for source in task.sources]
    for index, source in enumerate(task.sources):
        place = f"task.sources[{index}]"
        if source.name in names[:index]:
            yield f"{place}.name: {source.name} appears twice: give each source its own name"
        if source.kind == "file" and source.dataset is not None:
            yield f"{place}.dataset has no meaning with {place}.kind=file"
        yield from _of_one(mixture.part_of(task, source), place)


def _of_one(part: TaskSection, place: str) -> Iterator[str]:
    """Fields of a source, or of a task without sources, that have no meaning with others."""
    with_kind = f"has no meaning with {place}.kind={part.kind}"
    if part.kind == "file":
        if part.config:
            yield f"{place}.config {with_kind}"
        if part.path is None:
            yield f"{place}.kind=file needs {place}.path"
        return
    for field in ("path", "split", "subset", "columns"):
        if getattr(part, field) != TaskSection.model_fields[field].get_default():
            yield f"{place}.{field} {with_kind}"


def _curriculum(recipe: Recipe) -> Iterator[str]:
    settings, samples = recipe.task.curriculum, recipe.rollout.samples_per_prompt
    if settings is None:
        return
    low, high = settings.low, settings.high
    if settings == CurriculumSection(retry_after=settings.retry_after):
        yield (
            "task.curriculum changes nothing: low=0 and high=1 keep every question, "
            "order=shuffled, replay=0"
        )
    elif low > high:
        yield f"task.curriculum.low={low:g} is above task.curriculum.high={high:g}"
    elif not any(low <= right / samples <= high for right in range(samples + 1)):
        yield (
            f"task.curriculum: no success lies from low={low:g} to high={high:g} with "
            f"rollout.samples_per_prompt={samples}: it is a multiple of 1/{samples}"
        )


def _questions(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    missing = [*_missing_files(task)]
    yield from missing
    if missing:
        return
    try:
        kinds = {part.kind for part in mixture.by_source(task).values()}
        if "file" not in kinds and not trial.tried(task):
            # generated questions are distinct
            tasks.check_generated(task, recipe.seed)
            return
        loaded = tasks.load(task, recipe.seed)
    except ImportError as error:
        yield f"task.kind=reasoning_gym: reasoning-gym cannot be imported: {error}"
    except (OSError, ValueError) as error:
        field = "" if str(error).startswith("task.") else "task.path: "
        yield f"{field}{error}"
    else:
        yield from _of_loaded(recipe, loaded)


def _of_loaded(recipe: Recipe, task: tasks.Task) -> Iterator[str]:
    try:
        choice.check(task, recipe.rollout.prompts_per_step)
    except ValueError as error:
        yield str(error)
    questions = [*task.train, *task.heldout]
    yield from trial.faults(recipe.task, questions, recipe.rollout.samples_per_prompt)


def _missing_files(task: TaskSection) -> Iterator[str]:
    for index, part in enumerate(mixture.by_source(task).values()):
        if part.kind == "file" and not data_path(str(part.path)).exists():
            field = f"task.sources[{index}].path" if task.sources else "task.path"
            yield f"{field}: there is no file {part.path}{sources.hint(str(part.path))}"
