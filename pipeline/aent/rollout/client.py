"""Speaking with vLLM servers: token ids in; token ids, log-probs and weight versions out.

Generation goes through POST /inference/v1/generate, the one route of vLLM 0.32.0 that says which
weights wrote each token. A request is one sample with a seed of its own.

Same weights and seed give the same tokens when a request is computed in the same company; in
another batch the logits differ in their last bits, so a token may differ now and then.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from aent.runtime.children import tail_of

INITIAL_VERSION = -1  # of the weights that a server read from its folder, before any update
VLLM_INITIAL_VERSION = "default"
NOT_A_LOGPROB = -9999.0  # vLLM sends this for NaN, -inf and a missing value
LOG_LINES = 25  # of the server's log, in an error's message
READY_POLL_S = 0.2


class EngineError(RuntimeError):
    """A server failed, vanished, stayed silent, or answered what it must not."""


@dataclass(frozen=True)
class GenerationRequest:
    """One sample to be written, from the whole tempered policy.

    Unless ``top_p`` or ``top_k`` cut it, which training leaves off: log-probs are then those of the
    cut policy. Only ``stop_token_ids`` (kept in the response) and ``max_tokens`` end it: the engine
    knows no end-of-sequence token of its own.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float = 1.0  # 0: greedy, with log-probs at temperature 1
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    cache_salt: str | None = None  # requests share cached prefixes with those of equal salt only
    alternatives: int = 0  # likely tokens beside each one written; for ``Completion.entropies``


@dataclass(frozen=True)
class Completion:
    """What an engine wrote."""

    token_ids: list[int]
    logprobs: list[float]  # of each token, under the tempered policy, nats
    versions: list[int]  # weight version that wrote each token; INITIAL_VERSION before an update
    finish_reason: str  # "stop" or "length"
    # nats, of each token's distribution as far as ``alternatives`` show it: at most its entropy
    entropies: list[float] | None = None


