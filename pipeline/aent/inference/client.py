"""Client of vLLM servers: token ids in; token ids, log-probs and weight versions out.

Generation uses POST /inference/v1/generate, the only route of vLLM 0.32.0 that says which weights
sampled each token; our middleware answers it with arrays (``array_route``). A request is one sample
with its own seed.

The same weights and seed give the same tokens if the same requests share a batch; in another batch
the logits differ in their last bits, so that a token may sometimes differ.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from aent.inference import vllm_metrics
from aent.inference.arrays import MEDIA_TYPE, unpack
from aent.inference.completion import Completion, GenerationRequest, response_of, version_of
from aent.inference.http import (
    Answer,
    EngineError,
    OutOfFilesError,
    RefusedError,
    TransientError,
    ask,
    ask_apart,
    error_of_status,
    out_of_files,
)
from aent.inference.proof import CHALLENGE, PROOF, new_challenge, proves
from aent.runtime.children import tail_of

GENERATE = "/inference/v1/generate"
HEALTH = "/health"
LOG_LINES = 25  # of the server's log, in an error message
READY_POLL_S = 0.2
READY_CALL_S = 5.0  # for one check whether a server is ready yet
HEALTH_S = 30.0  # a server that is busy with hundreds of requests answers late
HEALTH_TRIES = 3  # the connection of a healthy server may break, too
HEALTH_PAUSE_S = 0.5
LOOK_S = 5.0  # for the number of tokens written


@dataclass
class EngineClient:
    """One server. Every method may be called from any event loop."""

    url: str
    model: str | None = None  # the name it is served under; None: any
    token: str | None = field(default=None, repr=False)
    # the server must prove on each new connection that it knows the token, before it gets the
    # token: another server may have the address of a lost engine of this run
    has_to_prove: bool = False
    log_path: Path | None = None  # of a server on this machine, for error messages
    concurrency: int = 256  # requests in flight
    progress_timeout_s: float = 300.0  # longest time without a new token
    call_timeout_s: float = 60.0  # of every call except generation

    async def complete(self, request: GenerationRequest) -> Completion:
        """Get one sample; waits without a deadline of its own.

        Raises EngineError as ``call`` does, and for an answer that was aborted or has no finite
        log-probs or no weight versions.
        """
        headers = {**self._bearer(), "Accept": f"{MEDIA_TYPE}, application/json"}
        body = request.encoded(self.model)
        answer = await self._answer("POST", GENERATE, headers, None, body)
        try:
            # a server without our middleware answers in JSON
            if answer.headers.get("content-type") == MEDIA_TYPE:
                response = unpack(answer.body)
            else:
                response = response_of(self._json(GENERATE, answer)["choices"][0])
            return Completion.of(response, request.alternatives > 0)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self.error(f"{GENERATE}: {error!r}") from None

    async def ask_to_generate(
        self, body: dict[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The answer to one request for generation. Raises EngineError as ``call`` does."""
        answer = await self.call("POST", GENERATE, self._named(body), timeout_s=timeout_s)
        if not isinstance(answer, dict):
            raise self.error(f"{GENERATE}: the answer is no JSON object")
        return answer

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        return body if self.model is None else {**body, "model": self.model}

    async def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        params: dict[str, Any] | None = None,
        timeout_s: float | None = -1.0,
    ) -> Any:
        """The JSON answer of a route (text if it is not JSON, None if it is empty).

        ``timeout_s`` bounds the whole call: None waits for ever, -1 means ``call_timeout_s``.
        Raises EngineError naming URL, status and the answer's first line: TransientError if the
        same call may succeed later, ``http.RefusedError`` if it cannot.
        """
        timeout_s = self.call_timeout_s if timeout_s == -1.0 else timeout_s
        encoded = None if body is None else json.dumps(body).encode()
        answer = await self._answer(method, path, self._bearer(), timeout_s, encoded, params)
        if not answer.headers.get("content-type", "").startswith("application/json"):
            return answer.text or None
        return self._json(path, answer)

    def _json(self, path: str, answer: Answer) -> Any:
        try:
            return json.loads(answer.body)
        except ValueError:
            raise self.error(f"{path}: the answer is no JSON: {answer.text[:100]!r}") from None

    async def _answer(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        timeout_s: float | None,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> Answer:
        """The successful answer of a route. Raises EngineError as ``call`` does."""
        # on a new connection nothing is sent before the server has proved that it is the engine
        prove = partial(self._look, HEALTH_S) if self.has_to_prove and path != HEALTH else None
        try:
            async with asyncio.timeout(timeout_s):
                if self.has_to_prove and path == HEALTH:
                    answer = await ask_apart(method, self.url + path, headers=headers)
                else:
                    answer = await ask(
                        method,
                        self.url + path,
                        body=body,
                        params=params,
                        headers=headers,
                        opened=prove,
                    )
        except TimeoutError:
            words = f"{path}: no answer within {timeout_s:.0f} s"
            raise self.error(words, TransientError) from None
        except (aiohttp.ClientError, OSError) as error:
            if why := out_of_files(error):
                raise self.error(f"{path}: {why}", OutOfFilesError) from error
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            words = f"{path}: {type(cause).__name__} {cause}".rstrip()
            raise self.error(words, TransientError) from error
        if not 200 <= answer.status < 300:
            first = answer.text.strip().partition("\n")[0][:500]
            kind = error_of_status(answer.status)
            raise self.error(f"{path}: status {answer.status}: {first}", kind)
        return answer

    async def _look(self, timeout_s: float) -> None:
        """Raise EngineError unless the server is healthy and is the engine that we expect."""
        if not self.has_to_prove or self.token is None:
            await self._answer("GET", HEALTH, self._bearer(), timeout_s)
            return
        challenge = new_challenge()
        # close: no request with the token may use this connection, whoever answers
        headers = {CHALLENGE: challenge, "Connection": "close"}
        try:
            answer = await self._answer("GET", HEALTH, headers, timeout_s)
            shown = answer.headers.get(PROOF)
        except OutOfFilesError:
            raise
        except RefusedError:  # no engine refuses this: it is lost, and the request not at fault
            shown = None
        if not proves(shown, self.token, self.url, challenge):
            raise self.error(f"{HEALTH}: another server answers there: it has not the run's token")

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def value(self, method: str, path: str, key: str, **options: Any) -> Any:
        """The value of ``key`` in the JSON answer of a route; ``options`` as for ``call``.

        Raises EngineError as ``call`` does, and if the key is missing."""
        answer = await self.call(method, path, **options)
        if not isinstance(answer, dict) or key not in answer:
            raise self.error(f"{path}: the answer has no {key!r}: {str(answer)[:100]}")
        return answer[key]

    async def health(self) -> None:
        """Raise EngineError unless the server is ready and its engine process lives; if it has to
        prove that it knows the token, it has to do so each time.

        It may answer slowly, and a connection may break: it has ``HEALTH_S`` seconds in all.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + HEALTH_S
        for _ in range(HEALTH_TRIES - 1):
            try:
                return await self._look(deadline - now())
            except TransientError:
                if now() + HEALTH_PAUSE_S > deadline:
                    raise
                await asyncio.sleep(HEALTH_PAUSE_S)
        await self._look(deadline - now())

    async def is_healthy(self) -> bool:
        """``health`` as a yes or no. Raises OutOfFilesError if the server could not be asked."""
        try:
            await self.health()
        except OutOfFilesError:
            raise
        except EngineError:
            return False
        return True

    async def wait_ready(
        self, timeout_s: float, on_progress: Callable[[], None] | None = None
    ) -> None:
        """Return when the server is healthy and accepts our token.

        For a server that was not started by this run; its starter notices if it ends. Raises
        EngineError after ``timeout_s`` seconds; RefusedError at once for an answer that will not
        change: something else at this address (404), a token it does not know (401, 403).
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self._answers_us()
            except OutOfFilesError:
                raise
            except RefusedError as error:
                hint = "rollout.urls must name engines, rollout.token_file the token they ask for"
                raise RefusedError(f"{error} ({hint})") from None
            except EngineError as error:
                if asyncio.get_running_loop().time() > deadline:
                    message = f"not ready after {timeout_s:.0f} s ({error})"
                    raise EngineError(message) from None
            if on_progress is not None:
                on_progress()
            await asyncio.sleep(READY_POLL_S)

    async def is_back(self) -> bool:
        """Whether a server that was lost is healthy and accepts our token. It is asked once, as
        ``wait_ready`` does. Raises OutOfFilesError if it could not be asked."""
        try:
            await self._answers_us()
        except OutOfFilesError:
            raise
        except EngineError:
            return False
        return True

    async def _answers_us(self) -> None:
        await self._look(READY_CALL_S)
        await self.call("GET", "/weight_info", timeout_s=READY_CALL_S)

    async def weight_version(self) -> int:
        """The version of the weights it samples from; INITIAL_VERSION before any update."""
        label = await self.value("GET", "/weight_info", "weight_version")
        try:
            return version_of(label)
        except (TypeError, ValueError) as error:
            raise self.error(f"/weight_info: {error!r}") from None

    async def block_size(self) -> int:
        """Tokens per block of its key-value cache (only whole blocks are reused)."""
        metrics = await self.metrics(self.call_timeout_s)
        found = re.search(r'^vllm:cache_config_info\{.*?[{,]block_size="(\d+)"', metrics, re.M)
        if found is None:
            raise self.error("/metrics: vllm:cache_config_info has no block_size")
        return int(found[1])

    async def tokens_written(self) -> float:
        """Number of tokens it has computed, of prompts and responses, since it was started."""
        values = vllm_metrics.read(await self.metrics())
        if "generated" not in values:
            raise self.error("/metrics: no vllm:generation_tokens_total")
        return values["generated"] + values.get("prompts", 0.0)

    async def metrics(self, timeout_s: float = LOOK_S) -> str:
        """vLLM's own metrics, in Prometheus' text format. Raises EngineError as ``call``."""
        return str(await self.call("GET", "/metrics", timeout_s=timeout_s))

    def error(self, what: str, kind: type[EngineError] = EngineError) -> EngineError:
        """An error that names this server and ends with the last lines of its log."""
        message = f"engine {self.url}{what}"
        if self.log_path is not None:
            message += f"\nthe last lines of {self.log_path}:\n" + tail_of(self.log_path, LOG_LINES)
        return kind(message)
