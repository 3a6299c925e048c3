"""The terminal's view of a run: progress while it runs, and a summary at its end."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from aent.runtime.log import OWN_ONLY, log

ROWS = 12  # steps visible in the live table, which has room in 80 columns
LONGEST = 2  # phases of a step that it names


@dataclass(frozen=True)
class StepLine:
    """What the display shows of one step."""

    step: int  # from 0
    reward: float  # mean
    entropy: float  # of the controller's measure, nats per token
    coefficient: float  # of this step
    tokens: int  # prompts and responses
    seconds: Mapping[str, float]  # wall time per phase
    skipped: int = 0  # updates skipped because their gradient was not finite

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.total_s, 1e-9)


@dataclass
class Display:
    """A live table if ``file`` is a terminal, otherwise one log line for each step.

    Use it as a context manager, which restores the terminal in any case.
    """

    steps: int
    file: TextIO = field(default_factory=lambda: sys.stdout)
    _lines: deque[StepLine] = field(default_factory=lambda: deque(maxlen=ROWS))  # the newest
    _shown: int = 0  # steps of this process
    _later_s: float = 0.0  # time of all of them but the first
    _live: Live | None = None

    def __enter__(self) -> Display:
        if self.file.isatty():
            console = Console(file=self.file)
            self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back, if it is still there (a run may outlive it); what is said from
        here on are plain lines."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError):
                live.stop()

    def step(self, line: StepLine) -> None:
        """Show a finished step."""
        self._later_s += line.total_s if self._shown else 0.0
        self._shown += 1
        self._lines.append(line)
        if self._live is not None:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._live.update(self._table(), refresh=True)
        log.info(self._plain(line), extra={OWN_ONLY: self._live is not None})

    def message(self, text: str, level: int = logging.INFO) -> None:
        """Say something between the lines, or above the table: it shows there what is written to
        standard output."""
        log.log(level, text)

    def time_left_s(self) -> float:
        """Mean time of a step (the first left out: it warms up) times the steps to come."""
        if not self._lines:
            return math.nan
        newest = self._lines[-1]
        mean = self._later_s / (self._shown - 1) if self._shown > 1 else newest.total_s
        return mean * (self.steps - newest.step - 1)  # a resumed run has shown the last few

    def _plain(self, line: StepLine) -> str:
        phases = " ".join(f"{name} {s:.1f}" for name, s in line.seconds.items())
        return (
            f"step {line.step + 1:>{len(str(self.steps))}}/{self.steps}  "
            f"reward {line.reward:.3f}  entropy {line.entropy:.3f}  "
            f"coefficient {line.coefficient:.3g}  {line.tokens_per_s:.0f} tokens/s  "
            f"{_said_of_skipped(line)}"
            f"left {clock(self.time_left_s())}  | {phases} s"
        )

    def _table(self) -> Table:
        table = Table(box=None, caption_justify="left", header_style="bold")
        for name in ("step", "reward", "entropy", "coefficient", "tokens/s", "seconds"):
            table.add_column(name, justify="right")
        table.add_column("longest")
        for line in self._lines:
            longest = sorted(line.seconds.items(), key=lambda item: -item[1])[:LONGEST]
            table.add_row(
                f"{line.step + 1}/{self.steps} {_said_of_skipped(line)}".rstrip(),
                f"{line.reward:.3f}",
                f"{line.entropy:.3f}",
                f"{line.coefficient:.3g}",
                f"{line.tokens_per_s:.0f}",
                f"{line.total_s:.1f}",
                ", ".join(f"{name} {s:.1f}" for name, s in longest),
            )
        table.add_section()
        bar = ProgressBar(total=self.steps, completed=self._lines[-1].step + 1, width=20)
        outer = Table.grid(padding=(0, 1))
        outer.add_row(table)
        foot = Table.grid(padding=(0, 2))
        foot.add_row(bar, f"time left {clock(self.time_left_s())}")
        outer.add_row(foot)
        return outer


def _said_of_skipped(line: StepLine) -> str:
    return f"{line.skipped} update(s) SKIPPED  " if line.skipped else ""


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``; ``?`` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


@dataclass(frozen=True)
class Improvement:
    """Mean reward of the first and the last quarter of a run's steps, with the error of the
    change."""

    first: float
    last: float
    standard_error: float  # of the difference; NaN if a quarter has fewer than two steps

    @property
    def difference(self) -> float:
        return self.last - self.first

    @property
    def learned(self) -> bool:
        """Whether the difference is above zero by more than twice its standard error."""
        return self.difference > 2 * self.standard_error


def improvement(rewards: Sequence[float]) -> Improvement:
    """Compare the first and last quarter of a run.

    The mean reward of each step is one observation; with n = max(1, steps // 4) of them in each
    quarter, and s1, s2 their sample standard deviations (n - 1), the standard error of the
    difference of the two means is sqrt(s1^2 / n + s2^2 / n). Steps share a policy that drifts, so
    the trend within a quarter counts as scatter, and the error is rather too large than too small.

    Raises ValueError if there is no step.
    """
    if not rewards:
        raise ValueError("rewards: a run without steps has no quarters")
    n = max(1, len(rewards) // 4)

    def moments(values: Sequence[float]) -> tuple[float, float]:
        mean = sum(values) / n
        spread = sum((v - mean) ** 2 for v in values)
        return mean, spread / (n - 1) if n > 1 else math.nan

    (first, first_variance), (last, last_variance) = moments(rewards[:n]), moments(rewards[-n:])
    return Improvement(first, last, math.sqrt((first_variance + last_variance) / n))


def summary(
    rewards: Sequence[float],
    evaluations: Mapping[int, float],
    seconds: Mapping[str, float],
    places: Mapping[str, str],
) -> str:
    """The summary at the end of a run.

    Args:
        rewards: mean reward of every step, in order.
        evaluations: held-out accuracy by the number of steps trained before it.
        seconds: wall time per phase over the whole run.
        places: where to find what ("policy": folder, "figure": file, "look": command).
    """
    lines = []
    if rewards:
        change = improvement(rewards)
        lines.append(
            f"mean reward: first quarter {change.first:.3f}, last quarter {change.last:.3f}, "
            f"difference {change.difference:+.3f}"
            + (
                f" +- {change.standard_error:.3f} (standard error)"
                if math.isfinite(change.standard_error)
                else " (too few steps for a standard error)"
            )
        )
    if evaluations:
        words = [
            f"{accuracy:.3f} {'before' if step == 0 else f'after {step} steps'}"
            for step, accuracy in sorted(evaluations.items())
        ]
        lines.append(f"held-out accuracy: {', '.join(words)}")
    total = sum(seconds.values())
    if total > 0:
        shares = [
            f"{name} {clock(s)} ({s / total:.0%})"
            for name, s in sorted(seconds.items(), key=lambda item: -item[1])
        ]
        lines.append(f"time {clock(total)}: {', '.join(shares)}")
    width = max((len(name) for name in places), default=0)
    lines += [f"{name.ljust(width)}  {place}" for name, place in places.items()]
    return "\n".join(lines)