@dataclass
class EngineClient:
    """One server. Every method may be called from any event loop: no connection is kept open."""

    url: str
    model: str | None = None  # the name it is served under; None: whatever it serves
    token: str | None = field(default=None, repr=False)
    log_path: Path | None = None  # of a server on this machine: errors carry its last lines
    concurrency: int = 256  # requests in flight
    progress_timeout_s: float = 300.0  # without one finished response
    call_timeout_s: float = 60.0  # of every call but generation

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """See ``Fleet.generate``."""
        return await Fleet([self]).generate(requests, on_progress)

    def generate_sync(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """``generate`` for callers without an event loop."""
        return asyncio.run(self.generate(requests, on_progress))

    async def complete(self, request: GenerationRequest) -> Completion:
        """Have one sample written; waits without a deadline of its own.

        Raises EngineError as ``call`` does, and for an answer without finite log-probs or weight
        versions, or that was aborted.
        """
        body = {
            "token_ids": list(request.prompt_ids),
            "sampling_params": {
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": request.top_k,
                "seed": request.seed,
                "stop_token_ids": list(request.stop_token_ids),
                "ignore_eos": True,
                "logprobs": request.alternatives,
                "detokenize": False,
            },
        }
        if self.model is not None:
            body["model"] = self.model
        if request.cache_salt is not None:
            body["cache_salt"] = request.cache_salt
        answer = await self.call("POST", "/inference/v1/generate", body, timeout_s=None)
        try:
            return _completion(answer["choices"][0], request.alternatives > 0)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self.error(f"/inference/v1/generate: {error!r}") from None

    async def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        params: dict[str, Any] | None = None,
        timeout_s: float | None = -1.0,
    ) -> Any:
        """The JSON answer of one route (text where it is not JSON, None where it is empty).

        ``timeout_s`` bounds the whole call: None waits for ever, -1 means ``call_timeout_s``.
        Raises EngineError naming URL, status and the answer's first line.
        """
        timeout_s = self.call_timeout_s if timeout_s == -1.0 else timeout_s
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            async with (
                asyncio.timeout(timeout_s),
                # engines are reached directly, never through a proxy of the environment
                httpx.AsyncClient(
                    timeout=None, trust_env=False, verify=self.url.startswith("https")
                ) as http,
            ):
                answer = await http.request(
                    method, self.url + path, json=body, params=params, headers=headers
                )
        except TimeoutError:
            raise self.error(f"{path}: no answer within {timeout_s:.0f} s") from None
        except httpx.HTTPError as error:
            raise self.error(f"{path}: {type(error).__name__} {error}".rstrip()) from error
        if not answer.is_success:
            first = answer.text.strip().partition("\n")[0][:500]
            raise self.error(f"{path}: status {answer.status_code}: {first}")
        if answer.headers.get("content-type", "").startswith("application/json"):
            return answer.json()
        return answer.text or None

    async def health(self) -> None:
        """Raise EngineError unless the server is ready and its engine process lives."""
        await self.call("GET", "/health", timeout_s=5.0)

    async def is_healthy(self) -> bool:
        """``health`` as a question."""
        try:
            await self.health()
        except EngineError:
            return False
        return True

    async def wait_ready(
        self, timeout_s: float, on_progress: Callable[[], None] | None = None
    ) -> None:
        """Return when the server is healthy; EngineError after ``timeout_s`` seconds.

        For a server that somebody else started: whoever started it sees whether it ends first.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self.health()
            except EngineError as error:
                if asyncio.get_running_loop().time() > deadline:
                    message = f"not ready after {timeout_s:.0f} s ({error})"
                    raise EngineError(message) from None
            if on_progress is not None:
                on_progress()
            await asyncio.sleep(READY_POLL_S)

    async def weight_version(self) -> int:
        """The version of the weights it samples from; INITIAL_VERSION before any update."""
        info = await self.call("GET", "/weight_info")
        try:
            return _version(info["weight_version"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.error(f"/weight_info: {error!r}") from None

    async def block_size(self) -> int:
        """Tokens of one block of its key-value cache (only whole blocks are ever reused)."""
        metrics = await self.call("GET", "/metrics")
        found = re.search(r'^vllm:cache_config_info\{.*?[{,]block_size="(\d+)"', metrics, re.M)
        if found is None:
            raise self.error("/metrics: vllm:cache_config_info has no block_size")
        return int(found[1])

    def error(self, what: str) -> EngineError:
        """An EngineError that names this server and ends with the last lines of its log."""
        message = f"engine {self.url}{what}"
        if self.log_path is not None:
            message += f"\nthe last lines of {self.log_path}:\n" + tail_of(self.log_path, LOG_LINES)
        return EngineError(message)


@dataclass
class Fleet:
    """Several servers with the same weights, used as one.

    A server that is lost (it is not healthy after a failed request, or no response of its ends for
    ``progress_timeout_s``) leaves ``clients``, and its requests go to the others.
    """

    clients: list[EngineClient]
    min_engines: int | None = None  # with fewer it fails; None: with any lost
    on_loss: Callable[[EngineClient], None] = lambda client: None
    busy_s: float = 0.0  # in which a server had requests to answer, summed over servers

    def generate_sync(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """``generate`` for callers without an event loop."""
        return asyncio.run(self.generate(requests, on_progress, on_completion))

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[], None] | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Have every sample written, each by the server with the fewest requests in flight.

        Returns completions in the order of the requests; calls ``on_progress``, and
        ``on_completion`` with the request's place, at each that ends.
        Raises EngineError, having cancelled the others: that of a healthy server at once, that of
        a lost one if fewer than ``min_engines`` are left.
        """
        flight = _Flight(self, deque(enumerate(requests)), [_Engine(c) for c in self.clients])
        done: dict[int, Completion] = {}
        try:
            while len(done) < len(requests):
                flight.send()
                for index, completion in await flight.land():
                    done[index] = completion
                    if on_progress is not None:
                        on_progress()
                    if on_completion is not None:
                        on_completion(index, completion)
        finally:
            for engine in flight.engines:
                flight.stop(engine)
            await asyncio.gather(*flight.cancelled, return_exceptions=True)
        return [done[i] for i in range(len(requests))]

    async def drop_lost(self, error: EngineError) -> None:
        """Go on without the servers that are not healthy, after one has failed.

        Raises ``error`` if all are, or if too few are left.
        """
        healthy = await asyncio.gather(*(c.is_healthy() for c in self.clients))
        lost = [c for c, well in zip(self.clients, healthy) if not well]
        if not lost:
            raise error
        for client in lost:
            self.lose(client, error)

    def lose(self, client: EngineClient, error: EngineError) -> None:
        """Go on without this server; raise ``error`` if too few are left."""
        self.clients.remove(client)
        self.on_loss(client)
        least = len(self.clients) + 1 if self.min_engines is None else self.min_engines
        if len(self.clients) < least:
            if self.min_engines is None:
                raise error
            raise EngineError(
                f"{len(self.clients)} engines are left, rollout.min_engines={least}: {error}"
            )
        print(
            f"aent: engine {client.url} is lost, {len(self.clients)} are left, which take its "
            f"requests: {error}",
            file=sys.stderr,
            flush=True,
        )


Item = tuple[int, GenerationRequest]


@dataclass
class _Engine:
    """A server during one ``generate``."""

    client: EngineClient
    in_flight: dict[asyncio.Task[Completion], Item] = field(default_factory=dict)
    progress: float = 0.0  # when a response ended, or when the first request was sent
    busy_since: float = 0.0  # while requests are in flight

    @property
    def deadline(self) -> float:
        return self.progress + self.client.progress_timeout_s


