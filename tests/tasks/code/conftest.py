"""A process with a limit on processes, in which the sandbox is attacked."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aent.tasks.code import cgroup

PARENTS_LIMIT = 60
SPEC: dict[str, Any] = {
    "kind": "code", "name": "code", "sandbox": "bubblewrap", "url": None, "timeout_s": 60.0,
    "memory_gib": 0.5, "processes": 8,
}  # fmt: skip
Attacks = dict[str, tuple[str, str]]  # program and tests, by name


@pytest.fixture
def attack() -> Iterator[Callable[..., dict[str, Any]]]:
    """A factory: attacks in, what came of them out."""
    if shutil.which("bwrap") is None:
        pytest.skip("there is no bwrap (Debian's package bubblewrap)")
    group = cgroup.make(PARENTS_LIMIT, 4 << 30)
    if "pids" not in group.folders and os.getuid() == 0:
        pytest.skip("root, and no cgroup that can be written: nothing would limit the parent")

    def enter() -> None:
        if "pids" in group.folders:
            group.join()
        else:
            mine = [p for p in psutil.process_iter(["uids"]) if p.info["uids"].real == os.getuid()]
            most = sum(p.num_threads() for p in mine) + PARENTS_LIMIT
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    def run(attacks: Attacks, without_cgroup: bool = False, **changes: Any) -> dict[str, Any]:
        given = {"attacks": attacks, "spec": SPEC | changes, "without_cgroup": without_cgroup}
        script = Path(__file__).with_name("red_team.py")
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(given)],
            capture_output=True, text=True, timeout=600, preexec_fn=enter, check=False,
            env={**os.environ, "SECRET_TOKEN": "of-the-run"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        if "pids" in group.folders:  # the limit of the parent was not what held
            events = (group.folders["pids"] / "pids.events").read_text().split()
            found["refused by the parent's limit"] = int(events[events.index("max") + 1])
        return found

    yield run
    group.remove()
