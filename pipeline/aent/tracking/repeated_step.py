"""Compares the values of a step that is executed again after a resume with the journal's."""

from __future__ import annotations

import math
from collections.abc import Mapping

from aent.tracking.machines import SYSTEM

# these differ each time: they depend on how long things took
UNREPEATABLE = ("time/", "compute/", SYSTEM, "engine/", "tokens/per_s")


def difference(step: int, repeated: Mapping[str, tuple[float, float]]) -> str:
    """One sentence about the value that differs most, relative to its size; empty if none differs.

    repeated: (the journal's, the new one), by metric.
    """
    differences = {
        key: abs(then - now)
        for key, (then, now) in repeated.items()
        if then != now
        and not (math.isnan(then) and math.isnan(now))
        and not key.startswith(UNREPEATABLE)
    }
    if not differences:
        return ""

    def relative(key: str) -> float:  # NaN against a number comes first
        if math.isnan(differences[key]):
            return math.inf
        return differences[key] / max(map(abs, repeated[key]))

    worst = max(differences, key=relative)
    then, now = repeated[worst]
    return (
        f"step {step} was executed again: {len(differences)} of {len(repeated)} values differ from "
        f"the journal's, {worst} by {differences[worst]:.3g} ({then!r} in the journal, {now!r} "
        "now); the journal's stay"
    )
