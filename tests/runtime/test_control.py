"""Rank 0 works alone, the others wait: values, failures, deadlines."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from aent.runtime.control import Control, RankZeroFailed
from distributed.ranks import run_ranks


def store_of(rank: int, world: int) -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def slow_work(rank: int, world: int) -> list:
    """Longer than the deadline in all, but with a sign of progress in between."""
    control = Control(store_of(rank, world), rank, deadline_s=1.0, on_progress=lambda: None)

    def work() -> str:
        for _ in range(4):
            time.sleep(0.5)
            control.progress()
        return "done"

    return [control.alone("first", work), control.alone("second", lambda: "again")]


def failing_work(rank: int, world: int) -> str:
    control = Control(store_of(rank, world), rank, deadline_s=5.0, on_progress=lambda: None)
    try:
        control.alone("sampling", lambda: 1 // 0)
    except (RankZeroFailed, ZeroDivisionError) as error:
        dist.barrier()
        return f"{type(error).__name__}: {error}"
    return ""


def silent_work(rank: int, world: int) -> str:
    control = Control(store_of(rank, world), rank, deadline_s=0.5, on_progress=lambda: None)
    try:
        control.alone("sampling", lambda: time.sleep(2))
    except TimeoutError as error:
        return str(error)
    return ""


def test_others_wait_beyond_the_deadline_as_long_as_there_is_progress():
    assert run_ranks(slow_work, 3) == [["done", "again"], [None, None], [None, None]]


def test_a_failure_of_rank_zero_reaches_everyone_with_its_cause():
    first, second = run_ranks(failing_work, 2)
    assert first.startswith("ZeroDivisionError")
    assert second.startswith("RankZeroFailed: rank 0 failed (sampling): ZeroDivisionError")


def test_silence_is_an_error_that_says_whom_it_waited_for():
    _, second = run_ranks(silent_work, 2)
    assert "rank 1 waited for rank 0 (sampling)" in second


def work_beyond_the_collectives_time_out(rank: int, world: int) -> list[float]:
    """Rank 0 works longer than the group's time-out; the others are in no collective meanwhile."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    control = Control(store_of(rank, world), rank, deadline_s=10.0, on_progress=lambda: None)
    control.alone("a long rollout", lambda: time.sleep(3))
    value = torch.tensor([float(rank)])
    dist.all_reduce(value, group=group)
    return value.tolist()


def test_a_rollout_may_be_longer_than_the_collectives_time_out():
    assert run_ranks(work_beyond_the_collectives_time_out, 2) == [[1.0], [1.0]]
