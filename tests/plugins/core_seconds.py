"""Where the tests' processor time goes: the files that took most, at the end of a run.

Child processes count once they have ended and somebody has waited for them; ranks that are forked
from a server (``distributed.ranks``) do not. The sum over everything: ``tools/core_seconds.py``.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

LISTED = 25
_spent: dict[str, float] = {}  # core-seconds by file


def _core_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


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
