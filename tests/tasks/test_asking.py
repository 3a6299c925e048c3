"""Requests sent to the engines, and the responses that return."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from aent.data.question import Question
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.recipe.graders import LastNumber
from aent.recipe.schema import TaskSection
from aent.runtime.worker_thread import WorkerThread
from aent.tasks.asking import Answer, Asked, Asker, SamplingParams
from aent.tasks.judge import JudgePool
from inference.stand_in import COMPLETION, WORDS, standing_in

PARAMS = SamplingParams(max_tokens=5, temperature=0.6, top_p=0.95, top_k=7)


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgePool]:
    with JudgePool(
        TaskSection(graders=(LastNumber(kind="last_number"),), judge_processes=2)
    ) as judge:
        yield judge


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
    answers = [answer for group in asker.ask([WANTED[:2], WANTED[2:]], PARAMS) for answer in group]
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


def test_half_a_character_that_a_tokenizer_decodes_is_replaced(judge: JudgePool) -> None:
    """No file, tracker or grader's connection could have it; a NUL stays."""
    words = replace(WORDS, decode=lambda ids: "\ud800 \0 \ud83d\ude00 10")
    with standing_in(write_the_seed) as server:
        asker = Asker(Fleet([EngineClient(server.url)]), words, judge)
        ((answer,),) = asker.ask([WANTED[:1]], PARAMS)
    assert answer.response == "\ufffd \0 \U0001f600 10"
    assert (answer.verdict.reward, answer.verdict.error) == (1.0, "")


def test_a_group_is_judged_while_others_are_written_and_may_ask_for_more(judge: JudgePool) -> None:
    """The second response is held back until the first one's verdict is there, and one more that
    it has led to has been asked for."""
    judged, more_asked = threading.Event(), threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        seed = body["sampling_params"]["seed"]
        if seed == 12:
            more_asked.set()
        if seed == 11:
            assert judged.wait(60)
            assert more_asked.wait(60)
        return write_the_seed(path, body)

    taken: list[tuple[int, list[float]]] = []

    def take(place: int, answers: list[Answer]) -> list[list[Asked]]:
        assert threading.current_thread() is not threading.main_thread()  # the event loop's thread
        taken.append((place, [answer.verdict.reward for answer in answers]))
        judged.set()
        return [WANTED[2:]] if place == 0 else []

    with standing_in(answer) as server:
        asker = Asker(Fleet([EngineClient(server.url)]), WORDS, judge)
        found = asker.ask([WANTED[:1], WANTED[1:2]], PARAMS, take)
    assert taken[0] == (0, [1.0])
    assert sorted(taken) == [(0, [1.0]), (1, [1.0]), (2, [0.0])]
    assert [[a.question.index for a in group] for group in found] == [[0], [1], [2]]


def test_what_another_thread_asks_is_ended_by_an_interrupt(judge: JudgePool) -> None:
    asked, over = threading.Event(), threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.set()
        over.wait(60)
        return write_the_seed(path, body)

    with standing_in(answer) as server:
        asker = Asker(Fleet([EngineClient(server.url)]), WORDS, judge)
        thread = WorkerThread("asks")
        pending = thread.submit(lambda: asker.ask([WANTED], PARAMS))
        assert asked.wait(60)
        asker.interrupt()
        with pytest.raises(asyncio.CancelledError):
            pending.result(60)
        with pytest.raises(asyncio.CancelledError):
            thread.submit(lambda: asker.ask([WANTED], PARAMS)).result(60)
        over.set()


def test_what_goes_wrong_with_one_group_ends_the_others(judge: JudgePool) -> None:
    over = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body["sampling_params"]["seed"] != 10:
            over.wait(60)
        return write_the_seed(path, body)

    def take(place: int, answers: list[Answer]) -> list[list[Asked]]:
        raise OSError("the disk is full")

    with standing_in(answer) as server:
        asker = Asker(Fleet([EngineClient(server.url)]), WORDS, judge)
        with pytest.raises(OSError, match="the disk is full"):
            asker.ask([[one] for one in WANTED], PARAMS, take)
        over.set()
