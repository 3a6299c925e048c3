"""A vLLM server with the tiny recipe's model, for several runs: each sends it its first weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aent.inference import engine
from aent.models.model_source import resolve
from aent.recipe.load import load
from e2e.jobs import PATIENCE_S, TINY


@contextmanager
def tiny_engine(folder: Path) -> Iterator[str]:
    """Start the server, give its address, stop it."""
    recipe = load(TINY)
    settings = engine.EngineSettings(
        model_path=resolve(recipe.model),
        served_name="tiny",
        log_path=folder / "engine.log",
        max_model_len=recipe.rollout.max_prompt_tokens + recipe.rollout.max_response_tokens,
        kv_cache_gib=recipe.rollout.engine.kv_cache_gib,
    )
    started = engine.start(settings)
    try:
        started.wait_ready(PATIENCE_S)
        yield started.url
    finally:
        started.stop()
