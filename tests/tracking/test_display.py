"""The display in a pipe and in a terminal, and the summary's arithmetic."""

import contextlib
import math
import os
import pty
import re
import statistics
import sys
import threading
from dataclasses import replace

import pytest

from aent.tracking.display import Display, StepLine, clock, improvement, summary
from wording import assert_names


def line(step: int, seconds: float = 10.0) -> StepLine:
    phases = {"sample": seconds / 2, "score": 0.0, "train": seconds / 2 - 1, "sync": 1.0}
    return StepLine(step, 0.125 * step, 0.75, 0.0125, 2000, phases)


def test_plain_lines_without_a_terminal(capsys):
    with Display(steps=10) as display:
        display.step(line(0, seconds=50))
        display.step(line(1))
        display.message("evaluation: [0.5]")
    assert capsys.readouterr().out.splitlines() == [
        "step  1/10  reward 0.000  entropy 0.750  coefficient 0.0125  40 tokens/s  left 7:30  "
        "| sample 25.0 score 0.0 train 24.0 sync 1.0 s",
        "step  2/10  reward 0.125  entropy 0.750  coefficient 0.0125  200 tokens/s  left 1:20  "
        "| sample 5.0 score 0.0 train 4.0 sync 1.0 s",
        "evaluation: [0.5]",
    ]


def test_skipped_updates_are_shown(capsys):
    with Display(steps=10) as display:
        display.step(replace(line(0), skipped=2))
    assert re.search(r"\b2\b.*skip", capsys.readouterr().out, re.IGNORECASE)


def read_to_the_end(reader: int, pieces: list[bytes]) -> None:
    """Read until the other side is closed (EIO on a pseudo-terminal)."""
    with contextlib.suppress(OSError):
        while piece := os.read(reader, 1 << 16):
            pieces.append(piece)


def test_live_table_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    reader, writer = pty.openpty()
    pieces: list[bytes] = []
    collector = threading.Thread(target=read_to_the_end, args=(reader, pieces))
    collector.start()  # a terminal returns its content piece by piece
    with os.fdopen(writer, "w") as terminal, Display(steps=3, file=terminal) as display:
        for step in range(3):
            display.step(line(step))
        display.message("saved [here]")
    collector.join(30)
    os.close(reader)
    shown = b"".join(pieces).decode()
    assert "3/3" in shown
    assert "0.0125" in shown
    assert "sample 5.0, train 4.0" in shown
    assert "coefficient" in shown  # no column is cut
    assert re.search(r"left 0:10\b", shown)
    assert re.search(r"left 0:00\b", shown)
    assert "saved [here]" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor came back


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stdout = sys.stdout
    reader, writer = pty.openpty()
    terminal = os.fdopen(writer, "w")
    with Display(steps=3, file=terminal) as display:
        os.close(reader)
        display.step(line(0))
        display.stop()
        display.step(line(1))
    assert sys.stdout is stdout
    with contextlib.suppress(OSError):  # it still has what could not be written
        terminal.close()


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3600, 3725, math.nan, math.inf)] == [
        "0:00", "1:00", "1:00:00", "1:02:05", "?", "?",
    ]  # fmt: skip


def test_improvement_is_that_of_its_formula():
    rewards = [0.1, 0.3, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.7, 0.6, 0.9, 0.8]
    change = improvement(rewards)  # 13 steps: quarters of 3
    assert change.first == pytest.approx(0.2)
    assert change.last == pytest.approx(statistics.mean([0.6, 0.9, 0.8]))
    error = math.sqrt(
        statistics.variance([0.1, 0.3, 0.2]) / 3 + statistics.variance([0.6, 0.9, 0.8]) / 3
    )
    assert change.standard_error == pytest.approx(error)
    assert change.learned
    assert not improvement(rewards[::-1]).learned
    assert not improvement([0.0, 0.3, 0.1, 0.2, 0.1, 0.2, 0.0, 0.4]).learned
    few = improvement([0.0, 1.0])
    assert (few.first, few.last, few.learned) == (0.0, 1.0, False)
    assert math.isnan(few.standard_error)
    with pytest.raises(ValueError, match="step"):
        improvement([])


def test_summary_says_it_all():
    text = summary(
        rewards=[0.0, 0.2] * 4 + [0.8, 1.0] * 4,
        evaluations={22: 0.75, 0: 0.375},
        seconds={"sample": 30, "train": 90.0},
        places={"policy": "runs/x/policy", "look": "mlflow ui --backend-store-uri sqlite:///m"},
    )
    reward, accuracy, spent, *places = text.splitlines()
    assert_names(reward, "mean reward", "0.100", "0.900", "+0.800 +- 0.082")
    assert_names(accuracy, "held-out accuracy", 0.375, "0.750", "22 steps")
    assert_names(spent, "2:00", "train 1:30 (75%)", "sample 0:30 (25%)")
    assert places == [
        "policy  runs/x/policy",
        "look    mlflow ui --backend-store-uri sqlite:///m",
    ]
    (few,) = summary([0.5], {}, {}, {}).splitlines()
    assert "+-" not in few
    assert summary([], {}, {}, {}) == ""
