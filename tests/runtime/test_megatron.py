"""The installed Megatron, and the checkpoints that it can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from aent.runtime import megatron
from wording import assert_names


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(megatron, "installed_version", lambda _: version)


def test_the_installed_one_is_one_of_the_two() -> None:
    assert megatron.fault() is None
    assert megatron.series() in megatron.SERIES
    assert (
        "class ModelParallelConfig" in megatron.source("core/model_parallel_config.py").read_text()
    )
    with pytest.raises(FileNotFoundError, match=r"megatron-core.*core/nothing.py"):
        megatron.source("core/nothing.py")


@pytest.mark.parametrize("version", ["0.15.3", "0.17.0rc1", "0.20.0", "1.16.0"])
def test_another_one_is_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    assert_names(megatron.fault(), f"megatron-core {version}", "0.16", "0.19")


def test_none_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)  # an engine's image
    assert megatron.fault() is None


@pytest.mark.parametrize(
    ("version", "files", "readable"),
    [
        ("0.16.1", ["metadata.json", "common.pt"], True),
        ("0.16.1", ["metadata.json"], False),
        ("0.19.2", ["metadata.json", "common.pt"], True),
        ("0.19.2", ["metadata.json"], True),
    ],
)
def test_the_older_one_does_not_read_what_the_newer_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, files: list[str], readable: bool
) -> None:
    installed(monkeypatch, version)
    for name in files:
        (tmp_path / name).touch()
    fault = megatron.reading_fault(tmp_path)
    assert (fault is None) == readable
    if fault is not None:
        assert_names(fault, tmp_path, "0.16", "0.19")
