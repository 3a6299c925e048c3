"""What rank 0 keeps of a run does not grow with its steps, and is all that it needs."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from aent.orchestrator.report import Report
from aent.orchestrator.token_metrics import Mix
from aent.recipe.load import load
from aent.recipe.schema import Recipe
from aent.tracking import journal
from aent.tracking.display import Display, StepLine
from aent.tracking.figures import DRAWN
from aent.tracking.journal import File, Point
from aent.tracking.known import POINTS, RECENT, Curve, Known
from aent.tracking.recorded import read
from aent.tracking.repeated_step import difference
from aent.tracking.tracker import Tracker
from wording import assert_names

KEYS = [*DRAWN, *(f"group/metric_{i}" for i in range(30))]


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: trial\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n"
        "tracking: {system_metrics_every_s: 0}\n"
    )
    return load(path)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held() -> int:
    """Bytes of Python's objects that this package allocated."""
    gc.collect()
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/aent/*")])
    return sum(trace.size for trace in ours.traces)


def test_a_trackers_memory_does_not_grow_with_the_steps(tmp_path, recipe, traced, monkeypatch):
    monkeypatch.setattr(Tracker, "_send", lambda self: True)  # MLflow's own memory is not ours
    run_dir = tmp_path / "trial"
    run_dir.mkdir()
    tracker = Tracker(run_dir, recipe)
    sizes = []
    for step in range(1200):
        tracker.log(step, {key: step + 1 / 3 for key in KEYS[8:]})
        tracker.log_samples(step, [{"reward": 1.0}])
        if step in (400, 1199):
            sizes.append(held())
    assert sizes[1] - sizes[0] < 50_000  # 30 values of each step would be two megabytes


def test_the_figures_curves_do_not_grow(traced):
    known = Known()
    for step in range(10 * POINTS):
        for key in DRAWN[:2]:
            known.keep(step, key, step + 0.5)
        known.forget_before(step)
    assert held() < 2 * POINTS * 150 + 50_000  # all values: two megabytes


def test_the_display_keeps_the_lines_that_it_shows(capfd):
    display = Display(steps=1000)
    for step in range(200):
        display.step(line(step))
    assert len(display._lines) < 50


def line(step: int) -> StepLine:
    return StepLine(step, 0.5, 0.5, 0.01, 100, {"sample": 1.0 + step, "train": 2.0})


def test_the_time_left_is_the_mean_of_all_steps_but_the_first(capfd):
    display = Display(steps=1000)
    for step in range(100, 300):
        display.step(line(step))
    assert display.time_left_s() == pytest.approx(
        sum(step + 3 for step in range(101, 300)) / 199 * 700
    )


@pytest.mark.parametrize("steps", [1, POINTS, POINTS + 1, 5 * POINTS + 17])
def test_a_curve_is_whole_or_evenly_thinned_and_ends_with_the_newest_step(steps):
    curve = Curve()
    for step in range(steps):
        curve.add(step, -step)
    shown = curve.shown()
    assert all(value == -step for step, value in shown.items())
    assert min(shown) == 0
    assert max(shown) == steps - 1
    gaps = {b - a for a, b in zip(sorted(shown)[:-1], sorted(shown)[1:-1])}
    assert len(gaps) <= 1
    assert len(shown) == steps if steps <= POINTS else POINTS / 2 <= len(shown) <= POINTS + 1


def test_a_steps_first_value_stays():
    curve = Curve()
    for value in (1.0, 2.0):
        curve.add(3, value)
    assert curve.shown() == {3: 1.0}


def test_curves_of_the_same_steps_have_the_same_steps():
    """The band is drawn where both sides are known."""
    low, high = Curve(), Curve()
    for step in range(3 * POINTS):
        low.add(step, 0.0)
        high.add(step, 1.0)
    assert low.shown().keys() == high.shown().keys()


def test_known_steps_and_files_are_those_that_may_come_again():
    known = Known(first_step=500)
    for step in range(600):
        known.keep(step, "a", float(step))
        known.keep_file(f"samples/step_{step:06d}.json")
        known.keep_file(f"profiles/step_{step}_rank0.json.gz")
    known.keep_file("datasets/0123.json")
    for newest in (500, 501):
        known.forget_before(newest)
        for step in range(newest - RECENT, 600):
            assert known.of(step) == {"a": float(step)}
            assert known.has_file(f"samples/step_{step:06d}.json")
        assert not known.of(newest - RECENT - 1)
        assert not known.has_file(f"samples/step_{newest - RECENT - 1:06d}.json")
    assert known.has_file("datasets/0123.json")
    # they are looked for at every step, and each is sent once
    assert all(known.has_file(f"profiles/step_{step}_rank0.json.gz") for step in range(600))


def test_a_run_that_continues_late_repeats_nothing(tmp_path, recipe, monkeypatch, capfd):
    monkeypatch.setattr(Tracker, "_send", lambda self: True)
    run_dir = tmp_path / "trial"
    run_dir.mkdir()
    path = run_dir / "journal.jsonl"
    journal.append(path, [Point(step, 1, "a", float(step)) for step in range(1000)])
    names = [f"samples/step_{step:06d}.json" for step in range(1000)]
    journal.append(path, [File(1, name, "samples") for name in names])
    tracker = Tracker(run_dir, recipe, first_step=700)
    for step in range(700, 1002):
        tracker.log(step, {"a": step + (step == 900)})
        tracker.log_samples(step, [{"reward": 1.0}])
    points = [(p.step, p.value) for p in journal.read(path)]
    assert points == [(step, float(step)) for step in range(1002)]
    files = [e.file for e, _ in journal.entries(path) if isinstance(e, File)]
    assert files == [f"samples/step_{step:06d}.json" for step in range(1002)]
    (said,) = (line for line in capfd.readouterr().err.splitlines() if "again" in line)
    assert_names(said, "step 900", "a by 1")


def test_what_a_resumed_report_reads_is_what_it_needs(tmp_path, recipe, traced):
    steps, share = 1500, {f"mix/class_{i}": 0.5 for i in range(60)}
    logged = {"reward/mean": 0.5, "controller/in_band": 1.0, "time/total": 2.0}
    mix = Mix({"word": 0.75, "number": 0.25}, {"word": 1.0, "number": 2.0})
    for step in range(steps):
        metrics = logged | share | mix.metrics()
        journal.append(
            tmp_path / "journal.jsonl", [Point(step, 1, key, v) for key, v in metrics.items()]
        )
    journal.append(
        tmp_path / "journal.jsonl",
        [Point(steps, 1, "evaluation/accuracy", 0.25), Point(steps, 1, "reward/mean", 0.75)],
    )
    report = Report(recipe, tmp_path, None, None, None)  # type: ignore[arg-type]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    report.resume(steps)
    assert tracemalloc.get_traced_memory()[1] - before < 3e6  # of 65 metrics more than six
    assert report.rewards == [0.5] * steps
    assert report.in_band == [1.0] * steps
    assert report.evaluations == {steps: 0.25}
    assert report.mix == mix
    assert sorted(report.alerts._steps) == list(range(steps - 21, steps))


def test_a_recorded_run_is_read_without_its_machines(tmp_path, recipe):
    from aent.recipe.load import dump

    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    of_machines = [Point(i, 1, "system/node1/gpu_0_power_usage_watts", 300.0) for i in range(9)]
    entropy = [Point(step, 1, f"policy/{recipe.measured}", 0.5) for step in range(3)]
    journal.append(tmp_path / "journal.jsonl", of_machines + entropy)
    recorded = read(str(tmp_path))
    assert recorded.metrics.keys() == {f"policy/{recipe.measured}"}
    assert recorded.entropy == {0: 0.5, 1: 0.5, 2: 0.5}


def test_a_machines_values_may_differ_in_a_repeated_step():
    assert difference(3, {"system/node1/cpu": (1.0, 2.0), "time/total": (1.0, 3.0)}) == ""
    assert "step 3" in difference(3, {"systems": (1.0, 2.0)})


def test_a_torn_line_is_found_from_the_end_of_a_large_journal(tmp_path, traced):
    path = tmp_path / "journal.jsonl"
    generator = random.Random(0)
    for size in (0, 1, 5, 65_535, 65_536, 65_537, 200_000):
        for torn in (b"", b"x", b"y" * 65_535, b"y" * 65_536, b"z" * 150_000):
            whole = b"" if size == 0 else generator.randbytes(size - 1).hex().encode()[-size + 1 :]
            whole = whole + b"\n" if size else b""
            path.write_bytes(whole + torn)
            before = path.stat().st_mtime_ns
            journal.drop_torn_line(path)
            assert path.read_bytes() == whole
            assert torn or path.stat().st_mtime_ns == before
    path.write_bytes(b"first\n" + b"line of it\n" * 10**6 + b"torn")
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    journal.drop_torn_line(path)
    assert tracemalloc.get_traced_memory()[1] - before < 1e6
    assert path.stat().st_size == 6 + 11 * 10**6
