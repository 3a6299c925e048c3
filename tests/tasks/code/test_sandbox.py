"""Programs that try to break out, or to bring the machine down. An attack's tests pass if it was
contained: reward 1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from aent.tasks.code import bubblewrap, cgroup, sandbox
from aent.tasks.code.sandbox import Limits, Sandbox
from processes import assert_gone
from wording import naming

Attack = Callable[..., dict[str, Any]]

COUNTED_BOMB = """
import os, time
started = 0
try:
    while started < 30:
        if os.fork() == 0:
            time.sleep(60)
        started += 1
except OSError:
    pass
"""
BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(60)  # at the limit: no core is kept busy
"""
ORPHANS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
"""
OUTPUT = """
import os
def answer():
    return 1
print("x" * 1_000_000)  # goes nowhere, and costs nothing
while True:
    for fd in range(20):
        try:
            os.write(fd, b"x" * 65536)
        except OSError:
            pass
"""
DISK = """
import os
def fill(path, size=4 << 20):
    try:
        with open(path, "wb") as file:
            while True:
                file.write(b"x" * size)
    except OSError as error:
        return os.path.exists(path) and os.path.getsize(path)
written = {place: fill(place + "/full") for place in ("/tmp", "/dev/shm")}
elsewhere = {}
for place in ("/", "/usr", "/dev", "/proc", "/etc", "/home", "/work", os.path.dirname(os.__file__)):
    elsewhere[place] = fill(place + "/full")
"""
MEMORY = """
try:
    kept = bytearray(2 << 30)
except MemoryError:
    kept = None
"""
FILES = """
import os, glob
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
token = read("TOKEN")
environment = dict(os.environ)
others = [read(path) for path in glob.glob("/proc/[0-9]*/environ")]
parent = read("/proc/PARENT/environ")
"""
NETWORK = """
import socket
def reach(family, address):
    try:
        with socket.socket(family) as one:
            one.settimeout(5)
            one.connect(address)
        return "reached"
    except OSError as error:
        return type(error).__name__
found = [reach(socket.AF_INET, ("127.0.0.1", PORT)), reach(socket.AF_INET, ("192.0.2.1", 80)),
         reach(socket.AF_UNIX, chr(0) + "NAME"), reach(socket.AF_UNIX, "SOCKET")]
"""
SIGNALS = """
import os, signal
def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
        return "sent"
    except OSError as error:
        return type(error).__name__
parent = kill(PARENT)
kill(1)
kill(-1)  # all that it sees but itself
"""
PRIVILEGES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(call, *arguments):
    return call(*arguments) != 0
uid = os.getuid()
new_user_namespace = refused(libc.unshare, 0x10000000)
mount = refused(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
gained = []
for attempt in (os.setuid, os.setgid):
    try:
        attempt(0)
        gained.append(attempt.__name__)
    except OSError:
        pass
"""


