"""Both ends of a transfer have the same NCCL, to the patch."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from aent.inference.client import EngineClient
from aent.inference.http import EngineError
from aent.weights import nccl
from aent.weights.weight_transfer import TransferSettings, WeightSender
from wording import naming


def test_versions_as_nccl_counts_them() -> None:
    assert nccl.version_of(2803) == (2, 8, 3)
    assert nccl.version_of(21903) == (2, 19, 3)
    assert nccl.version_of(22705) == (2, 27, 5)
    assert nccl.version_of(30001) == (3, 0, 1)


def test_the_version_is_that_of_the_library_that_is_loaded(tmp_path: Path) -> None:
    """Not that of the headers torch was built with."""
    (tmp_path / "nccl.c").write_text("int ncclGetVersion(int *v) { *v = 22907; return 0; }")
    library = tmp_path / "libnccl.so.2"
    subprocess.run(["g++", "-x", "c", "-shared", "-o", library, tmp_path / "nccl.c"], check=True)
    ours = f"{library}\n/usr/lib/libnot-nccl.so.2\n"
    maps = tmp_path / "maps"
    maps.write_text("".join(f"7f00-7f01 r-xp 00000000 08:01 99 {line}\n" for line in ours.split()))
    before, nccl.MAPS = nccl.MAPS, maps
    try:
        assert nccl.loaded_version() == (2, 29, 7)
        maps.write_text("7f00-7f01 rw-p 00000000 00:00 0\n")
        with pytest.raises(RuntimeError, match="NCCL"):
            nccl.loaded_version()
    finally:
        nccl.MAPS = before


class Versioned(EngineClient):
    """Says which NCCL its workers have, where no GPU is to load one for."""

    async def call(self, method: str, path: str, *arguments: object, **options: object) -> dict:
        assert path == "/collective_rpc"
        return {"results": [[2, 27, 5], [2, 27, 5] if self.url == "http://a" else [2, 27, 3]]}


def test_an_engine_whose_nccl_differs_in_the_patch_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nccl, "loaded_version", lambda: (2, 27, 5))
    settings = TransferSettings(backend="nccl")
    asyncio.run(WeightSender([Versioned("http://a")], settings).check_nccl())
    both = WeightSender([Versioned("http://a"), Versioned("http://b")], settings)
    with pytest.raises(EngineError, match=naming("http://b", "worker 1", "2.27.3", "2.27.5")):
        asyncio.run(both.check_nccl())
