"""A whole run with trainer and engine in turns, on a CPU, where vLLM follows the calls and keeps
its memory. A recipe is refused there, so the launcher is called without the checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.jobs import PATIENCE_S, TINY, empty_store

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(3600)]

UNCHECKED = """
import sys
from aent.launch.launcher import launch
from aent.recipe.load import load
sys.exit(launch(load(sys.argv[1], sys.argv[2:])))
"""
DONE = re.compile(r"seconds to (fall asleep|wake up tags \['(?:weights|kv_cache)'\])")
SLEEP, WEIGHTS, CACHE = "fall asleep", "wake up tags ['weights']", "wake up tags ['kv_cache']"


def turns(log: Path) -> list[str]:
    """What the engine says that it did."""
    return DONE.findall(log.read_text())


def test_a_run_and_its_resumption(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    run_dir = tmp_path / "run"
    log = run_dir / "logs" / "engine0.log"
    overrides = [
        f"run_dir={run_dir}",
        f"rollout.engine.start_timeout_s={PATIENCE_S}",
        "rollout.placement=colocated",
        "trainer.pipeline_parallel=1",
        "trainer.optimizer.distributed=true",
        "checkpoint.every=2",
    ]

    def launch(*more: str) -> list[str]:
        argv = [sys.executable, "-c", UNCHECKED, TINY, *overrides, *more]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        before = turns(log) if log.exists() else []
        done = subprocess.run(argv, env=inherited, capture_output=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return turns(log)[len(before) :]

    sync, saved = [WEIGHTS, CACHE], [SLEEP, WEIGHTS, CACHE]
    step = [SLEEP, *sync]
    first = [SLEEP, *sync, *saved, *step, *step, *saved, *step, *saved]  # after 0, 2 and 3 steps
    assert launch("steps=3") == first
    assert launch("steps=4", "resume=required") == [SLEEP, *sync, *step, *saved]
