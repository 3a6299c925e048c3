"""Rank 0's way to the engines."""

from __future__ import annotations

from pathlib import Path

from aent.inference import registry
from aent.orchestrator.rank_zero import known_engines
from aent.recipe.schema import Recipe


def test_settings_and_tokens_reach_the_clients(tmp_path: Path) -> None:
    """Somebody else's engines have a token of their own, the run's have the run's."""
    (tmp_path / "run").mkdir()
    token = registry.make_token(tmp_path)
    run_token = registry.make_token(tmp_path / "run")
    registry.publish(tmp_path / "run", 0, "http://b:2", tmp_path / "log")
    recipe = Recipe.model_validate({
        "name": "x",
        "model": {"path": "model"},
        "controller": {"initial": 0.0},
        "rollout": {
            "urls": ["http://a:1/"], "token_file": str(token), "engines": 1,
            "concurrency": 7, "progress_timeout_s": 11.0,
        },
    })  # fmt: skip
    theirs, ours = known_engines(recipe, tmp_path / "run")
    assert (theirs.url, theirs.token) == ("http://a:1", registry.read_token(token))
    assert (ours.url, ours.token) == ("http://b:2", registry.read_token(run_token))
    assert {c.concurrency for c in (theirs, ours)} == {7}
    assert {c.progress_timeout_s for c in (theirs, ours)} == {11.0}
