"""containers/beside_base.sh on stand-ins for the packages of NVIDIA's image, with their names and
kind of versions: installed packages stay, all others are the lock's."""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from wording import assert_names

ROOT = Path(__file__).resolve().parents[2]
TORCH = "2.10.0a0+b4e4ee81d3.nv25.12"  # a pre-release, which pip does not take for >=2.6
BASE = {"torch": TORCH, "transformer_engine": "2.10.0+769ed778", "numpy": "1.26.4"}
# further packages of 25.12; all others come from a real resolution with the lock's versions
NGC = BASE | {"apex": "0.1", "flash_attn": "2.7.4.post1+25.12", "torchvision": "0.25.0a0+7a13ad0f"}
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


def make_image(folder: Path, base: dict[str, str]) -> Path:
    """A Python with these packages, which have only metadata; returns its site-packages."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/*/site-packages")
    for name, version in base.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(metadata(name, version))
        (info / "INSTALLER").write_text("pip\n")
    return packages


def beside_base(
    folder: Path, locks: str, *asked: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The script, in the Python ``folder/image`` with the wheels ``folder/wheels`` to take from."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PYTHON": sys.executable, "PIP_PYTHON": str(folder / "image/bin/python")}
    env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    command = [ROOT / "containers/beside_base.sh", locks, *asked]
    return subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=300)


@pytest.fixture
def install(tmp_path: Path):
    """Runs the script for a package that needs these others; wheels of newer ones are available."""
    packages = make_image(tmp_path / "image", BASE)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, version in (("torch", "2.13.0"), ("numpy", "2.3.5"), ("einops", "0.8.1")):
        wheel(wheels, name, version)
    wheel(wheels, "einops", "0.9.0")
    (tmp_path / "lock.txt").write_text(LOCK)

    def run(*needs: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
        wheel(wheels, "ours", "1.0", *needs)
        done = beside_base(tmp_path, str(tmp_path / "lock.txt"), "ours", **variables)
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


def test_the_images_own_constraints_win_over_the_lock(install, tmp_path):
    """NVIDIA's image has a file of them, which pip obeys beside ours."""
    file = tmp_path / "constraint.txt"
    file.write_text("# of the image\nEinops>=0.9  # tested\n")
    done, there = install("torch>=2.6", "einops", PIP_CONSTRAINT=str(file))
    assert done.returncode == 0, done.stderr
    assert {"einops-0.9.0", f"torch-{TORCH}"} <= there


def test_what_the_trainer_needs_can_be_had_beside_nvidias_packages(tmp_path):
    """By the requirements that the lock's own packages have; nothing is installed."""
    make_image(tmp_path / "image", NGC)
    (tmp_path / "wheels").mkdir()
    lock = ROOT / "containers/locks/cpu.lock.txt"
    for found in importlib.metadata.distributions():
        name = found.name.replace("-", "_")
        path = tmp_path / "wheels" / f"{name}-{found.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            info = f"{name}-{found.version}.dist-info"
            file.writestr(f"{info}/METADATA", found.read_text("METADATA") or "")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")
    wheel(tmp_path / "wheels", "pandas", "2.3.3", "numpy>=1.26.0", "python-dateutil>=2.8.2")
    wheel(tmp_path / "wheels", "ml_dtypes", "0.5.4", "numpy>=1.21")
    wheel(tmp_path / "wheels", "setuptools", "80.9.0")
    report = tmp_path / "report.json"
    asked = {"PIP_DRY_RUN": "1", "PIP_REPORT": str(report)}
    locks = f"{ROOT / 'containers/locks/trainer.txt'},{lock}"  # as in trainer.Dockerfile
    done = beside_base(tmp_path, locks, "aent[trainer,tasks]", **asked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    packages = [p["metadata"] for p in json.loads(report.read_text())["install"]]
    chosen = {canonicalize_name(p["name"]): p["version"] for p in packages}
    assert not chosen.keys() & {canonicalize_name(name) for name in NGC}
    assert {"megatron-core", "mbridge", "nemo-toolkit", "mlflow"} <= chosen.keys()
    locked = dict(
        line.strip().split("==") for line in lock.read_text().splitlines() if "==" in line
    )
    others = {name: version for name, version in chosen.items() if locked.get(name) != version}
    assert others.keys() == {"aent", "ml-dtypes", "pandas", "setuptools"}


def test_nccl_has_to_be_the_engines():
    check = runpy.run_path(str(ROOT / "containers/check_trainer.py"))["nccl_fault"]
    assert check((2, 29, 7), "2.29.7") is None
    assert_names(check((2, 28, 9), "2.29.7"), "2.28.9", "2.29.7", "BASE_IMAGE", "NCCL")


def test_transformer_engine_has_to_be_one_that_megatron_was_made_for():
    check = runpy.run_path(str(ROOT / "containers/check_trainer.py"))["transformer_engine_fault"]
    wanted = ['transformer-engine[core_cu13,pytorch]<2.12.0,>=2.9.0a0; extra == "dev"', "numpy"]
    assert check("2.10.0+769ed778", wanted) is None
    assert_names(check("2.5.0+f05f12c9", wanted), "2.5.0+f05f12c9", "2.9.0a0", "BASE_IMAGE")
    assert check("2.5.0", ['transformer-engine[core_cu13,pytorch]; extra == "te"']) is None
