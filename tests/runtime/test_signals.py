"""SIGUSR1 is not lost, and does not kill a process that is not ready for it."""

from __future__ import annotations

import subprocess
import sys

from aent.runtime import signals

CHILD = """
import sys
from aent.runtime import signals
print("started", flush=True)
sys.stdin.readline()  # the signal comes before
request = signals.listen()
print(request.received, flush=True)
sys.stdin.readline()
print(request.received, flush=True)
"""


def start() -> subprocess.Popen:
    with signals.held():
        return subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )


def answers(child: subprocess.Popen, before: bool, after: bool) -> list[str]:
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    seen = []
    for send in (before, after):
        if send:
            child.send_signal(signals.STOP)
        child.stdin.write("\n")
        child.stdin.flush()
        seen.append(child.stdout.readline().strip())
    child.stdin.close()
    assert child.wait(60) == 0
    return seen


def test_a_signal_that_comes_early_waits():
    assert answers(start(), before=True, after=False) == ["True", "True"]


def test_a_signal_is_noted_and_nothing_else():
    assert answers(start(), before=False, after=True) == ["False", "True"]
