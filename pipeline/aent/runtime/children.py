"""Child processes that leave nothing behind: engines and trainer ranks.

Every child leads its own session (and process group). So a terminal's Ctrl-C reaches only the
parent, and one signal reaches the child and every process that it started. A child dies with its
parent, whatever killed the parent (PR_SET_PDEATHSIG, prctl(2)). Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
# names the parent process, for a process started by a vLLM server
STARTED_BY = "AENT_SERVER_PROCESS"
POLL_S = 0.02
TAIL_BYTES = 65_536  # bytes of a log that are read for its last lines
KILL_WAIT_S = 30.0  # seconds for the kernel to deliver a SIGKILL and to free the memory
# loaded here, because nothing may be imported between fork and exec
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel SIGKILL this process when the thread that started it ends.

    ``parent`` is the expected parent's process id: if it has ended already, this process ends now.
    """
    if _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def tail_of(path: Path, lines: int) -> str:
    """The last ``lines`` lines of a log file, from its last ``TAIL_BYTES`` at most; empty if it
    cannot be read (the result is part of an error's message, which must not get lost)."""
    try:
        with path.open("rb") as file:  # only the end: hundreds of requests may fail at once
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:]).rstrip("\n")


@dataclass
class Child:
    """A child process, its name for messages and the file with its output."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @staticmethod
    def start(
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        inherit_stdout: bool = False,
    ) -> Child:
        """Start ``argv`` with exactly ``env``; its output is appended to ``log_path``.

        With ``inherit_stdout`` it shares this process's standard output, and only its standard
        error goes to the log. Call it from a thread that lives as long as the child should (the
        main thread).
        """
        parent = os.getpid()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=None if inherit_stdout else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        return Child(name, process, log_path)

    def poll(self) -> int | None:
        """The exit code (negative: the signal's number), None while it runs."""
        return self.process.poll()

    def describe_exit(self) -> str:
        """How it ended, as the end of a sentence that begins with its name."""
        code = self.poll()
        if code is None:
            return "is running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def tail(self, lines: int) -> str:
        """The last ``lines`` lines of its log."""
        return tail_of(self.log_path, lines)

    def stop(self, grace_s: float) -> None:
        """See ``stop_all``."""
        stop_all([self], grace_s)


def stop_all(children: Sequence[Child], grace_s: float) -> None:
    """Send SIGTERM to every child; when all have ended, or after ``grace_s``, SIGKILL to their
    groups.

    When it returns, no process of any child's group is left, even if a child had ended before its
    own children (except processes that created their own session).

    Raises TimeoutError if something survives SIGKILL (a process stuck in the kernel).
    """
    for child in children:
        if child.poll() is None:
            child.process.terminate()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(c.poll() is None for c in children):
        # waits for the children themselves: they end their own children, or leave them to us
        time.sleep(POLL_S)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT_S
    for child in children:
        while _group_alive(child):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{child.name} (process {child.process.pid}) survives SIGKILL")
            time.sleep(POLL_S)


def _group_alive(child: Child) -> bool:
    """Whether the child or another process of its group runs (a zombie does not)."""
    if child.poll() is None:
        return True
    try:
        os.killpg(child.process.pid, 0)
    except ProcessLookupError:
        return False
    return any(_runs(int(pid), child.process.pid) for pid in os.listdir("/proc") if pid.isdigit())


def _runs(pid: int, group: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # the process has just ended
        return False
    state, _, process_group = stat.rpartition(")")[2].split()[:3]
    return int(process_group) == group and state not in "ZX"
