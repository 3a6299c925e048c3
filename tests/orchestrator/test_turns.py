"""Trainer and engines on the same GPUs, in turns: two real ranks, and a stand-in for the engine
that refuses every call out of order."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.inference import sleep
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.orchestrator.engines import Engines
from aent.weights.manifest import expected_manifest
from aent.weights.probe import Probe
from aent.weights.weight_transfer import TransferSettings, WeightSender
from distributed.ranks import run_ranks
from inference.sleepy import SleepyEngine
from inference.stand_in import standing_in
from trainer import tiny

TIMEOUT_S = 300.0
A_SYNC = ["wake weights", "weights", "wake kv_cache", "generate"]


class Probed(Engines):
    """Asked for the probe without vLLM's log-probs: the engine must be able to answer."""

    def generate(self) -> None:
        route = "/inference/v1/generate"
        asyncio.run(self.fleet.clients[0].call("POST", route, {}, timeout_s=TIMEOUT_S))

    def begin_probe(self) -> Sample:
        self.generate()
        return Sample([1], [2, 3], [0.0, 0.0], [0, 0], "length", 0, 0)

    def check_probe(self, batch: Batch, log_probs: torch.Tensor, version: int) -> None:
        self._updating = False
        self.unproven.release()


def turns_of(rank: int, path: Path, folder: Path, held: ExitStack) -> tuple[Any, ...]:
    """What the loop has of a run on one rank, the engine on rank 0."""
    from aent.orchestrator.engines import choose_way
    from aent.orchestrator.offer import Offer
    from aent.orchestrator.turns import Turns
    from aent.orchestrator.weight_sync import WeightSync
    from aent.runtime.on_rank_zero import HeldByRankZero, OnRankZero
    from aent.runtime.phases import Phases
    from aent.trainer.offload import Offload
    from aent.trainer.trainer import Trainer

    recipe = tiny.recipe(
        dp=2,
        model={"path": str(path)},
        rollout={"placement": "colocated"},
        trainer={"optimizer": {"distributed": True}},
    )
    trainer = Trainer(recipe, path)
    offload = Offload(trainer.model, trainer.optimizer)
    offer = Offer.of(recipe, trainer)

    def build() -> Any:
        engine = SleepyEngine(room=lambda: offload.is_away)
        server = held.enter_context(standing_in(engine.answer))
        fleet = Fleet([EngineClient(server.url)])
        sender = WeightSender(fleet.clients, TransferSettings(timeout_s=TIMEOUT_S, asleep=True))
        asyncio.run(sleep.fall_asleep(fleet.clients, sleep.DROP_WEIGHTS, TIMEOUT_S))
        assert "shared memory" in asyncio.run(choose_way(sender, offer))
        probe = Probe([1, 2, 3], 1, 1.0)
        engines = Probed(
            recipe, folder, fleet, sender, expected_manifest(path), probe, lambda words: None
        )
        return SimpleNamespace(engines=engines, engine=engine)

    phases = Phases.of(folder, rank, TIMEOUT_S)
    store = dist.distributed_c10d._get_default_store()
    zero = HeldByRankZero(OnRankZero(store, rank, TIMEOUT_S, lambda: None), "the engine", build)
    turns = Turns(phases, zero, offload)
    return trainer, zero, turns, WeightSync.of(trainer, phases, zero, turns, offer)


def refused(zero: Any) -> bool:
    """Whether the engine does not answer questions now."""

    def ask(parts: Any) -> bool:
        try:
            parts.engines.generate()
        except EngineError:
            return True
        return False

    return zero.tell("a question", ask)


def told(zero: Any) -> list[str]:
    """What the engine did since the last call."""

    def take(parts: Any) -> list[str]:
        taken, parts.engine.told = parts.engine.told, []
        return taken

    return zero.tell("what was done", take)


def steps(rank: int, _world: int, path: str, folder: str) -> dict[str, Any]:
    """Two steps of a run, with a checkpoint's moment between them."""
    out: dict[str, Any] = {}
    recipe = tiny.recipe(dp=2)
    with ExitStack() as held, tiny.world(recipe.trainer, rank, folder, "turns"):
        trainer, zero, turns, weights = turns_of(rank, Path(path), Path(folder), held)
        out["start"] = told(zero)
        for move in (turns.to_trainer, turns.to_engines, lambda: turns.lent().__enter__()):
            with pytest.raises(RuntimeError, match="turn"):
                move()
        for version in (1, 2):
            weights.sync(version)
            out[f"sync {version}"] = told(zero)
            out[f"asked {version}"] = refused(zero)
            same = zero.tell("new weights", lambda parts: list(parts.engine.weights or ()))
            exported = {n: t.clone() for n, t in trainer.export() if t.numel()}
            out[f"same {version}"] = rank != 0 or (
                set(same) == exported.keys()
                and all(
                    zero._held[0].engine.weights[n].equal(tensor) for n, tensor in exported.items()
                )
            )
            told(zero)
            with turns.lent():
                out[f"lent {version}"] = (refused(zero), turns.offload.is_away)
            out[f"checkpoint {version}"] = told(zero)
            out[f"goes on {version}"] = refused(zero)
            with pytest.raises(RuntimeError, match="turn"):
                turns.to_weights()
            told(zero)
            turns.to_trainer()
            out[f"train {version}"] = (told(zero), refused(zero), turns.offload.is_away)
            trainer.train_minibatch(tiny.mini_batch(tiny.RAGGED, seed=version), 0.4)
        weights.sync(3)
        told(zero)
        before = turns.phases.take()["checkpoint"]
        with turns.lent(goes_on=False):
            out["stopping"] = (refused(zero), turns.offload.is_away)
        out["stopped"] = (told(zero), refused(zero))
        out["timed"] = (before > 0, "checkpoint" in turns.phases.take())
    return out


@pytest.mark.slow
def test_two_steps(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path / "model", tied=True)
    for out in run_ranks(steps, 2, str(path), str(tmp_path)):
        assert out["start"] == ["sleep 2"]
        for version in (1, 2):
            assert out[f"sync {version}"] == A_SYNC
            assert out[f"asked {version}"] is False
            assert out[f"same {version}"]
            assert out[f"lent {version}"] == (True, False)
            kept = ["sleep 1", "wake weights", "wake kv_cache"]
            assert out[f"checkpoint {version}"] == kept
            assert out[f"goes on {version}"] is False
            assert out[f"train {version}"] == (["sleep 2"], True, False)
        assert out["stopping"] == (True, False)
        assert out["stopped"] == (["sleep 2"], True)  # a run that stops does not wake them
        assert out["timed"] == (True, True)  # as part of a checkpoint


def test_nothing_happens_where_engines_have_gpus_of_their_own() -> None:
    from aent.orchestrator.turns import Turns

    nobody: Any = None
    turns = Turns(nobody, nobody, None)
    turns.to_trainer()
    turns.to_weights()
    turns.to_engines()
    with turns.lent():
        assert turns.turn == "trainer"
