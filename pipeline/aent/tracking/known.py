"""What rank 0 keeps of the journal in memory; its size does not grow with the length of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aent.tracking.figures import DRAWN

# Steps before the newest one that are kept. A resumed run executes again only steps after its
# checkpoint; a step's metrics come in several parts (its evaluation, the memory at the end).
RECENT = 100
POINTS = 2000  # of one metric in the figure, which is 880 pixels wide
_OF_A_STEP = re.compile(r"(?:samples|heldout|tokens|traces)/step_(\d+)\.")


@dataclass
class Curve:
    """A metric as the figure shows it: all steps, or those that are multiples of a power of two if
    there are more than ``POINTS``, and the newest one."""

    _values: dict[int, float] = field(default_factory=dict)
    _every: int = 1
    _newest: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Add a value; the first one of a step stays."""
        if self._newest is None or step > self._newest[0]:
            self._newest = step, value
        if step % self._every == 0:
            self._values.setdefault(step, value)
        if len(self._values) > POINTS:
            self._every *= 2
            self._values = {s: v for s, v in self._values.items() if s % self._every == 0}

    def shown(self) -> dict[int, float]:
        """The values to draw, by step."""
        return self._values | dict([self._newest] if self._newest else [])


@dataclass
class Known:
    """Values and files of the steps that may be recorded again, and the figure's curves.

    first_step: with which this process begins; of earlier ones only ``RECENT`` are kept.
    """

    first_step: int = 0
    curves: dict[str, Curve] = field(default_factory=lambda: {key: Curve() for key in DRAWN})
    _values: dict[int, dict[str, float]] = field(default_factory=dict)  # by step and metric
    _files: dict[int, set[str]] = field(default_factory=dict)
    _other_files: set[str] = field(default_factory=set)  # data sets, profiles, policies: a few
    _oldest: int = field(init=False)

    def __post_init__(self) -> None:
        self._oldest = self.first_step - RECENT

    def keep(self, step: int, key: str, value: float) -> None:
        """Remember a value; the first one of a step and a metric stays."""
        if key in self.curves:
            self.curves[key].add(step, value)
        if step >= self._oldest:
            self._values.setdefault(step, {}).setdefault(key, value)

    def of(self, step: int) -> Mapping[str, float]:
        """The known values of the step."""
        return self._values.get(step, {})

    def keep_file(self, name: str) -> None:
        """Remember a file of the run's folder."""
        step = _step_of(name)
        if step is None:
            self._other_files.add(name)
        elif step >= self._oldest:
            self._files.setdefault(step, set()).add(name)

    def has_file(self, name: str) -> bool:
        """Whether the journal names this file."""
        step = _step_of(name)
        return name in (self._other_files if step is None else self._files.get(step, ()))

    def forget_before(self, newest: int) -> None:
        """Step ``newest`` is recorded: those long before it will not be recorded again."""
        if newest - RECENT > self._oldest:
            self._oldest = newest - RECENT
            for kept in (self._values, self._files):
                for step in [step for step in kept if step < self._oldest]:
                    del kept[step]


def _step_of(name: str) -> int | None:
    found = _OF_A_STEP.match(name)
    return int(found[1]) if found else None
