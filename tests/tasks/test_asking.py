"""What reaches the engines of what is asked, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aent.data.question import Question
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.models.tokenizer import Tokenizer
from aent.recipe.graders import LastNumber
from aent.recipe.schema import TaskSection
from aent.tasks.asking import Asked, Asker, SamplingParams
from aent.tasks.judge import JudgePool
from inference.stand_in import COMPLETION, standing_in

PARAMS = SamplingParams(max_tokens=5, temperature=0.6, top_p=0.95, top_k=7)


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgePool]:
    with JudgePool(
        TaskSection(graders=(LastNumber(kind="last_number"),), judge_processes=2)
    ) as judge:
        yield judge


# token 10 reads "10"
WORDS = Tokenizer(
    encode=lambda text: [int(text)],
    decode=lambda ids: " ".join(map(str, ids)),
    stop_ids=(99,),
    template=None,
    bos_ids=(),
)


def write_the_seed(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    seed = body["sampling_params"]["seed"]
    ids = [99, seed]
    choice = COMPLETION["choices"][0] | {
        "token_ids": ids,
        "logprobs": {"content": [{"logprob": -1.0}] * len(ids)},
        "weight_versions": [{"start": 0, "end": len(ids), "version": "3"}],
        "finish_reason": "length" if seed == 12 else "stop",
    }
    bodies.append(body)
    return 200, {"choices": [choice]}


bodies: list[dict[str, Any]] = []


@pytest.fixture
def asker(judge: JudgePool) -> Iterator[Asker]:
    bodies.clear()
    with standing_in(write_the_seed) as server:
        yield Asker(Fleet([EngineClient(server.url)]), WORDS, judge)


# the first two are right
WANTED = [Asked(Question(i, f"{i}?", a), [5, i], s) for i, (a, s) in enumerate(
    [("10", 10), ("11", 11), ("7", 12)]
)]  # fmt: skip


def test_answers_stand_in_the_order_of_what_was_asked(asker: Asker) -> None:
    answers = asker.ask(WANTED, PARAMS)
    assert [a.question for a in answers] == [one.question for one in WANTED]
    assert [a.response for a in answers] == ["99 10", "99 11", "99 12"]
    assert [a.verdict.reward for a in answers] == [1.0, 1.0, 0.0]
    assert [a.truncated for a in answers] == [False, False, True]
    assert [a.tokens for a in answers] == [2, 2, 2]
    sent = {body["sampling_params"]["seed"]: body for body in bodies}
    assert [sent[one.seed]["token_ids"] for one in WANTED] == [one.prompt_ids for one in WANTED]
    for name in ("max_tokens", "temperature", "top_p", "top_k"):
        assert {b["sampling_params"][name] for b in bodies} == {getattr(PARAMS, name)}
    for body in bodies:
        assert body["sampling_params"]["stop_token_ids"] == list(WORDS.stop_ids)


def test_answers_bit_by_bit_are_the_same_ones(asker: Asker) -> None:
    parts: list[list[tuple[int, Any]]] = []
    asker.ask_bit_by_bit(WANTED, PARAMS, parts.append)
    assert [len(part) for part in parts] == [2, 1]  # two judges
    found = dict(pair for part in parts for pair in part)
    assert [found[i] for i in range(3)] == asker.ask(WANTED, PARAMS)
