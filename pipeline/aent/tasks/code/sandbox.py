"""A Python program in a sandbox: bubblewrap, a uid that nobody has, limits.

As root the uid is dropped first, since RLIMIT_NPROC does not bind root; then bubblewrap makes
namespaces of its own for users, processes, network, IPC and mounts. The program sees /usr, Python
with its packages (read-only) and an empty /tmp; ``probe`` measures what holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from aent.runtime.children import die_with_parent
from aent.tasks.code import bubblewrap, cgroup

FILE_BYTES = bubblewrap.DISK_BYTES
OUTPUT_BYTES = 64 << 10  # of standard output, of standard error
OPEN_FILES = 256
OWN_PROCESSES = 2  # bubblewrap's, which count like the program's
PR_SET_CHILD_SUBREAPER = 36
END_S = 5.0  # for the kernel to end what was killed
REFUSED = "name a service (url), or write sandbox: none"
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """Of one program with its tests."""

    seconds: float  # on the clock, and of each process on a core
    memory_bytes: int  # of address space of each process; of all together where there is a cgroup
    processes: int  # at once, threads included


@dataclass(frozen=True)
class Ran:
    """What came of it."""

    output: bytes  # at most ``OUTPUT_BYTES``
    errors: str
    ended: str = ""  # what it was killed for: "time", "output"


@dataclass(frozen=True)
class Sandbox:
    """How programs are run here."""

    limits: Limits
    protected: bool = True  # False: with rlimits alone, as this user, on this machine
    # which the program has on this machine; None: this process's own, which only root can drop
    uid: int | None = field(
        default_factory=lambda: bubblewrap.unused_uid() if os.getuid() == 0 else None
    )

    def run(self, source: str, given: bytes) -> Ran:
        """Run Python source with ``given`` on its standard input, and end all that it started.

        Raises OSError where it cannot be started.
        """
        command = bubblewrap.command(self.uid is not None) if self.protected else None
        memory = self.limits.memory_bytes + 2 * bubblewrap.DISK_BYTES
        group = cgroup.make(self.limits.processes + OWN_PROCESSES, memory)
        known = set(psutil.Process().children(recursive=True))
        with open(os.memfd_create("given"), "w+b") as file:
            file.write(given)
            file.seek(0)
            try:
                process = subprocess.Popen(
                    [*(command or bubblewrap.python()), "-c", source],
                    stdin=file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={} if self.protected else dict(bubblewrap.environment()),
                    start_new_session=True,
                    preexec_fn=_told(lambda: self._enter(group)),
                )
                with process:
                    return _watched(process, self.limits.seconds)
            finally:
                _end_new(known)
                group.remove()

    @property
    def max_processes(self) -> int:
        """What RLIMIT_NPROC must be in there; 0: none, where it would count all of a user's."""
        return self.limits.processes + OWN_PROCESSES if self.protected else 0

    def _enter(self, group: cgroup.Group) -> None:
        """In the new process, before the program."""
        group.join()
        if self.protected and self.uid is not None:
            bubblewrap.drop_to(self.uid)
        die_with_parent()
        for kind, most in (
            (resource.RLIMIT_CPU, math.ceil(self.limits.seconds)),
            (resource.RLIMIT_AS, self.limits.memory_bytes),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (most, most))


def probe(sandbox: Sandbox) -> list[str]:
    """Run programs that try what the sandbox must refuse; what it lacks and can do without, in
    sentences. Raises ValueError in one sentence where it cannot hold a program."""
    if not sandbox.protected:
        return ["sandbox: none: programs run as you, with your files and your network"]
    if shutil.which("bwrap") is None:
        raise ValueError(f"there is no bwrap here: install bubblewrap (0.8 or later), {REFUSED}")
    cgroup.sweep()
    few = Sandbox(Limits(20.0, sandbox.limits.memory_bytes, 8), uid=sandbox.uid)
    try:
        ran = few.run(_PROBE.format(limit=few.max_processes), b"")
    except OSError as error:
        raise ValueError(f"bubblewrap does not start here ({error}): {REFUSED}") from None
    if not ran.output:
        why = " ".join(ran.errors.split())[-200:] or ran.ended
        raise ValueError(f"bubblewrap makes no sandbox here ({why}): {REFUSED}")
    if ran.output != b"holds":
        why = ran.output.decode(errors="replace")
        raise ValueError(f"bubblewrap holds no program here ({why}): {REFUSED}")
    missing = []
    if sandbox.uid is None:
        missing.append("programs run under your own uid, which only root can drop")
    group = cgroup.make(1, 1 << 30)
    group.remove()
    if "pids" not in group.folders:
        missing.append("no cgroup counts processes: RLIMIT_NPROC does")
    if "memory" not in group.folders:
        missing.append("no cgroup limits their memory in all: memory_gib is of each process")
    return missing


# never more than twice the limit, which is small
_PROBE = """
import os, resource, time
resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit}))
started = 0
try:
    while started < 2 * {limit}:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        started += 1
except OSError:
    pass
wrong = []
if os.getuid() == 0:
    wrong.append("its uid is root's")
if started >= {limit}:
    wrong.append("nothing limits its processes")
if len(open("/proc/net/dev").readlines()) > 3:
    wrong.append("it has a network")
print(", ".join(wrong) or "holds", end="", flush=True)
os._exit(0)
"""


def _told(enter: Callable[[], None]) -> Callable[[], None]:
    """``enter``, whose error is told on standard error: Popen would not say which it was."""

    def entered() -> None:
        try:
            enter()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)

    return entered


def _watched(process: subprocess.Popen[bytes], seconds: float) -> Ran:
    """What it writes until it ends, or is killed at its limits; its children may hold the pipes
    open, so that its end counts and not theirs."""
    deadline = time.monotonic() + seconds
    assert process.stdout is not None
    assert process.stderr is not None
    read: dict[int, bytes] = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    ended = ""
    pidfd = os.pidfd_open(process.pid)
    with contextlib.closing(selectors.DefaultSelector()) as selector:
        for fd in (*read, pidfd):
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        running = True
        while running and not ended:
            ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
            if not ready:
                ended = "time"
            running = pidfd not in ready
            for fd in read:
                ended = ended or _take(fd, read, selector)
    process.kill()
    process.wait()
    os.close(pidfd)
    output, errors = read.values()
    return Ran(output, errors.decode(errors="replace"), ended)


def _take(fd: int, read: dict[int, bytes], selector: selectors.BaseSelector) -> str:
    """Read what is there; "output" where it is more than may be."""
    while True:
        try:
            part = os.read(fd, OUTPUT_BYTES)
        except BlockingIOError:
            return ""
        if not part:
            with contextlib.suppress(KeyError):
                selector.unregister(fd)
            return ""
        read[fd] = (read[fd] + part)[:OUTPUT_BYTES]
        if len(read[fd]) == OUTPUT_BYTES:
            return "output"


def _end_new(known: set[psutil.Process]) -> None:
    """Kill what was started since, whosever child it is now, until there is none."""
    deadline = time.monotonic() + END_S
    while new := set(psutil.Process().children(recursive=True)) - known:
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for process in new:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[p.pid for p in new]} of a program survive SIGKILL")
        time.sleep(0.002)


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind, so that it can be ended."""
    if _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
