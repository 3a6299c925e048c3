"""bubblewrap's command line, and the preparation by root."""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

DISK_BYTES = 64 << 20  # of /tmp, of /dev/shm
# where root binds folders that the dropped uid could not reach, in a mount namespace
STAGE = "/tmp"
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 4096, 16384, 1 << 18, 0x20000
_LIBC = ctypes.CDLL(None, use_errno=True)


def python() -> list[str]:
    """This process's interpreter, without .pth files and the working folder."""
    return [os.path.realpath(sys.executable), "-P", "-s"]


def command(staged: bool) -> list[str]:
    """bwrap with its options, up to and with the interpreter.

    staged: Python and its packages are where ``drop_to`` has bound them.
    """
    tmpfs = ["--size", str(DISK_BYTES), "--tmpfs"]
    return [
        shutil.which("bwrap") or "bwrap",
        "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
        "--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session",
        "--clearenv", *(x for pair in environment() for x in ("--setenv", *pair)),
        "--ro-bind", "/usr", "/usr", *_top_folders(),
        *(x for bind in _binds(staged) for x in ("--ro-bind", *bind)),
        "--proc", "/proc", "--dev", "/dev", *tmpfs, "/dev/shm", *tmpfs, "/tmp",
        "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--", *python(),
    ]  # fmt: skip


def drop_to(uid: int) -> None:
    """As root, in a new process: bind what bubblewrap needs to a place that any user can reach, and
    become the user ``uid``."""
    _stage([source for source, _ in _binds(staged=False)])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def unused_uid() -> int:
    """A uid that no user and no process here has, drawn again for each grader process, so that only
    its programs' processes are counted."""
    ranges = [
        tuple(map(int, line.split()))
        for line in Path("/proc/self/uid_map").read_text().splitlines()
    ]
    first, _, count = max(ranges, key=lambda one: one[2])
    last = min(first + count, 2**31) - 1  # bubblewrap prints it as a signed number
    taken = {user.pw_uid for user in pwd.getpwall()}
    taken |= {process.info["uids"].real for process in psutil.process_iter(["uids"])}
    while True:
        uid = random.SystemRandom().randint(first + (last - first) // 2, last)
        if uid not in taken:
            return uid


def environment() -> Iterator[tuple[str, str]]:
    """The program's whole environment; nothing of this process's environment is in it."""
    yield "PATH", "/usr/bin:/bin"
    yield "HOME", "/tmp"
    yield "LANG", "C.UTF-8"
    yield "PYTHONPATH", ":".join(_packages())
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # a thread counts as a process
        yield name, "1"


def _packages() -> list[str]:
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _binds(staged: bool) -> list[tuple[str, str]]:
    """(from, to) of Python and its packages; from their own places, or from where root bound
    them."""
    found = [p for p in (sys.base_prefix, *_packages()) if not p.startswith("/usr/")]
    found = [place for place in found if place != "/usr"]
    return [(f"{STAGE}/{i}" if staged else place, place) for i, place in enumerate(found)]


def _top_folders() -> Iterator[str]:
    """The paths beside /usr that programs need to start: links into it, or folders."""
    for place in map(Path, ("/bin", "/sbin", "/lib", "/lib64")):
        if place.is_symlink():
            yield from ("--symlink", os.readlink(place), str(place))
        elif place.is_dir():
            yield from ("--ro-bind", str(place), str(place))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def _stage(sources: Sequence[str]) -> None:
    """As root, in a new mount namespace: bind folders to STAGE/0, STAGE/1, ..., which any user can
    reach, unlike root's home."""
    _call("unshare", _LIBC.unshare(CLONE_NEWNS))
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    folders = [os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for source in sources]
    _mount("tmpfs", STAGE, "tmpfs", 0, "mode=755,size=1m")
    for i, folder in enumerate(folders):
        os.mkdir(f"{STAGE}/{i}")
        _mount(f"/proc/self/fd/{folder}", f"{STAGE}/{i}", None, MS_BIND)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    texts = [text.encode() if text else None for text in (source, target, kind)]
    _call(f"mount {target}", _LIBC.mount(*texts, ctypes.c_ulong(flags), data.encode() or None))


def _call(what: str, returned: int) -> None:
    if returned != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
