"""Traces of single steps, and the peak."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from aent.recipe.operation import ProfileSection
from aent.runtime import distributed, profiling
from aent.runtime.phases import Phases
from aent.runtime.profiling import Profiler, finished
from wording import assert_names


def profiled(run_dir: Path, rank: int, **settings: Any) -> None:
    phases = Phases.of(run_dir, rank, 600)
    profiler = Profiler(ProfileSection(**settings), run_dir, phases, rank)
    for step in range(4):
        profiler.at(step)
        with phases("train"):
            torch.ones(2, 2) @ torch.ones(2, 2)
    profiler.end()
    profiler.end()


def names(path: Path) -> set[str]:
    with gzip.open(path, "rt") as file:
        return {event.get("name") for event in json.load(file)["traceEvents"]}


def test_steps_and_ranks_that_are_named_have_a_trace_with_phases(tmp_path: Path) -> None:
    for rank in range(2):
        profiled(tmp_path, rank, steps=[1, 3], ranks=[1])
    assert [path.name for path in finished(tmp_path)] == [
        "step_000001_rank1.json.gz", "step_000003_rank1.json.gz",
    ]  # fmt: skip
    assert len(list((tmp_path / "profiles").iterdir())) == 2
    for path in finished(tmp_path):
        assert {"train", "aten::mm"} <= names(path)


def test_nothing_is_recorded_by_default(tmp_path: Path) -> None:
    profiled(tmp_path, 0)
    assert not (tmp_path / "profiles").exists()


def test_a_trace_that_cannot_be_written_costs_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profiles").write_text("a file in the way")
    profiled(tmp_path, 0, steps=[2])
    told = capsys.readouterr().err
    assert_names(told, "step_000002_rank0.json.gz")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A world of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(distributed, "_control_group", dist.new_group(backend="gloo"))
    yield
    dist.destroy_process_group()


def test_the_peak_is_measured_given_or_unknown(alone: None) -> None:
    assert profiling.peak_flops(ProfileSection(), torch.float32) is None
    given = ProfileSection(peak_tflops=2.5)
    assert profiling.peak_flops(given, torch.float32) == 2.5e12
    measured = profiling.peak_flops(ProfileSection(measure_peak=True), torch.float32)
    assert measured is not None
    assert 1e8 < measured < 1e15  # no machine is slower, or faster, in its products
