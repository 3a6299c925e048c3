"""Responses that fork: some are written whole, the others go on from inside one of those.

What they share is in the engine's prefix cache (whole blocks of it) and is not computed again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from aent.inference.completion import Completion, GenerationRequest

ALTERNATIVES = 20  # likeliest tokens by which uncertainty is judged; vLLM's max_logprobs


async def generate_forked(
    generate: Callable[[Sequence[GenerationRequest]], Awaitable[list[Completion]]],
    requests: Sequence[GenerationRequest],
    forks: int,
    branches: int,
) -> list[Completion]:
    """Carry out requests for whole responses as trees of 1 + forks x branches of them each.

    The first request of each such run is a trunk, and is carried out as it is. Of its tokens the
    ``forks`` most uncertain ones (highest ``Completion.entropies``) are sampled ``branches`` times
    anew, with the rest of the response behind them, by the seeds of the requests that follow it.

    Args:
        generate: completions in the order of its requests. requests: whole runs for one prompt.

    Returns:
        Completions of whole responses, in the order of the requests; a branch begins with its
        trunk's tokens, log-probs and versions.
    """
    size = 1 + forks * branches
    trunks = [replace(request, alternatives=ALTERNATIVES) for request in requests[::size]]
    grown = await generate(trunks)
    places = [place for trunk in grown for place in most_uncertain(trunk, forks, branches)]
    others = [request for i, request in enumerate(requests) if i % size]
    owners = [trunk for trunk in grown for _ in range(size - 1)]
    branched = await generate(
        [
            replace(
                request,
                prompt_ids=[*request.prompt_ids, *trunk.token_ids[:place]],
                max_tokens=request.max_tokens - place,
            )
            for request, trunk, place in zip(others, owners, places, strict=True)
        ]
    )
    whole = iter(
        [
            Completion(
                trunk.token_ids[:place] + branch.token_ids,
                trunk.logprobs[:place] + branch.logprobs,
                trunk.versions[:place] + branch.versions,
                branch.finish_reason,
            )
            for trunk, branch, place in zip(owners, branched, places, strict=True)
        ]
    )
    return [next(whole) if i % size else grown[i // size] for i in range(len(requests))]


def most_uncertain(trunk: Completion, forks: int, branches: int) -> list[int]:
    """Where its branches begin: ``branches`` times each of the ``forks`` tokens of the highest
    entropy, earlier ones first among equals. A response of fewer tokens forks there again."""
    assert trunk.entropies is not None, "the request did not ask for alternatives"
    entropies = trunk.entropies
    order = sorted(range(len(entropies)), key=lambda place: -entropies[place])
    return [order[fork % len(order)] for fork in range(forks) for _ in range(branches)]
