import itertools
import json
import math

import pytest

from aent.data.question import Question
from aent.evaluation import suite, suites
from aent.evaluation.answers import Answers, Row
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.recipe.graders import LastNumber
from aent.recipe.schema import TaskSection
from aent.tasks.asking import Asker
from aent.tasks.judge import JudgePool
from inference.stand_in import COMPLETION, WORDS, standing_in
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


def test_answers_are_saved_as_they_come_and_not_of_other_weights(tmp_path):
    """The server says its prompt; the fourth answer and the later ones are of the next weights."""
    numbers = itertools.count()

    def answer(path, body):
        version = "3" if next(numbers) < changes_at else "4"
        choice = COMPLETION["choices"][0] | {
            "token_ids": body["token_ids"],
            "logprobs": {"content": [{"logprob": -1.0}]},
            "weight_versions": [{"start": 0, "end": 1, "version": version}],
        }
        return 200, {"choices": [choice]}

    asked = SUITE.model_copy(update={"samples": 2, "graders": (LastNumber(kind="last_number"),)})
    answers = Answers.open(tmp_path, {})
    told = []
    section = TaskSection(graders=asked.graders, judge_processes=1)
    with standing_in(answer) as server, JudgePool(section) as judge:
        asker = Asker(Fleet([EngineClient(server.url, concurrency=1)]), WORDS, judge)
        prompts = [[0], [1], [7]]
        changes_at = 3
        with pytest.raises(RuntimeError, match=naming("weights changed", "[3, 4]")):
            suite.ask(asker, asked, QUESTIONS, prompts, answers, 0, told.append)
        assert {row.reward for row in answers.rows.values()} <= {0.0, 1.0}
        changes_at, saved = 100, len(answers.rows)
        assert saved <= 3
        suite.ask(asker, asked, QUESTIONS, prompts, answers, 0, told.append)
    assert Answers.open(tmp_path, {}).rows == answers.rows
    rewards = {place: row.reward for place, row in answers.rows.items()}
    assert rewards == {(q, s): float(q < 2) for q in range(3) for s in range(2)}
    assert "6 of 6" in told[-1]
