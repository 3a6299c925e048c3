"""Beside the ranks of a job: ``python -m aent.slurm.watch RUN_DIR SECONDS`` waits until a rank
shows no sign of life for so long; then it says which and ends with exit code 3."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from aent.runtime.heartbeats import LOOK_S, Watch


def main(run_dir: Path, silence_s: float) -> int:
    """Return 3 when a rank hangs."""
    watch = Watch(run_dir, silence_s)
    while (told := watch.look()) is None:
        time.sleep(LOOK_S)
    print(f"aent: {told}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
