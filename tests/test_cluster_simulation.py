"""The simulation of a cluster, in cases with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cluster_simulation
from cluster_simulation import LAST, MODES, WARM, simulate
from simulated_engines import Decoding, Engine

STEPS = WARM + 4 + LAST
UNIT = Decoding(1.0, 0.0, 0.0)  # an iteration takes a second, however many take part


def outcome(mode: str, lengths: list[int], train_s: float, sync_s: float, engines: int = 1):
    steps = [[(1, n) for n in lengths] for _ in range(STEPS)]
    made = [Engine(UNIT, concurrency=2) for _ in range(engines)]
    return simulate(mode, steps, made, [train_s] * STEPS, sync_s)


def test_serial_steps_are_the_sum_of_their_phases() -> None:
    found = outcome("serial", [10, 4], train_s=7.0, sync_s=2.0)
    assert found.step_s == pytest.approx(19.0)
    assert found.engines_idle == pytest.approx(9 / 19)
    assert found.trainer_idle == pytest.approx(10 / 19)


@pytest.mark.parametrize(("train_s", "step_s"), [(7.0, 12.0), (15.0, 17.0)])
def test_one_step_off_is_the_longer_phase_and_the_transfer(train_s: float, step_s: float) -> None:
    found = outcome("one step off", [10, 4], train_s, sync_s=2.0)
    assert found.step_s == pytest.approx(step_s)


def test_in_flight_nobody_waits_for_the_longest_response() -> None:
    """Two at a time: one step off it takes 10 iterations, in flight (10 + 4) / 2 of each place, as
    the next step's begin beside the long one; with a trainer that takes no time."""
    apart, together = (outcome(mode, [10, 4], 0.0, 0.0).step_s for mode in MODES[1:])
    assert apart == pytest.approx(10.0)
    assert 7.0 <= together < 10.0


def test_more_requests_than_places_wait_and_engines_share() -> None:
    assert outcome("serial", [5] * 4, 0.0, 1.0).step_s == pytest.approx(11.0)
    assert outcome("serial", [5] * 4, 0.0, 1.0, engines=2).step_s == pytest.approx(6.0)


def test_iterations_are_the_inverse_of_seconds_and_grow_with_the_context() -> None:
    decoding = Decoding(0.01, 0.001, 1e-6)
    seconds = decoding.seconds(100, 8, 5000.0)
    by_hand = sum(0.01 + 8 * 0.001 + 1e-6 * (5000 + 8 * (i + 0.5)) for i in range(100))
    assert seconds == pytest.approx(by_hand)
    assert decoding.iterations(seconds, 8, 5000.0) == pytest.approx(100)


def test_a_run_is_checked_by_its_own_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded as the model has it: the fit finds the constants, and the rest without error."""
    (tmp_path / "samples").mkdir()
    points = []
    for step in range(7):
        lengths = [3 + step, 9 + 2 * step % 5, 4]
        table = {"columns": ["tokens"], "data": [[n] for n in lengths]}
        (tmp_path / f"samples/step_{step:06d}.json").write_text(json.dumps(table))
        sample = 0.5 * max(lengths) + 0.25 * sum(lengths)
        for name, value in (("sample", sample), ("train", 2.0), ("sync", 1.0), ("total", 9.0)):
            points.append({"step": step, "time": 0, "key": f"time/{name}", "value": value})
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    cluster_simulation.check(tmp_path)
    told = capsys.readouterr().out
    assert "0.500 s + 0.2500 s" in told
    assert "median error 0.0%" in told
