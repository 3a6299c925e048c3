"""The time saved by grading each group while others are still being sampled.

    .venv/bin/python benchmarks/streaming.py [--groups 16] [--grader-s 0.2] [--rounds 5]

A stand-in server in a process of its own writes the responses of one step: most take a moment, a
few take long. Two grading processes sleep for each group. "One after the other" has all responses
sampled and then all graded, as before; "streamed" is what a run does. Alternately, in one run; the
shortest of each is compared, because both mostly sleep and a busy machine only adds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from aiohttp import web

from aent.data.question import Question
from aent.data.response import Response
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.models.tokenizer import Tokenizer
from aent.recipe.schema import TaskSection
from aent.tasks.asking import Asked, Asker, SamplingParams
from aent.tasks.judge import JudgePool

SAMPLES = 8  # of a group
WORDS = Tokenizer(
    encode=lambda text: [int(text)],
    decode=lambda ids: " ".join(map(str, ids)),
    stop_ids=(0,),
    template=None,
    bos_ids=(),
)


def seconds_of(seed: int) -> float:
    """How long the response with this seed takes to be written: 4 s at most."""
    return 4.0 * random.Random(seed).random() ** 3


def serve(pipe: Connection) -> None:
    choice = {
        "token_ids": [7],
        "finish_reason": "stop",
        "logprobs": {"content": [{"logprob": -1.0}]},
        "weight_versions": [{"start": 0, "end": 1, "version": "0"}],
    }

    async def generate(request: web.Request) -> web.Response:
        asked = await request.json()
        await asyncio.sleep(seconds_of(asked["sampling_params"]["seed"]))
        return web.json_response({"choices": [choice]})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", generate)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def one_after_the_other(asker: Asker, groups: list[list[Asked]], params: SamplingParams) -> None:
    """Sample everything, then grade everything."""
    wanted = [one for group in groups for one in group]
    completions = asker.fleet.generate_sync(asker._requests(wanted, params))
    texts = [asker.tokenizer.decode(completion.token_ids) for completion in completions]
    asker.judge.judge([one.question for one in wanted], [Response(text) for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--grader-s", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    client = EngineClient(f"http://127.0.0.1:{ours.recv()}")
    with tempfile.TemporaryDirectory() as folder:
        grader = Path(folder) / "slow.py"
        grader.write_text(
            "import time\n\ndef slow(responses, question):\n"
            f"    time.sleep({given.grader_s})\n    return [1.0] * len(responses)\n"
        )
        section = TaskSection.model_validate({
            "graders": [{"kind": "python", "function": f"{grader}:slow", "group": True}],
            "judge_processes": 2,
        })  # fmt: skip
        with JudgePool(section) as judge:
            judge.judge([Question(0, "?", "7")] * 2, [Response("7")] * 2)  # workers are ready
            asker, params = Asker(Fleet([client]), WORDS, judge), SamplingParams(8, 1.0)
            groups = [
                [Asked(Question(g, "?", "7"), [1], SAMPLES * g + i) for i in range(SAMPLES)]
                for g in range(given.groups)
            ]
            ways = {
                "one after the other": one_after_the_other,
                "streamed": lambda *what: asker.ask(*what[1:]),
            }
            took: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(given.rounds):
                for name, way in ways.items():
                    begin = time.perf_counter()
                    way(asker, groups, params)
                    took[name].append(time.perf_counter() - begin)
    server.terminate()
    print(f"{given.groups} groups of {SAMPLES}, {given.grader_s:g} s of grading each")
    for name, seconds in took.items():
        print(f"{name:<20} {min(seconds):.2f} s ({', '.join(f'{s:.2f}' for s in seconds)})")
    ratio = min(took["streamed"]) / min(took["one after the other"])
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
