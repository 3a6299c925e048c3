"""``aent slurm``: a recipe's ``cluster:`` section as a batch script, and its submission."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
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

HETJOB = "#SBATCH hetjob"
# Slurm variables of the caller that say where Slurm is. The others describe the job or step that
# the caller is in; sbatch would pass them on, and they would change the new job's tasks.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_MPI_TYPE")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SQUEUE_TIMEOUT_S = 60.0


# source and overrides as given on the command line, and the resolved recipe
ScriptedRun = tuple[str, Sequence[str], Recipe]


class SlurmError(RuntimeError):
    """Slurm is not installed here, or refused; the message quotes it."""


class SubmittedError(SlurmError):
    """The script's job is already waiting or running."""


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

    Raises ValueError with the reason if the recipe does not fit the nodes.
    """
    layout(recipe, *nodes_of(recipe.cluster))
    run_dir = _run_dir(recipe)
    flags = [f"--job-name={recipe.name}", f"--output={_quoted(_beside(run_dir, '.log'))}"]
    settings = [f"export RUN_DIR={shlex.quote(str(run_dir))}"]
    settings += [f"set -- {_arguments(source, overrides)}"]
    said = f"aent slurm render {shlex.join([source, *overrides])}"
    if sweep is not None:
        settings += [f"export SWEEP_DIR={shlex.quote(str(sweep.absolute()))}"]
        said += f" # of the sweep in {sweep.absolute()}"
    return Script(_text(said, recipe, flags, settings), _beside(run_dir, ".sbatch"))


def render_several(runs: Sequence[ScriptedRun], folder: Path, said: str) -> list[Script]:
    """Runs below one parent run in MLflow (``slurm.sweep``), as tasks of one job array, or as one
    job each if an array is impossible: Slurm has no arrays of heterogeneous jobs, nor of jobs that
    ask for different resources.

    Args:
        runs: source and overrides as given on the command line, and the checked recipe of each.
        folder: of the sweep or comparison; an array's script and its logs are kept there.
        said: the command, for the script's head.

    Raises ValueError with the reason if the runs do not fit the nodes.
    """
    for _, _, recipe in runs:
        try:
            layout(recipe, *nodes_of(recipe.cluster))
        except ValueError as error:
            raise ValueError(f"{run_folder(recipe)}: {error}") from None
    cluster = runs[0][2].cluster
    if cluster.engine_nodes or any(recipe.cluster != cluster for _, _, recipe in runs):
        return [render(recipe, source, overrides, folder) for source, overrides, recipe in runs]
    return [_array(runs, folder.absolute(), said)]


def _array(runs: Sequence[ScriptedRun], folder: Path, said: str) -> Script:
    log = _quoted(folder / "task-%a.log", keep="%a.log")
    name = re.sub(r"[^\w.-]", "_", folder.name)
    flags = [f"--job-name={name}", f"--output={log}", f"--array=0-{len(runs) - 1}"]
    settings = [f"export SWEEP_DIR={shlex.quote(str(folder))}", "case $SLURM_ARRAY_TASK_ID in"]
    for number, (source, overrides, recipe) in enumerate(runs):
        run_dir = shlex.quote(str(_run_dir(recipe)))
        settings += [f"{number}) RUN_DIR={run_dir}; set -- {_arguments(source, overrides)} ;;"]
    settings += ["esac", "export RUN_DIR"]
    return Script(_text(said, runs[0][2], flags, settings), folder / "array.sbatch")


def nodes_of(cluster: ClusterSection) -> tuple[int, int, int, int | None]:
    """The nodes that the recipe's job asks for (``layout.nodes``)."""
    return (
        cluster.nodes,
        cluster.gpus_per_node,
        cluster.engine_nodes,
        cluster.engine_gpus_per_node,
    )


def _run_dir(recipe: Recipe) -> Path:
    """The absolute path of the run's folder. Raises ValueError if a batch script cannot contain it,
    or if the job's containers do not see it under that path."""
    run_dir, here = run_folder(recipe).absolute(), Path.cwd()
    if re.search(r'["\\\n]', str(run_dir)):
        raise ValueError(
            f"run_dir={str(run_dir)!r} has a double quote, a backslash or a line break"
        )
    mounts = (*recipe.cluster.mounts, f"{here}:{here}")  # the script always adds the second
    if recipe.cluster.container == "none" or any(_sees(mount, run_dir) for mount in mounts):
        return run_dir
    raise ValueError(f"run_dir={run_dir} lies outside mounts={','.join(mounts)}")


def _sees(mount: str, folder: Path) -> bool:
    host, inside = map(Path, mount.split(":")[:2])
    if not folder.is_relative_to(inside):
        return False
    return (host / folder.relative_to(inside)).resolve() == folder.resolve()


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


def _beside(run_dir: Path, ending: str) -> Path:
    return run_dir.with_name(run_dir.name + ending)


def _arguments(source: str, overrides: Sequence[str]) -> str:
    file = Path(source)
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


def submit(script: Script) -> str:
    """Write the script beside the run, submit it, and return the job's id.

    Two jobs of one script would work in one folder, so the second is refused while the first waits
    or runs (it keeps its id when it is requeued). Raises SubmittedError then, and SlurmError.
    """
    for line in slurm(["squeue", "--noheader", "--me", "--format=%F|%o"]).splitlines():
        number, _, command = line.partition("|")
        if Path(command).resolve() == script.path.resolve():
            raise SubmittedError(f"job {number} is already waiting or running: {script.path}")
    script.path.write_text(script.text)
    return slurm(script.command).strip().partition(";")[0]


def slurm(command: list[str]) -> str:
    """The output of a Slurm command. Raises SlurmError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S, env=_environment()
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} was not found: this machine has no Slurm client") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer in {SQUEUE_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise SlurmError(
            done.stderr.strip() or f"{command[0]} ended with exit code {done.returncode}"
        )
    return done.stdout


def _environment() -> dict[str, str]:
    """The caller's environment, without variables of a job or a launcher that it runs in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT
        or not (name.startswith(("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_")) or name in LAUNCHERS)
    }
