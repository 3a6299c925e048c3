"""Which groups give their places to which questions, which responses are kept, which rewards."""

from aent.algorithm.entropy_controls.rollouts import majority
from aent.data.question import Question
from aent.data.rollout import Rollout, Verdict
from aent.data.sample import Sample
from aent.orchestrator.sampling import better_ones, replace_groups, reward_by


def group_of(place: int, question: Question) -> Rollout:
    """Two responses; those to even questions get the same reward."""
    rewards = [0.0, float(question.index % 2)]
    samples = [Sample([1], [2], [0.0], [0], "stop", place, question.index, r) for r in rewards]
    verdicts = [Verdict(r) for r in rewards]
    return Rollout(samples, [question.prompt] * 2, ["a", "b"], verdicts)


def sampled(indices: list[int], spare: list[int]) -> tuple[list[int], list[int], list[list]]:
    """(items in each place, groups thrown away for it, what was asked for in each round)."""
    rounds = []

    def sample(places: list[tuple[int, Question]]) -> list[Rollout]:
        rounds.append([(place, question.index) for place, question in places])
        return [group_of(place, question) for place, question in places]

    questions = [Question(i, f"question {i}", "") for i in (*indices, *spare)]
    groups = [group_of(place, q) for place, q in enumerate(questions[: len(indices)])]
    others = iter(questions[len(indices) :])
    replace_groups(groups, lambda _: next(others, None), sample)
    joined = Rollout.join(groups)
    assert [s.group for s in joined.samples] == [g for g in range(len(indices)) for _ in "ab"]
    assert joined.prompts == [f"question {s.item}" for s in joined.samples]
    return (
        [s.item for s in joined.samples[::2]],
        [s.replaced for s in joined.samples[::2]],
        rounds,
    )


def test_groups_without_signal_are_replaced_until_all_have_some():
    items, replaced, rounds = sampled([1, 2, 3, 4], spare=[6, 7, 8, 9, 11])
    assert rounds == [[(1, 6), (3, 7)], [(1, 8)], [(1, 9)]]
    assert items == [1, 9, 3, 7]  # 11 was not asked for
    assert replaced == [0, 3, 0, 1]


def test_a_place_keeps_its_first_group_when_the_budget_is_spent():
    items, replaced, rounds = sampled([2, 4, 1], spare=[6, 7, 8])
    assert rounds == [[(0, 6), (1, 7)], [(0, 8)]]
    assert items == [2, 7, 1]
    assert replaced == [2, 1, 0]


def test_nothing_is_asked_for_where_nothing_is_wanted_or_left():
    assert sampled([1, 3], spare=[5]) == ([1, 3], [0, 0], [])
    assert sampled([2, 3], spare=[]) == ([2, 3], [0, 0], [])


def group_with(rewards: list[float]) -> Rollout:
    samples = [Sample([1], [2], [0.0], [0], "stop", 0, 0, r) for r in rewards]
    texts = [f"response {i}" for i in range(len(rewards))]
    return Rollout(samples, ["question"] * len(rewards), texts, [Verdict(r) for r in rewards])


def test_better_ones_are_above_their_own_group():
    groups = [group_with([0, 1, 0.4, 0.5]), group_with([1, 1]), group_with([0.3, 0.2])]
    kept = better_ones(groups, limit=10)
    assert kept.responses == ["response 1", "response 3", "response 0"]
    assert [s.reward for s in kept.samples] == [v.reward for v in kept.verdicts] == [1, 0.5, 0.3]
    assert better_ones(groups, limit=2).responses == ["response 1", "response 3"]


def test_a_vote_takes_the_place_of_the_judges_rewards():
    group = group_with([1, 0, 0, 0])
    group.responses = ["it is 7", "8, so 9", "I get 9.0", "no idea"]
    reward_by(group, majority, "last_number")
    assert [s.reward for s in group.samples] == [0, 1, 1, 0]
    assert [v.reward for v in group.verdicts] == [1, 0, 0, 0]


def test_only_finished_answers_are_rewarded_where_it_is_asked_for():
    group = group_with([1, 1, 0])
    group.samples[0].finish_reason = "length"
    group.reward_finished_only()
    assert [s.reward for s in group.samples] == [0, 1, 0]
    assert [v.reward for v in group.verdicts] == [1, 1, 0]
