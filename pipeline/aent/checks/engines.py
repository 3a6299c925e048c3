"""Checks that a recipe's engines can be started or reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from aent.recipe.redact import redacted
from aent.recipe.schema import Recipe
from aent.runtime.environment import device_kind
from aent.runtime.network import LOOPBACK, port_problem

# options of vLLM's server that the run sets itself (``inference.engine.own_options``), with the
# field that sets each, if there is one
OWN_OPTIONS = {
    "model": "model.path",
    "served-model-name": "name",
    "host": "",
    "port": "rollout.engine.port",
    "tensor-parallel-size": "rollout.engine.tensor_parallel",
    "max-model-len": "rollout.max_prompt_tokens and rollout.max_response_tokens",
    "dtype": "model.dtype",
    "seed": "seed",
    "generation-config": "",
    "logprobs-mode": "",
    "worker-extension-cls": "",
    "weight-transfer-config": "rollout.transfer_backend",
    "uvicorn-log-level": "",
    "skip-tokenizer-init": "",
    "enable-scale-out": "",
    "enable-prompt-tokens-details": "",
    "middleware": "",
    "gpu-memory-utilization": "rollout.engine.gpu_memory_utilization",
    "kv-cache-memory-bytes": "rollout.engine.kv_cache_gib",
    "enable-sleep-mode": "rollout.placement",
}
# options that would open another way in, or move an engine off its GPUs
KEPT_OUT = ("api-key", "config", "uds", "data-parallel-size", "pipeline-parallel-size")
# secrets, which recipe.yaml and MLflow would show; engines download nothing
SECRET = "hf-token"
API_SERVERS = "api-server-count"
# set on CPUs, free on GPUs
ON_CPU = ("enforce-eager", "enable-chunked-prefill", "block-size", "distributed-executor-backend")
# set with rollout.max_staleness, free without: the probe of new weights is to wait for no request
SAMPLING_AHEAD = {"max-num-seqs": "rollout.concurrency", "scheduling-policy": ""}
# vLLM's default of max-num-batched-tokens on smaller GPUs and CPUs; it is at least max-num-seqs
BATCHED_TOKENS = 2048
ALIASES = {"tp": "tensor-parallel-size", "dp": "data-parallel-size", "pp": "pipeline-parallel-size"}
SCALARS = (bool, int, float, str, dict, list)


def faults(recipe: Recipe, machine: bool) -> Iterator[str]:
    """One sentence per fault, each naming its field. ``machine``: see ``checks.recipe.check``."""
    rollout = recipe.rollout
    if bool(rollout.urls) == (rollout.engines > 0):
        given = "both are given" if rollout.urls else "neither is given"
        yield f"either rollout.engines above 0 or rollout.urls (with engines: 0): {given}"
    if rollout.min_engines is not None and rollout.min_engines > rollout.num_engines:
        yield (
            f"rollout.min_engines={rollout.min_engines} is more than the {rollout.num_engines} "
            "engines of rollout.engines and rollout.urls"
        )
    for url in rollout.urls:
        yield from _url(url)
    if len({url.rstrip("/") for url in rollout.urls}) < len(rollout.urls):
        yield "rollout.urls names an engine twice"
    if rollout.engine.port and rollout.engine.port + rollout.engines - 1 > 65535:
        yield (
            f"rollout.engine.port={rollout.engine.port} leaves no ports for "
            f"rollout.engines={rollout.engines}"
        )
    yield from _token_file(recipe, machine)
    for name, value in rollout.engine.options.items():
        yield from _option(name, value, machine, bool(rollout.max_staleness))
    yield from _batched_tokens(recipe)


def taken_ports(recipe: Recipe) -> Iterator[str]:
    """One sentence for each port of ``rollout.engine.port`` that another server on this machine
    uses. Called before a run folder exists, by commands that start the engines here."""
    first = recipe.rollout.engine.port
    last = min(first + recipe.rollout.engines, 65536)
    for port in range(first, last) if first else ():
        if (why := port_problem(LOOPBACK, port)) is not None:
            yield f"rollout.engine.port: port {port} {why}"


def _url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half a bracket, or a port that is not a number
        known = False
    if not known:
        yield f"rollout.urls: {url} is not an http address (http://HOST:PORT)"
    elif "@" in parts.netloc:
        yield (
            f"rollout.urls: {redacted(url)} contains a user or a password, which recipe.yaml and "
            "MLflow would show: use rollout.token_file for secrets"
        )


def _token_file(recipe: Recipe, machine: bool) -> Iterator[str]:
    given = recipe.rollout.token_file
    if given is None:
        return
    where = f"rollout.token_file: {given}"
    if not recipe.rollout.urls:
        yield "rollout.token_file is for engines of rollout.urls, and there are none"
    elif machine:
        try:
            path = Path(given).expanduser()
            token, mode = path.read_text(), path.stat().st_mode
        except OSError as error:
            yield f"{where}: {error.strerror}"
        except ValueError:
            yield f"{where} is not text"
        else:
            if not token.strip():
                yield f"{where} is empty"
            if mode & 0o077:
                yield f"{where} can be read by others: chmod 600"


def _batched_tokens(recipe: Recipe) -> Iterator[str]:
    rollout, needed = recipe.rollout, recipe.rollout.engine_sequences
    options = {_known(name): value for name, value in rollout.engine.options.items()}
    tokens = options.get("max-num-batched-tokens", BATCHED_TOKENS)
    if needed is not None and rollout.engines and isinstance(tokens, int) and tokens < needed:
        yield (
            f"rollout.concurrency={rollout.concurrency} with rollout.max_staleness needs "
            f"rollout.engine.options.max-num-batched-tokens of at least {needed}; without it, "
            f"vLLM may take {BATCHED_TOKENS}"
        )


def _known(name: str) -> str:
    """An option by the name that the tables above have."""
    known = name.strip("-").replace("_", "-").removeprefix("no-").partition(".")[0]
    return ALIASES.get(known, known)


def _option(name: str, value: object, machine: bool, ahead: bool) -> Iterator[str]:
    where, known = f"rollout.engine.options.{name}", _known(name)
    if known in OWN_OPTIONS:
        field = OWN_OPTIONS[known]
        yield f"{where} is set by the run itself" + (f": give {field}" if field else "")
    elif ahead and known in SAMPLING_AHEAD:
        field = SAMPLING_AHEAD[known]
        yield f"{where} is set by the run itself with rollout.max_staleness" + (
            f": give {field}" if field else ""
        )
    elif known in KEPT_OUT:
        yield f"{where} would change what the run sets for its engines itself"
    elif known == API_SERVERS:
        yield f"{where}: an engine has one API server; rollout.engines starts more engines"
    elif known == SECRET:
        yield f"{where} is a secret, which recipe.yaml and MLflow would show"
    elif known in ON_CPU and machine and device_kind() == "cpu":
        yield f"{where} is set by the run itself on a CPU"
    elif name.startswith("-") or not name.strip():
        yield f"{where}: give the option's name without dashes before it"
    elif not isinstance(value, SCALARS):
        yield f"{where} has no value"
