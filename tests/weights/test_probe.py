"""The probe's verdicts on an engine's log-probs."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from aent.inference.client import GENERATE, EngineClient
from aent.weights.probe import SALT, Probe, Seen, ask, text_of
from inference.stand_in import RESET, standing_in
from wording import assert_names

TEXT = list(range(192))


def logprobs(seed: int, spread: float = 1.0) -> Tensor:
    """191 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(len(TEXT) - 1, generator=generator)


def judge(probe: Probe, theirs: Tensor, ours: Tensor, version: int = 1, cached: int = 0) -> str:
    (fault,) = probe.judge([Seen(theirs, version, cached)], ours, 1)
    return fault


def test_text_is_prompts_one_after_the_other() -> None:
    assert text_of(iter([[1, 2, 3], [4]]), 3) == [1, 2, 3]
    assert text_of(iter([[1, 2, 3], [4]]), 10) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("noise", [1e-5, 0.05])  # of float32; of bfloat16
def test_an_engine_with_the_new_weights_is_well(noise: float) -> None:
    probe = Probe(TEXT, 32, tolerance=0.15)
    ours = logprobs(0)
    for step in range(8):
        ours = ours + logprobs(100 + step, 0.2)
        assert judge(probe, ours + logprobs(200 + step, noise), ours) == ""
        assert probe.proven is ours


@pytest.mark.parametrize(
    ("noise", "moved"),
    [(1e-5, 1e-3), (0.05, 0.4), (0.05, 0.01)],  # the last: less in one step than rounding differs
)
def test_an_engine_that_keeps_its_weights_is_named(noise: float, moved: float) -> None:
    """Long before the gap is beyond what rounding may explain."""
    probe = Probe(TEXT, 32, tolerance=10.0)
    ours = logprobs(0)
    stuck = ours + logprobs(1, noise)
    direction = logprobs(2, moved)  # the trainer's next change
    assert judge(probe, stuck, ours) == ""
    faults = [judge(probe, stuck, ours + step * direction) for step in range(1, 40)]
    named = [fault for fault in faults if fault]
    assert len(named) > 20
    assert not any("probe_tolerance" in fault for fault in named)
    assert faults[-1]


def test_steps_too_small_to_tell_are_no_proof_and_no_fault() -> None:
    probe = Probe(TEXT, 32, tolerance=0.15)
    ours = logprobs(0)
    assert judge(probe, ours + logprobs(1, 0.05), ours) == ""
    near = ours + logprobs(2, 0.005)
    assert judge(probe, near + logprobs(3, 0.05), near) == ""
    assert probe.proven is ours  # the next updates will tell


@pytest.mark.parametrize("theirs", [logprobs(0) + 0.02, torch.full((191,), math.nan)])
def test_other_log_probs_are_named(theirs: Tensor) -> None:
    assert "probe_tolerance=0.01" in judge(Probe(TEXT, 32, 0.01), theirs, logprobs(0))


def test_single_tokens_may_differ_by_more_than_the_mean() -> None:
    theirs = logprobs(0)
    theirs[7] += 0.3  # one of a hundred does in bfloat16
    assert judge(Probe(TEXT, 32, 0.01), theirs, logprobs(0)) == ""


def test_a_stale_cache_and_another_version_are_told_apart() -> None:
    probe, ours = Probe(TEXT, 32, 0.01), logprobs(0)
    assert_names(judge(probe, ours, ours, cached=160), "cache", 160)
    assert_names(judge(probe, ours, ours, version=0), "version 0", 1)
    assert probe.proven is None


def test_a_second_attempt_finds_no_entries_of_the_first_beside_other_requests() -> None:
    """As vLLM does it: a cache is not emptied while there are requests, unless they may be computed
    again."""
    cached = threading.Event()
    broken: list[str] = []

    def answer(path: str, asked: dict[str, Any]) -> object:
        if path != GENERATE:
            if asked.get("reset_running_requests") == "true":
                cached.clear()
            return 200, {"success": not cached.is_set()}
        if asked["cache_salt"] != SALT and not broken:
            broken.append("the connection")
            assert cached.wait(60)
            return RESET
        found = 32 if cached.is_set() and asked["cache_salt"] == SALT else 0
        if asked["cache_salt"] == SALT:
            cached.set()
        return 200, {
            "usage": {"prompt_tokens_details": {"cached_tokens": found}},
            "choices": [{"weight_versions": [{"start": 0, "end": 1, "version": "1"}]}],
            "prompt_logprobs": [None, *({str(token): {"logprob": -0.5}} for token in TEXT[1:])],
        }

    with standing_in(answer) as server:
        seen = asyncio.run(ask(EngineClient(server.url), TEXT, 32))
    assert broken
    assert seen.cached == 0