@dataclass
class _Flight:
    """The requests of one ``generate``."""

    fleet: Fleet
    waiting: deque[Item]
    engines: list[_Engine]  # not lost
    cancelled: list[asyncio.Task[Completion]] = field(default_factory=list)

    def send(self) -> None:
        """Hand out what is waiting, as far as the servers' ``concurrency`` goes."""
        now = asyncio.get_running_loop().time()
        while self.waiting:
            free = [e for e in self.engines if len(e.in_flight) < e.client.concurrency]
            if not free:
                return
            engine = min(free, key=lambda e: len(e.in_flight))
            item = self.waiting.popleft()
            if not engine.in_flight:
                engine.progress = engine.busy_since = now
            engine.in_flight[asyncio.create_task(engine.client.complete(item[1]))] = item

    async def land(self) -> list[tuple[int, Completion]]:
        """Wait for some to end: (index, completion) of each. Servers that are lost are dropped."""
        loop = asyncio.get_running_loop()
        tasks = [task for engine in self.engines for task in engine.in_flight]
        first = min(engine.deadline for engine in self.engines if engine.in_flight)
        ended, _ = await asyncio.wait(
            tasks, timeout=max(0.0, first - loop.time()), return_when=asyncio.FIRST_COMPLETED
        )
        landed = []
        for engine in list(self.engines):
            for task in ended & engine.in_flight.keys():
                error = task.exception()
                if error is None:
                    landed.append((engine.in_flight.pop(task)[0], task.result()))
                    engine.progress = loop.time()
                    if not engine.in_flight:
                        self.fleet.busy_s += loop.time() - engine.busy_since
                elif not isinstance(error, EngineError) or await engine.client.is_healthy():
                    raise error
                else:
                    self._lose(engine, error)
                    break
            else:
                if engine.in_flight and engine.deadline <= loop.time():
                    self._lose(engine, self._silence(engine))
        return landed

    def _silence(self, engine: _Engine) -> EngineError:
        return engine.client.error(
            f": no response finished for {engine.client.progress_timeout_s:.0f} s "
            f"({len(engine.in_flight)} in flight)"
        )

    def stop(self, engine: _Engine) -> list[Item]:
        """Have it answer nothing more; return what it was asked."""
        items = list(engine.in_flight.values())
        if items:
            self.fleet.busy_s += asyncio.get_running_loop().time() - engine.busy_since
        for task in engine.in_flight:
            task.cancel()
        self.cancelled += engine.in_flight
        engine.in_flight = {}
        return items

    def _lose(self, engine: _Engine, error: EngineError) -> None:
        self.engines.remove(engine)
        self.waiting.extendleft(self.stop(engine))
        self.fleet.lose(engine.client, error)


def _completion(choice: dict[str, Any], alternatives: bool = False) -> Completion:
    """Check and convert one choice, which has alternatives to each token where some were asked for;
    raises ValueError saying what is wrong with it."""
    tokens = choice["token_ids"]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    reason = choice["finish_reason"]
    if reason not in ("stop", "length") or not tokens:
        raise ValueError(f"{len(tokens)} tokens with finish_reason {reason!r}")
    if len(logprobs) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens but {len(logprobs)} log-probs")
    for position, value in enumerate(logprobs):
        if value is None or not math.isfinite(value) or value <= NOT_A_LOGPROB:
            raise ValueError(
                f"the log-prob of response token {position} is {value}: "
                "the engine's weights or logits are not finite"
            )
    versions: list[int] = []
    for span in choice["weight_versions"] or []:
        if span["start"] != len(versions):
            break
        versions += [_version(span["version"])] * (span["end"] - span["start"])
    if len(versions) != len(tokens):
        raise ValueError(f"no weight version for {len(tokens) - len(versions)} of its tokens")
    entropies = None
    if alternatives:
        shown = (entry["top_logprobs"] for entry in choice["logprobs"]["content"])
        entropies = [entropy_of([each["logprob"] for each in likely]) for likely in shown]
    return Completion(list(tokens), logprobs, versions, reason, entropies)


def entropy_of(logprobs: Sequence[float]) -> float:
    """The entropy, nats, of a distribution of which these log-probs are known, all of its other
    mass taken for one token: at most that of the distribution."""
    probabilities = [math.exp(value) for value in logprobs]
    rest = max(0.0, 1 - sum(probabilities))
    return -sum(p * math.log(p) for p in [*probabilities, rest] if p > 0)


def _version(label: str) -> int:
    return INITIAL_VERSION if label == VLLM_INITIAL_VERSION else int(label)
