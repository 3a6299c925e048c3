"""Children die with their parent, with all processes that they started, and their logs are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aent.runtime import children
from aent.runtime.children import Child, stop_all, tail_of
from wording import assert_names

# starts a grandchild, writes both process ids, sleeps; with "deaf" both ignore SIGTERM
FAMILY = """
import signal, subprocess, sys, time, os
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = "import signal,sys,time\\nif 'deaf' in sys.argv: signal.signal(15, 1)\\ntime.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleeper, *sys.argv[1:]])
print("family", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def start(tmp_path: Path, code: str, *arguments: str) -> Child:
    argv = [sys.executable, "-c", code, *arguments]
    return Child.start("sleeper", argv, env=os.environ, log_path=tmp_path / "logs" / "child.log")


def pids_of(log: Path) -> list[int]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        words = tail_of(log, 1).split()
        if words[:1] == ["family"]:
            return [int(w) for w in words[1:]]
        time.sleep(0.02)
    raise AssertionError(f"no family in {log}")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_dead(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(alive(p) for p in pids):
        assert time.monotonic() < deadline, f"still alive: {[p for p in pids if alive(p)]}"
        time.sleep(0.02)


@pytest.mark.parametrize("arguments", [(), ("deaf",)])
def test_stop_ends_child_and_grandchild(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    child = start(tmp_path, FAMILY, *arguments)
    pids = pids_of(child.log_path)
    assert child.poll() is None
    assert child.describe_exit() == "is running"
    child.stop(0.5 if arguments else 60.0)
    assert not any(alive(p) for p in pids)
    expected = "SIGKILL" if arguments else "SIGTERM"
    assert_names(child.describe_exit(), expected)
    child.stop(0.5)  # again: nothing to do


def test_stop_ends_the_grandchild_of_a_child_that_is_gone(tmp_path: Path) -> None:
    child = start(tmp_path, FAMILY)
    _, grandchild = pids_of(child.log_path)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait(60)
    assert alive(grandchild)
    stop_all([child], 0.1)
    assert not alive(grandchild)


def test_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, os\nfrom pathlib import Path\n"
        "from aent.runtime.children import Child\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "c = Child.start('c', sleep, env=os.environ, log_path=Path(sys.argv[1]))\n"
        "print(c.process.pid, flush=True)\ntime.sleep(600)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "child.log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            grandchild = int(parent.stdout.readline())
            assert alive(grandchild)
        finally:
            parent.kill()
    wait_dead([grandchild])


def test_exit_code_and_last_lines(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(5): print('line', i)\nsys.exit('the reason')"
    child = start(tmp_path, code)
    assert child.process.wait(60) == 1
    assert_names(child.describe_exit(), "code 1")
    assert sorted(child.tail(2).splitlines()) == ["line 4", "the reason"]
    assert tail_of(tmp_path / "absent", 3) == ""
    assert tail_of(tmp_path, 3) == ""  # a folder: the message has no lines


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    log.write_text("".join(f"line {i} ä\n" for i in range(40_000)))
    assert tail_of(log, 2) == "line 39998 ä\nline 39999 ä"
    assert children.TAIL_BYTES / 20 < len(tail_of(log, 40_000).splitlines()) < 40_000 / 4


def test_own_session_and_given_environment(tmp_path: Path) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), os.environ.get('A'), len(os.environ) < 4)"
    argv = [sys.executable, "-c", code]
    child = Child.start("c", argv, env={"A": "b", "LC_ALL": "C"}, log_path=tmp_path / "log")
    child.process.wait(60)
    assert child.tail(1) == "True b True"
