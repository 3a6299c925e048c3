"""``tools/test_all.py``: parts side by side, and what becomes of them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest.mark.expression import Expression

from processes import assert_gone
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
PASSES = "print('==== 2 passed, 1 skipped, 3 warnings in 0.1s ====')"
FAILS = "print('==== 1 failed, 7 passed in 0.1s ===='); raise SystemExit(1)"
NOTHING = "print('==== 9 deselected in 0.1s ===='); raise SystemExit(5)"
# a process that no signal to the group reaches, then a wait that Ctrl-C ends as pytest would
WAITS = """
import subprocess, time
quiet = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=quiet, stderr=quiet)
try:
    print("child", child.pid, flush=True)  # Ctrl-C comes at once
    time.sleep(600)
except KeyboardInterrupt:
    print("==== 3 passed in 1.0s ====")
    raise SystemExit(2)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
print("deaf", flush=True)
time.sleep(600)
"""
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_all
test_all.LOGS = Path(sys.argv[2])
commands = [[sys.executable, "-c", code] for code in sys.argv[3:]]
sys.exit(test_all.main([test_all.Part(str(n), 1, c) for n, c in enumerate(commands)]))
"""

spec = importlib.util.spec_from_file_location("test_all", ROOT / "tools" / "test_all.py")
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
sys.modules["test_all"] = tool
spec.loader.exec_module(tool)


def started(logs: Path, *codes: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(ROOT / "tools"), str(logs), *codes]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_at_a_time_and_one_cluster() -> None:
    names = {part.name: part for part in tool.PARTS}
    waiting, running = list(tool.PARTS), list[Any]()
    began: list[str] = []
    while part := tool.choose(waiting, running):
        waiting.remove(part)
        running.append(part)
        began.append(part.name)
    assert began == ["one machine", "containers"]
    assert tool.choose(waiting, [names["one machine"]]) is names["faults"]
    # no second cluster beside the first, even if nothing else is left
    assert tool.choose([names["cluster"]], [names["containers"]]) is None
    assert tool.choose([names["cluster"]], [names["faults"]]) is names["cluster"]


def test_every_test_that_needs_no_gpu_is_in_one_part() -> None:
    marks = ("slow", "full", "faults", "cluster", "containers", "gpu", "py312")
    chosen = [Expression.compile(p.command[p.command.index("-m", 3) + 1]) for p in tool.PARTS]

    def parts(has: tuple[str, ...]) -> int:
        return sum(e.evaluate(lambda name, /, **_: name in has) for e in chosen)

    places = ("faults", "cluster", "containers", "gpu", "py312")
    for has in itertools.chain.from_iterable(
        itertools.combinations(marks, n) for n in range(len(marks) + 1)
    ):
        if sum(mark in places for mark in has) < 2:  # no test has two of them
            assert parts(has) == (0 if {"gpu", "py312"} & set(has) else 1), has


def test_all_parts_run_and_one_that_fails_is_the_exit_code(tmp_path: Path) -> None:
    said = started(tmp_path, FAILS, PASSES, NOTHING)
    text, _ = said.communicate(timeout=300)
    assert said.returncode == 1
    lines = text.splitlines()
    assert "[0] ==== 1 failed, 7 passed in 0.1s ====" in lines
    last = lines[lines.index("test-all:") :]
    spent = r"\d\.\d minutes, \d+ core-seconds"
    assert any(re.match(rf"  0: 1 failed, 7 passed; {spent}; ", line) for line in last)
    assert any(re.match(rf"  1: 2 passed, 1 skipped; {spent}; ", line) for line in last)
    assert any(re.match(rf"  2: all passed before; {spent}; ", line) for line in last)
    assert "2 passed" in (tmp_path / "1.log").read_text()


def test_what_has_passed_before_is_no_failure(tmp_path: Path) -> None:
    run = started(tmp_path, NOTHING, PASSES)
    run.communicate(timeout=300)
    assert run.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_parts_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = started(tmp_path, WAITS, WAITS, PASSES)
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    wait_until(
        lambda: all(log.exists() and "child" in log.read_text() for log in logs), "both parts run"
    )
    processes = psutil.Process(run.pid).children(recursive=True)
    assert len(processes) == 6
    os.kill(run.pid, number)
    text, _ = run.communicate(timeout=300)
    assert run.returncode == 130
    assert_gone(processes, within_s=60)
    assert "  2: not begun" in text.splitlines()
    assert re.search(r"  0: 3 passed; .* minutes, \d+ core-seconds", text)


def test_a_second_signal_kills_what_does_not_stop(tmp_path: Path) -> None:
    run = started(tmp_path, DEAF)
    log = tmp_path / "0.log"
    wait_until(lambda: log.exists() and "deaf" in log.read_text(), "the part runs")
    processes = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    # two signals at once may count as one
    wait_until(lambda: "asked" in log.read_text(), "the first signal is passed on")
    run.send_signal(signal.SIGTERM)
    text, _ = run.communicate(timeout=200)
    assert run.returncode == 130
    assert_gone(processes, within_s=60)
    assert "0: ended with exit code -9" in text
