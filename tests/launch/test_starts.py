"""The starts of a run, and why each ended."""

import signal

from aent.launch import starts
from aent.launch.launcher import Signals, ended
from aent.tracking import journal


def test_a_start_takes_over_why_the_one_before_it_ended(tmp_path):
    assert starts.attempt(tmp_path) == 0
    starts.note(tmp_path, None, None)
    starts.end(
        tmp_path, "aent: rank 1 failed first; its last lines:\n  frame\nOSError: disk full\n"
    )
    told = "rank 1 failed first; its last lines: ... OSError: disk full"
    assert starts.why_ended(tmp_path) == told
    starts.note(tmp_path, "7", "step_000010")
    assert starts.why_ended(tmp_path) is None  # it continues
    starts.note(tmp_path, "7", "step_000010")  # its node was lost
    first, second, third = starts.noted(tmp_path)
    assert first["after"] is None
    assert (second["job"], second["checkpoint"], second["after"]) == ("7", "step_000010", told)
    assert third["after"] == starts.UNTOLD
    assert first["time"] <= second["time"] <= third["time"]
    assert starts.attempt(tmp_path) == 3


def test_what_cannot_be_written_keeps_nobody_from_ending(tmp_path):
    (tmp_path / starts.ENDED_FILE).mkdir()
    starts.end(tmp_path, "stopped")
    starts.end(tmp_path / "gone", "stopped")
    assert starts.why_ended(tmp_path) is None
    (tmp_path / starts.STARTS_FILE).mkdir()
    assert starts.attempt(tmp_path) == 0


def test_the_launcher_says_why_a_start_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("aent.launch.launcher.mark_ended", lambda *given: True)
    assert ended(tmp_path, [], Signals(received=signal.SIGTERM), None) == 128 + signal.SIGTERM
    assert starts.why_ended(tmp_path) == "stopped by SIGTERM"
    assert ended(tmp_path, [], Signals(), "aent: engine 0 died") == 1
    assert starts.why_ended(tmp_path) == "engine 0 died"
    assert journal.last_status(tmp_path / journal.JOURNAL_FILE) is None
