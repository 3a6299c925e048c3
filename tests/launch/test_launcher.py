"""The launcher's reactions to its children, which are small ones here, with real heartbeats."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from aent.launch import launcher
from aent.launch.launcher import Signals
from aent.layout.parallel import ParallelLayout
from aent.recipe.load import load
from aent.runtime import failures, heartbeats
from aent.runtime.children import Child, stop_all
from aent.runtime.environment import data_path
from waiting import wait_until
from wording import assert_names

RANK = """
import sys, time
from pathlib import Path
from aent.runtime.phases import Phases
from aent.runtime import heartbeats, signals
run_dir, rank, deadline_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
heartbeats.BEAT_S = 0.5
signals.listen()
phases = Phases.of(run_dir, rank, deadline_s)
phases.step = 5
with phases.beating(), phases("train"):
    time.sleep(600)
"""


def both_train(run_dir: Path) -> bool:
    places = heartbeats.places(run_dir)
    return len(places) == 2 and "start" not in str(places)


@pytest.fixture
def ranks(tmp_path: Path, request: pytest.FixtureRequest):
    """Two ranks in step 5, with their heartbeats; a parameter is the deadline of rank 1's phase."""
    deadlines = [600.0, getattr(request, "param", 600.0)]
    children = [
        Child.start(
            f"trainer rank {rank}",
            [sys.executable, "-c", RANK, str(tmp_path), str(rank), str(deadlines[rank])],
            env=os.environ,
            log_path=tmp_path / "logs" / f"rank{rank}.log",
        )
        for rank in range(2)
    ]
    try:
        wait_until(lambda: both_train(tmp_path), "both ranks are in their phase")
        yield children
    finally:
        stop_all(children, 0.1)


def watched(run_dir: Path, ranks: list[Child], silence_s: float = 600.0) -> str | None:
    watch = heartbeats.Watch(run_dir, silence_s)
    return launcher.look_after([], ranks, Signals(), watch, spare_engines=0)


def wait_for_stack(rank: Child, words: str) -> None:
    """The launcher gives a rank that hangs a moment for it; a loaded machine may need more."""
    deadline = time.monotonic() + 300
    while words not in rank.tail(30):
        assert time.monotonic() < deadline, rank.tail(30)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_the_others_write_their_stacks(
    tmp_path: Path, ranks: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "LOOK_S", 0.5)
    ranks[1].process.send_signal(signal.SIGSTOP)
    told = watched(tmp_path, ranks, silence_s=3 * heartbeats.BEAT_S)
    assert told is not None
    assert_names(told, "rank 1", "step 5", "train")
    assert "phase_timeout_s" not in told
    wait_for_stack(ranks[0], "most recent call first")
    stop_all(ranks, 0.1)
    assert not any(psutil.pid_exists(rank.process.pid) for rank in ranks)


@pytest.mark.parametrize("ranks", [1.0], indirect=True)
def test_a_rank_whose_work_hangs_is_named_though_its_process_lives(
    tmp_path: Path, ranks: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "LOOK_S", 0.2)
    told = watched(tmp_path, ranks)
    assert told is not None
    assert_names(told, "rank 1", "step 5", "train", "trainer.phase_timeout_s")
    assert "rank 0" not in told
    wait_for_stack(ranks[1], "<string>")  # where it hangs


def test_a_dead_rank_is_told_with_its_last_lines(tmp_path: Path, ranks: list[Child]) -> None:
    with ranks[1].log_path.open("a") as log:
        log.write("its last words\n")
    ranks[1].process.kill()
    told = watched(tmp_path, ranks)
    assert told is not None
    assert_names(told.splitlines()[0], "rank 1", "SIGKILL", ranks[1].log_path)
    assert told.endswith("its last words")


def test_a_closed_terminal_ends_a_run_but_not_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with launcher.caught_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with launcher.caught_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class RankZeroFailed(RuntimeError):
    """As ``runtime.on_rank_zero`` raises it."""


