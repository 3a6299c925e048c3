"""A failed job's last step: ``python -m aent.cluster.finish RUN_DIR STATUS`` says why, and closes
MLflow's run with STATUS (FAILED or KILLED)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from aent import failures
from aent.runtime import heartbeats
from aent.tracking.tracker import Status, mark_ended


def main(run_dir: Path, status: Status) -> None:
    """The words come last: the end of the job's log is where a person looks."""
    mark_ended(run_dir, status)
    for rank, place in heartbeats.places(run_dir).items():
        print(f"aent: rank {rank} was at {place}", file=sys.stderr)
    print(
        failures.first(run_dir)
        or "aent: no trainer rank has written why: see the lines of srun above, which name tasks "
        f"that were killed, and {run_dir}/logs",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(Status, sys.argv[2]))
