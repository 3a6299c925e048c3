"""Rollouts in order, ahead of the training, from disk."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aent.algorithm.entropy_controls import plan
from aent.checkpoint import rollout_files
from aent.data.question import Question
from aent.data.rollout import Rollout, Verdict
from aent.data.sample import Sample
from aent.orchestrator.rollouts import Rollouts
from aent.orchestrator.sampler import as_batch
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.runtime.environment import data_path
from aent.runtime.worker_thread import WorkerThread
from aent.tasks import Task
from aent.tasks.choice import choose
from aent.tasks.curriculum import Record, from_json, to_json

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
    fails_at: int | None = None

    def next(self, step: int, _plan: Any, max_staleness: int, _record: Any) -> Rollout:
        self.begun.append(step)
        self.begins.release()
        assert self.may_end[step].wait(PATIENCE_S)
        if step == self.fails_at:
            raise RuntimeError(f"step {step} by weights older than {max_staleness}")
        return rollout_of(step)


def rollouts(
    tmp_path: Path, staleness: int, ready: int, every: int = 1
) -> tuple[Rollouts, Source, Any]:
    """Of a run of 5 steps; the first ``ready`` of them are sampled at once."""
    changes = [f"rollout.max_staleness={staleness}", "steps=5", f"checkpoint.every={every}"]
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


def test_k_steps_are_sampled_ahead_one_after_the_other(tmp_path: Path) -> None:
    made, source, how = rollouts(tmp_path, staleness=2, ready=2)
    assert made.of(0, how) == rollout_of(0)
    for _ in range(3):
        assert source.begins.acquire(timeout=PATIENCE_S)
    assert source.begun == [0, 1, 2]  # 2 when 1 was there
    assert made.of(1, how) == rollout_of(1)  # although 2 is not; and 3 is next
    for event in source.may_end.values():
        event.set()
    assert [made.of(step, how) for step in (2, 3, 4)] == [rollout_of(s) for s in (2, 3, 4)]
    made.settle()
    assert source.begun == [0, 1, 2, 3, 4]
    assert made.noted == {"staleness/sampled_anew": 0.0}


def test_rollouts_are_on_disk_only_when_their_weights_are_proven(tmp_path: Path) -> None:
    """Those that end while the engines get new weights, which may turn out to be wrong."""
    made, source, how = rollouts(tmp_path, staleness=1, ready=5)
    with made.unproven:
        source.may_end[1].clear()
        pending = WorkerThread("learns").submit(lambda: made._make(1, how))
        assert source.begins.acquire(timeout=PATIENCE_S)
        source.may_end[1].set()
        with pytest.raises(TimeoutError):
            pending.result(0.2)
        assert rollout_files.read(tmp_path, 1) is None
    assert pending.result(PATIENCE_S).rollout == rollout_files.read(tmp_path, 1) == rollout_of(1)


def test_what_was_begun_and_is_not_on_disk_is_sampled_anew_and_counted(tmp_path: Path) -> None:
    killed, source, how = rollouts(tmp_path, staleness=1, ready=2)
    assert killed.of(1, how) == rollout_of(1)
    for _ in range(2):
        assert source.begins.acquire(timeout=PATIENCE_S)
    assert rollout_files.begun(tmp_path) == 2
    again, _, _ = rollouts(tmp_path, staleness=1, ready=5)
    assert again.resume(1) == 2
    again.of(1, how)
    assert again.noted == {"staleness/sampled_anew": 0.0}
    assert again.of(2, how) == replace(rollout_of(2), anew=True)
    assert again.noted == {"staleness/sampled_anew": 1.0}
    assert rollout_files.read(tmp_path, 2) == replace(rollout_of(2), anew=True)
    again.of(3, how)
    assert again.noted == {"staleness/sampled_anew": 0.0}
    again.settle()
    source.may_end[2].set()


def test_what_was_sampled_ahead_of_a_stop_is_counted_where_nothing_is_kept(tmp_path: Path) -> None:
    """With ``checkpoint.every`` 0 only a run that was asked to stop goes on, and it has kept no
    rollouts."""
    stopped, source, how = rollouts(tmp_path, staleness=1, ready=2, every=0)
    assert stopped.of(0, how) == rollout_of(0)
    for _ in range(2):
        assert source.begins.acquire(timeout=PATIENCE_S)
    stopped.settle()
    again, _, _ = rollouts(tmp_path, staleness=1, ready=5, every=0)
    assert again.resume(1) == 1  # after the checkpoint of one step
    again.of(1, how)
    assert again.noted == {"staleness/sampled_anew": 1.0}
    again.of(2, how)
    assert again.noted == {"staleness/sampled_anew": 0.0}
    again.settle()
    assert not rollout_files.recorded(tmp_path)


def test_a_step_that_waits_for_its_turn_is_not_begun_when_the_run_ends(tmp_path: Path) -> None:
    made, source, how = rollouts(tmp_path, staleness=2, ready=1)
    made.source.asker = SimpleNamespace(interrupt=source.may_end[1].set)
    made.of(0, how)
    for _ in range(2):
        assert source.begins.acquire(timeout=PATIENCE_S)
    made.close()
    assert source.begun == [0, 1]
    assert rollout_files.begun(tmp_path) == 1  # a continued run does not count 2 as sampled again


@pytest.mark.parametrize("by", ["settle", "of"])
def test_what_fails_ahead_is_raised_where_it_is_waited_for(tmp_path: Path, by: str) -> None:
    made, source, how = rollouts(tmp_path, staleness=1, ready=5)
    source.fails_at = 3
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


QUESTIONS = [Question(i, f"{i}?", str(i), source="ab"[i % 2]) for i in range(30)]


@dataclass
class Learner:
    """In place of engines and judges: chooses as a run does; what becomes of a question is a
    function of it and of the step."""

    recipe: Recipe
    asked: dict[int, list[int]] = field(default_factory=dict)  # by step; not those read from disk

    def next(self, step: int, _plan: Any, _max_staleness: int, record: Record) -> Rollout:
        task = Task("t", QUESTIONS, [], {"a": 2.0, "b": 1.0})
        n, settings = self.recipe.rollout.prompts_per_step, self.recipe.task.curriculum
        items = [
            q.index for q in choose(task, step, n, self.recipe.seed, settings, record).questions
        ]
        self.asked[step] = items
        samples = [Sample([1], [2], [-1.0], [step], "stop", g, i) for g, i in enumerate(items)]
        outcomes = {i: (random.Random(f"{i}/{step}").randrange(5), 4) for i in items}
        outcomes[29] = (step % 5, 4)  # a question whose group was discarded
        return replace(rollout_of(step), samples=samples, outcomes=outcomes,
                       prompts=["?"] * len(items), responses=["3"] * len(items),
                       verdicts=[Verdict(1.0)] * len(items))  # fmt: skip


def learner(run_dir: Path, staleness: int, *more: str) -> tuple[Any, Learner, Any]:
    changes = [
        f"rollout.max_staleness={staleness}",
        "steps=12",
        "rollout.prompts_per_step=6",
        *more,
    ]
    changes += ["task.curriculum={low: .2, high: .8, replay: .34, order: hard_first}"]
    recipe = load(data_path("recipes/cpu/tiny.yaml"), [*changes, "checkpoint.every=4"])
    source = Learner(recipe)
    made: Any = Rollouts(recipe, run_dir, source)  # type: ignore[arg-type]
    return made, source, plan(recipe, {})


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize(("killed_in", "checkpoint"), [(5, 4), (7, 4), (8, 8), (3, 0)])
def test_a_curriculum_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, staleness: int, killed_in: int, checkpoint: int
) -> None:
    """A resumed run has only a checkpoint's record and the rollouts on disk after it."""
    whole, undisturbed, how = learner(tmp_path / "whole", staleness)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    for step in range(12):
        whole.of(step, how)
        whole.settle()
    cut, first, _ = learner(tmp_path / "cut", staleness)
    saved: dict[int, Any] = {0: to_json({})}
    for step in range(killed_in + 1):  # killed when this step's responses were there
        cut.of(step, how)
        cut.settle()
        if step + 1 <= checkpoint:
            saved[step + 1] = to_json(cut.record)
    again, second, _ = learner(tmp_path / "cut", staleness)
    kept = json.loads(json.dumps(saved[checkpoint]))
    assert again.resume(checkpoint, from_json(kept)) == killed_in + 1 + staleness
    noted = []
    for step in range(checkpoint, 12):
        again.of(step, how)
        again.settle()
        noted.append(again.noted)
    assert {**first.asked, **second.asked} == undisturbed.asked
    assert set(second.asked) == set(range(killed_in + 1 + staleness, 12))
    assert again.record == whole.record
    assert noted[-1] == whole.noted
    # the record matters: without it other questions are chosen
    forgetful, third, _ = learner(tmp_path / "other", staleness)
    (tmp_path / "other").mkdir()
    forgetful.resume(checkpoint or 1, {})
    forgetful.of(checkpoint or 1, how)
    forgetful.settle()
    assert third.asked[checkpoint or 1] != undisturbed.asked[checkpoint or 1]


def test_sampling_ahead_sees_the_same_record(tmp_path: Path) -> None:
    """The rollouts of step t are there before those of t + 1 are begun, so that a curriculum
    chooses the same questions with rollout.max_staleness 0 and 1."""
    asked = []
    for staleness in (0, 1):
        made, source, how = learner(tmp_path / str(staleness), staleness)
        (tmp_path / str(staleness)).mkdir()
        for step in range(12):
            made.of(step, how)
        made.settle()
        asked.append(source.asked)
    assert asked[0] == asked[1]
    repeated = [item for items in asked[0].values() for item in items]
    assert len(set(repeated)) < len(repeated)
