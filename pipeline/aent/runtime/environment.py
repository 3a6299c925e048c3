"""The device, implementations and shipped files that this machine and installation offer.

The trainer decides with these functions and ``aent doctor`` reports with them, so the report is the
decision. torch is imported only on first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import psutil

from aent.runtime.log import log

SMI_S = 20.0  # nvidia-smi may take
Implementation = Literal["transformer_engine", "apex", "torch"]
Attention = Literal["transformer_engine", "sdpa", "flex"]


def data_path(relative: str) -> Path:
    """Find a path such as ``recipes/cpu/tiny.yaml``: here, or among the files that aent ships.

    A path that exists (relative to the working directory, or absolute) is returned unchanged. Else
    it is looked up in the ``recipes/`` and ``slurm/`` that aent ships, in a checkout and in an
    installed wheel alike. A path that is in neither is returned unchanged, so that the caller's own
    error names it.
    """
    path = Path(relative).expanduser()
    shipped = Path(__file__).resolve().parents[1] / "_data" / path
    return shipped.resolve() if shipped.exists() and not path.exists() else path


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; imports nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_kind() -> Literal["cuda", "cpu"]:
    """Return the kind of device the trainer computes on here."""
    if not torch_is_for_gpus():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_is_for_gpus() -> bool:
    """Whether the installed torch was built with CUDA or ROCm, read from one of its files, which
    saves a launcher the second of an import."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return bool(build["cuda"] or build["hip"])


def gpu_memory_bytes(used: int) -> int | None:
    """Memory of the smallest of the ``used`` largest GPUs here, by nvidia-smi; None if torch
    computes on a CPU, or, with a warning, if nvidia-smi does not report it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or shutil.which("nvidia-smi") is None or not torch_is_for_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S, check=True)
        sizes = sorted(map(int, answer.stdout.splitlines()), reverse=True)
        return min(sizes[:used]) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning(f"aent: the size of the GPUs' memory is not checked: {error}")
        return None


def why_not(implementation: Implementation) -> str:
    """Return why an implementation cannot be used here, as a clause; empty if it can."""
    if implementation == "transformer_engine":
        problem = _transformer_engine_problem()
    elif implementation == "apex":
        problem = _apex_problem()
    else:
        return ""
    if not problem and device_kind() != "cuda":
        return f"{implementation} runs only on GPUs and torch sees none"
    return problem


def _transformer_engine_problem() -> str:
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed"
    try:
        importlib.import_module("transformer_engine.pytorch.optimizers")
    except (ImportError, OSError, RuntimeError) as error:  # it was built for another torch or CUDA
        return f"Transformer Engine is installed but does not import ({error})"
    return ""


def _apex_problem() -> str:
    # apex is not imported for this: an unrelated package of that name would run its own code
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "NVIDIA apex is not installed"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers" / "fused_adam.py").exists() for folder in folders):
        version = installed_version("apex") or "of unknown version"
        return (
            f"the installed package apex {version} is an unrelated package of that name from PyPI, "
            "not NVIDIA apex"
        )
    if importlib.util.find_spec("amp_C") is None:
        return "NVIDIA apex is installed without its CUDA extensions (amp_C is missing)"
    return ""


def optimizer_implementation(
    requested: Literal["auto", "transformer_engine", "apex", "torch"],
) -> Implementation:
    """Return whose Adam the trainer uses.

    ``auto`` takes the first usable one of Transformer Engine, NVIDIA apex, torch. Raises
    RuntimeError with the reason if a named one cannot be used here.
    """
    if requested != "auto":
        problem = why_not(requested)
        if problem:
            raise RuntimeError(f"trainer.optimizer.implementation is {requested}, but {problem}")
        return requested
    candidates: tuple[Implementation, ...] = ("transformer_engine", "apex", "torch")
    return next(candidate for candidate in candidates if not why_not(candidate))


def attention_implementation(
    requested: Literal["auto", "transformer_engine", "sdpa", "flex"] = "auto",
    *,
    suits: bool = True,
) -> Attention:
    """Return whose layers and attention compute a model here.

    transformer_engine: its layers. sdpa, flex: Megatron's local layers, with torch's
    ``scaled_dot_product_attention`` or ``flex_attention``. ``auto`` becomes transformer_engine if
    it can be used and ``suits`` the recipe, else sdpa. Any other name is returned as it is, even if
    it is not installed here.
    """
    if requested != "auto":
        return requested
    return "transformer_engine" if suits and not why_not("transformer_engine") else "sdpa"


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0))


def available_memory_bytes() -> int:
    """Return the available host memory: the machine's, or the container's if that is less."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max": the container has no limit
        return available
    return max(0, min(available, limit - used))
