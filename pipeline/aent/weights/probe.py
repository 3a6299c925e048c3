"""The probe: an engine's log-probs of a given text, compared with the trainer's.

After every update, each engine and the trainer compute the log-probs of one text. This shows three
faults that no check of the transfer can see:

- an engine that kept keys and values of old weights: it says that it took tokens of the text from
  its cache, which the update should have emptied;
- an engine that computes with the weights of an earlier update (a packed copy that was not
  renewed): its log-probs are nearer to the trainer's earlier ones than to the present ones;
- an engine that computes with something else: its log-probs are far from the trainer's.

The text consists of the run's own prompts. Its tokens are given (nothing is sampled, so both sides
use the same tokens) and many: rounding changes single tokens much, but the mean over two hundred
little (docs/engines.md has measurements in bfloat16).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aent.inference.client import GENERATE, EngineClient
from aent.inference.completion import GenerationRequest, is_logprob, version_of
from aent.inference.http import RefusedError, TransientError

TOKENS = 192  # of the text, where the engines have room for so many
SALT = "aent-probe"  # its blocks in the cache are of no use to other requests, and theirs not to it
BEYOND = 8  # tokens behind a block, so that it is whole
FIRST = -1  # priority; other requests have 0, and lower ones are computed first
FAR = 2.0  # times as near to one set of weights as to another: it speaks of that one


@dataclass(frozen=True)
class Seen:
    """An engine's answer for the text."""

    logprobs: Tensor  # [tokens - 1] fp32: of each token after the first; NaN: not finite
    version: int  # of the weights
    cached: int  # tokens whose keys and values came from its cache


def text_of(prompts: Iterable[Sequence[int]], length: int) -> list[int]:
    """Token ids of prompts, joined until there are ``length`` tokens; repeated if they are too
    few."""
    return list(itertools.islice(itertools.chain.from_iterable(itertools.cycle(prompts)), length))


def length_of(block: int, room: int) -> int:
    """Number of tokens of the text: more than a block of the engine's cache, since only whole
    blocks are reused; at most ``room``, including the token that is generated after them."""
    return min(max(TOKENS, block + BEYOND), room - 1)


async def ask(client: EngineClient, text: Sequence[int], block: int) -> Seen:
    """Get the engine's log-probs of a text, at temperature 1, and how many of its first ``block``
    tokens were in the engine's cache.

    Ask once after each update: a second request would find the text in the cache. Raises
    EngineError as ``EngineClient.call`` does.
    """
    try:
        return await _ask(client, text, block)
    except TransientError:
        # the first attempt may have left entries in the cache, but of the present weights; beside
        # other requests vLLM only empties it if it may compute them again
        await client.call("POST", "/reset_prefix_cache", params={"reset_running_requests": True})
        return await _ask(client, text, block)


async def _ask(client: EngineClient, text: Sequence[int], block: int) -> Seen:
    # two requests, computed together: for log-probs of a prompt vLLM does not use its cache; if it
    # were made to, it would return no log-probs of the cached tokens
    start, whole = (
        GenerationRequest(part, 1, temperature=0.0, seed=0, cache_salt=salt).body()
        for part, salt in ((text[: block + BEYOND], SALT), (text, f"{SALT}-text"))
    )
    for body in (start, whole):
        body["priority"] = FIRST  # an engine that schedules first come first served ignores it
    whole["sampling_params"]["prompt_logprobs"] = 0
    cached, seen = await asyncio.gather(
        *(
            client.ask_to_generate(body, timeout_s=client.progress_timeout_s)
            for body in (start, whole)
        )
    )
    try:
        details = cached["usage"]["prompt_tokens_details"]
        if details is None:
            raise client.error(
                " does not say what it takes from its cache: start it with "
                "--enable-prompt-tokens-details",
                RefusedError,
            )
        version = version_of(seen["choices"][0]["weight_versions"][0]["version"])
        places = seen["prompt_logprobs"]
        if len(places) != len(text):
            raise ValueError(f"{len(places)} log-probs of {len(text)} tokens")
        given = [place[str(token)]["logprob"] for place, token in zip(places[1:], text[1:])]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise client.error(f"{GENERATE}: {error!r}") from None
    logprobs = [value if is_logprob(value) else math.nan for value in given]
    return Seen(torch.tensor(logprobs), version, details.get("cached_tokens") or 0)


@dataclass
class Probe:
    """The text of a run, and the last known state of the trainer's weights."""

    text: list[int]
    block: int  # tokens of a block of the engines' cache
    tolerance: float  # of the mean |difference|, nats
    # the trainer's log-probs with the last version that every engine was proven to have
    proven: Tensor | None = field(default=None, repr=False)
    gap: float = math.nan  # mean |engine - trainer| of the last update, nats; the largest of all

    def judge(self, seen: Sequence[Seen], ours: Tensor, version: int) -> list[str]:
        """What is wrong with each engine; empty if nothing is.

        Args:
            ours: [tokens - 1] fp32, the trainer's log-probs of the text, at temperature 1.
        """
        faults = [self._fault(one, ours, version) for one in seen]
        self.gap = max(_gap(one.logprobs, ours) for one in seen)
        if not any(faults) and all(self._is_proven(one, ours) for one in seen):
            self.proven = ours
        return faults

    def _fault(self, seen: Seen, ours: Tensor, version: int) -> str:
        if seen.version != version:
            return f"computed the probe with weight version {seen.version}, not {version}"
        if seen.cached:
            return (
                f"has a stale prefix cache: it took {seen.cached} tokens of the probe from it, "
                "which the update has emptied"
            )
        gap = _gap(seen.logprobs, ours)
        if self.proven is not None and gap > FAR * (before := _gap(seen.logprobs, self.proven)):
            return (
                f"computes with older weights than {version}: its log-probs of the probe differ "
                f"from the trainer's by {gap:.4g} (mean), from its earlier ones by {before:.4g}"
            )
        if not gap <= self.tolerance:  # NaN too
            return (
                f"computes with other weights than the trainer: log-probs of the probe differ by "
                f"{gap:.4g} (mean), more than rollout.probe_tolerance={self.tolerance:g} "
                "(its prefix cache is not the cause)"
            )
        return ""

    def _is_proven(self, seen: Seen, ours: Tensor) -> bool:
        """Whether the engine has these weights and not earlier ones: true for the first update
        (nothing else is known), for later ones if they are far enough from the last proven ones.

        If they are too near, the next updates decide: they are compared with the last proven ones.
        """
        if self.proven is None:
            return True
        return FAR * _gap(seen.logprobs, ours) < _gap(seen.logprobs, self.proven)


def _gap(theirs: Tensor, ours: Tensor) -> float:
    """The mean absolute difference, nats."""
    return float((theirs - ours).abs().mean())
