"""``aent status``: reports on a run from the files in its folder, and from Slurm if it is
installed.

A run is named by its folder, by the id of its Slurm job, or by its recipe (all jobs with the
recipe's name that Slurm knows). It only reads, so it works during a run and after its end.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aent.launch import starts
from aent.orchestrator.alerts import IDLE
from aent.recipe.load import RecipeError, load
from aent.runtime import failures, heartbeats
from aent.runtime.environment import data_path
from aent.slurm.render import ARRAY
from aent.slurm.submission import SlurmError, runs_of_array, slurm
from aent.tracking import journal
from aent.tracking.display import clock
from aent.tracking.journal import JOURNAL_FILE

# own number, name (7; 5_2 is a task of an array, 7+0 a group), state, run time, time left, nodes,
# reason or nodes' names, script
SQUEUE = "%A|%i|%T|%M|%L|%D|%R|%o"
SACCT = "JobIDRaw,JobID,State,Elapsed,ExitCode,NodeList"
NAME = r"\d+([_+]\d+)?"  # of a job, as squeue shows it
LAST = 10  # steps whose times are reported
SHIPPED = ("train.sbatch", "train_het.sbatch", "sweep.sbatch", ARRAY)  # of no one run
ALERT = "aent.alert."  # prefix of alerts' tags (orchestrator.alerts)
SILENT_S = 120.0  # as in the launcher and the batch script
FORGOTTEN = "now-7days"  # period that sacct is asked about if squeue knows no job of a name


@dataclass(frozen=True)
class Job:
    """Slurm's information about a job, or about a task of an array."""

    own: str  # its number, which one task of an array shares with the array
    number: str  # as squeue shows it, of this one alone
    state: str
    told: str  # the rest, in words
    run_dir: Path | None  # None: of an array, or the script was not sent by ``aent slurm submit``
    in_array: bool = False

    def __str__(self) -> str:
        return f"job {self.number}: {self.state}{self.told}"


def jobs(*query: str) -> list[Job]:
    """The jobs that squeue shows for these flags, including ended ones that it still remembers.

    Raises SlurmError.
    """
    lines = slurm(["squeue", "--all", "--noheader", "--states=all", *query, f"--format={SQUEUE}"])
    found = []
    for line in lines.splitlines():
        own, number, state, ran, left, nodes, where, script = line.split("|", 7)
        why = f", because of {where}" if state == "PENDING" else f" on {where}"
        told = f"{why}, {nodes} node(s), for {ran}, {left} left to its limit"
        path = Path(script)
        ours = path.suffix == ".sbatch" and path.name not in SHIPPED
        run_dir = path.with_suffix("") if ours else None
        found.append(Job(own, number, state, told, run_dir, path.name == ARRAY))
    return found


def job(number: str) -> Job:
    """A job by its id, from squeue, or from sacct if squeue has forgotten it.

    Raises SlurmError if neither knows it, or if Slurm is not installed.
    """
    try:
        if found := jobs(f"--jobs={number}"):
            return _one(found, number)
    except SlurmError as error:
        if "nvalid job id" not in str(error):
            raise
    if not (found := forgotten(f"--jobs={number}")):
        raise SlurmError(f"neither squeue nor sacct knows job {number}")
    return _one(found, number)


def _one(found: list[Job], number: str) -> Job:
    """The job with this number among the tasks of its array."""
    return next((each for each in found if each.own == number), found[0])


def forgotten(*query: str) -> list[Job]:
    """The jobs that sacct has for these flags, oldest first. Raises SlurmError."""
    rows = slurm(["sacct", "-X", "-n", "-P", *query, f"--format={SACCT}"]).splitlines()
    found = []
    for row in rows:
        own, number, state, ran, code, nodes = row.split("|", 5)
        told = f" after {ran} on {nodes}, exit code {code}"
        found.append(Job(own, number, state, told, None))
    return found


def of_run(run_dir: Path) -> list[str]:
    """Lines about the run in this folder. Raises RecipeError if its recipe cannot be read."""
    recipe = load(run_dir / "recipe.yaml")
    path = run_dir / JOURNAL_FILE
    lines = [f"run {run_dir}: {recipe.name}, {_state(run_dir)}"]
    lines += _steps(path, recipe.steps)
    lines += [f"alert {tag.text}" for tag in journal.tags(path).values() if ALERT in tag.tag]
    lines += _starts(run_dir)
    lines += [f"rank {rank}: {place}" for rank, place in heartbeats.places(run_dir).items()]
    lines += _engines(run_dir, recipe.rollout.engines)
    if why := failures.first(run_dir):
        lines.append(why)
    lines.append(f"logs: {run_dir / 'logs'}")
    log = run_dir.with_name(run_dir.name + ".log")
    return [*lines, *([f"log of its jobs: {log}"] if log.exists() else [])]


def _state(run_dir: Path) -> str:
    """The run's status, and evidence against it: if ranks and launcher were killed, nothing updated
    the status."""
    status = journal.last_status(run_dir / JOURNAL_FILE) or "not begun"
    if why := starts.why_ended(run_dir):
        return f"{status}; its last start has ended: {why}"
    silent_s = heartbeats.silence_of(run_dir)
    if status == "RUNNING" and silent_s is not None and silent_s > SILENT_S:
        return (
            f"{status}, but no rank has shown a sign of life for {clock(silent_s)}: was it killed?"
        )
    return status


