"""The client's processor time for a request for generation.

    .venv/bin/python benchmarks/request_cost.py [--tokens 256] [REQUESTS ...]

A stand-in server in its own process answers each request after a moment with a response's tokens,
log-probs and weight versions: alternately in arrays, as our engines do, and in JSON, as vLLM's own
route does. One Fleet sends all requests. The client's processor time per request should be the same
for 256 requests and for 8,192.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

from aiohttp import web

from aent.inference.arrays import MEDIA_TYPE, pack
from aent.inference.client import EngineClient
from aent.inference.completion import GenerationRequest, response_of
from aent.inference.fleet import Fleet
from aent.launch.rank import GARBAGE_EVERY

PROMPT = list(range(200))
GROUP = 8  # samples of a prompt
ANSWER_S = 0.5
KINDS = {"application/json": "JSON", MEDIA_TYPE: "arrays"}


def serve(pipe: Connection, tokens: int, kind: str) -> None:
    content: list[dict[str, object]] = [
        {"token": f"token_id:{i}", "logprob": -1.0 - i / 1000, "bytes": None, "top_logprobs": []}
        for i in range(tokens)
    ]
    choice = {
        "index": 0,
        "token_ids": list(range(tokens)),
        "finish_reason": "length",
        "logprobs": {"content": content},
        "weight_versions": [{"start": 0, "end": tokens, "version": "3"}],
    }
    body = {
        "application/json": json.dumps({"request_id": "x", "choices": [choice]}).encode(),
        MEDIA_TYPE: pack(response_of(choice)),
    }

    async def generate(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(ANSWER_S)
        return web.Response(body=body[kind], content_type=kind)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", generate)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", nargs="*", type=int, default=[256, 2048, 8192])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=2048)
    given = parser.parse_args()
    gc.set_threshold(GARBAGE_EVERY)  # as in the process that asks in a run
    servers = {}
    for kind in KINDS:
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, given.tokens, kind), daemon=True
        )
        server.start()
        servers[kind] = (server, f"http://127.0.0.1:{ours.recv()}")
    print(f"{given.tokens} tokens a response, {given.concurrency} requests at once")
    print("requests  answers  wall, s  client's processor time, ms a request")
    for count in given.requests:
        for kind, (_, url) in servers.items():
            measure(url, KINDS[kind], count, given.tokens, given.concurrency)
    for server, _ in servers.values():
        server.terminate()


def measure(url: str, name: str, count: int, tokens: int, concurrency: int) -> None:
    fleet = Fleet([EngineClient(url, concurrency=concurrency)])
    asked = [GenerationRequest([i // GROUP, *PROMPT], tokens, seed=i) for i in range(count)]
    begin, spent = time.perf_counter(), time.process_time()
    done = fleet.generate_sync(asked)
    spent, wall = time.process_time() - spent, time.perf_counter() - begin
    assert len(done) == count
    assert all(len(each.token_ids) == tokens for each in done)
    print(f"{count:<9} {name:<8} {wall:<8.1f} {spent / count * 1e3:.2f}", flush=True)


if __name__ == "__main__":
    main()
