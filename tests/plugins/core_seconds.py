"""Where the tests' processor time goes: the files that took most, at the end of a run.

Child processes count once they have ended and somebody has waited for them, ranks that are forked
from a server (``distributed.ranks``) too. The servers that a whole run shares count for the test
that ends them. The sum over everything: ``tools/core_seconds.py``.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from multiprocessing import forkserver

import psutil
import pytest

LISTED = 25
_spent: dict[str, float] = {}  # core-seconds by file


def _core_seconds() -> float:
    used = [os.times()]
    # the multiprocessing module has no other way to name its process
    if (pid := forkserver._forkserver._forkserver_pid) is not None:  # type: ignore[attr-defined]
        with suppress(psutil.NoSuchProcess):
            used.append(psutil.Process(pid).cpu_times())
    return sum(u.user + u.system + u.children_user + u.children_system for u in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    before = _core_seconds()
    try:
        return (yield)
    finally:
        name = item.nodeid.partition("::")[0]
        _spent[name] = _spent.get(name, 0.0) + _core_seconds() - before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    most = sorted(_spent.items(), key=lambda entry: -entry[1])[:LISTED]
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in most if seconds >= 1)
    terminalreporter.write_line(f"core-seconds by file: {parts or 'under one each'}")
