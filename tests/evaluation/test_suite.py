import json
import math

import pytest

from aent.data.question import Question
from aent.evaluation import suite, suites
from aent.evaluation.answers import Answers, Row
from wording import naming

SUITE = suites.find("amc", ["samples=4"])
QUESTIONS = [Question(i, f"{i}?", str(i)) for i in range(3)]


def row(question, sample, reward=1.0, error="", truncated=False):
    return Row(question, sample, "7", "7", reward, error, 10, truncated)


def test_summary_counts_and_averages(tmp_path):
    answers = Answers.open(tmp_path, {})
    correct = {0: 0, 1: 1, 2: 4}  # of 4 samples
    rows = [row(q, s, float(s < c)) for q, c in correct.items() for s in range(4)]
    rows[3] = row(0, 3, 0.4, "timeout", truncated=True)  # partial credit is no correct answer
    rows[2] = row(0, 2, 0.0, "exception: ValueError: no")
    answers.add(rows)
    summary = suite.summarize(SUITE, answers)
    assert (summary.questions, summary.samples) == (3, 4)
    assert summary.pass_at_k == pytest.approx({1: 5 / 12, 2: (0 + 0.5 + 1) / 3, 4: 2 / 3})
    for k, (low, high) in summary.intervals.items():
        assert 0 <= low < summary.pass_at_k[k] < high <= 1
    assert summary.mean_reward == pytest.approx(5.4 / 12)
    assert summary.truncated_share == pytest.approx(1 / 12)
    assert (summary.judge_timeouts, summary.judge_exceptions) == (1, 1)
    metrics = summary.metrics()
    assert metrics["suite/amc/pass_at_4"] == pytest.approx(2 / 3)
    assert metrics["suite/amc/judge_errors"] == 2
    written = json.loads(suite.write_summary(summary, tmp_path).read_text())
    assert written["pass_at_k"]["1"] == pytest.approx(5 / 12)


def test_one_question_has_no_interval(tmp_path):
    answers = Answers.open(tmp_path, {})
    answers.add([row(0, s) for s in range(4)])
    summary = suite.summarize(SUITE, answers)
    assert math.isnan(summary.intervals[1][0])
    assert "suite/amc/pass_at_1_low" not in summary.metrics()
    assert "NaN" not in suite.write_summary(summary, tmp_path).read_text()


def test_answers_go_on_after_a_torn_line(tmp_path):
    settings = suite.settings_of(SUITE, QUESTIONS, 0, "weights")
    answers = Answers.open(tmp_path, settings)
    answers.add([row(0, 0), row(2, 1, 0.0, "timeout")])
    with answers.path.open("a") as file:
        file.write('{"question": 1, "sam')  # the process died here
    again = Answers.open(tmp_path, settings)
    assert again.rows == answers.rows
    left = suite.missing(again, SUITE, QUESTIONS)
    assert len(left) == len(set(left)) == 10
    assert {(0, 0), (2, 1)}.isdisjoint(left)
    again.add([row(1, 0)])
    assert len(Answers.open(tmp_path, settings).rows) == 3


def test_other_settings_questions_or_weights_are_refused(tmp_path):
    settings = suite.settings_of(SUITE, QUESTIONS, 0, "weights")
    Answers.open(tmp_path, settings)
    more = SUITE.model_copy(update={"samples": 8})
    others = [*QUESTIONS[:2], Question(2, "2?", "3")]
    for changed, names in (
        (suite.settings_of(more, QUESTIONS, 0, "weights"), "samples 4 8"),
        (suite.settings_of(SUITE, others, 0, "weights"), "questions_sha256"),
        (suite.settings_of(SUITE, QUESTIONS, 0, "others"), 'model "weights" "others"'),
    ):
        with pytest.raises(ValueError, match=naming("--out", *names.split())):
            Answers.open(tmp_path, changed)


def test_a_request_is_the_same_when_it_is_asked_again():
    prompts = [[1], [2], [3]]
    everything = [(q, s) for q in range(3) for s in range(4)]
    first = suite.wanted(SUITE, QUESTIONS, prompts, everything, seed=0)
    again = suite.wanted(SUITE, QUESTIONS, prompts, everything[5:6], seed=0)
    assert again == [first[5]]
    assert len({one.seed for one in first}) == 12
    assert (first[5].question, first[5].prompt_ids) == (QUESTIONS[1], [2])
