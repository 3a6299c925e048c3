"""``aent slurm``: a recipe's ``cluster:`` section as a batch script, its submission, its state."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aent.cluster.layout import layout
from aent.recipe.check import run_folder
from aent.recipe.schema import ClusterSection, Recipe
from aent.runtime.environment import data_path
from aent.tracking import journal
from aent.tracking.journal import JOURNAL_FILE

HETJOB = "#SBATCH hetjob"
STATUS_FORMAT = "%i|%T|%M|%D|%R|%k"  # number, state, run time, nodes, reason, comment: run folder
SQUEUE_TIMEOUT_S = 60.0


class SlurmError(RuntimeError):
    """Slurm is not here, or said no; the message has its words."""


@dataclass(frozen=True)
class Script:
    """A rendered batch script and where it is kept: beside the run's folder."""

    text: str
    path: Path

    @property
    def command(self) -> list[str]:
        """What submits it."""
        return ["sbatch", "--parsable", str(self.path)]


def render(recipe: Recipe, source: str, overrides: Sequence[str]) -> Script:
    """A header above the unchanged ``slurm/train.sbatch`` (``train_het.sbatch`` with engine nodes).

    Args:
        recipe: checked; its ``run_dir`` is named.
        source: the recipe as the command line named it; overrides as well.

    Raises ValueError, with the reason, where the recipe does not fit the nodes.
    """
    cluster = recipe.cluster
    layout(recipe, cluster.nodes, cluster.gpus_per_node, cluster.engine_nodes)
    name = "train_het.sbatch" if cluster.engine_nodes else "train.sbatch"
    body = data_path(f"slurm/{name}").read_text()
    run_dir = run_folder(recipe).absolute()
    file = Path(source)
    arguments = [str(file.absolute()) if file.exists() else source, *overrides]
    lines = [
        "#!/bin/bash",
        f"# aent slurm render {shlex.join([source, *overrides])}",
        f"# Down to the mark: from the recipe. Below it: slurm/{name}, unchanged; Slurm reads no",
        "# #SBATCH line there, for commands stand above it.",
        *_directives(recipe, body, run_dir),
        "",
        *(f"export {name}={shlex.quote(value)}" for name, value in _exports(cluster, run_dir)),
        f"set -- {shlex.join(arguments)}",
        "",
        f"# ---- slurm/{name} " + "-" * 60,
    ]
    return Script("\n".join(lines) + "\n" + body, run_dir.with_name(run_dir.name + ".sbatch"))


def _directives(recipe: Recipe, body: str, run_dir: Path) -> Iterator[str]:
    """The script's own #SBATCH lines and, instead of those of the same flag, the recipe's."""
    cluster = recipe.cluster
    groups: list[list[str]] = [[]]
    for line in body.splitlines():
        if line == HETJOB:
            groups.append([])
        elif line.startswith("#SBATCH "):
            groups[-1].append(line.removeprefix("#SBATCH "))
    for number, (own, nodes) in enumerate(zip(groups, (cluster.nodes, cluster.engine_nodes))):
        asked = [f"--nodes={nodes}", f"--gpus-per-node={cluster.gpus_per_node}"]
        for flag in ("time", "account", "partition"):
            if getattr(cluster, flag) is not None:
                asked.append(f"--{flag}={getattr(cluster, flag)}")
        if number == 0:
            log = run_dir.with_name(run_dir.name + ".log")
            asked += [f"--job-name={recipe.name}", f"--output={_quoted(log)}"]
            asked += [f"--comment={_quoted(run_dir)}"]
        else:
            yield HETJOB
        by_flag = {flag.partition("=")[0]: flag for flag in [*own, *asked, *cluster.flags]}
        yield from (f"#SBATCH {flag}" for flag in by_flag.values())


def _quoted(path: Path) -> str:
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _exports(cluster: ClusterSection, run_dir: Path) -> Iterator[tuple[str, str]]:
    yield "RUN_DIR", str(run_dir)
    yield "CONTAINER", cluster.container
    if cluster.container == "none":
        yield "PYTHON", sys.executable
    for name, value in (
        ("IMAGE", cluster.image),
        ("ENGINE_IMAGE", cluster.engine_image),
        ("MOUNTS", ",".join(cluster.mounts)),
        ("CLUSTER_ENV", cluster.env_file and str(Path(cluster.env_file).absolute())),
    ):
        if value:
            yield name, value
    yield "MAX_REQUEUES", str(cluster.max_requeues)


def submit(script: Script) -> str:
    """Keep the script beside the run and give it to sbatch; the job's number.

    Raises SlurmError.
    """
    script.path.parent.mkdir(parents=True, exist_ok=True)
    script.path.write_text(script.text)
    return _slurm(script.command).strip().partition(";")[0]


def status(recipe: Recipe) -> str:
    """The jobs of this recipe that Slurm knows, and how far each has come. Raises SlurmError."""
    query = ["squeue", "--noheader", "--me", "--states=all", f"--name={recipe.name}"]
    lines = _slurm([*query, f"--format={STATUS_FORMAT}"]).splitlines()
    if not lines:
        return f"no job of yours called {recipe.name} is known to Slurm (squeue)"
    rows = [["job", "state", "time", "nodes", "where, or why not", "steps", "run folder"]]
    for line in lines:
        *shown, comment = line.split("|", 5)
        run_dir = Path(comment) if comment not in ("", "(null)") else None
        rows.append([*shown, _steps(run_dir, recipe.steps), str(run_dir or "")])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip() for r in rows)


def _steps(run_dir: Path | None, steps: int) -> str:
    """How many steps the run's journal has, of all."""
    path = run_dir / JOURNAL_FILE if run_dir else None
    if path is None or not path.is_file():
        return ""
    done = [point.step + 1 for point in journal.read(path) if point.key == "reward/mean"]
    return f"{max(done, default=0)}/{steps}"


def _slurm(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not here: this machine has no Slurm client") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer in {SQUEUE_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise SlurmError(done.stderr.strip() or f"{command[0]} ended with code {done.returncode}")
    return done.stdout
