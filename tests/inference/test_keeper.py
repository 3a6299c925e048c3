"""An engine that cannot be started again. (Real engines: test_fleet, test_shared.)"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from aent.inference import engine, registry
from aent.inference.engine import EngineSettings
from aent.inference.http import EngineError
from aent.inference.keeper import Keeper
from wording import naming


def test_one_that_survives_every_signal_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its GPU is not free: another one could not start there."""
    started: list[EngineSettings] = []

    def stop() -> None:
        raise TimeoutError("vLLM server on port 1 (process 2) survives SIGKILL")

    def start(settings: EngineSettings) -> SimpleNamespace:
        started.append(settings)
        return SimpleNamespace(
            url="http://127.0.0.1:1",
            child=SimpleNamespace(poll=lambda: None),
            is_healthy=lambda: True,
            error=lambda what: EngineError(f"the vLLM server {what}"),
            stop=stop,
        )

    monkeypatch.setattr(engine, "start", start)
    settings = EngineSettings(tmp_path, "tiny", tmp_path / "engine0.log", 64)
    keeper = Keeper(tmp_path, 0, settings, patience_s=60.0, restarts=3)
    assert keeper.look()
    registry.give_up(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(EngineError, match=naming("SIGKILL", "process 2")):
        keeper.look()
    assert len(started) == 1
    assert "survives SIGKILL" in (tmp_path / "engines" / "0.json").read_text()
