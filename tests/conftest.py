"""Nothing random differs from one run of the tests to the next, nor with their order."""

import os
import random
from collections.abc import Generator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# the same examples each time, and none that a former run has kept; how long one takes is the
# machine's affair
settings.register_profile(
    "aent",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("aent")

DEAREST = 25  # files, in the list at the end


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# -- where the processor time goes ---------------------------------------------------------------

_spent: dict[str, float] = {}  # core-seconds by file, those of ended child processes included


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
    most = sorted(_spent.items(), key=lambda entry: -entry[1])[:DEAREST]
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in most if seconds >= 1)
    terminalreporter.write_line(f"core-seconds by file: {parts or 'under one each'}")
