"""The environment of a vLLM server: this process's own, without what is meant for others.

Facts about vLLM hold for 0.32.0.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from aent.inference.token_gate import FILE_VARIABLE
from aent.runtime.children import STARTED_BY

SOCKET_PATH = 107  # longest path of a Unix socket, characters (unix(7)) ...
SOCKET_NAME = 48  # ... of which vLLM's name of a socket in its folder needs this many
# variables of the caller's shell that an engine must not get: they would make another server of it,
# or place a process in another job
NOT_INHERITED = (
    "VLLM_API_KEY",
    "VLLM_PORT",
    "VLLM_USE_MODELSCOPE",
    "VLLM_USE_RUST_FRONTEND",  # it has no middleware, and so no token check
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",  # shorter than ``http.KEEPALIVE_S``: connections would break
    "VLLM_DISABLE_PYNCCL",
    "VLLM_CPU_KVCACHE_SPACE",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    STARTED_BY,
)


def environment(
    device: Literal["cpu", "cuda"],
    workers: int,
    gpus: Sequence[int] | None,
    cpu_threads: int | None,
    token_path: Path | None,
) -> dict[str, str]:
    """The environment of a server with so many workers; the rest as in ``EngineSettings``.

    Raises ValueError if there are not that many GPUs.
    """
    env = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    env |= {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for reinforcement learning
        "VLLM_PLUGINS": "none",
        # see inference.server
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn" if device == "cuda" else "fork",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if len(tempfile.gettempdir()) + SOCKET_NAME > SOCKET_PATH:
        env["VLLM_RPC_BASE_PATH"] = "/tmp"  # for vLLM's sockets; TMPDIR by default
    if token_path is not None:
        env[FILE_VARIABLE] = str(token_path)
    if device == "cuda":
        if gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(_visible_gpu, gpus))
        return env
    env["OMP_WAIT_POLICY"] = "PASSIVE"  # trainer ranks share the cores
    # vLLM would compile the line that ranks log-probs, which delays the first samples by seconds
    env["TORCH_COMPILE_DISABLE"] = "1"
    cores = _cores(workers, cpu_threads)
    if workers == 1:
        env["OMP_NUM_THREADS"] = str(len(cores[0]))
    else:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, part)) for part in cores)
    return env


def _visible_gpu(place: int) -> str:
    """The name of one of the GPUs that this process may use.

    Raises ValueError if there are not that many.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return str(place)
    names = visible.split(",")
    if place >= len(names):
        raise ValueError(f"an engine needs GPU {place + 1} of the {len(names)} in {visible}")
    return names[place]


def _cores(workers: int, threads: int | None) -> list[list[int]]:
    """This process's cores, divided among the workers of one server."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // workers)
    parts = [cores[r * share : (r + 1) * share] or cores[-1:] for r in range(workers)]
    return [part[:threads] for part in parts]
