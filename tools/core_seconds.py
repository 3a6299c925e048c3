"""Run a command and print the processor time of it and all processes that it started.

``python tools/core_seconds.py NAME BUDGET COMMAND...`` prints one line at the end; its exit code is
the command's. A process whose parent has died is counted too: it becomes a child of this one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def main(name: str, budget_s: float, command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ctrl-C is the command's, which gets it too (a handler does not outlive exec): what it still
    # does counts
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(command)
    code = None
    while code is None:
        pid, status = os.wait()
        if pid == process.pid:
            code = os.waitstatus_to_exitcode(status)
    reap(within_s=5.0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{name}: {used.ru_utime + used.ru_stime:.0f} core-seconds (budget {budget_s:.0f})")
    return code if code >= 0 else 128 - code


def reap(within_s: float) -> None:
    """Wait for processes that outlive the command and end by themselves."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
