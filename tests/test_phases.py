"""Where a rank says it is, and for how long it says that it lives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aent.phases import Phases
from aent.runtime import heartbeats


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.01)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeat_says_step_and_phase_from_the_phase_begin(tmp_path: Path):
    phases = Phases.of(tmp_path, 0, 600)
    said = json.loads(phases.heartbeat.read_text())
    assert (said["step"], said["phase"]) == (0, "start")
    phases.step = 3
    before = time.time()
    with phases("train"):
        said = json.loads(phases.heartbeat.read_text())
    assert (said["step"], said["phase"]) == (3, "train")
    assert before <= said["since"] <= time.time()
    assert list(phases.take()) == ["train"]
    assert phases.take() == {}
    assert [p.name for p in (tmp_path / "heartbeats").iterdir()] == ["rank0.json"]


def test_a_rank_that_waits_long_gives_signs_and_leaves_none_after_a_good_end(tmp_path, quick):
    phases = Phases.of(tmp_path, 1, 600)
    file = phases.heartbeat
    with phases.beating():
        os.utime(file, (time.time() - 300,) * 2)
        wait_until(lambda: time.time() - file.stat().st_mtime < 200)
    assert not file.exists()


def test_the_file_of_a_rank_that_fails_stays(tmp_path, quick):
    phases = Phases.of(tmp_path, 1, 600)
    with pytest.raises(ValueError, match="its reason"), phases.beating():
        raise ValueError("its reason")
    assert phases.heartbeat.exists()


def test_a_phase_that_gets_no_further_says_so_until_it_does(tmp_path, quick):
    phases = Phases.of(tmp_path, 0, deadline_s=0.5)

    def stuck() -> bool:
        return "stuck_s" in json.loads(phases.heartbeat.read_text())

    with phases.beating():
        wait_until(stuck)
        phases.deadline_s = 600
        phases.begin("sync")
        assert not stuck()
        with phases._lock:  # no beat in between
            phases._progress -= 601
            phases.progress()
        time.sleep(0.1)  # some beats
        assert not stuck()
