"""Work beside training, and whoever waits for its end."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from aent.tracking import background
from aent.tracking.background import Background
from wording import assert_names


def test_work_that_raises_is_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    """As where a file system fails for a while, outside of what the work itself expects."""
    errors: list[Exception] = [OSError(errno.ESTALE, os.strerror(errno.ESTALE), "mlflow_run_id")]

    def work() -> bool:
        if errors:
            raise errors.pop()
        return True

    thread = Background("uploads", work)
    thread.wake()
    thread.end()
    assert thread.join(300)
    assert not errors
    assert_names(capfd.readouterr().err, "uploads", "mlflow_run_id")


def test_whoever_waits_for_the_end_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or other ranks take a long upload for a rank that hangs."""
    monkeypatch.setattr(background, "WAIT_S", 0.01)
    signs: list[int] = []
    enough = threading.Event()

    def sign() -> None:
        signs.append(1)
        if len(signs) == 3:
            enough.set()

    thread = Background("entities", lambda: enough.wait(300))
    thread.end()
    assert thread.join(300, sign)
    assert len(signs) >= 3
    assert not Background("entities", lambda: True).join(0.05, sign)
