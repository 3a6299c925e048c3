import math

import pytest

from aent.data.question import Question
from aent.data.rollout import Verdict
from aent.evaluation.heldout import summarize
from aent.inference.completion import Completion
from aent.tasks.asking import Answer


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
