"""Graders at an address: a custom service, or a language model as a judge.

They are asynchronous: a grader process has many requests in flight at once. Proxies from the
environment apply as usual (NO_PROXY names the hosts that are reached directly).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from aent.data.question import Question
from aent.data.response import Response
from aent.runtime.environment import data_path

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 10.0  # between attempts, doubled each time
BUSY = 429


@dataclass
class Service:
    """An address, and requests to it that are repeated until they succeed or time is up.

    A broken connection, 429 and 5xx are retried; any other answer than 2xx is an error at once.
    """

    url: str
    token: str | None
    timeout_s: float  # for a request with all its retries
    _client: httpx.AsyncClient | None = field(default=None, repr=False)

    async def post(self, body: dict[str, Any]) -> Any:
        """The answer, parsed as JSON. Raises RuntimeError with the last failure, ValueError if the
        answer is not JSON."""
        if self._client is None:  # created in the event loop that it belongs to
            headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
            self._client = httpx.AsyncClient(timeout=None, headers=headers)
        now = asyncio.get_running_loop().time
        end, pause = now() + self.timeout_s, FIRST_PAUSE_S
        while True:
            try:
                answer = await self._client.post(self.url, json=body)
                if answer.is_success:
                    return answer.json()
                words = f"{answer.status_code} {' '.join(answer.text.split())[:200]}"
                lasting = answer.status_code != BUSY and answer.status_code < 500
            except httpx.TransportError as error:
                words, lasting = f"{type(error).__name__} {error}".strip(), False
            if lasting or now() + pause >= end:
                raise RuntimeError(f"{self.url}: {words}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)


def http_call(spec: Mapping[str, Any]) -> Callable[[Sequence[Response], Question], Any]:
    """The call of an ``http`` grader: the responses to a question are one request,
    ``{prompt, answer, metadata, responses: [{text, tokens, finished}]}``, and the answer is
    ``{rewards: [...]}``, with a number or named parts for each."""
    service = Service(spec["url"], token_of(spec), spec["timeout_s"])

    async def call(responses: Sequence[Response], question: Question) -> Any:
        answer = await service.post(
            {
                "prompt": question.prompt,
                "answer": question.answer,
                "metadata": question.metadata,
                "responses": [asdict(response) for response in responses],
            }
        )
        if not isinstance(answer, dict) or "rewards" not in answer:
            raise ValueError(f"{service.url}: an answer without 'rewards': {str(answer)[:100]}")
        return answer["rewards"]

    return call


def judge_call(spec: Mapping[str, Any]) -> Callable[[Sequence[Response], Question], Any]:
    """The call of a ``judge``: the filled-in rubric is sent to an OpenAI-compatible endpoint. The
    reward is the last match of ``parse`` in the model's answer, divided by ``scale``."""
    rubric = data_path(spec["rubric"])
    if not rubric.is_file():
        raise ValueError(f"there is no file {spec['rubric']} (rubric)")
    try:
        template = rubric.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{spec['rubric']} (rubric) is not UTF-8 (byte {error.start})") from None
    if "{response}" not in template:
        raise ValueError(f"{spec['rubric']} has no place for the {{response}}")
    score = re.compile(spec["parse"])
    url = f"{spec['url'].rstrip('/')}/chat/completions"
    service = Service(url, token_of(spec), spec["timeout_s"])

    async def call(responses: Sequence[Response], question: Question) -> Any:
        values = {"prompt": question.prompt, "answer": question.answer}
        values["response"] = responses[0].text
        # all at once, so that a response that contains {answer} is not changed
        text = re.sub(r"\{(prompt|answer|response)\}", lambda name: values[name[1]], template)
        answer = await service.post(
            {
                "model": spec["model"],
                "messages": [{"role": "user", "content": text}],
                "temperature": 0.0,
                "max_tokens": spec["max_tokens"],
            }
        )
        try:
            said = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{url}: no chat completion: {str(answer)[:100]}") from None
        *_, last = [None, *score.finditer(said)]
        if last is None:
            raise ValueError(f"no score (parse) in the judge's answer: ...{said[-100:]!r}")
        return float(last[1]) / spec["scale"]

    return call


def reward_model_call(
    spec: Mapping[str, Any],
) -> Callable[[Sequence[Response], Question], Any]:
    """The call of a ``reward_model``: vLLM's ``/pooling`` route, which serves every kind of pooling
    model, with question and response as a conversation (the server has the chat template).

    ``use_activation: false`` requests the score itself: by default vLLM applies a sigmoid. A model
    that classifies sequences returns one score. One that scores tokens (Qwen2ForRewardModel)
    returns a row for each, of which the last is the response's score.
    """
    service = Service(f"{spec['url'].rstrip('/')}/pooling", token_of(spec), spec["timeout_s"])

    async def call(responses: Sequence[Response], question: Question) -> Any:
        messages = [{"role": "system", "content": question.system}] if question.system else []
        turns = (*question.earlier, ("user", question.prompt))
        messages += [{"role": role, "content": text} for role, text in turns]
        messages.append({"role": "assistant", "content": responses[0].text})
        body = {"model": spec["model"], "messages": messages, "use_activation": False}
        answer = await service.post(body)
        try:
            scores = answer["data"][0]["data"]
            last = scores[-1] if isinstance(scores[-1], list) else scores
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{service.url}: no pooling: {str(answer)[:100]}") from None
        if len(last) != 1:
            raise ValueError(
                f"{service.url}: got {len(last)} numbers, but a reward model has one: its "
                "config.json needs num_labels 1"
            )
        return last[0]

    return call


def token_of(spec: Mapping[str, Any]) -> str | None:
    """The bearer token of a service. Raises ValueError if the file cannot be read, or if others can
    read it."""
    if spec["token_file"] is None:
        return None
    path = Path(spec["token_file"]).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"token_file: {path} can be read by others: chmod 600")
        return path.read_text().strip()
    except OSError as error:
        raise ValueError(f"token_file: {path}: {error.strerror}") from None
