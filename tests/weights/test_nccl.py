"""Both ends of a transfer need the same NCCL version, including the patch level."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from aent.inference.client import EngineClient
from aent.inference.http import EngineError
from aent.weights import nccl
from aent.weights.weight_transfer import TransferSettings, WeightSender
from wording import assert_names, naming


def test_versions_as_nccl_counts_them() -> None:
    assert nccl.version_of(2803) == (2, 8, 3)
    assert nccl.version_of(21903) == (2, 19, 3)
    assert nccl.version_of(22705) == (2, 27, 5)
    assert nccl.version_of(30001) == (3, 0, 1)


def test_the_version_is_that_of_the_library_that_was_loaded_first(tmp_path: Path) -> None:
    """As torch's own calls go to it: not that of the headers torch was built with, nor of another
    copy that some package has loaded by its path."""
    libraries = []
    for folder, number in (("b", 22907), ("a", 21903)):
        (tmp_path / folder).mkdir()
        source, library = tmp_path / "nccl.c", tmp_path / folder / "libnccl.so.2"
        source.write_text(f"int ncclGetVersion(int *v) {{ *v = {number}; return 0; }}")
        options = ["-x", "c", "-shared", "-Wl,-soname,libnccl.so.2", "-o", library]
        subprocess.run(["g++", *options, source], check=True)
        libraries.append(str(library))
    lines = [
        "import ctypes",
        "from aent.weights import nccl",
        "try:",
        "    print(nccl.loaded_version())",
        "except RuntimeError as error:",
        "    print(error)",
        f"for path in {libraries}:",
        "    ctypes.CDLL(path)",
        "print(nccl.loaded_version())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    before, after = done.stdout.splitlines()
    assert_names(before, "NCCL")
    assert after == "(2, 29, 7)"


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
