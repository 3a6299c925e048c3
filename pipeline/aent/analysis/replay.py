"""``aent replay``: what a controller would have done with recorded entropy.

Another controller would have changed the policy and so its entropy. This is not modeled, and the
command says so.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from aent.entropy import controllers
from aent.entropy.controllers import ControllerReport
from aent.tracking import figures
from aent.tracking.recorded import Recorded

WARNING = (
    "aent: this replays recorded entropy, in open loop; it does not model how the policy would "
    "have reacted to other coefficients (aent lab control: a controller on a policy that learns)"
)


def run(recorded: Recorded, overridden: bool, plot: Path | None) -> None:
    """Write CSV to stdout, an explanation to stderr, and the figure to ``plot``.

    Columns: step, entropy (empty if none was recorded), coefficient, next_coefficient, with all
    digits.
    """
    reports = replay(recorded)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["step", "entropy", "coefficient", "next_coefficient"])
    for step, report in enumerate(reports):
        entropy = recorded.entropy.get(step, "")
        rows.writerow([step, entropy, report.coefficient, report.next_coefficient])
    print(WARNING, file=sys.stderr)
    logged = recorded.metrics.get("controller/next_coefficient", {})
    if logged and not overridden:
        worst = max(abs(reports[s].next_coefficient - logged[s]) for s in logged)
        print(
            f"aent: largest difference from the coefficients logged: {worst:.3g}", file=sys.stderr
        )
    if plot is not None:
        figures.draw_replay(recorded, reports, plot)


def replay(recorded: Recorded) -> list[ControllerReport]:
    """One report per step, from step 0; a step without a recorded entropy is skipped by the rule
    for missing measurements."""
    state, reports = controllers.initial_state(recorded.controller), []
    for step in recorded.steps():
        state, report = controllers.update(recorded.controller, state, recorded.entropy.get(step))
        reports.append(report)
    return reports
