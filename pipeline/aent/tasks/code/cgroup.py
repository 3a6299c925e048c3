"""A control group that limits the processes and the total memory of a program and its children.

It is created below this process's group, if that can be written: by root, or if it is delegated.
The code for version 2 was written from the kernel's documentation (admin-guide/cgroup-v2.rst) and
has not run, because no machine with these controllers in version 2 was available.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")
PREFIX = "aent-code-"  # followed by the id of the process that created it
EMPTY_S = 5.0  # for the kernel to end killed processes
FILES = {  # of each controller's limit: version 1, version 2
    "pids": ("pids.max", "pids.max"),
    "memory": ("memory.limit_in_bytes", "memory.max"),
}


@dataclass(frozen=True)
class Group:
    """Folders of the control file system, one for each controller (version 2: one for both)."""

    folders: Mapping[str, Path]

    def join(self) -> None:
        """Move this process, and so its later children, into the group."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove the group after its processes were killed. If the kernel has not ended them within
        ``EMPTY_S``, the folder stays, and the next process that creates a group removes it."""
        deadline = time.monotonic() + EMPTY_S
        for folder in set(self.folders.values()):
            while not _removed(folder) and time.monotonic() < deadline:
                time.sleep(0.002)


def make(processes: int, memory_bytes: int) -> Group:
    """A new group with those of the two limits that can be set here (possibly none)."""
    limits = {"pids": processes, "memory": memory_bytes}
    made: dict[str, Path] = {}
    for controller, parent, version in _parents():
        folder = made.get("pids") if version == 2 else None
        folder = folder or parent / f"{PREFIX}{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            (folder / FILES[controller][version - 1]).write_text(str(limits[controller]))
            made[controller] = folder
        except OSError:
            if folder not in made.values():
                _removed(folder)
    return Group(made)


def sweep() -> None:
    """Remove the groups of processes that are gone."""
    for _, parent, _ in _parents():
        for folder in parent.glob(f"{PREFIX}*"):
            pid = folder.name.removeprefix(PREFIX)
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                _removed(folder)


def _parents() -> list[tuple[str, Path, int]]:
    """(controller, this process's group, version 1 or 2)."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, below = line.split(":", 2)
        mount, version = (ROOT / names, 1) if names else (ROOT, 2)
        parent = mount / below.lstrip("/")
        if not parent.is_dir():  # a container may see the machine's path
            parent = mount
        known = names.split(",") if names else list(FILES)
        found += [(name, parent, version) for name in known if name in FILES]
    # if both versions are mounted, a controller belongs to only one of them
    return sorted(found, key=lambda one: one[2])


def _removed(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            folder.rmdir()
        except OSError:
            return False
    return True
