"""A vLLM server as a child process: its command line, its start, its readiness, its end.

Everything goes over HTTP (``inference.client``). Nothing here imports vLLM, so a launcher does not
need it. Facts about vLLM hold for 0.32.0.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from aent.inference.client import EngineClient
from aent.inference.environment import environment
from aent.inference.http import EngineError
from aent.inference.proof import CHALLENGE, PROOF, new_challenge, proves
from aent.inference.registry import read_token
from aent.inference.token_gate import TokenGate
from aent.recipe.schema import Recipe
from aent.runtime.children import Child
from aent.runtime.environment import device_kind
from aent.runtime.log import begin_section
from aent.runtime.network import held_port, port_problem

READY_POLL_S = 0.2
STOP_GRACE_S = 3.0
LOG_LINES = 25  # of a dead server, in the error's message
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
ARRAY_ROUTE = "aent.inference.array_route.ArrayRoute"
WORKER_EXTENSION = "aent.weights.worker_extension.WorkerExtension"


@dataclass(frozen=True)
class EngineSettings:
    """Settings of one server."""

    model_path: Path  # a Hugging Face folder; its tokenizer is not read (token ids in and out)
    served_name: str
    log_path: Path
    max_model_len: int  # prompt and response together, tokens
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    tensor_parallel: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0  # of requests without their own seed
    device: Literal["cpu", "cuda"] = "cpu"
    kv_cache_gib: float = 1.0  # on a CPU
    cpu_threads: int | None = None  # of each worker, on a CPU; None: its share of the cores
    gpu_memory_utilization: float = 0.85  # on GPUs
    gpus: tuple[int, ...] | None = None  # places among those the parent sees; None: all of them
    colocated: bool = False  # its GPUs are the trainer's too: it sleeps meanwhile
    token_path: Path | None = None  # file of the token that requests must bear; None: no token
    # computes so many requests at once, and the probe's before others; None: vLLM's choice
    sequences: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # further ones of vLLM's server


def settings_of(
    recipe: Recipe, model_path: Path, run_dir: Path, index: int, first_gpu: int
) -> EngineSettings:
    """Settings of the recipe's engine number ``index``, on the GPUs from ``first_gpu`` on.

    The run's token (``registry.make_token``) must be there when it starts.
    """
    engine, rollout = recipe.rollout.engine, recipe.rollout
    return EngineSettings(
        model_path=model_path,
        served_name=recipe.name,
        log_path=run_dir / "logs" / f"engine{index}.log",
        max_model_len=rollout.max_prompt_tokens + rollout.max_response_tokens,
        port=engine.port + index if engine.port else 0,
        tensor_parallel=engine.tensor_parallel,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        device=device_kind(),
        kv_cache_gib=engine.kv_cache_gib,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        gpus=tuple(range(first_gpu, first_gpu + engine.tensor_parallel)),
        colocated=rollout.colocated,
        token_path=run_dir / "token",
        sequences=rollout.engine_sequences,
        options=engine.options,
    )


def command(settings: EngineSettings) -> tuple[list[str], dict[str, str]]:
    """Return (argv, environment) of the server."""
    options = {**settings.options, **own_options(settings)}
    argv = [sys.executable, "-m", "aent.inference.server"]
    for name, value in options.items():
        argv += [flag(name, each) for each in (value if isinstance(value, tuple) else (value,))]
    s = settings
    return argv, environment(s.device, s.tensor_parallel, s.gpus, s.cpu_threads, s.token_path)


def flag(name: str, value: object) -> str:
    """An option of vLLM's server, as on the command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, dict | list):
        return f"--{name}={json.dumps(value)}"
    return f"--{name}={value}"


