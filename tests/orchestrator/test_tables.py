"""Tables of responses: bounded, and complete where a comparison counts their rows."""

from aent.data.question import Question
from aent.data.rollout import Grade, Rollout, Verdict
from aent.data.sample import Sample
from aent.evaluation.heldout import summarize
from aent.inference.completion import Completion
from aent.orchestrator import tables
from aent.tasks.asking import Answer


def test_a_table_of_samples_is_bounded_in_rows_and_text():
    text = "a" * 5000 + "b" * 5000
    sample = Sample([1], [2], [-0.5], [0], "stop", 0, 0)
    count = tables.MAX_ROWS + 10
    rollout = Rollout([sample] * count, ["?"] * count, [text] * count, [Verdict(1.0)] * count)
    rows = tables.sample_rows(rollout, [0.5] * count)
    assert len(rows) == tables.MAX_ROWS
    response = rows[0]["response"]
    assert tables.MAX_TEXT <= len(response) < tables.MAX_TEXT + 50
    assert response.startswith("a" * 4096)
    assert response.endswith("b" * 4096)
    assert "1808 characters" in response
    assert rows[0]["prompt"] == "?"


def test_a_table_of_held_out_answers_counts_all_and_shows_some():
    """A comparison's report counts every row, by its question's text."""
    question = Question(0, "?", "1", {})
    count = tables.MAX_ROWS + 10
    verdict = Verdict(0.8, grades=(Grade("right", 1.0), Grade("long", -0.2)))
    answer = Answer(question, Completion([1], [0.0], [0], "stop"), "a" * 10_000, verdict)
    rows = tables.heldout_rows(summarize([answer] * count, 2))
    assert len(rows) == count
    assert {row["score"] for row in rows} == {1.0}
    assert {(row["prompt"], row["expected"], row["reward"]) for row in rows} == {("?", "1", 0.8)}
    shown = [row["response"] for row in rows if row["response"] is not None]
    assert len(shown) == tables.MAX_ROWS
    assert len(shown[0]) < tables.MAX_TEXT + 50
