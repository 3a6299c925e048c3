"""``make test-all``: the tests in parts, two parts at a time, so that both cores have work.

A part that fails does not stop the others. Every line comes with its part's name in front; each
part's own output is in ``runs/test-all``. Ctrl-C or SIGTERM interrupts the tests, which then clean
up; a second one, or ``STOP_S`` seconds, kills what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "runs" / "test-all"
AT_ONCE = 2
STOP_S = 300.0  # images and daemons are removed
NOTHING_LEFT = 5  # pytest's exit code if it ran no test: all have passed before
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Part:
    name: str
    budget_s: float  # core-seconds
    command: Sequence[str]
    slurm: bool = False  # starts a Slurm cluster: one such part at a time


def tests(*arguments: str) -> list[str]:
    """A pytest that leaves out what has passed on these files before."""
    return [sys.executable, "-u", "-m", "pytest", "-rs", "--color=no", "--go-on", *arguments]


# in this order, which lets the last two end at about the same time
PARTS = (
    Part(
        "one machine",
        3000,
        tests("-m", "not gpu and not cluster and not containers and not faults and not py312"),
    ),
    Part("containers", 1500, tests("-m", "containers", "tests/containers"), slurm=True),
    Part("faults", 1000, tests("-m", "faults", "tests/faults")),
    Part("cluster", 1500, tests("-m", "cluster", "tests/slurm"), slurm=True),
)


@dataclass(frozen=True)
class Running:
    part: Part
    process: subprocess.Popen[bytes]
    reader: threading.Thread
    log: Path
    began: float  # time.monotonic()


def choose(waiting: Sequence[Part], running: Sequence[Part]) -> Part | None:
    """The part to start beside those that run; None if it has to wait until one of them ends."""
    if len(running) >= AT_ONCE:
        return None
    cluster = any(part.slurm for part in running)
    return next((part for part in waiting if not (part.slurm and cluster)), None)


def start(part: Part) -> Running:
    log = LOGS / f"{part.name.replace(' ', '-')}.log"
    measured = [sys.executable, "-u", str(ROOT / "tools" / "core_seconds.py")]
    # in a process group of its own, so that Ctrl-C reaches it once, by `interrupt`
    process = subprocess.Popen(
        [*measured, part.name, str(part.budget_s), *part.command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=copy_lines, args=(process.stdout, log, part.name), daemon=True)
    reader.start()
    return Running(part, process, reader, log, time.monotonic())


def copy_lines(lines: IO[bytes], log: Path, name: str) -> None:
    with log.open("wb", buffering=0) as file:
        for line in lines:
            file.write(line)
            print(f"[{name}] {line.decode(errors='replace')}", end="", flush=True)


def interrupt(running: Sequence[Running]) -> None:
    for one in running:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGINT)


def kill_all() -> None:
    """Every process that descends from this one (an orphan becomes its child)."""
    left = True
    while left:
        left = False
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
                    left = True
        time.sleep(0.1)


def summary(one: Running) -> str:
    """What became of the part's tests, its minutes and its core-seconds."""
    text = one.log.read_text(errors="replace")
    last = re.findall(r"^=*\s*(\d+ [a-z]+\b.*) in \d[\d.]*s\b", text, re.MULTILINE)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)\b", last[-1] if last else "")
    if one.process.returncode == NOTHING_LEFT:
        counts = ["all passed before"]
    words = ", ".join(counts) or f"ended with exit code {one.process.returncode}"
    used = re.findall(rf"^{re.escape(one.part.name)}: (\d+ core-seconds)", text, re.MULTILINE)
    minutes = (time.monotonic() - one.began) / 60
    return f"{one.part.name}: {words}; {', '.join([f'{minutes:.1f} minutes', *used])}; {one.log}"


def main(parts: Sequence[Part] = PARTS) -> int:
    LOGS.mkdir(parents=True, exist_ok=True)
    # two pytests that make it at once would pass through files that git lists as new
    (ROOT / ".pytest_cache").mkdir(exist_ok=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked: list[float] = []  # when we were asked to stop
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(time.monotonic()))
    began, interrupted, failed = time.monotonic(), False, False
    waiting, running, lines = list(parts), list[Running](), list[str]()
    while running or (waiting and not asked):
        while not asked and (part := choose(waiting, [one.part for one in running])):
            waiting.remove(part)
            running.append(start(part))
        if asked and not interrupted:
            interrupt(running)
            interrupted = True
        if len(asked) > 1 or (asked and time.monotonic() > asked[0] + STOP_S):
            kill_all()
        for one in [one for one in running if one.process.poll() is not None]:
            running.remove(one)
            one.reader.join(10)  # a process that outlives its part may hold the pipe
            failed |= one.process.returncode not in (0, NOTHING_LEFT)
            lines.append(summary(one))
            print(f"test-all: {lines[-1]}", flush=True)
        time.sleep(0.1)
    kill_all()
    lines += [f"{part.name}: not begun" for part in waiting]
    lines += [f"{(time.monotonic() - began) / 60:.1f} minutes in all"]
    print("test-all:", *lines, sep="\n  ", flush=True)
    return 128 + signal.SIGINT if asked else int(failed)


if __name__ == "__main__":
    sys.exit(main())
