"""``python -m aent.slurm.watch RUN_DIR SECONDS`` runs beside the ranks of a job. If a rank shows no
sign of life for that long, it names the rank and ends with exit code 3.

A job that is being cancelled starts no more steps. So this task reports its end (``slurm.finish``),
once the batch script has written the status to ``RUN_DIR/verdict``.
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
    """Return 3 if a rank hangs, 0 after a verdict."""
    # Slurm sends SIGTERM to every step of a job that it cancels, some time before it kills them
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
