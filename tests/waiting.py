"""Waiting for what another thread or process does. Text that it prints is not polled with
``readouterr``, which loses what is written while it reads."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300.0  # a loaded machine may need so long


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Return when ``happened`` is true; fails, with ``what``, if it is not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.02)
