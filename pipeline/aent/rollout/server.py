"""vLLM's API server (``python -m aent.rollout.server``), outliving its parent with no process.

vLLM 0.32.0 leaves its engine process running when the API server is killed. It starts its processes
by multiprocessing's spawn, which imports the main module in each of them: this one.
"""

from __future__ import annotations

import runpy

from aent.runtime.children import die_with_parent

die_with_parent()

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
