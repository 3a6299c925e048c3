"""Processes that a test has started, observed from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import psutil

from aent.runtime.network import held_port

_ports: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody listens on, and that nobody else is given until the tests end."""
    _ports.append(held_port())
    return _ports[-1].getsockname()[1]


def command_line(process: psutil.Process) -> list[str]:
    """Its arguments; none if it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def runs(process: psutil.Process) -> bool:
    """A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(processes: Sequence[psutil.Process], within_s: float = 0.0) -> None:
    """None of them is left within ``within_s``; those that are left are killed."""
    deadline = time.monotonic() + within_s
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        process.kill()
    assert not left, left
