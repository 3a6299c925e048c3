"""vLLM's API server (``python -m aent.inference.server``), outliving its parent with no process.

vLLM 0.32.0 leaves its engine process running when the API server is killed. It starts its processes
by multiprocessing's spawn, which imports the main module in each of them: this one.
"""

from __future__ import annotations

import gc
import os
import runpy

from aent.runtime.children import STARTED_BY, die_with_parent

parent = os.environ.get(STARTED_BY)  # not there: this is the first, which dies with its launcher
die_with_parent(int(parent) if parent else None)
os.environ[STARTED_BY] = str(os.getpid())
# vLLM imports a million objects that stay: by default a sixth of a start is looking for garbage
gc.set_threshold(100_000)

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
