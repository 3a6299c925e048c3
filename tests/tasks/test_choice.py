"""The questions of a step: exact shares, no question twice, a function of seed and step."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, floor

import pytest

from aent.data.question import Question
from aent.recipe.sources import CurriculumSection
from aent.tasks import Task
from aent.tasks.choice import check, choose, shares
from aent.tasks.curriculum import Tried
from wording import naming


def task(weights: dict[str, float], size: int = 40) -> Task:
    train = [
        Question(1000 * i + j, f"{name} {j}?", str(j), source=name)
        for i, name in enumerate(weights)
        for j in range(size)
    ]
    return Task("t", train, [], weights)


@pytest.mark.parametrize(
    ("weights", "n"),
    [
        ([1, 1, 1], 8), ([2, 1, 1], 6), ([0.1, 0.2, 0.7], 16), ([5], 7), ([1, 0.01], 4),
        ([3, 1, 2, 7, 1], 1), ([1 / 3, 2 / 3], 10), ([1e-3, 1, 1e3], 512),
    ],
)  # fmt: skip
def test_every_step_has_its_exact_shares(weights: list[float], n: int) -> None:
    named = {f"s{i}": float(w) for i, w in enumerate(weights)}
    exact = {k: n * Fraction(str(w)) / sum(Fraction(str(v)) for v in named.values())
             for k, w in named.items()}  # fmt: skip
    totals: Counter[str] = Counter()
    steps = 400
    for step in range(steps):
        counts = shares(named, n, step, seed=3)
        assert sum(counts.values()) == n
        for name, count in counts.items():
            assert floor(exact[name]) <= count <= ceil(exact[name])
        totals.update(counts)
        for name in named:  # and nearly so from the first step on
            assert abs(totals[name] - (step + 1) * exact[name]) < 4
    assert shares(named, n, 7, seed=3) == shares(named, n, 7, seed=3)


def test_over_a_period_the_shares_are_exact_wherever_it_begins() -> None:
    weights = {"a": 2.0, "b": 1.0, "c": 0.5}  # of 10: 40/7, 20/7, 10/7
    for begin in (0, 3, 100):
        counts = [shares(weights, 10, step, seed=1) for step in range(begin, begin + 7)]
        assert {k: sum(c[k] for c in counts) for k in weights} == {"a": 40, "b": 20, "c": 10}
    assert len({tuple(c.values()) for c in counts}) > 1
    first = [[shares(weights, 10, step, seed)["a"] for step in range(7)] for seed in (1, 2, 3)]
    assert first[0] != first[1] or first[1] != first[2]


def test_a_mixtures_steps_have_no_question_twice_and_every_source_its_epochs() -> None:
    mixed = task({"a": 2.0, "b": 1.0}, size=20)
    seen: Counter[int] = Counter()
    for step in range(10):  # two epochs of each at most
        questions = choose(mixed, step, 6, seed=5).questions
        assert Counter(q.source for q in questions) == {"a": 4, "b": 2}
        assert len({q.index for q in questions}) == 6
        seen.update(q.index for q in questions)
    assert set(seen) == {q.index for q in mixed.train}
    assert {seen[q.index] for q in mixed.of("a")} == {2}
    assert {seen[q.index] for q in mixed.of("b")} == {1}
    # mini-batches, which are parts of the step in this order, are not of one source each
    orders = [[q.source for q in choose(mixed, s, 6, seed=5).questions] for s in range(10)]
    assert any(order[:4] != ["a"] * 4 for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert choose(mixed, 3, 6, seed=5) == choose(mixed, 3, 6, seed=5)
    assert choose(mixed, 3, 6, seed=5) != choose(mixed, 3, 6, seed=6)


def test_spare_questions_are_of_their_source_and_not_of_the_step() -> None:
    mixed = task({"a": 1.0, "b": 1.0}, size=5)
    choice = choose(mixed, 2, 6, seed=5)
    for source, spare in choice.spare.items():
        own = [q for q in choice.questions if q.source == source]
        assert {q.source for q in spare} == {source}
        assert sorted(q.index for q in own + spare) == [q.index for q in mixed.of(source)]


def test_a_source_with_too_few_questions_is_named() -> None:
    mixed = task({"a": 1.0, "b": 2.0}, size=5)
    check(mixed, 7)  # 5 of b at most
    with pytest.raises(ValueError, match=naming("rollout.prompts_per_step=8", 6, "b", 5)):
        check(mixed, 8)
    with pytest.raises(ValueError, match=naming("task.sources", "b")):
        choose(mixed, 0, 8, seed=0)


def test_a_curriculum_of_a_mixture_keeps_the_shares_whatever_rests() -> None:
    mixed = task({"a": 1.0, "b": 1.0}, size=10)
    # of a only 7 is in the window, of b everything is
    record = {q.index: Tried(1, 0, 0.5 if q.index == 7 else 1.0) for q in mixed.of("a")}
    settings = CurriculumSection(low=0.1, high=0.9)
    questions = choose(mixed, 4, 8, 0, settings, record).questions
    assert Counter(q.source for q in questions) == {"a": 4, "b": 4}
    assert 7 in {q.index for q in questions}
    assert len({q.index for q in questions}) == 8
    assert choose(mixed, 4, 8, 0, settings, record).spare["a"] == []  # those that rest are not
