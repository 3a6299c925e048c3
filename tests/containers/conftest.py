"""An image is built once for all tests of this folder."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import building
from containers.building import BASE, CPU_IMAGE, Built


@pytest.fixture(scope="session")
def built() -> Iterator[Built]:
    """The CPU image, on a Debian made for it."""
    reason = building.why_not()
    if reason:
        pytest.skip(f"no image can be built here: {reason}")
    mark = f"/run/sources-{secrets.token_hex(8)}"
    with (
        tempfile.TemporaryDirectory(prefix="aent-secrets-") as folder,
        building.store(Path(tempfile.mkdtemp(prefix="aent-images-"))) as store,
    ):
        flags = building.package_sources(Path(folder), mark)
        store.make_base(BASE)
        said = store.build("cpu.Dockerfile", CPU_IMAGE, BASE, flags)
        yield Built(store, mark, Path(folder), flags, said)
