"""The metrics of a run's machines as points of its journal.

There are many: 40 metrics of a machine with eight GPUs, every ten seconds, for as long as the run
takes. So no process keeps them.
"""

from __future__ import annotations

from pathlib import Path

from aent.runtime import node_metrics
from aent.tracking import journal
from aent.tracking.journal import Point

SYSTEM = "system/"  # their names begin with this


def new_points(run_dir: Path, number: int, seen: dict[str, float]) -> list[Point]:
    """What the machines have measured since the last call.

    Args:
        number: of the sample; it is the points' step.
        seen: when each machine was last sampled, by its own clock; renewed.
    """
    time_ms, points = journal.now(), []
    for name, (when, values) in node_metrics.newest(run_dir).items():
        if seen.get(name) != when:
            seen[name] = when
            points += [Point(number, time_ms, f"{SYSTEM}{name}/{k}", v) for k, v in values.items()]
    return points
