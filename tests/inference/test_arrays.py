"""Responses as arrays: packing, unpacking, and the answers of a real engine."""

from __future__ import annotations

import asyncio
import json
import math
import struct

import pytest

from aent.inference.arrays import FORMAT, HEAD, MEDIA_TYPE, Response, Span, pack, unpack
from aent.inference.client import GENERATE, EngineClient
from aent.inference.completion import Completion, GenerationRequest, response_of
from aent.inference.http import Answer, EngineError, RefusedError, ask
from inference.stand_in import standing_in
from plugins.servers import Served
from wording import naming

WHOLE = Response([5, 70_000, 1], [-0.5, -2.25, -0.125], [Span(0, 1, -1), Span(1, 3, 7)], "stop", [])


def test_what_is_packed_is_unpacked() -> None:
    body = pack(WHOLE)
    assert unpack(body) == WHOLE
    assert len(body) == HEAD.size + 3 * 8 + 2 * 12
    # the bytes themselves, so that another version of ours reads them
    assert body[HEAD.size : HEAD.size + 12] == struct.pack("<3i", 5, 70_000, 1)
    assert body[HEAD.size + 12 : HEAD.size + 24] == struct.pack("<3f", -0.5, -2.25, -0.125)
    likely = Response([1, 2], [-1.0, -1.5], [], "length", [[-1.0, -3.0], [-1.5, -2.0]])
    assert unpack(pack(likely)) == likely
    broken = unpack(pack(Response([1], [math.nan], [Span(0, 1, 0)], "stop", [])))
    with pytest.raises(ValueError, match="token 0 is nan"):
        Completion.of(broken)
    with pytest.raises(ValueError, match="between 1 and 2 alternatives"):
        pack(Response([1, 2], [-1.0, -1.0], [], "stop", [[-1.0], [-1.0, -2.0]]))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"{}", ("arrays", "{}")),
        (pack(WHOLE)[:-1], ("bytes",)),
        (pack(WHOLE) + b"\0", ("bytes",)),
        (pack(WHOLE).replace(struct.pack("<I", FORMAT), struct.pack("<I", 99), 1), ("99", FORMAT)),
    ],
)
def test_something_else_is_refused_by_name(body: bytes, names: tuple) -> None:
    with pytest.raises(ValueError, match=naming(*names)):
        unpack(body)


def test_an_engine_of_another_version_is_named() -> None:
    with standing_in(lambda *_: (200, pack(WHOLE)[:-1])) as server:
        server.kinds[GENERATE] = MEDIA_TYPE
        with pytest.raises(EngineError, match=naming(server.url, GENERATE, "bytes")):
            asyncio.run(EngineClient(server.url).complete(GenerationRequest([1], 1)))


async def answered(client: EngineClient, body: dict, accept: str = MEDIA_TYPE) -> Answer:
    headers = {"Authorization": f"Bearer {client.token}", "Accept": accept}
    return await ask("POST", client.url + GENERATE, body=json.dumps(body).encode(), headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize("alternatives", [0, 5])
def test_arrays_say_what_vllms_json_says(served: Served, alternatives: int) -> None:
    client = served.engine.client()
    request = GenerationRequest([3, 1, 4, 1, 5], 40, seed=7, alternatives=alternatives)

    async def scenario() -> None:
        arrays = await answered(client, request.body())
        assert arrays.headers["content-type"] == MEDIA_TYPE
        json_ = await client.ask_to_generate(request.body())
        theirs = Completion.of(response_of(json_["choices"][0]), alternatives > 0)
        ours = Completion.of(unpack(arrays.body), alternatives > 0)
        assert ours == theirs
        assert await client.complete(request) == ours
        assert len(arrays.body) < 8 * 40 * (1 + alternatives) + 100

    asyncio.run(scenario())


@pytest.mark.slow
def test_the_route_asks_for_the_token_and_refuses_what_it_cannot_serve(served: Served) -> None:
    client = served.engine.client()
    good = GenerationRequest([3], 2).body()

    async def scenario() -> None:
        headers = {"Accept": MEDIA_TYPE}
        refused = await ask(
            "POST", client.url + GENERATE, body=json.dumps(good).encode(), headers=headers
        )
        assert refused.status == 401
        sampling = good["sampling_params"]
        for wrong in (
            {"token_ids": [3]},
            good | {"sampling_params": sampling | {"temperature": -1.0}},
            good | {"sampling_params": sampling | {"nonsense": 1}},
            good | {"sampling_params": sampling | {"logprobs": None}},
            good | {"sampling_params": sampling | {"n": 2}},
            good | {"token_ids": list(range(100)) * 100},  # longer than the model reads
        ):
            answer = await answered(client, wrong)
            assert answer.status == 400, (wrong, answer.text)
            assert answer.text
        assert (await answered(client, good | {"model": "another"})).status == 404
        with pytest.raises(RefusedError, match=naming(client.url, GENERATE, 400)):
            await client.complete(GenerationRequest(list(range(100)) * 100, 2))
        assert (await answered(client, good)).status == 200

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_client_that_leaves_ends_its_request(served: Served) -> None:
    client = served.engine.client()

    async def written_after_it_left() -> float:
        long = asyncio.create_task(client.complete(GenerationRequest([3], 400, seed=1)))
        before = await client.tokens_written()
        while await client.tokens_written() == before:
            await asyncio.sleep(0.05)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        while True:  # the test's own time-out is the deadline
            written = await client.tokens_written()
            await asyncio.sleep(0.3)
            if await client.tokens_written() == written:
                return written - before

    # all of them if this process was not run in time to leave
    assert any(asyncio.run(written_after_it_left()) < 400 for _ in range(20))
