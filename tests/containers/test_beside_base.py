"""containers/beside_base.sh on stand-ins for the packages of NVIDIA's image, with their names and
kind of versions: what is there stays, the rest is the lock's."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from wording import assert_names

ROOT = Path(__file__).resolve().parents[2]
TORCH = "2.10.0a0+b4e4ee81d3.nv25.12"  # a pre-release, which pip does not take for >=2.6
BASE = {"torch": TORCH, "transformer_engine": "2.10.0+769ed778", "numpy": "1.26.4"}
LOCK = "torch==2.13.0+cpu\nnumpy==2.3.5\neinops==0.8.1\n"


def metadata(name: str, version: str, *needs: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    return "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n"


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    inside = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{inside}/METADATA", metadata(name, version, *needs))
        file.writestr(f"{inside}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{inside}/RECORD", "")


@pytest.fixture
def install(tmp_path: Path):
    """Runs the script for a package that needs these others; wheels of newer ones are at hand."""
    venv.create(tmp_path / "image", with_pip=False)
    (packages,) = (tmp_path / "image").glob("lib/*/site-packages")
    for name, version in BASE.items():
        folder = packages / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(metadata(name, version))
        (folder / "INSTALLER").write_text("pip\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, version in (("torch", "2.13.0"), ("numpy", "2.3.5"), ("einops", "0.8.1")):
        wheel(wheels, name, version)
    wheel(wheels, "einops", "0.9.0")
    (tmp_path / "lock.txt").write_text(LOCK)

    def run(*needs: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
        wheel(wheels, "ours", "1.0", *needs)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        env |= {"PYTHON": sys.executable, "PIP_PYTHON": str(tmp_path / "image/bin/python")}
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
        env |= {"PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
        command = [ROOT / "containers/beside_base.sh", tmp_path / "lock.txt", "ours"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        return done, {p.name.removesuffix(".dist-info") for p in packages.glob("*.dist-info")}

    return run


def test_what_is_there_stays_and_the_rest_is_the_locks(install):
    done, there = install("torch>=2.6", "numpy", "einops")
    assert done.returncode == 0, done.stderr
    base = {f"{name}-{version}" for name, version in BASE.items()}
    assert there == base | {"ours-1.0", "einops-0.8.1"}


def test_what_cannot_be_had_beside_it_fails_the_build(install):
    done, there = install("torch>=2.6", "numpy>=2")
    assert done.returncode != 0
    assert_names(done.stdout + done.stderr, "numpy>=2", "numpy==1.26.4")
    assert there == {f"{name}-{version}" for name, version in BASE.items()}


def test_transformer_engine_has_to_be_one_that_megatron_was_made_for():
    check = runpy.run_path(str(ROOT / "containers/check_trainer.py"))["transformer_engine_fault"]
    wanted = ['transformer-engine[core_cu13,pytorch]<2.12.0,>=2.9.0a0; extra == "dev"', "numpy"]
    assert check("2.10.0+769ed778", wanted) is None
    assert_names(check("2.5.0+f05f12c9", wanted), "2.5.0+f05f12c9", "2.9.0a0", "BASE_IMAGE")
    assert check("2.5.0", ['transformer-engine[core_cu13,pytorch]; extra == "te"']) is None
