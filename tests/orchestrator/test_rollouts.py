"""Rollouts in order, ahead of the training, from disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from aent.algorithm.entropy_controls import plan
from aent.checkpoint import rollout_files
from aent.data.rollout import Rollout, Verdict
from aent.data.sample import Sample
from aent.orchestrator.rollouts import Rollouts
from aent.orchestrator.sampler import as_batch
from aent.recipe.load import load
from aent.runtime.environment import data_path

PATIENCE_S = 60.0  # for a thread


def rollout_of(step: int) -> Rollout:
    sample = Sample([1, 2], [3, step], [-1.0, -2.0], [step, step], "stop", 0, step)
    return Rollout([sample], ["?"], ["3"], [Verdict(1.0)])


@dataclass
class Source:
    """In place of engines: each step's responses are there when ``may_end`` has it."""

    may_end: dict[int, threading.Event]
    begun: list[int] = field(default_factory=list)
    begins: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def next(self, step: int, _plan: Any, max_staleness: int, _record: Any) -> Rollout:
        self.begun.append(step)
        self.begins.release()
        assert self.may_end[step].wait(PATIENCE_S)
        if step == 3:
            raise RuntimeError(f"step {step} by weights older than {max_staleness}")
        return rollout_of(step)


def rollouts(tmp_path: Path, staleness: int, ready: int) -> tuple[Rollouts, Source, Any]:
    """Of a run of 5 steps; the first ``ready`` of them are sampled at once."""
    changes = [f"rollout.max_staleness={staleness}", "steps=5", "checkpoint.every=1"]
    recipe = load(data_path("recipes/cpu/tiny.yaml"), changes)
    source = Source({step: threading.Event() for step in range(5)})
    for step in range(ready):
        source.may_end[step].set()
    made: Any = Rollouts(recipe, tmp_path, source)  # type: ignore[arg-type]
    return made, source, plan(recipe, {})


def test_a_step_is_sampled_when_it_is_asked_for(tmp_path: Path) -> None:
    made, source, how = rollouts(tmp_path, staleness=0, ready=5)
    assert [made.of(step, how) for step in (0, 1)] == [rollout_of(0), rollout_of(1)]
    made.settle()
    assert source.begun == [0, 1]
    assert made.newest == rollout_of(1)


def test_the_next_step_is_sampled_meanwhile_and_is_on_disk_when_it_has_settled(
    tmp_path: Path,
) -> None:
    made, source, how = rollouts(tmp_path, staleness=1, ready=1)
    assert made.of(0, how) == rollout_of(0)  # although step 1 is not there yet
    for _ in range(2):
        assert source.begins.acquire(timeout=PATIENCE_S)
    assert source.begun == [0, 1]
    assert rollout_files.read(tmp_path, 1) is None
    source.may_end[1].set()
    made.settle()
    assert rollout_files.read(tmp_path, 1) == rollout_of(1)
    for event in source.may_end.values():
        event.set()
    assert made.of(1, how) == rollout_of(1)
    made.settle()
    assert source.begun == [0, 1, 2]


def test_what_is_on_disk_is_not_sampled_again_and_the_last_step_has_none_ahead(
    tmp_path: Path,
) -> None:
    made, source, how = rollouts(tmp_path, staleness=1, ready=5)
    for step in (3, 4):
        rollout_files.write(tmp_path, step, rollout_of(step))
    assert made.resume(3) == 5
    assert [made.of(step, how) for step in (3, 4)] == [rollout_of(3), rollout_of(4)]
    made.settle()
    assert source.begun == []


@pytest.mark.parametrize("by", ["settle", "of"])
def test_what_fails_ahead_is_raised_where_it_is_waited_for(tmp_path: Path, by: str) -> None:
    made, _, how = rollouts(tmp_path, staleness=1, ready=5)
    made.of(2, how)
    with pytest.raises(RuntimeError, match="step 3"):
        made.settle() if by == "settle" else made.of(3, how)


@pytest.mark.parametrize(("recorded", "wanted"), [(0.7, 0.7), (None, 1.3)])
def test_a_batch_has_the_temperature_that_it_was_sampled_at(
    recorded: float | None, wanted: float
) -> None:
    """Whatever the plan says now: that of a later step, if it was sampled ahead."""
    now = replace(plan(load(data_path("recipes/cpu/tiny.yaml"), []), {}), temperature=1.3)
    assert as_batch(replace(rollout_of(0), temperature=recorded), now).temperature == wanted
