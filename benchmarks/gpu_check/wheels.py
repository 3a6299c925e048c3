"""The packages that a bare GPU machine lacks, as wheels to take along.

``python -m gpu_check.wheels`` (``make gpu-check-wheels``), on a machine with a network, downloads
the lock file's versions for Python 3.12 on x86-64 Linux. The GPU machine must have torch, triton
and numpy. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".gpu-check-wheels"
LARGEST = 64 * 2**20  # bytes of all wheels together
# what the trainer imports, tests/trainer's model and formulas included; held to by a run on a
# machine that has torch, triton and numpy alone
PACKAGES = [
    *("megatron-core", "mbridge", "einops", "packaging"),
    *("transformers", "huggingface-hub", "hf-xet", "safetensors", "tokenizers", "regex", "tqdm"),
    *("httpx2", "httpcore2", "anyio", "h11", "idna", "truststore", "click"),  # huggingface-hub's
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("psutil", "pyyaml"),
]
# in no lock file: a yardstick of the kernels
YARDSTICKS = ("liger-kernel==0.8.5",)
PYTHON = "3.12"
# pip requires each tag by its name
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def pinned(lock: str, names: Sequence[str]) -> list[str]:
    """The lines of a lock file for these packages.

    Raises:
        ValueError: if it lacks one.
    """
    lines = dict(re.findall(r"^([\w.-]+)(==\S+)", lock, re.M))
    versions = {re.sub(r"[-_.]+", "-", name).lower(): f"{name}{v}" for name, v in lines.items()}
    missing = [name for name in names if name not in versions]
    if missing:
        raise ValueError(f"not in the lock file: {', '.join(missing)}")
    return [versions[name] for name in names]


def lock_file() -> Path:
    """The lock for the wheels' Python if there is one, else the only lock."""
    locks = ROOT / "containers" / "locks"
    for_python = locks / f"cpu-py{PYTHON.replace('.', '')}.lock.txt"
    return for_python if for_python.exists() else locks / "cpu.lock.txt"


def download(folder: Path) -> int:
    """Fill the folder again; return the bytes of its files.

    Raises:
        ValueError: if the wheels together exceed the limit.
        subprocess.CalledProcessError: if pip did not get one (its own words are on the screen).
    """
    wanted = [*pinned(lock_file().read_text(), PACKAGES), *YARDSTICKS]
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--dest={folder}"]
    command += [f"--python-version={PYTHON}", *(f"--platform={p}" for p in PLATFORMS)]
    subprocess.run([*command, *wanted], check=True)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    if size > LARGEST:
        raise ValueError(f"the wheels are {size / 2**20:.0f} MiB, more than {LARGEST / 2**20:.0f}")
    return size


def unpack(folder: Path, site: Path) -> str:
    """Install the folder's wheels into ``site``, without a network; return why it failed, or ''."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", f"--target={site}"]
    command += sorted(str(wheel) for wheel in folder.glob("*.whl"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "pip took more than 60 s"
    said = done.stderr.strip() or "pip said nothing"
    return said.splitlines()[-1] if done.returncode else ""


if __name__ == "__main__":
    try:
        size = download(FOLDER)
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"gpu-check-wheels: {error}")
    print(f"gpu-check-wheels: {size / 2**20:.1f} MiB in {FOLDER}, from {lock_file().name}")