def test_what_programs_can_reach(attack: Attack, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-run")
    with socket.socket() as listening, socket.socket(socket.AF_UNIX) as unix:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        name = f"aent-test-{tmp_path.name}"
        unix.bind(b"\0" + name.encode())
        unix.listen()
        network = NETWORK.replace("PORT", str(listening.getsockname()[1])).replace("NAME", name)
        network = network.replace("SOCKET", str(tmp_path / "none"))
        found = attack(
            {
                "files": (
                    FILES.replace("TOKEN", str(token)),
                    "assert token == parent == 'FileNotFoundError'\n"
                    "assert 'of-the-run' not in str(environment) + str(others)",
                ),
                "network": (network, "assert 'reached' not in found, found"),
                "signals": (SIGNALS, "assert parent == 'ProcessLookupError'"),
                "privileges": (
                    PRIVILEGES,
                    "assert uid != 0 and new_user_namespace and mount and not gained",
                ),
                "disk": (
                    DISK,
                    "assert all(0 < size <= 64 << 20 for size in written.values()), written\n"
                    "assert not any(elsewhere.values()), elsewhere",
                ),
                "memory": (MEMORY, "assert kept is None"),
            }
        )
    names = ("files", "network", "signals", "privileges", "disk", "memory")
    assert {name: found[name] for name in names} == dict.fromkeys(names, 1.0)
    assert all(found[f"left by {name}"] == [] for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("without_cgroup", [False, True])
def test_programs_that_take_the_machine(attack: Attack, without_cgroup: bool) -> None:
    endless = {"bomb": (BOMB, "assert True"), "output": (OUTPUT, "assert answer() == 1")}
    ending = {
        # one of the eight is the runner
        "counted bomb": (COUNTED_BOMB, "assert 1 <= started <= 8"),
        "orphans": (ORPHANS, "assert True"),
        "exit": ("import os\nos._exit(0)", "assert True"),
    }
    found = attack(endless, without_cgroup=without_cgroup, timeout_s=4.0)
    assert found.get("refused by the parent's limit", 0) == 1  # that of the proof
    found |= attack(ending, without_cgroup=without_cgroup)
    assert found.get("refused by the parent's limit", 0) == 2
    rewards = {"bomb": 0.0, "output": 0.0, "counted bomb": 1.0, "orphans": 1.0, "exit": 0.0}
    assert {name: found[name] for name in rewards} == rewards
    assert all(found[f"left by {name}"] == [] for name in rewards)
    if without_cgroup:
        assert any("cgroup" in sentence for sentence in found["lacks"])


def test_without_a_sandbox_nothing_is_left_either() -> None:
    """sandbox: none keeps the limits of time and memory, and what a program started is ended."""
    box = Sandbox(Limits(20.0, 1 << 29, 8), protected=False)
    (said,) = sandbox.probe(box)
    assert "none" in said
    source = f"import subprocess, sys\n{ORPHANS}\nprint('done', flush=True)"
    code = (
        "import json, psutil, sys\n"
        "from aent.tasks.code.sandbox import Limits, Sandbox, adopt_orphans\n"
        "adopt_orphans()\n"
        "ran = Sandbox(Limits(20.0, 1 << 29, 8), protected=False).run(sys.argv[1], b'')\n"
        "left = psutil.Process().children(recursive=True)\n"
        "print(ran.output.decode().strip(), len(left))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, timeout=300,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["done", "0"]


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("bwrap") is None, reason="needs root and bubblewrap"
)
def test_a_killed_judge_leaves_no_program() -> None:
    code = (
        "from aent.tasks.code.sandbox import Limits, Sandbox\n"
        "box = Sandbox(Limits(600.0, 1 << 29, 8))\n"
        "print(box.uid, flush=True)\n"
        "box.run('import time; time.sleep(600)', b'')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as judge:
        assert judge.stdout is not None
        uid = int(judge.stdout.readline())

        def programs() -> list[psutil.Process]:
            each = psutil.process_iter(["uids"])
            return [p for p in each if p.info["uids"] and p.info["uids"].real == uid]

        deadline = time.monotonic() + 300
        while len(programs()) < 3 and time.monotonic() < deadline:  # bubblewrap's two, and Python
            time.sleep(0.05)
        running = programs()
        assert len(running) == 3
        judge.kill()
    assert_gone(running, within_s=60)
    groups = [parent / f"{cgroup.PREFIX}{judge.pid}" for _, parent, _ in cgroup._parents()]
    cgroup.sweep()
    assert not any(group.exists() for group in groups)


def test_time_is_up() -> None:
    box = Sandbox(Limits(0.5, 1 << 29, 8), protected=False)
    started = time.monotonic()
    ran = box.run("import time\nprint(1, flush=True)\ntime.sleep(600)", b"")
    assert ran.ended == "time"
    assert time.monotonic() - started < 300


def test_what_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    box = Sandbox(Limits(10.0, 1 << 29, 8))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(ValueError, match=naming("bwrap", "url", "sandbox: none")):
            sandbox.probe(box)
    says = "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    for command in (["/bin/sh", "-c", says], [str(tmp_path / "bwrap")]):
        monkeypatch.setattr(bubblewrap, "command", lambda staged, command=command: command)
        with pytest.raises(ValueError, match=naming("bubblewrap", "url", "sandbox: none")) as error:
            sandbox.probe(box)
        assert ("permissions" in str(error.value)) == (command[0] == "/bin/sh")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run them as root")
def test_roots_uid_is_refused() -> None:
    box = Sandbox(Limits(10.0, 1 << 29, 8), uid=None)
    with pytest.raises(ValueError, match=naming("uid", "root", "sandbox: none")):
        sandbox.probe(box)


def test_a_uid_that_nobody_has() -> None:
    uids = {process.info["uids"].real for process in psutil.process_iter(["uids"])}
    assert bubblewrap.unused_uid() not in uids
