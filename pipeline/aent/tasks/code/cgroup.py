"""A control group for a program and all that it starts: how many processes, how much memory in all.

Made below the group that this process is in, where that can be written: by root, or where it is
delegated. Version 2 was not at hand with these controllers: written from the kernel's
documentation (admin-guide/cgroup-v2.rst), and not run.
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
PREFIX = "aent-code-"  # then the process that made it
EMPTY_S = 5.0  # for the kernel to end what was killed
FILES = {  # of each controller's limit: version 1, version 2
    "pids": ("pids.max", "pids.max"),
    "memory": ("memory.limit_in_bytes", "memory.max"),
}


@dataclass(frozen=True)
class Group:
    """Folders of the control file system, one for each controller (or for both: version 2)."""

    folders: Mapping[str, Path]

    def join(self) -> None:
        """Move this process there; what it starts is there too."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """When all that was in there has been killed. What the kernel has not ended after
        ``EMPTY_S`` keeps its folder, which the next process that makes one removes."""
        deadline = time.monotonic() + EMPTY_S
        for folder in set(self.folders.values()):
            while not _removed(folder) and time.monotonic() < deadline:
                time.sleep(0.002)


def make(processes: int, memory_bytes: int) -> Group:
    """A new group with those of the two limits that can be set here, perhaps none."""
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
    """(controller, the group that this process is in, version 1 or 2)."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, below = line.split(":", 2)
        mount, version = (ROOT / names, 1) if names else (ROOT, 2)
        parent = mount / below.lstrip("/")
        if not parent.is_dir():  # a container may see the machine's path
            parent = mount
        known = names.split(",") if names else list(FILES)
        found += [(name, parent, version) for name in known if name in FILES]
    # where both versions are mounted, version 1 has a controller or version 2 has
    return sorted(found, key=lambda one: one[2])


def _removed(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            folder.rmdir()
        except OSError:
            return False
    return True
