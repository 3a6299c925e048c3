"""The engines get the trainer's weights and prove that they sample from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from aent.data.batch import Batch, broadcast_batch
from aent.data.sample import Sample
from aent.orchestrator.offer import Offer
from aent.orchestrator.rank_zero import RankZero
from aent.orchestrator.turns import Turns
from aent.runtime import distributed
from aent.runtime.on_rank_zero import HeldByRankZero
from aent.runtime.phases import Phases
from aent.trainer.trainer import Trainer
from aent.weights.memory import WeightMemory


@dataclass(frozen=True)
class WeightSync:
    """On every rank; ``sync`` is collective."""

    trainer: Trainer
    phases: Phases
    zero: HeldByRankZero[RankZero]
    turns: Turns
    memory: WeightMemory | None  # of this rank's stage, where engines read it
    shared: bool  # whether they do; else all weights go through rank 0

    @staticmethod
    def of(
        trainer: Trainer,
        phases: Phases,
        zero: HeldByRankZero[RankZero],
        turns: Turns,
        offer: Offer,
    ) -> WeightSync:
        """Collective: rank 0's engines have decided whether they can read what is offered."""
        shared = zero.tell("how weights travel", lambda zero: zero.engines.sender.is_shared)
        own = offer.own if shared else offer.withdrawn("").own
        return WeightSync(trainer, phases, zero, turns, own, shared)

    def sync(self, version: int) -> None:
        """Give the engines the trainer's weights as this version, and verify them with the probe.

        Raises WeightSyncError or EngineError on rank 0, RankZeroFailed elsewhere.
        """
        with self.phases("sync"):
            self.turns.to_weights()
            while (batch := self._push(version)) is None:
                pass
            self.turns.to_engines()
            log_probs = self.trainer.score(batch)
            self.zero.alone(
                f"the check of weight version {version}",
                lambda zero: zero.engines.check_probe(batch, log_probs, version),
            )

    def _push(self, version: int) -> Batch | None:
        """Send every weight once, and begin to ask the engines for the probe; returns its text, to
        be scored at the same time. None if an engine was lost: the others need all weights again.
        """
        # collective: every rank iterates over all weights
        copies = self.memory is not None and self.memory.address.gpu != ""
        weights = self.trainer.export_stage(copies) if self.shared else self.trainer.export()
        if self.memory is not None:
            self.memory.begin()
        sent: list[bool | Exception] = []  # of one element on rank 0, of none elsewhere
        asked: list[Sample] = []

        def push(zero: RankZero) -> None:
            try:
                sent.append(zero.engines.push(weights, version))
            except Exception as error:  # raised below, after the other ranks have iterated too
                sent.append(error)

        def ask(zero: RankZero) -> bool:
            for outcome in sent:
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome:
                    asked.append(zero.engines.begin_probe())
            return bool(asked)

        with self.phases.timeline.span("weights"):
            self.zero.meanwhile(push)
            self._go_through(weights)
        is_sent = self.zero.tell(f"sending weight version {version}", ask)
        if self.memory is not None:
            self.memory.leave()
        if not is_sent:
            return None
        # log-probs of given tokens are those at temperature 1
        batch = Batch.from_samples(asked, temperature=1.0) if asked else None
        return broadcast_batch(batch, distributed.control_group())

    def _go_through(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Iterate over the weights with rank 0, which has done so itself."""
        if self.memory is not None and dist.get_rank() != 0:
            self.memory.write(weights)
        for _ in weights:
            pass
