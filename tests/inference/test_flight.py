"""Requests to healthy engines that fail, are slow or get lost: none ends a run."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from typing import Any

import pytest

from aent.inference import client as client_module
from aent.inference import flight
from aent.inference.client import GENERATE, EngineClient
from aent.inference.clock import Clock
from aent.inference.completion import Completion, GenerationRequest, response_of
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, RefusedError
from aent.runtime.worker_thread import WorkerThread
from inference.stand_in import COMPLETION, RESET, standing_in
from waiting import PATIENCE_S, wait_until
from wording import assert_names, naming

REQUESTS = [GenerationRequest([1, 2, 3], 2, seed=i) for i in range(24)]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "RETRY_DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(client_module, "HEALTH_PAUSE_S", 0.01)


def fleet_of(*urls: str, **settings: Any) -> tuple[Fleet, list[str]]:
    """A fleet of two that may lose one, and the list of those it loses."""
    lost: list[str] = []
    clients = [EngineClient(url, **settings) for url in urls]
    fleet = Fleet(clients, min_engines=1, on_loss=lambda c: lost.append(c.url))
    return fleet, lost


class Ticks(Clock):
    """Goes on by 0.01 s whenever it is looked at, while it runs, so that it does not depend on the
    machine how many looks at an engine a silence lasts."""

    runs = True
    ticks = 0

    def now(self) -> float:
        self.ticks += self.runs
        return self.ticks / 100


SILENCE_S = 0.4  # 40 ticks; an engine is looked at every 10


@pytest.mark.parametrize("fault", [RESET, (503, {}), (429, {}), (500, {})])
def test_a_request_that_fails_once_is_sent_again(fault: object, capfd) -> None:
    numbers = itertools.count()

    def answer(path: str, body: dict[str, Any]) -> object:
        fails = path == GENERATE and next(numbers) == 7
        return fault if fails else (200, COMPLETION)

    with standing_in(answer) as server:
        fleet, lost = fleet_of(server.url, server.url)
        assert len(fleet.generate_sync(REQUESTS)) == len(REQUESTS)
        assert lost == []
        assert server.asked.count(GENERATE) == len(REQUESTS) + 1
        assert "/health" not in server.asked
    assert_names(capfd.readouterr().err, f"engine {server.url}")


def test_one_that_always_fails_on_a_healthy_engine_ends_it() -> None:
    with standing_in(lambda path, _: (503 if path == GENERATE else 200, {})) as server:
        fleet, lost = fleet_of(server.url, server.url)
        with pytest.raises(EngineError, match=r"\b503\b"):
            fleet.generate_sync(REQUESTS[:1])
        assert server.asked.count(GENERATE) == 1 + len(flight.RETRY_DELAYS_S)
        assert lost == []


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_sent_again_and_no_engine_is_lost(status: int) -> None:
    with standing_in(lambda *_: (status, {"error": "why"})) as server:
        fleet, lost = fleet_of(server.url, server.url)
        with pytest.raises(RefusedError, match=naming(status, "why")):
            fleet.generate_sync(REQUESTS[:1])
        assert server.asked == [GENERATE]  # its health was not checked
        assert lost == []


def test_an_engine_that_is_slow_to_say_that_it_is_well_is_asked_again() -> None:
    tries = itertools.count()

    def answer(path: str, body: dict[str, Any]) -> object:
        return RESET if next(tries) == 0 else (200, {})

    with standing_in(answer) as server:
        assert asyncio.run(EngineClient(server.url).is_healthy())
        assert server.asked == ["/health", "/health"]


def metrics(tokens: int) -> tuple[int, bytes]:
    lines = [
        'vllm:prompt_tokens_total{engine="0"} 1.0',
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}.0',
    ]
    return 200, "\n".join(lines).encode()


def test_long_responses_are_waited_for_as_long_as_tokens_are_written() -> None:
    looks = itertools.count()
    long_enough = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> object:
        if path == "/metrics":
            look = next(looks)
            if look > 3 * flight.LOOKS:  # three times as long as a silence may be
                long_enough.set()
            return metrics(look)
        if path == GENERATE:
            assert long_enough.wait(PATIENCE_S)
        return 200, COMPLETION

    ticks: list[int] = []
    with standing_in(answer) as server:
        fleet, lost = fleet_of(server.url, progress_timeout_s=SILENCE_S)
        fleet.clock = Ticks()
        fleet.generate_sync(REQUESTS[:2], on_progress=lambda: ticks.append(1))
        assert lost == []
        assert server.asked.count(GENERATE) == 2
    assert len(ticks) > 2 + flight.LOOKS  # callers that wait for rank 0 see progress


def test_a_pause_for_new_weights_is_no_silence() -> None:
    """Three times as long as one may take; the request sent before it continues after it."""
    asked, goes_on = threading.Event(), threading.Event()

    def answer(path: str, body: dict[str, Any]) -> object:
        if path == "/metrics":
            return metrics(100)
        if path == GENERATE:
            asked.set()
            assert goes_on.wait(PATIENCE_S)
        return 200, COMPLETION

    with standing_in(answer) as server:
        fleet, lost = fleet_of(server.url, progress_timeout_s=0.4)
        with fleet.clock.paused():
            pending = WorkerThread("asks").submit(lambda: fleet.generate_sync(REQUESTS[:1]))
            assert asked.wait(PATIENCE_S)
            time.sleep(3 * 0.4)
            goes_on.set()
            assert len(pending.result(PATIENCE_S)) == 1
    assert lost == []
    assert server.asked.count(GENERATE) == 1


def test_a_request_that_got_lost_is_sent_again_before_its_engine_is_given_up(capfd) -> None:
    over = threading.Event()
    numbers = itertools.count()

    def answer(path: str, body: dict[str, Any]) -> object:
        if path == "/metrics":
            return metrics(100)
        if path == GENERATE and next(numbers) == 0:
            over.wait(PATIENCE_S)
        if path == "/health":  # from here on it has all the time it needs
            clock.runs = False
        return 200, COMPLETION

    def progress() -> None:
        """It is silent once the two others have ended."""
        if next(ended) == 2:
            clock.runs = True

    ended, clock = itertools.count(1), Ticks()
    clock.runs = False
    with standing_in(answer) as server:
        fleet, lost = fleet_of(server.url, progress_timeout_s=SILENCE_S)
        fleet.clock = clock
        assert len(fleet.generate_sync(REQUESTS[:3], progress)) == 3
        over.set()
        assert lost == []
        assert server.asked.count(GENERATE) == 4
    assert_names(capfd.readouterr().err, f"engine {server.url}")


def test_an_engine_that_answers_while_it_is_looked_at_is_not_silent() -> None:
    asked: list[GenerationRequest] = []

    class Client(EngineClient):
        async def complete(self, request: GenerationRequest) -> Completion:
            asked.append(request)
            await looked.wait()
            return Completion.of(response_of(COMPLETION["choices"][0]))

        async def tokens_written(self) -> float:
            looked.set()
            while not all(task.done() for task in engine.in_flight):
                await asyncio.sleep(0)
            raise EngineError("too busy to say")

    async def scenario() -> None:
        landed: list[tuple[int, Completion]] = []
        requests.send()
        while not landed:
            landed += await requests.land()

    looked = asyncio.Event()
    engine = flight.EngineFlight(Client("http://a:1", progress_timeout_s=0.0))
    engine.sent_again = True  # else it would be asked once more
    lost: list[EngineClient] = []
    requests = flight.Flight(
        lambda client, error: lost.append(client),
        deque([(0, REQUESTS[0])]),
        [engine],
        lambda: None,
    )
    asyncio.run(scenario())
    assert lost == []
    assert len(asked) == 1


def test_samples_of_a_prompt_go_to_one_engine_unless_it_is_much_fuller() -> None:
    class Client(EngineClient):
        async def complete(self, request: GenerationRequest) -> Completion:
            return await asyncio.get_running_loop().create_future()

    def sent(groups: list[tuple[int, int]]) -> list[list[int]]:
        """The prompts that each of three engines got."""

        async def scenario() -> list[list[int]]:
            engines = [flight.EngineFlight(Client(f"http://{i}:1")) for i in range(3)]
            prompts = [prompt for prompt, samples in groups for _ in range(samples)]
            items = deque(enumerate(GenerationRequest([prompt, 7], 2) for prompt in prompts))
            requests = flight.Flight(lambda *_: None, items, engines, lambda: None)
            requests.send()
            got = [sorted(r.prompt_ids[0] for _, r in e.in_flight.values()) for e in engines]
            for engine in engines:
                requests.stop(engine)
            await asyncio.gather(*requests.cancelled, return_exceptions=True)
            return got

        return asyncio.run(scenario())

    assert sent([(p, 8) for p in range(6)]) == [[0] * 8 + [3] * 8, [1] * 8 + [4] * 8,
                                                [2] * 8 + [5] * 8]  # fmt: skip
    sizes = [len(each) for each in sent([(0, 90)])]  # one prompt: cached by all of them
    assert sum(sizes) == 90
    assert max(sizes) - min(sizes) <= flight.FULLER + 1


def test_an_engine_that_another_thread_has_lost_gets_no_more_requests() -> None:
    """Started again at its address, it has the weights of its folder until the next update."""

    class Client(EngineClient):
        async def complete(self, request: GenerationRequest) -> Completion:
            return await asyncio.get_running_loop().create_future()

    async def scenario() -> list[list[int]]:
        requests = flight.Flight(lambda *_: None, deque(enumerate(REQUESTS)), [], lambda: None)
        clients = [Client(f"http://{i}:1") for i in range(2)]
        requests.join(clients)
        requests.send()
        assert [len(e.in_flight) > 0 for e in requests.engines] == [True, True]
        requests.join(clients[1:])
        requests.send()
        (left,) = requests.engines
        assert left.client == clients[1]
        numbers = sorted(number for number, _ in left.in_flight.values())
        requests.stop(left)
        await asyncio.gather(*requests.cancelled, return_exceptions=True)
        assert requests.clock.take_busy_s() >= 0
        return numbers

    assert asyncio.run(scenario()) == list(range(len(REQUESTS)))


def test_an_engine_that_stays_silent_is_lost_and_the_other_takes_over() -> None:
    over = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> object:
        if path == "/metrics":
            return metrics(100)
        if path == GENERATE:
            over.wait(PATIENCE_S)
        return 200, {}

    def progress() -> None:
        """Time passes while the silent one alone has requests."""
        clock.runs = len(REQUESTS) - next(ended) <= 2 and not lost

    ended, clock = itertools.count(1), Ticks()
    clock.runs = False
    with standing_in(answer) as silent, standing_in(lambda *_: (200, COMPLETION)) as other:
        settings = {"progress_timeout_s": SILENCE_S, "concurrency": 2}
        fleet, lost = fleet_of(silent.url, other.url, **settings)
        fleet.clock = clock
        assert len(fleet.generate_sync(REQUESTS, progress)) == len(REQUESTS)
        over.set()
        assert lost == [silent.url]


def test_an_answer_that_is_no_json_is_one_sentence() -> None:
    with standing_in(lambda *_: (200, b"")) as server:
        client = EngineClient(server.url)
        with pytest.raises(EngineError, match=naming(f"{server.url}{GENERATE}", "JSON")):
            Fleet([client]).generate_sync(REQUESTS[:1])
        with pytest.raises(EngineError, match=naming("/weight_info", "JSON")):
            asyncio.run(client.weight_version())


def test_an_answer_without_what_was_asked_for_is_one_sentence() -> None:
    with standing_in(lambda *_: (200, {"other": 1})) as server:
        client = EngineClient(server.url)
        with pytest.raises(EngineError, match=naming("/weight_info", "'weight_version'")):
            asyncio.run(client.weight_version())
        with pytest.raises(EngineError, match="generation_tokens_total"):
            asyncio.run(client.tokens_written())


def test_an_engine_that_is_lost_again_in_one_update_comes_back_with_the_next() -> None:
    """It is well whenever it is asked, and breaks whatever it takes part in."""
    with standing_in(lambda *_: (200, {})) as server:
        lost: list[str] = []
        flapping = EngineClient(server.url)
        fleet = Fleet(
            [EngineClient("http://127.0.0.1:9"), flapping],
            min_engines=1,
            on_loss=lambda c: lost.append(c.url),
            known=lambda: [flapping],
        )

        def come_back(version: int) -> bool:
            told: list[str] = []
            wait_until(
                lambda: told.extend(asyncio.run(fleet.readmit(version))) or told, "it is found"
            )
            assert_names(told[0], server.url)
            return flapping in fleet.clients

        def come_back_after_a_loss(version: int) -> bool:
            fleet.lose(flapping, EngineError("the connection broke"))
            return come_back(version)

        assert come_back_after_a_loss(4)
        assert not come_back_after_a_loss(4)
        assert come_back(5)
        assert come_back_after_a_loss(6)
        assert asyncio.run(fleet.readmit(7)) == []  # no engine is missing
    assert lost == [server.url] * 3
