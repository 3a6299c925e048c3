"""Generation over HTTP, with a real server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import torch

from aent.inference import flight
from aent.inference.client import EngineClient
from aent.inference.completion import INITIAL_VERSION, Completion, GenerationRequest, response_of
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from inference import models
from plugins.servers import Served
from processes import free_port
from wording import naming

slow = pytest.mark.slow  # the server's start


@slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_policy(served: Served, temperature: float) -> None:
    # the model's folder asks for top_k 1 and a repetition penalty: were they in force, log-probs
    # would be 0 and samples alike
    prompt = [5, 6, 7, 8]
    requests = [
        GenerationRequest(prompt, 12, temperature=temperature, seed=seed) for seed in range(8)
    ]
    ticks: list[int] = []
    done = Fleet([served.engine.client()]).generate_sync(
        requests, on_progress=lambda: ticks.append(1)
    )
    assert len(ticks) == len(done) == 8
    assert len({tuple(c.token_ids) for c in done}) == 8
    for completion in done:
        assert len(completion.token_ids) == 12
        assert completion.finish_reason == "length"
        expected = models.logprobs(served.model, prompt, completion.token_ids, temperature)
        assert models.gap(completion.logprobs, expected) < 1e-4
        assert len(completion.versions) == 12


@slow
def test_entropies_are_those_of_the_likeliest_tokens(served: Served) -> None:
    prompt = [5, 6, 7]
    request = GenerationRequest(prompt, 6, temperature=0.8, seed=0, alternatives=20)
    plain, done = Fleet([served.engine.client()]).generate_sync(
        [replace(request, alternatives=0), request]
    )
    assert plain.entropies is None
    assert done.token_ids == plain.token_ids
    assert done.entropies is not None
    with torch.no_grad():
        logits = served.model(torch.tensor([[*prompt, *done.token_ids]])).logits[0].double()
    for p, entropy in zip((logits[2:-1] / 0.8).softmax(dim=1), done.entropies, strict=True):
        whole = float(torch.special.entr(p).sum())
        # the sampled token is among the twenty, likely or not
        top = p.sort(descending=True).values[:18]
        least = float(torch.special.entr(torch.cat([top, 1 - top.sum()[None]])).sum())
        assert least - 1e-3 < entropy < whole + 1e-4


@slow
def test_same_seed_same_tokens_in_order_of_requests(served: Served) -> None:
    client = served.engine.client()
    requests = [GenerationRequest([9, i], 6, seed=i) for i in range(12)]
    first = Fleet([client]).generate_sync(requests)
    client.concurrency = 2  # other batches, the same requests
    fleet = Fleet([client, served.engine.client()])
    second = fleet.generate_sync(requests)
    assert [c.token_ids for c in first] == [c.token_ids for c in second]
    for a, b in zip(first, second):
        assert models.gap(a.logprobs, b.logprobs) < 1e-4


@slow
def test_more_prompts_at_once_than_one_pass_of_the_engine_takes(served: Served) -> None:
    # 2048 tokens are one pass: a prompt cut in two by that, with a seed, is fatal to vLLM on a CPU
    requests = [GenerationRequest([i + 1] + [7] * 289, 4, seed=i) for i in range(24)]
    done = Fleet([served.engine.client()]).generate_sync(requests)
    for request, completion in zip(requests, done, strict=True):
        assert completion.finish_reason == "length"
        expected = models.logprobs(served.model, request.prompt_ids, completion.token_ids)
        assert models.gap(completion.logprobs, expected) < 1e-4
    asyncio.run(served.engine.client().health())


@slow
def test_stop_token_ends_a_response_and_stays_in_it(served: Served) -> None:
    client = served.engine.client()
    (free,) = Fleet([client]).generate_sync([GenerationRequest([3, 4], 20, seed=1)])
    stop = free.token_ids[4]
    (stopped,) = Fleet([client]).generate_sync(
        [GenerationRequest([3, 4], 20, seed=1, stop_token_ids=[stop])]
    )
    end = free.token_ids.index(stop) + 1
    assert stopped.token_ids == free.token_ids[:end]
    assert stopped.finish_reason == "stop"


@slow
def test_greedy_takes_the_likeliest_token(served: Served) -> None:
    (done,) = Fleet([served.engine.client()]).generate_sync(
        [GenerationRequest([1, 2], 3, temperature=0.0)]
    )
    for position in range(3):
        prompt = [1, 2, *done.token_ids[:position]]
        best = max(
            range(models.VOCABULARY), key=lambda t: models.logprobs(served.model, prompt, [t])[0]
        )
        assert done.token_ids[position] == best


@slow
def test_an_answer_with_an_error_is_a_failure(served: Served) -> None:
    client = served.engine.client()
    too_long = GenerationRequest([1] * (models.MAX_LENGTH + 1), 4)
    with pytest.raises(EngineError, match=naming("127.0.0.1", "/inference/v1/generate", 400)):
        Fleet([client]).generate_sync([GenerationRequest([1], 4), too_long])
    other = EngineClient(served.engine.url, "another-model", token=client.token)
    with pytest.raises(EngineError, match=naming(404, "another-model")):
        Fleet([other]).generate_sync([GenerationRequest([1], 4)])


@slow
def test_block_size_health_and_tokens_written(served: Served) -> None:
    client = served.engine.client()
    asyncio.run(client.health())
    assert asyncio.run(client.block_size()) == 32
    before = asyncio.run(client.tokens_written())
    Fleet([client]).generate_sync([GenerationRequest([1, 2, 3], 5, seed=0)])
    assert asyncio.run(client.tokens_written()) == before + 8


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "RETRY_DELAYS_S", (0.01, 0.01))
    client = EngineClient(f"http://127.0.0.1:{free_port()}", "tiny")
    with pytest.raises(
        EngineError, match=naming(f"{client.url}/inference/v1/generate", "ConnectionRefusedError")
    ):
        Fleet([client]).generate_sync([GenerationRequest([1], 4)])
    with pytest.raises(EngineError, match=naming(client.url, "0 s")):
        asyncio.run(client.wait_ready(0.3))


def choice(**changes: object) -> dict:
    content = [{"logprob": -1.0}, {"logprob": -2.0}]
    spans = [
        {"version": "default", "start": 0, "end": 1},
        {"version": "3", "start": 1, "end": 2},
    ]
    good = {
        "token_ids": [4, 5],
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "weight_versions": spans,
    }
    return good | changes


@pytest.mark.parametrize(("model", "salt"), [(None, None), ("tiny", "a")])
def test_a_request_is_encoded_as_its_body(model: str | None, salt: str | None) -> None:
    for prompt in ([5, 70_000], [5], (5, 70_000)):
        request = GenerationRequest(prompt, 7, 0.5, seed=3, stop_token_ids=(2,), cache_salt=salt)
        named = {} if model is None else {"model": model}
        assert json.loads(request.encoded(model)) == {**request.body(), **named}
        assert request.body()["token_ids"] == list(prompt)


def test_versions_are_per_token() -> None:
    assert Completion.of(response_of(choice())).versions == [INITIAL_VERSION, 3]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"finish_reason": "abort"}, ("finish_reason", "abort")),
        ({"token_ids": []}, ("0 tokens",)),
        ({"logprobs": {"content": [{"logprob": -1.0}]}}, ("2 tokens", "1 log-probs")),
        ({"logprobs": {"content": [{"logprob": -1.0}, {"logprob": None}]}}, ("token 1", "None")),
        ({"logprobs": {"content": [{"logprob": -9999.0}] * 2}}, ("token 0", -9999.0)),
        ({"weight_versions": None}, ("weight version", 2)),
        ({"weight_versions": [{"version": "1", "start": 1, "end": 2}]}, ("weight version", 2)),
    ],
)
def test_incomplete_answers_are_failures(changes: dict, names: tuple) -> None:
    with pytest.raises(ValueError, match=naming(*names)):
        Completion.of(response_of(choice(**changes)))
