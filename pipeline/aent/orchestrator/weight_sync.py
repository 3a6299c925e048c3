"""The engines get the trainer's weights, and prove that they sample from them."""

from __future__ import annotations

from dataclasses import dataclass

from aent.data.batch import Batch, broadcast_batch
from aent.data.sample import Sample
from aent.orchestrator.rank_zero import RankZero
from aent.runtime import distributed
from aent.runtime.on_rank_zero import HeldByRankZero
from aent.runtime.phases import Phases
from aent.trainer.trainer import Trainer


@dataclass(frozen=True)
class WeightSync:
    """On every rank; ``sync`` is collective."""

    trainer: Trainer
    phases: Phases
    zero: HeldByRankZero[RankZero]

    def sync(self, version: int) -> None:
        """Give the engines the trainer's weights as this version, and check them by the probe.

        Raises WeightSyncError or EngineError on rank 0, RankZeroFailed elsewhere.
        """
        with self.phases("sync"):
            while (batch := self._push(version)) is None:
                pass
            log_probs = self.trainer.score(batch)
            self.zero.alone(
                f"the check of weight version {version}",
                lambda zero: zero.engines.check_probe(batch, log_probs, version),
            )

    def _push(self, version: int) -> Batch | None:
        """Send every weight once, and ask the engines for the probe: its text, to be scored. None
        where an engine was lost meanwhile: those that are left want all of it again."""
        weights = self.trainer.export()  # collective: every rank goes through all of it
        sent: list[bool | Exception] = []  # of one element on rank 0, of none elsewhere
        asked: list[Sample] = []

        def push(zero: RankZero) -> None:
            try:
                sent.append(zero.engines.push(weights, version))
            except Exception as error:  # raised below, when the others have gone through it too
                sent.append(error)

        def ask(zero: RankZero) -> bool:
            for outcome in sent:
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome:
                    asked.append(zero.engines.ask_probe())
            return bool(asked)

        with self.phases.timeline.span("weights"):
            self.zero.meanwhile(push)
            for _ in weights:
                pass
        if not self.zero.tell(f"sending weight version {version}", ask):
            return None
        # log-probs of given tokens are those at temperature 1
        batch = Batch.from_samples(asked, temperature=1.0) if asked else None
        return broadcast_batch(batch, distributed.control_group())
