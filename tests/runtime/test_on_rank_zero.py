"""Rank 0 works alone, the others wait: values, failures, deadlines."""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from aent.runtime import on_rank_zero as module
from aent.runtime.on_rank_zero import HeldByRankZero, OnRankZero, RankZeroFailed
from distributed.ranks import run_ranks
from wording import assert_names, naming


def store_of(rank: int, world: int) -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def work_with_progress(rank: int, world: int) -> list:
    control = OnRankZero(store_of(rank, world), rank, deadline_s=120.0, on_progress=lambda: None)

    def work() -> str:
        control.progress()
        return "done"

    return [control.alone("first", work), control.alone("second", lambda: "again")]


def work_with_what_is_held(rank: int, world: int) -> list:
    """Values that every rank gets, and which ranks worked meanwhile."""
    control = OnRankZero(store_of(rank, world), rank, deadline_s=120.0, on_progress=lambda: None)
    worked: list[int] = []
    held = HeldByRankZero(control, "building it", lambda: {"first": rank + 7})
    held.meanwhile(lambda it: worked.append(it["first"]))
    return [
        held.tell("telling", lambda it: it["first"]),
        held.tell("telling again", lambda it: [True, None, "x"]),
        held.alone("working", lambda it: it["first"] + 1),
        worked,
    ]


def failing_work(rank: int, world: int) -> str:
    control = OnRankZero(store_of(rank, world), rank, deadline_s=120.0, on_progress=lambda: None)
    try:
        control.alone("sampling", lambda: 1 // 0)
    except (RankZeroFailed, ZeroDivisionError) as error:
        dist.barrier()
        return f"{type(error).__name__}: {error}"
    return ""


def silent_work(rank: int, world: int) -> str:
    """Until the other rank has lost its patience."""
    store = store_of(rank, world)
    control = OnRankZero(store, rank, deadline_s=0.5, on_progress=lambda: None)
    try:
        control.alone("sampling", lambda: store.wait(["patience is lost"]))
    except TimeoutError as error:
        store.set("patience is lost", "")
        return str(error)
    return ""


def test_rank_zero_has_the_values_and_the_others_have_waited():
    assert run_ranks(work_with_progress, 3) == [["done", "again"], [None, None], [None, None]]


def test_what_rank_zero_holds_is_used_there_and_what_it_tells_is_known_everywhere():
    zero, one = run_ranks(work_with_what_is_held, 2)
    assert zero == [7, [True, None, "x"], 8, [7]]
    assert one == [7, [True, None, "x"], None, []]


def test_others_wait_beyond_the_deadline_as_long_as_there_is_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a clock of their own, which advances while they sleep, like rank 0."""
    store, ticks = dist.HashStore(), []
    zero, one = (OnRankZero(store, rank, 1.0, lambda: ticks.append(now[0])) for rank in (0, 1))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 0.9
        if now[0] < 4:
            zero.progress()
        elif now[0] < 5:
            store.set("aent/turn/1", "")

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(module, "time", clock)
    assert one.alone("sampling", lambda: None) is None
    assert now[0] == pytest.approx(4.5)
    assert len(ticks) == 2 * 4
    with pytest.raises(TimeoutError, match=naming("rank 0", "judging", "1 s")):
        one.alone("judging", lambda: None)


def test_a_short_wait_ends_soon_and_a_long_one_asks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """How late a wait ends, at most, for work of rank 0 of this length."""
    now, slept = [0.0], []

    def late(work_s: float) -> float:
        store = dist.HashStore()
        one, now[0] = OnRankZero(store, 1, 1e9, lambda: None), 0.0
        slept.clear()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now[0] += seconds
            if now[0] >= work_s:
                store.set("aent/turn/1", "")

        clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
        monkeypatch.setattr(module, "time", clock)
        one.alone("working", lambda: None)
        return now[0] - work_s

    assert late(0.0) <= 0.003
    assert late(0.4) <= 0.013
    assert late(20.0) <= 0.1
    assert len(slept) < 400


def test_a_failure_of_rank_zero_reaches_everyone_with_its_cause():
    first, second = run_ranks(failing_work, 2)
    assert first.startswith("ZeroDivisionError")
    assert second.startswith("RankZeroFailed")
    assert_names(second, "rank 0", "sampling", "ZeroDivisionError")


def test_silence_is_an_error_that_says_whom_it_waited_for():
    _, second = run_ranks(silent_work, 2)
    assert_names(second, "rank 1", "rank 0", "sampling")


def work_beyond_the_collectives_time_out(rank: int, world: int) -> list[float]:
    """Rank 0 works longer than the group's time-out; the others are in no collective meanwhile."""
    dist.barrier()  # one may have started much later than the other
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=10))
    control = OnRankZero(store_of(rank, world), rank, deadline_s=120.0, on_progress=lambda: None)
    control.alone("a long rollout", lambda: time.sleep(11))
    value = torch.tensor([float(rank)])
    dist.all_reduce(value, group=group)
    return value.tolist()


@pytest.mark.slow
def test_a_rollout_may_be_longer_than_the_collectives_time_out():
    assert run_ranks(work_beyond_the_collectives_time_out, 2) == [[1.0], [1.0]]
