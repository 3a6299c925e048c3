"""The examples of docs/examples run as their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"

pytestmark = pytest.mark.slow


def output(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=1000, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_step() -> None:
    text = output(str(EXAMPLES / "transformers_step.py"))
    log_probs = [float(x) for x in re.findall(r"log-prob (-?[\d.]+)", text)]
    entropies = [float(x) for x in re.findall(r"entropy (-?[\d.]+)", text)]
    assert len(log_probs) == len(entropies) == 5
    assert log_probs[-1] > log_probs[0]
    assert 3 < entropies[-1] <= entropies[0] < 5.82  # log 335, of the kept two thirds of 500


def test_dtensor_head() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert "gradients agree" in output(*launcher, str(EXAMPLES / "dtensor_head.py"))
