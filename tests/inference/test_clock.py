"""The clock that stops while engines are paused, and the time in which they are busy."""

from __future__ import annotations

import pytest

from aent.inference import clock as clock_module
from aent.inference.clock import Clock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"s": 1000.0}
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: now["s"])
    return now


def test_it_stands_in_a_pause(at: dict[str, float]) -> None:
    clock = Clock()
    with clock.paused():
        at["s"] += 5
        assert clock.now() == 1000
    at["s"] += 2
    assert clock.now() == 1002


def test_an_engine_is_busy_once_whoever_asks_it_and_never_in_a_pause(at: dict[str, float]) -> None:
    clock = Clock()
    clock.begin("a")
    at["s"] += 1
    clock.begin("a")  # another thread's requests
    clock.begin("b")
    at["s"] += 1
    assert clock.take_busy_s() == 3
    with clock.paused():
        at["s"] += 10
    clock.end("a")
    at["s"] += 1
    clock.end("a")
    at["s"] += 4
    assert clock.take_busy_s() == 1 + 5
    clock.end("b")
    at["s"] += 1
    assert clock.take_busy_s() == 0
