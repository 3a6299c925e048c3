"""Where responses fork, and the tokens of their branches."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence

import httpx
import pytest

from aent.inference.completion import Completion, GenerationRequest, entropy_of
from aent.inference.fleet import Fleet
from aent.inference.forks import ALTERNATIVES, generate_forked, most_uncertain
from aent.inference.registry import read_token
from inference import models
from plugins.servers import Served

ENTROPIES = [0.1, 2.0, 0.3, 2.0, 1.0]


def trunk(length: int) -> Completion:
    return Completion(
        [100 + i for i in range(length)], [-0.5] * length, [3] * length, "stop", ENTROPIES[:length]
    )


@pytest.mark.parametrize(
    ("length", "forks", "branches", "places"),
    [(5, 2, 2, [1, 1, 3, 3]), (5, 3, 1, [1, 3, 4]), (2, 3, 1, [1, 0, 1]), (1, 2, 1, [0, 0])],
)
def test_branches_begin_at_the_most_uncertain_tokens(length, forks, branches, places):
    assert most_uncertain(trunk(length), forks, branches) == places


def test_branches_go_on_from_their_trunk_by_seeds_of_their_own():
    asked: list[GenerationRequest] = []

    async def generate(requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Whole responses have five tokens; a branch continues with two tokens of its seed."""
        asked.extend(requests)
        return [
            trunk(5)
            if request.alternatives
            else Completion([request.seed] * 2, [-0.25] * 2, [3] * 2, "length")
            for request in requests
        ]

    requests = [GenerationRequest([1, 2], 9, seed=seed) for seed in range(10)]
    done = asyncio.run(generate_forked(generate, requests, forks=2, branches=2))
    assert [r.seed for r in asked] == [0, 5, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [r.alternatives for r in asked] == [ALTERNATIVES] * 2 + [0] * 8
    assert [len(r.prompt_ids) + r.max_tokens for r in asked] == [11] * 10
    assert asked[2].prompt_ids == [1, 2, 100]
    assert asked[4].prompt_ids == [1, 2, 100, 101, 102]
    assert done[0] == done[5] == trunk(5)
    assert done[8] == Completion([100, 101, 102, 8, 8], [-0.5] * 3 + [-0.25] * 2, [3] * 5, "length")
    assert [len(c.token_ids) for c in done] == [5, 3, 3, 5, 5] * 2


def test_entropy_of_what_is_known_is_a_lower_bound():
    p = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    logs = [math.log(x) for x in p]
    whole = -sum(x * math.log(x) for x in p)
    assert entropy_of(logs) == pytest.approx(whole)
    assert entropy_of(logs[:4]) == pytest.approx(whole)  # the rest is one token
    assert 0 < entropy_of(logs[:2]) < whole
    assert entropy_of([0.0]) == 0
    assert entropy_of([0.0, -9999.0]) == 0


@pytest.mark.slow  # the server's start
def test_a_real_engine_has_what_a_branch_shares_in_its_cache(served: Served) -> None:
    """Whole blocks of it; and log-probs are the policy's, before and behind the fork."""
    client = served.engine.client()
    prompt = [5 + i % 200 for i in range(70)]
    requests = [GenerationRequest(prompt, 100, seed=seed) for seed in range(6)]
    before = cached_tokens(served)
    done = asyncio.run(generate_forked(Fleet([client]).generate, requests, forks=1, branches=5))
    found = cached_tokens(served) - before
    (place,) = most_uncertain(done[0], 1, 1)
    assert len({tuple(c.token_ids) for c in done}) == 6
    assert all(c.token_ids[:place] == done[0].token_ids[:place] for c in done)
    assert found >= 5 * ((70 + place - 1) // 32 * 32)
    for completion in done[::5]:
        expected = models.logprobs(served.model, prompt, completion.token_ids)
        assert models.gap(completion.logprobs, expected) < 1e-4


def cached_tokens(served: Served) -> float:
    """Tokens of prompts that the engine has found in its prefix cache so far."""
    token = read_token(served.engine.settings.token_path)
    answer = httpx.get(
        f"{served.engine.url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=300
    )
    (hits,) = re.findall(r"^vllm:prefix_cache_hits_total{.*} (.*)$", answer.text, re.MULTILINE)
    return float(hits)
