"""Random numbers are the same in every run of the tests, in any order."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

pytest_plugins = ("plugins.browser", "plugins.core_seconds", "plugins.go_on", "plugins.servers")

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

# hypothesis also draws constants out of those of our modules that are imported by then, so that a
# test's examples would differ with the tests before it; at this point there are none
assert hasattr(providers, "_get_local_constants")
_NO_CONSTANTS = providers._local_constants
providers._get_local_constants = lambda: _NO_CONSTANTS


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
