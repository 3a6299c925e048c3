"""Engines that one run leaves to the next one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from aent.inference import engine, registry
from aent.inference.keeper import Keeper
from aent.inference.shared import SharedEngines
from aent.models.model_source import resolve
from aent.recipe.load import load
from aent.runtime.environment import data_path
from plugins.servers import READY_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def engine_of(shared: SharedEngines, run_dir: Path, *overrides: str) -> Keeper:
    """The first engine of a run, which may not be ready yet."""
    recipe = load(data_path("recipes/cpu/tiny.yaml"), overrides)
    run_dir.mkdir()
    registry.make_token(run_dir)
    settings = engine.settings_of(recipe, resolve(recipe.model), run_dir, 0, 0)
    return shared.engine(recipe, run_dir, 0, settings)


def published(keeper: Keeper) -> Keeper:
    """The engine, ready."""
    deadline = time.monotonic() + READY_S
    while not keeper.look():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return keeper


def test_an_engine_is_taken_over_by_a_run_that_would_start_the_same(tmp_path: Path) -> None:
    shared = SharedEngines(tmp_path)
    try:
        first = published(engine_of(shared, tmp_path / "a", "seed=1", "name=a"))
        shared.left[0] = first
        assert published(engine_of(shared, tmp_path / "b", "seed=2", "name=b")) is first
        assert shared.left == {}
        entries = [json.loads((tmp_path / r / "engines/0.json").read_text()) for r in "ab"]
        assert entries[0] == entries[1]
        assert entries[0]["log"] == str(tmp_path / "logs" / "engine0.log")
        tokens = {registry.read_token(tmp_path / r / "token") for r in (".", "a", "b")}
        assert len(tokens) == 1

        shared.left[0] = first
        longer = engine_of(shared, tmp_path / "c", "rollout.max_response_tokens=17")
        shared.left[0] = longer
        assert longer is not first
        assert first.engine.child.poll() is not None
    finally:
        shared.stop()
    assert longer.engine.child.poll() is not None
