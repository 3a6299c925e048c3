"""Beside the ranks of a job: ``python -m aent.slurm.watch RUN_DIR SECONDS`` waits until a rank
shows no sign of life for so long; then it says which and ends with exit code 3.

A job that is being cancelled starts no more steps. What is left to be said of it (``slurm.finish``)
is said here, when the batch script has written the status into ``RUN_DIR/verdict``.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from aent.launch import starts
from aent.runtime.heartbeats import LOOK_S, Watch
from aent.runtime.log import begin, log
from aent.slurm import finish

VERDICT_FILE = "verdict"
POLL_S = 0.5


def main(run_dir: Path, silence_s: float) -> int:
    """Return 3 when a rank hangs, 0 after a verdict."""
    # Slurm sends it to every step of a job that it cancels, some time before it kills them
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watch, next_look = Watch(run_dir, silence_s), time.monotonic()
    while not (run_dir / VERDICT_FILE).exists():
        if time.monotonic() >= next_look:
            if (told := watch.look()) is not None:
                log.error(f"aent: {told}")
                return 3
            next_look = time.monotonic() + LOOK_S
        time.sleep(POLL_S)
    finish.main(run_dir, "KILLED", ranks_began=True)
    return 0


if __name__ == "__main__":
    begin("watch", starts.attempt(Path(sys.argv[1])))
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
