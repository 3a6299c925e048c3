"""Engines found through the run folder, and the token's file."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from aent.inference import registry
from aent.inference.http import EngineError
from aent.runtime import files
from wording import naming


def test_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = registry.make_token(tmp_path)
    token = registry.read_token(path)
    assert len(token) > 30
    assert path.stat().st_mode & 0o777 == 0o600
    assert registry.read_token(registry.make_token(tmp_path)) == token
    path.chmod(0o640)
    with pytest.raises(PermissionError, match=naming(path)):
        registry.read_token(path)


def test_engines_are_waited_for_and_come_in_order(tmp_path: Path) -> None:
    registry.make_token(tmp_path)
    registry.publish(tmp_path, 1, "http://b:2", tmp_path / "b.log")
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 1:
            late = threading.Thread(
                target=registry.publish, args=(tmp_path, 0, "http://a:1", tmp_path / "a.log")
            )
            late.start()

    asyncio.run(registry.wait(tmp_path, 2, 60.0, tick))
    found = registry.published(tmp_path, 2)
    assert [client.url for client in found] == ["http://a:1", "http://b:2"]
    assert ticks
    assert found[0].token == registry.read_token(tmp_path / "token")
    registry.clear(tmp_path)
    with pytest.raises(EngineError, match=naming("engine 0", tmp_path / "engines", "0 s")):
        asyncio.run(registry.wait(tmp_path, 1, 0.1))


def test_an_engine_that_failed_says_so_itself(tmp_path: Path) -> None:
    registry.publish_failure(tmp_path, 0, "no space left on GPU 3")
    with pytest.raises(EngineError, match="no space left on GPU 3"):
        asyncio.run(registry.wait(tmp_path, 1, 60.0))


def test_the_trainer_says_which_address_it_has_lost(tmp_path: Path) -> None:
    registry.make_token(tmp_path)
    for index, url in enumerate(("http://a:1", "http://b:2")):
        registry.publish(tmp_path, index, url, tmp_path / "log")
    registry.give_up(tmp_path, "http://b:2")
    registry.give_up(tmp_path, "http://somebody.else:3")
    assert not registry.is_given_up(tmp_path, 0, "http://a:1")
    assert registry.is_given_up(tmp_path, 1, "http://b:2")
    registry.publish(tmp_path, 1, "http://b:4", tmp_path / "log")  # another one in its place
    assert not registry.is_given_up(tmp_path, 1, "http://b:4")
    registry.publish_failure(tmp_path, 0, "gone")
    assert [client.url for client in registry.published(tmp_path, 2)] == ["http://b:4"]
    registry.clear(tmp_path)
    assert not any((tmp_path / "engines").iterdir())


def test_an_engine_started_again_at_its_old_address_is_not_given_up(tmp_path: Path) -> None:
    registry.publish(tmp_path, 0, "http://a:1", tmp_path / "log")
    registry.give_up(tmp_path, "http://a:1")
    assert registry.is_given_up(tmp_path, 0, "http://a:1")
    registry.publish(tmp_path, 0, "http://a:1", tmp_path / "log")
    assert not registry.is_given_up(tmp_path, 0, "http://a:1")


def test_a_file_system_that_fails_ends_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry.make_token(tmp_path)
    registry.publish(tmp_path, 0, "http://a:1", tmp_path / "log")
    real, failures = Path.read_text, [OSError(errno.ESTALE, "Stale file handle")]

    def read_text(path: Path, *arguments: str) -> str:
        if path.suffix in (".json", ".lost") and failures:
            raise failures.pop()
        return real(path, *arguments)

    def write_text(path: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(files, "PAUSE_S", 0.0)
    assert not registry.is_given_up(tmp_path, 0, "http://a:1")
    failures.append(OSError(errno.EIO, "Input/output error"))
    assert [client.url for client in registry.published(tmp_path, 1)] == ["http://a:1"]
    monkeypatch.setattr(Path, "write_text", write_text)
    registry.give_up(tmp_path, "http://a:1")
    assert "0.lost" in capfd.readouterr().err