def own_options(settings: EngineSettings) -> dict[str, object]:
    """The options that a run gives its engines, by name; tuples are given several times. Recipes
    may not set them (``checks.recipe``)."""
    s = settings
    # NCCL would refuse two processes of one group on one GPU
    backend = "aent_gloo" if s.device == "cpu" or s.colocated else "aent_nccl"
    options: dict[str, object] = {
        "model": s.model_path,
        "served-model-name": s.served_name,
        "host": s.host,
        "port": s.port,
        "tensor-parallel-size": s.tensor_parallel,
        "max-model-len": s.max_model_len,
        "dtype": s.dtype,
        "seed": s.seed,
        # sampling settings in the model's folder (top_k, penalties) would silently bias the policy
        "generation-config": "vllm",
        # of the policy that is sampled from: tempered
        "logprobs-mode": "processed_logprobs",
        "worker-extension-cls": WORKER_EXTENSION,
        "weight-transfer-config": {"backend": backend},
        "uvicorn-log-level": "warning",
        "skip-tokenizer-init": True,
        "enable-scale-out": True,  # /inference/v1/generate
        "enable-prompt-tokens-details": True,  # how much came from the cache: the probe asks
    }
    options["middleware"] = (ARRAY_ROUTE,)
    if s.token_path is not None:  # a request meets the last middleware first
        options["middleware"] = (ARRAY_ROUTE, f"{TokenGate.__module__}.{TokenGate.__name__}")
    if s.sequences is not None:
        options["max-num-seqs"] = s.sequences
        # the probe of new weights is not behind requests that wait for room in the cache
        options["scheduling-policy"] = "priority"
    if s.device == "cuda":
        options["gpu-memory-utilization"] = s.gpu_memory_utilization
        return options | ({"enable-sleep-mode": True} if s.colocated else {})
    options |= {
        "enforce-eager": True,
        # a prompt cut in two (as soon as a step's prompts are more than 2048 tokens) is fatal on a
        # CPU: vLLM resets the generator of a request with a seed, which a CPU's does not allow
        "enable-chunked-prefill": False,
        # whole blocks are what samples of one prompt share: 128, the default, is longer than many
        "block-size": 32,
        "kv-cache-memory-bytes": int(s.kv_cache_gib * 2**30),
    }
    if s.tensor_parallel == 1:
        # vLLM's default is a worker process; its engine process waits for the worker in a busy
        # loop, which takes a third of the machine's time on two cores
        options["distributed-executor-backend"] = IN_PROCESS
    return options


@dataclass
class Engine:
    """A started server."""

    settings: EngineSettings
    child: Child
    url: str
    port: socket.socket | None = None  # holds its port, if any free one

    def wait_ready(self, timeout_s: float) -> None:
        """Return when the server answers /health.

        Raises EngineError, with the last lines of its log, if it ends or is not ready within
        ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_healthy():
            if self.child.poll() is not None:
                raise self.error(self.child.describe_exit())
            if time.monotonic() > deadline:
                raise self.error(f"is not ready after {timeout_s:.0f} s")
            time.sleep(READY_POLL_S)

    def client(self, progress_timeout_s: float = 300.0) -> EngineClient:
        """A client whose errors carry the last lines of this server's log."""
        return EngineClient(
            self.url,
            self.settings.served_name,
            token=read_token(self.settings.token_path) if self.settings.token_path else None,
            has_to_prove=self.settings.token_path is not None,
            log_path=self.settings.log_path,
            progress_timeout_s=progress_timeout_s,
        )

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the server and every process it started; return when they are gone."""
        self.child.stop(grace_s)
        if self.port is not None:
            self.port.close()

    def is_healthy(self) -> bool:
        """Whether the server is ready and its engine process lives. One with a token must prove
        that it knows it: another server at its address may answer too."""
        challenge = new_challenge()
        try:  # verify: reading certificates, for a URL without any, takes as long as the rest
            answer = httpx.get(
                f"{self.url}/health",
                headers={CHALLENGE: challenge},
                timeout=5.0,
                trust_env=False,
                verify=False,
            )
        except httpx.HTTPError:
            return False
        if self.settings.token_path is None:
            return answer.is_success
        token = read_token(self.settings.token_path)
        return answer.is_success and proves(answer.headers.get(PROOF), token, self.url, challenge)

    def error(self, what: str) -> EngineError:
        """An EngineError that says what the server did and ends with the last lines of its log."""
        return EngineError(
            f"the vLLM server {self.url} {what}; the last lines of {self.child.log_path}:\n"
            + self.child.tail(LOG_LINES)
        )


def start(settings: EngineSettings) -> Engine:
    """Start a server; return at once (see ``Engine.wait_ready``).

    Raises EngineError where its port is taken.
    """
    port = None
    if settings.port == 0:
        port = held_port(settings.host)
        settings = replace(settings, port=port.getsockname()[1])
    elif (why := port_problem(settings.host, settings.port)) is not None:
        raise EngineError(f"rollout.engine.port: port {settings.port} {why}")
    argv, env = command(settings)
    begin_section(settings.log_path, f"vLLM server on port {settings.port}")
    child = Child.start(
        f"vLLM server on port {settings.port}", argv, env=env, log_path=settings.log_path
    )
    return Engine(settings, child, f"http://{settings.host}:{settings.port}", port)
