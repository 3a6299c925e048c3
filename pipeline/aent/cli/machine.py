"""What this machine has: processor, GPUs, memory, disk, compiler, libraries."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from aent.runtime import environment

GIB = 2**30
VLLM_CPU_LIBRARY = "libnuma.so.1"  # vLLM's CPU kernels are linked with it


def machine_rows() -> list[tuple[str, str]]:
    """(name, value) lines about the machine."""
    memory = environment.available_memory_bytes() / GIB
    return [
        ("processor", processor()),
        ("GPUs", driver_gpus()),
        ("memory", f"{memory:.1f} GiB available"),
        ("disk", f"{shutil.disk_usage('.').free / GIB:.1f} GiB free in {Path.cwd()}"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("C++ compiler", compiler()),
    ]


def processor() -> str:
    """Describe the processor and the vector extensions that matter here."""
    cores = f"{environment.usable_cores()} usable cores"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()}, {cores}, vector extensions not known"
    fields = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    flags = fields.get("flags", "").split()
    known = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 BF16": "avx512_bf16", "AMX": "amx_tile"}
    vectors = ", ".join(name if flag in flags else f"no {name}" for name, flag in known.items())
    return f"{fields.get('model name', platform.machine())}, {cores}, {vectors}"


def driver_gpus() -> str:
    """Describe the GPUs that NVIDIA's driver lists."""
    if not shutil.which("nvidia-smi"):
        return "none: no NVIDIA driver (there is no nvidia-smi)"
    query = "--query-gpu=name,memory.total,driver_version"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: nvidia-smi failed ({error})"
    if answer.returncode:
        return f"not known: nvidia-smi says {' '.join((answer.stdout + answer.stderr).split())}"
    gpus = [line.rpartition(", ") for line in answer.stdout.splitlines()]
    return "; ".join(f"{gpu}, driver {driver}" for gpu, _, driver in gpus) or "none"


def compiler() -> str:
    """Describe the C++ compiler that torch.compile calls, or say what is missing."""
    problem = compiler_problem()
    if problem:
        return problem
    answer = subprocess.run(["g++", "--version"], capture_output=True, text=True, timeout=20)
    return (answer.stdout.splitlines() or ["g++ of unknown version"])[0]


def compiler_problem() -> str:
    """Say what torch.compile lacks to build kernels for the CPU; empty if it lacks nothing."""
    if shutil.which("g++") is None:
        return "there is no C++ compiler (g++)"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if headers.exists() else f"Python's C headers are missing ({headers})"


def library_problem() -> str:
    """Say which library vLLM's CPU kernels lack; empty if none. Without it, vLLM only imports with
    a warning, and no engine starts."""
    try:
        ctypes.CDLL(VLLM_CPU_LIBRARY)
    except OSError as error:
        return f"{error} (Debian's libnuma1)"
    return ""
