"""Which files of a run a job's containers do not show, found before the job waits in the queue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aent.evaluation import suites
from aent.models import model_source
from aent.recipe.folder import run_folder
from aent.recipe.graders import PythonFunction
from aent.recipe.load import base_of
from aent.recipe.schema import Recipe
from aent.tracking import sqlite

Mounts = tuple[tuple[Path, Path], ...]  # (folder of the host, the same in the container)


def hidden(recipe: Recipe, source: str) -> Iterator[str]:
    """One sentence for each file or folder that is here, and that a container would not show.

    A path that is not here may be one of the image, or of a file system of the nodes alone: the
    job's first step decides. ``source``: the recipe as given on the command line. Reads folders.
    """
    here = Path.cwd()
    given = [*recipe.cluster.mounts, f"{here}:{here}"]  # the script always adds the second
    if recipe.cluster.container == "apptainer":  # it mounts home, unless a site has turned that off
        given.append(f"{Path.home()}:{Path.home()}")
    places = [mount.split(":") for mount in given]
    mounts = tuple((Path(place[0]), Path(place[1])) for place in places)
    why = f"which the container would not show: mounts={','.join(given)}"
    for field, path in _ours(recipe, source):
        if not _shows(mounts, path, same=True):
            yield f"{field}: {path}, {why}"
    for field, value in _read(recipe):
        path = Path(os.path.abspath(Path(value).expanduser()))
        if path.exists() and not _shows(mounts, path, same=False):
            yield f"{field}: {path}, {why}"


def _ours(recipe: Recipe, source: str) -> Iterator[tuple[str, Path]]:
    """(field, path) of what must have the same path in the container: the batch script names it,
    or a command of the host reads it later."""
    run_dir = run_folder(recipe).absolute()
    yield "run_dir", run_dir
    # MLflow's store, a sweep's parent run, the lock and the cache lie beside it
    yield f"the folder of run_dir={run_dir}", run_dir.parent
    if (store := sqlite.file_of_run(recipe, run_dir)) is not None:
        yield "the folder of MLflow's store", store.parent
    if recipe.model.bundled and os.environ.get("AENT_CACHE"):  # else CACHE, beside the run
        yield "AENT_CACHE, for model.bundled", model_source.cache_folder().absolute()
    file = Path(source).expanduser()
    if file.exists():  # else one that aent ships, which the image has
        file = file.resolve()  # as the batch script does
        yield "the recipe", file
        if (base := base_of(file)) is not None:
            yield f"base of the recipe {file}", base


def _read(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(field, path) of what the container reads at the path that the recipe gives."""
    found = [
        ("model.path", recipe.model.path),
        ("model.tokenizer_path", recipe.model.tokenizer_path),
        ("task.path", recipe.task.path),
        ("rollout.token_file", recipe.rollout.token_file),
    ]
    graded = [("task", recipe.task.graders)]
    for i, part in enumerate(recipe.task.sources):
        found.append((f"task.sources[{i}].path", part.path))
        graded.append((f"task.sources[{i}]", part.graders))
    for where, graders in graded:
        for i, grader in enumerate(graders):
            for name in ("token_file", "rubric"):
                found.append((f"{where}.graders[{i}].{name}", getattr(grader, name, None)))
            if isinstance(grader, PythonFunction):
                place = grader.function.rpartition(":")[0]
                if place.endswith(".py"):  # else a package, which the image has
                    found.append((f"{where}.graders[{i}].function", place))
    yield from ((field, value) for field, value in found if value is not None)
    for name in recipe.evaluation.suites:
        try:
            yield f"evaluation.suites: {name}", str(suites.file(name))
        except FileNotFoundError:
            continue


def _shows(mounts: Mounts, path: Path, same: bool) -> bool:
    """Whether a container shows the path; ``same``: and the host's file or folder of that path.

    A link is followed in the container: what it points to must be mounted too.
    """
    for host, inside in mounts:
        if not path.is_relative_to(inside):
            continue
        place = host / path.relative_to(inside)
        real = place.resolve()
        if same and real != path.resolve():
            continue
        if not same and not place.exists():
            if not host.exists():  # of the nodes alone: not known
                return True
            continue
        if real.is_relative_to(host.resolve()) or _under_its_own_path(mounts, real):
            return True
    return False


def _under_its_own_path(mounts: Mounts, real: Path) -> bool:
    return any(
        real.is_relative_to(inside) and (host / real.relative_to(inside)).resolve() == real
        for host, inside in mounts
    )
