"""vLLM's API server (``python -m aent.inference.server``), outliving its parent with no process.

vLLM 0.32.0 leaves its engine process running when the API server is killed. Its processes are
started by multiprocessing: on GPUs by spawn, which imports the main module in each of them: this
one; on a CPU by fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import sys
from typing import Any

from aent.runtime.children import STARTED_BY, die_with_parent

parent = os.environ.get(STARTED_BY)  # not there: this is the first, which dies with its launcher
die_with_parent(int(parent) if parent else None)
os.environ[STARTED_BY] = str(os.getpid())
# vLLM imports a million objects that stay: by default a sixth of a start is looking for garbage
gc.set_threshold(100_000)
# transformers imports scikit-learn for a way to generate, which vLLM does not use
sys.modules["sklearn"] = None  # type: ignore[assignment]
if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":  # a CPU: no kernels of others want it
    sys.modules["scipy"] = None  # type: ignore[assignment]  # vLLM imports it for sounds


def fork_for_spawn() -> None:
    """Have vLLM fork its processes on a CPU, where it wants to spawn them: each would import all of
    vLLM anew, half of a server's start. It has no other thread of Python then, and has computed
    nothing: OpenMP, which a fork breaks, has no threads yet. (Elsewhere vLLM forks by itself.)"""
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
