"""``aent slurm``: a recipe's ``cluster:`` section as a batch script."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aent.layout.nodes import layout
from aent.recipe.folder import run_folder
from aent.recipe.operation import ClusterSection
from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.slurm import mounts

HETJOB = "#SBATCH hetjob"
ARRAY = "array.sbatch"  # an array's script, in the folder of its runs
# source and overrides as given on the command line, and the resolved recipe
ScriptedRun = tuple[str, Sequence[str], Recipe]


@dataclass(frozen=True)
class Script:
    """A rendered batch script, and its path beside the run's folder."""

    text: str
    path: Path

    @property
    def command(self) -> list[str]:
        """The command that submits it."""
        return ["sbatch", "--parsable", str(self.path)]


def render(
    recipe: Recipe, source: str, overrides: Sequence[str], sweep: Path | None = None
) -> Script:
    """A header above the unchanged ``slurm/train.sbatch`` (``train_het.sbatch`` with engine nodes).

    Args:
        recipe: checked, with a ``run_dir``.
        source, overrides: the recipe as given on the command line.
        sweep: folder of the sweep or comparison that the run is part of.

    Raises ValueError with the reason if the recipe does not fit the nodes, or if a container does
    not show its files.
    """
    _check(recipe, source)
    run_dir = _run_dir(recipe)
    flags = [f"--job-name={recipe.name}", f"--output={_quoted(beside(run_dir, '.log'))}"]
    settings = [f"export RUN_DIR={shlex.quote(str(run_dir))}"]
    settings += [f"set -- {_arguments(source, overrides)}"]
    said = f"aent slurm render {shlex.join([source, *overrides])}"
    if sweep is not None:
        settings += [f"export SWEEP_DIR={shlex.quote(str(sweep.absolute()))}"]
        said += f" # of the sweep in {sweep.absolute()}"
    return Script(_text(said, recipe, flags, settings), beside(run_dir, ".sbatch"))


def render_several(runs: Sequence[ScriptedRun], folder: Path, said: str) -> list[Script]:
    """Runs below one parent run in MLflow (``slurm.sweep``), as tasks of one job array, or as one
    job each if an array is impossible: Slurm has no arrays of heterogeneous jobs, nor of jobs that
    ask for different resources.

    Args:
        runs: source and overrides as given on the command line, and the checked recipe of each.
        folder: of the sweep or comparison; an array's script and its logs are kept there.
        said: the command, for the script's head.

    Raises ValueError as ``render``.
    """
    for source, _, recipe in runs:
        try:
            _check(recipe, source)
        except ValueError as error:
            raise ValueError(f"{run_folder(recipe)}: {error}") from None
    cluster = runs[0][2].cluster
    if cluster.engine_nodes or any(recipe.cluster != cluster for _, _, recipe in runs):
        return [render(recipe, source, overrides, folder) for source, overrides, recipe in runs]
    return [_array(runs, folder.absolute(), said)]


def _array(runs: Sequence[ScriptedRun], folder: Path, said: str) -> Script:
    # one log for each job: the folder may get another array while this one still runs
    log = _quoted(folder / "task-%A_%a.log", keep="%A_%a.log")
    name = re.sub(r"[^\w.-]", "_", folder.name)
    flags = [f"--job-name={name}", f"--output={log}", f"--array=0-{len(runs) - 1}"]
    settings = [f"export SWEEP_DIR={shlex.quote(str(folder))}", "case $SLURM_ARRAY_TASK_ID in"]
    for number, (source, overrides, recipe) in enumerate(runs):
        run_dir = shlex.quote(str(_run_dir(recipe)))
        settings += [f"{number}) RUN_DIR={run_dir}"]  # read by slurm.submission too
        settings += [f"  set -- {_arguments(source, overrides)} ;;"]
    settings += ["esac", "export RUN_DIR"]
    return Script(_text(said, runs[0][2], flags, settings), folder / ARRAY)


def _check(recipe: Recipe, source: str) -> None:
    layout(recipe, *nodes_of(recipe.cluster))
    if recipe.cluster.container != "none" and (hidden := next(mounts.hidden(recipe, source), "")):
        raise ValueError(hidden)


def nodes_of(cluster: ClusterSection) -> tuple[int, int, int, int | None]:
    """The nodes that the recipe's job asks for (``layout.nodes``)."""
    return (
        cluster.nodes,
        cluster.gpus_per_node,
        cluster.engine_nodes,
        cluster.engine_gpus_per_node,
    )


