"""The questions that a curriculum repeats, their order, and what it remembers of them."""

from __future__ import annotations

import json

import pytest

from aent.data.question import Question
from aent.recipe.sources import CurriculumSection
from aent.tasks import curriculum
from aent.tasks.curriculum import Record, Tried

QUESTIONS = [Question(i, f"{i}?", str(i)) for i in range(8)]


def order(record: Record, places: int = 4, step: int = 10, **settings: object) -> list[list[int]]:
    """Indices of those (waiting, resting)."""
    made = CurriculumSection.model_validate({"low": 0.2, "high": 0.8, **settings})
    found = curriculum.ordered(QUESTIONS, places, made, record, step, "seed")
    return [[q.index for q in part] for part in (found.waiting, found.resting)]


def test_questions_outside_the_window_rest() -> None:
    record = {0: Tried(1, 3, 0.0), 1: Tried(1, 3, 0.2), 2: Tried(1, 3, 0.8), 3: Tried(1, 3, 1.0)}
    waiting, resting = order(record)
    assert set(waiting) == {1, 2, 4, 5, 6, 7}
    assert set(waiting[:4]) == {4, 5, 6, 7}  # the new ones first, as in an epoch
    assert set(resting) == {0, 3}
    # it has no grade: so it is not known to be outside
    assert 0 in order({0: Tried(1, 3, None)})[0]


def test_they_are_looked_at_again_where_the_recipe_says_when() -> None:
    record = {0: Tried(1, 3, 0.0), 1: Tried(1, 4, 1.0)}
    assert set(order(record, step=7, retry_after=5)[1]) == {0, 1}
    assert set(order(record, step=8, retry_after=5)[1]) == {1}
    assert order(record, step=9, retry_after=5)[1] == []


def test_where_too_few_wait_the_nearest_to_the_window_come_first() -> None:
    success = [0.0, 1.0, 0.15, 0.95, 0.1, 0.5, 0.9, 1.0]
    record = {i: Tried(1, 9 - i, s) for i, s in enumerate(success)}
    waiting, resting = order(record)
    assert waiting == [5]
    # 0.15, then 0.1 and 0.9 (to rounding) in either order, 0.95; of 0 and 1 the older one
    assert resting[0] == 2
    assert set(resting[1:3]) == {4, 6}
    assert resting[3:] == [3, 7, 1, 0]


@pytest.mark.parametrize(
    ("order_by", "wanted"), [("easy_first", [3, 1, 2, 0]), ("hard_first", [0, 2, 1, 3])]
)
def test_those_asked_equally_often_are_sorted(order_by: str, wanted: list[int]) -> None:
    success = [0.25, 0.6, 0.4, 0.75]
    record = {i: Tried(1, i, s) for i, s in enumerate(success)} | {7: Tried(2, 5, 0.7)}
    waiting, _ = order(record, order=order_by)
    assert set(waiting[:3]) == {4, 5, 6}  # new
    assert waiting[3:] == [*wanted, 7]  # then those asked once, then the one asked twice
    shuffled = {tuple(order(record, step=step)[0][3:7]) for step in range(12)}
    assert len(shuffled) > 1


def test_a_share_of_the_step_is_replayed_those_asked_longest_ago() -> None:
    record = {0: Tried(3, 4, 0.5), 1: Tried(1, 2, 0.7), 2: Tried(1, 2, 0.6), 3: Tried(1, 1, 1.0)}
    waiting, resting = order(record, places=4, replay=0.5)
    assert waiting[:2] == [2, 1]  # of those of step 2 the one nearer to one half
    assert set(waiting[2:6]) == {4, 5, 6, 7}
    assert waiting[6:] == [0]
    assert resting == [3]
    assert order(record, places=4, replay=0.2)[0][:4] != waiting[:4]  # 0.8 of a question is none
    assert order({}, places=4, replay=1.0)[0][:4]  # nothing to replay yet


def test_a_record_is_what_was_seen_and_comes_back_from_json() -> None:
    record = curriculum.learnt({}, 0, {3: (2, 4), 5: (0, 0)})
    record = curriculum.learnt(record, 1, {3: (4, 4)})
    record = curriculum.learnt(record, 2, {3: (0, 0)})  # it has no grade: the old values stay
    assert record == {3: Tried(3, 2, 1.0), 5: Tried(1, 0, None)}
    assert curriculum.from_json(json.loads(json.dumps(curriculum.to_json(record)))) == record


def test_metrics() -> None:
    settings = CurriculumSection(low=0.2, high=0.8)
    before = {0: Tried(1, 0, 0.5), 1: Tried(1, 0, 1.0)}
    after = curriculum.learnt(before, 1, {0: (1, 4), 1: (4, 4), 2: (0, 4), 3: (0, 0)})
    found = curriculum.metrics(settings, before, after, 1, [0, 1, 2, 3])
    assert found == {
        "curriculum/known": 4,
        "curriculum/repeated_share": 2 / 4,
        "curriculum/outside_share": 1 / 4,  # question 1
        "curriculum/success": pytest.approx((0.25 + 1 + 0) / 3),
        "curriculum/in_window_share": pytest.approx(1 / 3),
    }
