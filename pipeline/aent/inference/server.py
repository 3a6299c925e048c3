"""vLLM's API server (``python -m aent.inference.server``), whose processes all end with its parent.

vLLM 0.32.0 leaves its engine process running if the API server is killed. multiprocessing starts
its processes: on GPUs by spawn, which imports the main module, this one, in each of them; on a CPU
by fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
from typing import Any

from aent.runtime.children import STARTED_BY, die_with_parent

parent = os.environ.get(STARTED_BY)  # missing: the first process, which dies with its launcher
die_with_parent(int(parent) if parent else None)
os.environ[STARTED_BY] = str(os.getpid())
# vLLM imports a million objects that stay: garbage collection would take a sixth of a start
gc.set_threshold(100_000)
# transformers imports scikit-learn for one way of generation, which vLLM does not use
sys.modules["sklearn"] = None  # type: ignore[assignment]
if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":  # a CPU: no other kernels need it
    sys.modules["scipy"] = None  # type: ignore[assignment]  # vLLM imports it for audio


def fork_for_spawn() -> None:
    """Have vLLM fork its processes on a CPU, where it would spawn them: each would import all of
    vLLM again, half of a server's start. At this point it has no other Python thread and has
    computed nothing, so OpenMP, which a fork breaks, has no threads. (On GPUs, vLLM decides.)"""
    contexts = multiprocessing.get_context

    def get_context(method: str | None = None) -> Any:
        return contexts("fork" if method == "spawn" else method)

    def die_with_forker() -> None:
        die_with_parent(int(os.environ[STARTED_BY]))
        os.environ[STARTED_BY] = str(os.getpid())

    multiprocessing.get_context = get_context
    os.register_at_fork(after_in_child=die_with_forker)


if __name__ == "__main__":
    if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
        fork_for_spawn()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
