"""What an engine is asked to write, and what it wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aent.inference.arrays import Response, Span

INITIAL_VERSION = -1  # of the weights that a server read from its folder, before any update
VLLM_INITIAL_VERSION = "default"
NOT_A_LOGPROB = -9999.0  # vLLM sends this for NaN, -inf and a missing value


@dataclass(frozen=True)
class GenerationRequest:
    """One sample to be written, from the whole tempered policy.

    Unless ``top_p`` or ``top_k`` cut it, which training leaves off: log-probs are then those of the
    cut policy. Only ``stop_token_ids`` (kept in the response) and ``max_tokens`` end it: the engine
    knows no end-of-sequence token of its own.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float = 1.0  # 0: greedy, with log-probs at temperature 1
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    cache_salt: str | None = None  # requests share cached prefixes with those of equal salt only
    alternatives: int = 0  # likely tokens beside each one written; for ``Completion.entropies``

    def body(self) -> dict[str, Any]:
        """Of POST /inference/v1/generate."""
        return {"token_ids": list(self.prompt_ids), **self._settings()}

    def encoded(self, model: str | None) -> bytes:
        """``body`` as JSON, for an engine that serves under this name (None: whatever it serves).
        Samples of one prompt have it encoded once."""
        settings = self._settings() if model is None else {**self._settings(), "model": model}
        prompt = _as_json(tuple(self.prompt_ids))
        return f'{{"token_ids": {prompt}, {json.dumps(settings)[1:]}'.encode()

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "sampling_params": {
                "max_tokens": self.max_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "seed": self.seed,
                "stop_token_ids": list(self.stop_token_ids),
                "ignore_eos": True,
                "logprobs": self.alternatives,
                "detokenize": False,
            },
        }
        if self.cache_salt is not None:
            settings["cache_salt"] = self.cache_salt
        return settings


@lru_cache(maxsize=16)
def _as_json(token_ids: tuple[int, ...]) -> str:
    return json.dumps(token_ids)


@dataclass(frozen=True)
class Completion:
    """What an engine wrote."""

    token_ids: list[int]
    logprobs: list[float]  # of each token, under the tempered policy, nats
    versions: list[int]  # weight version that wrote each token; INITIAL_VERSION before an update
    finish_reason: str  # "stop" or "length"
    # nats, of each token's distribution as far as ``alternatives`` show it: at most its entropy
    entropies: list[float] | None = None

    @staticmethod
    def of(response: Response, alternatives: bool = False) -> Completion:
        """Check a response, which has alternatives to each token where some were asked for. Raises
        ValueError saying what is wrong with it."""
        tokens, logprobs, reason = response.token_ids, response.logprobs, response.finish_reason
        if reason not in ("stop", "length") or not tokens:
            raise ValueError(f"{len(tokens)} tokens with finish_reason {reason!r}")
        if len(logprobs) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens but {len(logprobs)} log-probs")
        if not _are_logprobs(logprobs):
            position = next(i for i, value in enumerate(logprobs) if not is_logprob(value))
            raise ValueError(
                f"the log-prob of response token {position} is {logprobs[position]}: "
                "the engine's weights or logits are not finite"
            )
        versions: list[int] = []
        for span in response.spans:
            if span.start != len(versions):
                break
            versions += [span.version] * (span.end - span.start)
        if len(versions) != len(tokens):
            raise ValueError(f"no weight version for {len(tokens) - len(versions)} of its tokens")
        entropies = None
        if alternatives:
            if len(response.likely) != len(tokens):
                raise ValueError(f"alternatives to {len(response.likely)} of {len(tokens)} tokens")
            entropies = [entropy_of(likely) for likely in response.likely]
        return Completion(tokens, logprobs, versions, reason, entropies)


def response_of(choice: dict[str, Any]) -> Response:
    """One choice of vLLM's JSON. Raises KeyError, TypeError or ValueError where it is none."""
    content = choice["logprobs"]["content"]
    return Response(
        list(choice["token_ids"]),
        [entry["logprob"] for entry in content],
        [
            Span(span["start"], span["end"], version_of(span["version"]))
            for span in choice["weight_versions"] or []
        ],
        choice["finish_reason"],
        [[each["logprob"] for each in entry.get("top_logprobs", ())] for entry in content],
    )


def is_logprob(value: float | None) -> bool:
    """Whether an engine computed this value."""
    return value is not None and math.isfinite(value) and value > NOT_A_LOGPROB


def _are_logprobs(values: Sequence[float]) -> bool:
    """Whether each ``is_logprob``, at a tenth of the time of asking for each."""
    try:
        return math.isfinite(sum(values)) and min(values) > NOT_A_LOGPROB
    except TypeError:  # a null among JSON's numbers
        return False


def entropy_of(logprobs: Sequence[float]) -> float:
    """The entropy, nats, of a distribution of which these log-probs are known, all of its other
    mass taken for one token: at most that of the distribution."""
    probabilities = [math.exp(value) for value in logprobs]
    rest = max(0.0, 1 - sum(probabilities))
    return -sum(p * math.log(p) for p in [*probabilities, rest] if p > 0)


def version_of(label: str) -> int:
    """The weight version that an engine calls ``label``."""
    return INITIAL_VERSION if label == VLLM_INITIAL_VERSION else int(label)
