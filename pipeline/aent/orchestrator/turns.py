"""Whose turn it is on GPUs that the trainer and the engines share (``rollout.placement``).

=========  =================================  ================================================
turn       the engines                        the trainer
=========  =================================  ================================================
trainer    asleep, without weights            everything on the GPU
weights    the memory of their weights wakes, its weights on the GPU; the optimizer in host
           new weights come, then the cache   memory, no gradients
engines    awake: they sample and evaluate    as before; it scores the probe
=========  =================================  ================================================

A run begins with the trainer's turn, and the three follow one another. A checkpoint needs the
optimizer on the GPU, and the engines keep their weights in host memory meanwhile (``lent``). This
has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from aent.inference.sleep import DROP_WEIGHTS, KEEP_WEIGHTS
from aent.orchestrator.rank_zero import RankZero
from aent.runtime import distributed
from aent.runtime.on_rank_zero import HeldByRankZero
from aent.runtime.phases import Phases
from aent.trainer.offload import Offload

Turn = Literal["trainer", "weights", "engines"]


@dataclass
class Turns:
    """On every rank; every method is collective. If ``offload`` is None, the engines have GPUs of
    their own, and nothing happens.

    Raises RuntimeError for a turn out of order. If an engine fails to sleep or wake, raises
    EngineError on rank 0 and RankZeroFailed elsewhere.
    """

    phases: Phases
    zero: HeldByRankZero[RankZero]
    offload: Offload | None
    turn: Turn = "trainer"

    def to_weights(self) -> None:
        """Make room for the engines' weights, which rank 0 sends next."""
        if self.offload is None:
            return
        self._next("trainer", "weights")
        self._leave(self.offload)

    def to_engines(self) -> None:
        """The engines have the new weights, and are awake."""
        if self.offload is not None:
            self._next("weights", "engines")

    def to_trainer(self) -> None:
        """The engines have sampled every requested response."""
        if self.offload is None:
            return
        self._next("engines", "trainer")
        self._return(self.offload, lambda zero: zero.engines.sleep(DROP_WEIGHTS))

    @contextmanager
    def lent(self, *, goes_on: bool = True) -> Iterator[None]:
        """Give the trainer the GPUs for this block, a checkpoint. Then the engines continue with
        the weights that they have. Without ``goes_on`` the run stops here, and they stay asleep."""
        if self.offload is None:
            yield
            return
        level = KEEP_WEIGHTS if goes_on else DROP_WEIGHTS
        self._next("engines", "trainer")
        with self.phases("checkpoint"):  # a stop must leave time for this, too
            self._return(self.offload, lambda zero: zero.engines.sleep(level))
        yield
        if not goes_on:
            return
        with self.phases("checkpoint"):
            self._leave(self.offload)
            self.zero.alone("waking the engines", lambda zero: zero.engines.wake())
        self._next("trainer", "engines")

    def _next(self, before: Turn, after: Turn) -> None:
        if self.turn != before:
            raise RuntimeError(
                f"GPUs: {after}'s turn comes after {before}'s, and it is {self.turn}'s"
            )
        self.turn = after

    def _leave(self, offload: Offload) -> None:
        with self.phases.timeline.span("optimizer to host memory"):
            offload.offload()
        # rank 0 wakes engines on everyone's GPU
        dist.barrier(group=distributed.control_group())

    def _return(self, offload: Offload, sleep: Callable[[RankZero], None]) -> None:
        self.zero.alone("sending the engines to sleep", sleep)
        with self.phases.timeline.span("optimizer from host memory"):
            offload.onload()
