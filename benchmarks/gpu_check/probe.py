"""Describe this machine as JSON; if it cannot be used, one line on stderr and exit code 1."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version


def facts(rehearse: bool) -> dict[str, str]:
    """Raises RuntimeError if there is no GPU on which torch computes."""
    import torch

    found = {
        "device": f"rehearsal on a CPU ({platform.machine()}): times say nothing",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "date": time.strftime("%Y-%m-%d"),
    }
    if rehearse:
        return found
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees none")
    if int(torch.ones(2, device="cuda").sum()) != 2:
        raise RuntimeError("1 + 1 is not 2 on it")
    about = torch.cuda.get_device_properties(0)
    found["device"] = about.name
    found["memory, GiB"] = f"{about.total_memory / 2**30:.0f}"
    found["multiprocessors"] = str(about.multi_processor_count)
    found["compute capability"] = f"{about.major}.{about.minor}"
    found["driver"] = driver()
    return found


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


if __name__ == "__main__":
    try:
        print(json.dumps(facts("--rehearse" in sys.argv)))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
