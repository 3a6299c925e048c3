"""Responses that fork: some are sampled whole, others continue from inside one of those.

Their common tokens are in the engine's prefix cache (in whole blocks) and are not computed again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from aent.inference.completion import Completion, GenerationRequest

ALTERNATIVES = 20  # likeliest tokens, from which uncertainty is estimated; vLLM's max_logprobs


async def generate_forked(
    generate: Callable[[Sequence[GenerationRequest]], Awaitable[list[Completion]]],
    requests: Sequence[GenerationRequest],
    forks: int,
    branches: int,
) -> list[Completion]:
    """Carry out requests for whole responses as trees of 1 + forks x branches responses each.

    The first request of each such run is a trunk, carried out as it is. The ``forks`` most
    uncertain of its tokens (highest ``Completion.entropies``) are each sampled ``branches`` times
    again, with the rest of the response after them, using the seeds of the requests that follow.

    Args:
        generate: returns completions in the order of its requests. requests: whole runs, each for
            one prompt.

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
    """Where the trunk's branches begin: ``branches`` times at each of the ``forks`` tokens with the
    highest entropy, the earlier one if equal. A shorter response forks repeatedly at its tokens."""
    assert trunk.entropies is not None, "the request did not ask for alternatives"
    entropies = trunk.entropies
    order = sorted(range(len(entropies)), key=lambda place: -entropies[place])
    return [order[fork % len(order)] for fork in range(forks) for _ in range(branches)]
