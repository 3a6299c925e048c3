"""The pipeline's bubble, measured: how long a stage waits for the others.

Megatron gets a timer by name from ``config.timers`` around each of its steps. Here, timers around
sends and receives between stages add up, as does the timer around the whole schedule; the others do
nothing. In these, a rank waits for a tensor that another stage has not computed yet (and for its
transfer), so both the bubble of the schedule (arXiv 2104.04473, section 2.2) and stages of unequal
work count.

On a GPU, events on the stream measure it, so nothing waits until they are read; not run there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from aent.runtime import distributed

SCHEDULE = "forward-backward"


@dataclass
class Stopwatch:
    """Megatron's timer: adds up the seconds between ``start`` and ``stop``."""

    seconds: float = 0.0
    _began: float = 0.0
    _events: list[torch.cuda.Event] = field(default_factory=list)

    def start(self, barrier: bool = False) -> None:
        if torch.cuda.is_available():
            self._record()
        else:
            self._began = time.perf_counter()

    def stop(self, barrier: bool = False) -> None:
        if torch.cuda.is_available():
            self._record()
        else:
            self.seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """The sum so far, which is reset. On a GPU it waits for the last event."""
        if self._events:
            self._events[-1].synchronize()
            pairs = zip(self._events[::2], self._events[1::2])
            self.seconds += sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
        taken, self.seconds, self._events = self.seconds, 0.0, []
        return taken

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)


class _Nothing:
    def start(self, barrier: bool = False) -> None: ...

    def stop(self, barrier: bool = False) -> None: ...


class PipelineWaits:
    """The value of ``config.timers`` on a rank of a pipeline."""

    def __init__(self) -> None:
        self._waiting, self._whole, self._nothing = Stopwatch(), Stopwatch(), _Nothing()

    def __call__(self, name: str, log_level: int | None = None) -> Stopwatch | _Nothing:
        if name == SCHEDULE:
            return self._whole
        between_stages = name.endswith(("-recv", "-send"))
        return self._waiting if between_stages else self._nothing

    def begin(self) -> None:
        """Reset all sums."""
        self._waiting.take()
        self._whole.take()

    def mean_share(self) -> float:
        """The share of the schedule's time since ``begin`` that a rank has waited, the mean over
        all ranks. Collective."""
        waited, whole = self._waiting.take(), self._whole.take()
        share = torch.tensor(waited / whole, dtype=torch.float64)
        dist.all_reduce(share, group=distributed.control_group())
        return float(share) / dist.get_world_size()
