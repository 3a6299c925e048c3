import math

import pytest

from aent.data.question import Question
from aent.data.rollout import Verdict
from aent.evaluation.heldout import evaluate, summarize
from aent.inference.client import EngineClient
from aent.inference.completion import Completion
from aent.inference.fleet import Fleet
from aent.models.tokenizer import Tokenizer
from aent.recipe.graders import LastNumber
from aent.recipe.operation import EvaluationSection
from aent.recipe.schema import TaskSection
from aent.tasks.asking import Answer, Asker
from aent.tasks.judge import JudgePool
from inference.stand_in import COMPLETION, standing_in
from wording import naming


def answer(reward, length=4, truncated=False, error=""):
    reason = "length" if truncated else "stop"
    done = Completion([1] * length, [0.0] * length, [0] * length, reason)
    return Answer(Question(0, "?", "7"), done, "7", Verdict(reward, error))


def test_means_over_questions():
    result = summarize([answer(1.0), answer(0.0, 8, True), answer(1.0), answer(0.0, error="x")], 1)
    assert result.accuracy == 0.5
    # four values, sample standard deviation sqrt(1/3), over sqrt(4)
    assert result.standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert result.mean_length == 5
    assert result.truncated_share == 0.25
    assert result.judge_errors == 1


def test_error_is_that_of_the_questions_not_of_the_samples():
    result = summarize([answer(r) for r in (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)], 3)
    assert result.accuracy == 0.5
    assert result.standard_error == pytest.approx(math.sqrt(1 / 2) / math.sqrt(2))


def test_pass_at_k_counts_answers_of_reward_1():
    result = summarize([answer(r) for r in (1.0, 0.0, 0.5, 0.9, 0.0, 0.0)], 3)
    assert result.pass_at_k == pytest.approx({1: 1 / 6, 2: 1 / 3, 3: 1 / 2})


def test_one_question_has_no_standard_error():
    assert math.isnan(summarize([answer(1.0)], 1).standard_error)


def test_every_question_is_asked_by_seeds_of_its_own_and_answers_stand_question_by_question():
    asked = []

    def say_the_prompt(path, body):
        asked.append(body["sampling_params"]["seed"])
        choice = COMPLETION["choices"][0] | {
            "token_ids": body["token_ids"],
            "logprobs": {"content": [{"logprob": -1.0}]},
            "weight_versions": [{"start": 0, "end": 1, "version": "3"}],
        }
        return 200, {"choices": [choice]}

    words = Tokenizer(lambda text: [int(text)], lambda ids: str(ids[0]), (99,), None, ())
    questions = [Question(i, str(i), a) for i, a in enumerate(["0", "5", "2"])]
    section = EvaluationSection(samples=2, temperature=1.0)
    with standing_in(say_the_prompt) as server, JudgePool(
        TaskSection(graders=(LastNumber(kind="last_number"),), judge_processes=1)
    ) as judge:  # fmt: skip
        asker = Asker(Fleet([EngineClient(server.url)]), words, judge)
        settings = {"system_prompt": None, "max_response_tokens": 4}
        result = evaluate(asker, questions, section, version=3, **settings)
        with pytest.raises(RuntimeError, match=naming("version 4", "[3]")):
            evaluate(asker, questions, section, version=4, **settings)
    assert [a.question.index for a in result.answers] == [0, 0, 1, 1, 2, 2]
    assert result.accuracy == 2 / 3
    assert len(set(asked)) == 6