def ended_rank(run_dir: Path, rank: int, ending: str) -> Child:
    """A rank that has ended by running this line of Python."""
    log = run_dir / f"rank{rank}.log"
    argv = [sys.executable, "-c", f"import os; {ending}"]
    child = Child.start(f"trainer rank {rank}", argv, env=os.environ, log_path=log)
    child.process.wait(60)
    return child


def write_why(run_dir: Path, rank: int, error: Exception) -> None:
    with pytest.raises(type(error)), failures.recorded(run_dir, rank):
        raise error


def test_of_ranks_that_ended_by_themselves_the_first_that_wrote_why_is_told(tmp_path: Path) -> None:
    write_why(tmp_path, 1, RankZeroFailed("rank 0 failed"))
    write_why(tmp_path, 0, OSError("disk full"))
    ranks = [ended_rank(tmp_path, rank, "raise SystemExit(1)") for rank in (1, 0)]
    told = launcher.first_failure(ranks, ranks, tmp_path)
    assert_names(told, "rank 0")
    assert told.endswith("OSError: disk full")


def test_a_written_reason_is_told_where_a_signal_killed_another_rank(tmp_path: Path) -> None:
    """NCCL and gloo abort a rank whose peer has failed."""
    write_why(tmp_path, 0, OSError("disk full"))
    ranks = [ended_rank(tmp_path, 0, "raise SystemExit(1)"), ended_rank(tmp_path, 1, "os.abort()")]
    for dead in (ranks, ranks[1:]):
        told = launcher.first_failure(dead, ranks, tmp_path)
        assert "OSError: disk full" in told
        assert_names(told.splitlines()[-1], "rank 1", "SIGABRT", ranks[1].log_path)


def test_a_signal_is_told_where_the_others_only_followed(tmp_path: Path) -> None:
    write_why(tmp_path, 1, RankZeroFailed("rank 0 failed"))
    ranks = [ended_rank(tmp_path, 0, "os.kill(os.getpid(), 9)"), ended_rank(tmp_path, 1, "1 / 0")]
    told = launcher.first_failure(ranks, ranks, tmp_path)
    assert_names(told.splitlines()[0], "rank 0", "SIGKILL", ranks[0].log_path)


@pytest.mark.parametrize("fails", [True, False])
def test_mlflow_hears_of_the_end_where_a_child_survives_every_signal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fails: bool,
) -> None:
    heard: list[object] = []

    def stuck(children: list[Child], grace_s: float) -> None:
        raise TimeoutError("vLLM server on port 1 (process 2) survives SIGKILL")

    def look_after(*_: object) -> str | None:
        return "aent: rank 0 failed first" if fails else None

    monkeypatch.setattr(launcher, "prepare", lambda recipe: (tmp_path, tmp_path))
    monkeypatch.setattr(launcher, "mark_ended", lambda _, status: heard.append(status))
    monkeypatch.setattr(launcher, "start_ranks", lambda *_: iter(()))
    monkeypatch.setattr(launcher, "look_after", look_after)
    monkeypatch.setattr(launcher, "stop_all", stuck)
    recipe = load(data_path("recipes/cpu/tiny.yaml"), ["rollout.engines=0"])
    assert launcher.launch(recipe) == 1
    assert heard == ["FAILED"]
    said = capfd.readouterr().err
    assert "survives SIGKILL" in said
    assert ("rank 0 failed first" in said) is fails


def test_ranks_that_have_started_end_where_the_next_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[Child] = []
    start = Child.start

    def starting(name: str, argv: list[str], **settings: Any) -> Child:
        if started:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(start(name, ["sleep", "600"], **settings))
        return started[0]

    monkeypatch.setattr(launcher, "prepare", lambda recipe: (tmp_path, tmp_path))
    monkeypatch.setattr(launcher, "mark_ended", lambda *_: True)
    monkeypatch.setattr(Child, "start", starting)
    recipe = load(data_path("recipes/cpu/tiny.yaml"), ["rollout.engines=0"])
    assert ParallelLayout.of(recipe.trainer).num_ranks > 1
    assert launcher.launch(recipe) == 1
    assert "Resource temporarily unavailable" in capfd.readouterr().err
    assert started[0].poll() is not None