def _run_dir(recipe: Recipe) -> Path:
    """The absolute path of the run's folder. Raises ValueError if a batch script cannot contain
    it."""
    run_dir = run_folder(recipe).absolute()
    if re.search(r'["\\\n]', str(run_dir)):
        raise ValueError(
            f"run_dir={str(run_dir)!r} has a double quote, a backslash or a line break"
        )
    return run_dir


def _text(said: str, recipe: Recipe, flags: Sequence[str], settings: Sequence[str]) -> str:
    """The whole script: ``flags`` of sbatch and ``lines`` are added to the recipe's own."""
    name = "train_het.sbatch" if recipe.cluster.engine_nodes else "train.sbatch"
    body = data_path(f"slurm/{name}").read_text()
    lines = [
        "#!/bin/bash",
        "# " + said.replace("\n", " "),
        f"# Above the mark: from the recipe. Below it: slurm/{name}, unchanged; Slurm reads no",
        "# #SBATCH line there, because commands precede it.",
        *_directives(recipe, body, flags),
        "",
        *(f"export {name}={shlex.quote(value)}" for name, value in _exports(recipe.cluster)),
        *settings,
        "",
        f"# ---- slurm/{name} " + "-" * 60,
    ]
    return "\n".join(lines) + "\n" + body


def beside(run_dir: Path, ending: str) -> Path:
    """A job's own file, .sbatch or .log: not in the run's folder, which begins empty."""
    return run_dir.with_name(run_dir.name + ending)


def _arguments(source: str, overrides: Sequence[str]) -> str:
    file = Path(source).expanduser()
    if any(redacted(override) != override for override in overrides):
        raise ValueError(
            "an override contains a password, which the batch script would store: write it into "
            "the recipe, or give the address by MLFLOW_TRACKING_URI"
        )
    return shlex.join([str(file.absolute()) if file.exists() else source, *overrides])


def _directives(recipe: Recipe, body: str, flags: Sequence[str]) -> Iterator[str]:
    """The script's own #SBATCH lines; the recipe's flags replace lines of the same flag."""
    cluster = recipe.cluster
    groups: list[list[str]] = [[]]
    for line in body.splitlines():
        if line == HETJOB:
            groups.append([])
        elif line.startswith("#SBATCH "):
            groups[-1].append(line.removeprefix("#SBATCH "))
    for number, own in enumerate(groups):
        if number:
            yield HETJOB
            gpus, partition = cluster.engine_gpus_per_node, cluster.engine_partition
            gpus = cluster.gpus_per_node if gpus is None else gpus
            asked = [f"--nodes={cluster.engine_nodes}", *cluster.flags, *cluster.engine_flags]
        else:
            gpus, partition = cluster.gpus_per_node, None
            asked = [f"--nodes={cluster.nodes}", *flags, *cluster.flags]
        of_group = {"time": cluster.time, "account": cluster.account}
        of_group["partition"] = partition or cluster.partition
        asked += [f"--{name}={value}" for name, value in of_group.items() if value is not None]
        by_flag = {flag.partition("=")[0]: flag for flag in [*own, *asked]}
        # a site that knows only --gres refuses the other flag
        if not re.search(r"[=,]gpu\b", by_flag.get("--gres", "")):
            by_flag["--gpus-per-node"] = f"--gpus-per-node={gpus}"
        else:
            by_flag.pop("--gpus-per-node", None)
        yield from (f"#SBATCH {flag}" for flag in by_flag.values())


def _quoted(path: Path, keep: str = "") -> str:
    """The path, escaped for sbatch, to which a # begins a comment; ``keep`` is one of Slurm's
    patterns at its end."""
    text = str(path).removesuffix(keep).replace("%", "%%") + keep
    return text if re.fullmatch(r"[\w%/.,:=@+-]+", text) else f'"{text}"'


def _exports(cluster: ClusterSection) -> Iterator[tuple[str, str]]:
    yield "CONTAINER", cluster.container
    if cluster.container == "none":
        yield "PYTHON", sys.executable
    for name, value in (
        ("IMAGE", cluster.image),
        ("ENGINE_IMAGE", cluster.engine_image),
        ("MOUNTS", ",".join(cluster.mounts)),
        ("CLUSTER_ENV", _env_file(cluster)),
    ):
        if value:
            yield name, value
    yield "MAX_REQUEUES", str(cluster.max_requeues)


def _env_file(cluster: ClusterSection) -> str | None:
    if cluster.env_file is None:
        return None
    path = data_path(cluster.env_file)
    if not path.is_file():
        raise ValueError(f"env_file: there is no file {path}")
    return str(path.absolute())
