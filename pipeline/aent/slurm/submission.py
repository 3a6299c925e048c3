"""Submitting batch scripts, and which runs have a job already."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from aent.slurm.render import ARRAY, Script, beside

# Slurm variables of the caller that say where Slurm is. The others describe the job or step that
# the caller is in; sbatch would pass them on, and they would change the new job's tasks.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_MPI_TYPE")
DROPPED = ("SLURM_", "SQUEUE_", "TORCHELASTIC_", "PMI_", "PMIX_")  # SQUEUE_STATES hides jobs
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SQUEUE_TIMEOUT_S = 60.0


class SlurmError(RuntimeError):
    """Slurm is not installed here, or refused; the message quotes it."""


def submit(script: Script) -> str:
    """Write the script beside the run, submit it, and return the job's id. Raises SlurmError.

    Two jobs would work in one folder: ask ``at_work`` before.
    """
    script.path.write_text(script.text)
    return slurm(script.command).strip().partition(";")[0]


def at_work(run_dirs: Iterable[Path]) -> dict[Path, str]:
    """Those of the run folders that a job of this user waits for or runs in, and its number (it
    keeps it when it is requeued).

    A job is known by the path of its script (``render``), an array's task by Slurm's own copy of
    the script: the file is overwritten by the next submission. Raises SlurmError.
    """
    run_dirs = list(run_dirs)
    alone = {_path(beside(run_dir, ".sbatch")): run_dir for run_dir in run_dirs}
    in_arrays = {_path(run_dir): run_dir for run_dir in run_dirs}
    arrays = {_path(run_dir).with_name(ARRAY) for run_dir in run_dirs}
    runs_of: dict[str, dict[str, Path]] = {}  # by array and task
    found: dict[Path, str] = {}
    query = ["squeue", "--me", "--all", "--noheader", "--array", "--sort=i"]  # all partitions
    for line in slurm([*query, "--format=%A|%F|%K|%o"]).splitlines():
        own, number, task, command = line.split("|", 3)
        script = _path(Path(command))
        if script in alone:
            found.setdefault(alone[script], number)
        elif script in arrays:
            if number not in runs_of:
                runs_of[number] = runs_of_array(own)
            if task not in runs_of[number]:
                raise SlurmError(f"job {number}: {script} does not name the run of task {task}")
            if (run_dir := in_arrays.get(_path(runs_of[number][task]))) is not None:
                found.setdefault(run_dir, f"{number}_{task}")
    return found


def runs_of_array(job: str) -> dict[str, Path]:
    """The run folder of each task of the array that a job is of, by the script of ``render.array``.
    Raises SlurmError."""
    script = slurm(["scontrol", "write", "batch_script", job, "-"])
    lines = re.findall(r"^(\d+)\) RUN_DIR=(.*)$", script, re.MULTILINE)
    words = {task: shlex.split(quoted) for task, quoted in lines}
    return {task: Path(word[0]) for task, word in words.items() if len(word) == 1}


def _path(path: Path) -> Path:
    """The same for every way to a file's or a folder's name; what has the name may be a link."""
    return path.absolute().parent.resolve() / path.name


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
        if name in KEPT or not (name.startswith(DROPPED) or name in LAUNCHERS)
    }
