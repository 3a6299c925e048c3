"""Real vLLM servers with a tiny model: one for most tests, the others for those that kill them.

A plugin, as the tests of several folders share the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

    from aent.inference import engine

SEQUENCES = 26  # that a server computes at once; others wait
READY_S = 900.0  # a loaded machine; ten seconds on an idle one


@dataclass
class Served:
    """A server, and the model that its folder holds."""

    engine: engine.Engine
    folder: Path
    model: Qwen2ForCausalLM


@contextmanager
def serving(folder: Path, tied: bool = False) -> Iterator[Served]:
    import torch

    from aent.inference import engine, registry
    from inference import models

    torch.set_num_threads(1)  # the server shares the cores
    model = models.make(seed=0, tied=tied)
    models.save(model, folder / "model")
    if tied:
        models.store_head(folder / "model")
    settings = engine.EngineSettings(
        model_path=folder / "model",
        served_name="tiny",
        log_path=folder / "engine.log",
        max_model_len=models.MAX_LENGTH,
        kv_cache_gib=0.05,
        cpu_threads=1,
        token_path=registry.make_token(folder),
        sequences=SEQUENCES,
    )
    started = engine.start(settings)
    try:
        started.wait_ready(READY_S)
        yield Served(started, settings.model_path, model)
    finally:
        family = psutil.Process(started.child.process.pid)
        started.stop()
        assert not family.is_running() or family.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server that no test may leave broken."""
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def served_tied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model has tied embeddings, and a head in its file all the same (as public ones
    do); the last test of its module may kill it."""
    with serving(tmp_path_factory.mktemp("tied"), tied=True) as server:
        yield server
