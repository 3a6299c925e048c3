"""Runs a Python program in a sandbox: bubblewrap, an unused uid, and limits.

Root first drops to that uid, because RLIMIT_NPROC does not bind root. Then bubblewrap creates new
namespaces for users, processes, network, IPC and mounts. The program sees /usr, Python with its
packages (read-only) and an empty /tmp. ``probe`` tests which limits hold.
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
OUTPUT_BYTES = 64 << 10  # of standard output and of standard error
OPEN_FILES = 256
OWN_PROCESSES = 2  # bubblewrap's own processes, which count like the program's
PR_SET_CHILD_SUBREAPER = 36
END_S = 5.0  # for the kernel to end killed processes
REFUSED = "name a service (url), or set sandbox: none"
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """The limits of one program with its tests."""

    seconds: float  # wall time, and processor time of each process
    memory_bytes: int  # address space of each process; of all together if there is a cgroup
    processes: int  # at the same time, threads included


@dataclass(frozen=True)
class Ran:
    """A program's result."""

    output: bytes  # at most ``OUTPUT_BYTES``
    errors: str
    ended: str = ""  # why it was killed: "time" or "output"


@dataclass(frozen=True)
class Sandbox:
    """How programs run on this machine."""

    limits: Limits
    protected: bool = True  # False: only with rlimits, as this user, on this machine
    # the program's uid on this machine; None: this process's own, which only root can drop
    uid: int | None = field(
        default_factory=lambda: bubblewrap.unused_uid() if os.getuid() == 0 else None
    )

    def run(self, source: str, given: bytes) -> Ran:
        """Run Python source with ``given`` on its standard input, and end every process it started.

        Raises OSError if it cannot be started.
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
        """The RLIMIT_NPROC to set in the sandbox; 0: none, if it would count all of a user's
        processes."""
        return self.limits.processes + OWN_PROCESSES if self.protected else 0

    def _enter(self, group: cgroup.Group) -> None:
        """Runs in the new process, before the program."""
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
    """Run programs that try what the sandbox must refuse. Returns sentences about protections that
    it lacks but can do without. Raises ValueError with one sentence if it cannot hold a program."""
    if not sandbox.protected:
        return ["sandbox: none: programs run as you, with your files and your network"]
    if shutil.which("bwrap") is None:
        raise ValueError(f"bwrap was not found: install bubblewrap (0.8 or later), {REFUSED}")
    cgroup.sweep()
    few = Sandbox(Limits(20.0, sandbox.limits.memory_bytes, 8), uid=sandbox.uid)
    try:
        ran = few.run(_PROBE.format(limit=few.max_processes), b"")
    except OSError as error:
        raise ValueError(f"bubblewrap does not start here ({error}): {REFUSED}") from None
    if not ran.output:
        why = " ".join(ran.errors.split())[-200:] or ran.ended
        raise ValueError(f"bubblewrap cannot create a sandbox here ({why}): {REFUSED}")
    if ran.output != b"holds":
        why = ran.output.decode(errors="replace")
        raise ValueError(f"bubblewrap does not hold a program here ({why}): {REFUSED}")
    missing = []
    if sandbox.uid is None:
        missing.append("programs run under your own uid, which only root can drop")
    group = cgroup.make(1, 1 << 30)
    group.remove()
    if "pids" not in group.folders:
        missing.append("no cgroup counts processes; RLIMIT_NPROC does")
    if "memory" not in group.folders:
        missing.append("no cgroup limits their total memory: memory_gib applies to each process")
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
    """Run ``enter`` and print its error to standard error, because Popen would not report which
    one."""

    def entered() -> None:
        try:
            enter()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)

    return entered


def _watched(process: subprocess.Popen[bytes], seconds: float) -> Ran:
    """Its output until it ends, or is killed at its limits. Its children may keep the pipes open,
    so reading stops at the end of the process itself."""
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
    """Read what is available; returns "output" if it exceeds the limit."""
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
    """Kill every process started since, whoever its parent is now, until none is left."""
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
    """Make this process the parent of processes that its children leave behind, so that it can end
    them."""
    if _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
