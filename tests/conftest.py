"""Nothing random differs from one run of the tests to the next, nor with their order."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ("plugins.core_seconds", "plugins.go_on", "plugins.servers")

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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