def _starts(run_dir: Path) -> Iterator[str]:
    """How often and where the run was started, and why each start but the last one ended."""
    begun = starts.noted(run_dir)
    if not begun:
        return
    last = begun[-1]
    place = _job(last["job"]) if last.get("job") else f"on {last.get('host', 'this machine')}"
    yield f"started {len(begun)} time(s), last {place}"
    for number, again in enumerate(begun[1:], 2):
        when = datetime.fromtimestamp(again["time"]) if "time" in again else None
        yield (
            f"  attempt {number}{f', {when:%Y-%m-%d %H:%M:%S}' if when else ''}, from "
            f"{again.get('checkpoint') or 'the first step'}, after: "
            f"{again.get('after') or starts.UNTOLD}"
        )


def _job(number: str) -> str:
    """A job, with Slurm's information if Slurm is installed."""
    try:
        return str(job(number))
    except SlurmError as error:
        return f"job {number} ({error})"


def _steps(path: Path, steps: int) -> Iterator[str]:
    """Progress, speed and idle shares, from the journal's last steps."""
    found: dict[str, dict[int, float]] = {}
    last = 0
    for point in journal.read(path) if path.exists() else ():
        if point.key in ("time/total", *IDLE.values()):
            found.setdefault(point.key, {})[point.step] = point.value
            last = max(last, point.time)
    total = found.get("time/total", {})
    if not total:
        yield f"step 0 of {steps}"
        return
    done, recent = max(total) + 1, sorted(total)[-LAST:]
    each = statistics.median(total[step] for step in recent)
    yield (
        f"step {done} of {steps}, the last {clock(time.time() - last / 1000)} ago; "
        f"{each:.1f} s a step, about {clock((steps - done) * each)} left"
    )
    whole = sum(total[step] for step in recent) or 1.0
    shares = [
        f"{who} {sum(found.get(key, {}).get(step, 0.0) for step in recent) / whole:.0%}"
        for who, key in IDLE.items()
    ]
    yield f"idle in the last {len(recent)} step(s): {', '.join(shares)}"


def _engines(run_dir: Path, count: int) -> Iterator[str]:
    """For each engine that the run starts: its address, or that it is lost or not ready yet."""
    for index in range(count):
        file = run_dir / "engines" / f"{index}.json"
        try:
            entry = json.loads(file.read_text())
        except (OSError, ValueError):  # missing, or just being replaced
            yield f"engine {index}: not ready"
            continue
        lost = file.with_suffix(".lost").exists()
        yield f"engine {index}: {'lost' if lost else entry.get('url') or entry.get('error')}"


def report(target: str) -> list[str]:
    """Lines about a run folder, a job or a recipe.

    Raises SlurmError, RecipeError, or ValueError if the target is none of them.
    """
    folder = Path(target).expanduser()
    if (folder / "recipe.yaml").is_file():
        return of_run(folder.absolute())
    if re.fullmatch(NAME, target):
        found = job(target)
        return [str(found), *_of_job(found)]
    if folder.is_dir():
        raise ValueError(f"{target} is not a run folder: it has no recipe.yaml")
    name = load(data_path(target)).name
    known = jobs("--me", f"--name={name}")
    known = known or forgotten(f"--name={name}", f"--starttime={FORGOTTEN}")
    if not known:
        return [f"squeue knows no job of yours called {name}, and sacct none of the last 7 days"]
    return [line for one in known for line in (str(one), *_of_job(one))]


def _of_job(found: Job) -> list[str]:
    run_dir = _of_task(found) if found.in_array else found.run_dir
    if run_dir is None:
        return ["  its run folder is not known: use aent status RUN_DIR"]
    try:
        return [f"  {line}" for line in of_run(run_dir)]
    except RecipeError:  # the job has not begun
        return [f"  nothing in {run_dir} yet"]


def _of_task(found: Job) -> Path | None:
    """The run folder of an array's task, if Slurm still has the array's script."""
    try:
        return runs_of_array(found.own).get(found.number.rpartition("_")[2])
    except SlurmError:
        return None


def job_of(target: str) -> str:
    """The id of the job (or task of an array) that a run folder or an id names, or of a recipe's
    only job.

    Raises as ``report``, and SlurmError if it is not exactly one job.
    """
    if re.fullmatch(NAME, target):
        return target
    folder = Path(target).expanduser()
    if folder.is_dir():
        begun = [start["job"] for start in starts.noted(folder) if start.get("job")]
        if not begun:
            raise ValueError(f"{target}: no Slurm job has begun a run in this folder")
        return _whole(job(str(begun[-1])))
    name = load(data_path(target)).name
    alive = jobs("--me", "--states=PENDING,RUNNING,SUSPENDED", f"--name={name}")
    numbers = list(dict.fromkeys(map(_whole, alive)))
    if len(numbers) != 1:
        told = ", ".join(numbers) or "none"
        raise SlurmError(f"jobs called {name} that wait or run: {told}; name one by its id")
    return numbers[0]


def _whole(found: Job) -> str:
    """The number of a job of two groups, which squeue shows as 7+0 and 7+1."""
    return found.number.partition("+")[0]


def cancel(target: str) -> str:
    """Cancel that job and return its id. Raises as ``job_of``."""
    number = job_of(target)
    slurm(["scancel", number])
    return number


def log_of(target: str) -> str:
    """The path of that job's log, if Slurm still knows the job. Raises as ``job_of``."""
    number = job_of(target)
    for line in slurm(["scontrol", "show", "job", number]).splitlines():
        if line.strip().startswith("StdOut="):
            return line.strip().removeprefix("StdOut=")
    raise SlurmError(f"Slurm knows no log of job {number}")
