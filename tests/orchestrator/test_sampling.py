"""Which groups are replaced by which questions, which responses are kept, and their rewards."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aent.algorithm.entropy_controls import Plan, plan
from aent.algorithm.entropy_controls.rollouts import majority
from aent.checkpoint import rollout_files
from aent.data.question import Question
from aent.data.rollout import Rollout, Verdict
from aent.data.sample import Sample
from aent.inference.client import GENERATE, EngineClient
from aent.inference.fleet import Fleet
from aent.models.tokenizer import Tokenizer
from aent.orchestrator.rollouts import Rollouts
from aent.orchestrator.sampling import (
    Prompted,
    RolloutSource,
    better_ones,
    outcome,
    replace_groups,
    reward_by,
    spares,
)
from aent.orchestrator.source_metrics import source_metrics
from aent.recipe.load import load as load_recipe
from aent.runtime.environment import data_path
from aent.tasks import load
from aent.tasks.asking import Asker
from aent.tasks.choice import choose
from aent.tasks.judge import JudgePool
from inference.stand_in import COMPLETION, standing_in


def group_of(place: int, question: Question) -> Rollout:
    """Two responses; those to even questions get the same reward."""
    rewards = [0.0, float(question.index % 2)]
    samples = [Sample([1], [2], [0.0], [0], "stop", place, question.index, r) for r in rewards]
    verdicts = [Verdict(r) for r in rewards]
    return Rollout(samples, [question.prompt] * 2, ["a", "b"], verdicts)


def sampled(indices: list[int], spare: list[int]) -> tuple[list[int], list[int], list[list]]:
    """(items in each place, groups discarded for it, the requests of each round)."""
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


LETTERS = Tokenizer(
    encode=lambda text: [ord(c) for c in text],
    decode=lambda ids: "".join(map(chr, ids)),
    stop_ids=(0,),
    template=None,
    bos_ids=(),
)


def said(text: str, version: int = 0) -> dict[str, Any]:
    """A server's answer."""
    choice = COMPLETION["choices"][0] | {
        "token_ids": [ord(c) for c in text],
        "logprobs": {"content": [{"logprob": -1.0}] * len(text)},
        "weight_versions": [{"start": 0, "end": len(text), "version": str(version)}],
        "finish_reason": "stop",
    }
    return {"choices": [choice]}


def two_sources(folder: Path) -> str:
    """Of a task: questions 10 to 29 and 50 to 69, two of the first for one of the others."""
    for name, numbers in (("a", range(10, 30)), ("b", range(50, 70))):
        rows = [json.dumps({"question": f"{i}?", "answer": i}) for i in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    sources = ", ".join(
        f"{{name: {n}, path: {folder}/{n}.jsonl, heldout: 2, weight: {w}, graders: {g}}}"
        for n, w, g in (
            ("a", 2, "[{kind: last_number}]"),
            ("b", 1, "[{kind: last_number, name: c}]"),
        )
    )
    return f"sources: [{sources}]"


def test_what_a_mixture_with_a_curriculum_samples_and_records(tmp_path: Any) -> None:
    """From a server in an engine's place, judged in real processes: even seeds say the number of
    the question, odd ones another; of source b every response is wrong."""
    recipe = load_recipe(
        data_path("recipes/cpu/tiny.yaml"),
        [
            f"task={{{two_sources(tmp_path)}, curriculum: {{low: .1, high: .9, replay: .5}}}}",
            "rollout.prompts_per_step=6", "rollout.replacement_prompts=3", "steps=4",
        ],
    )  # fmt: skip
    step = 0

    def answer(_path: str, body: dict[str, Any]) -> tuple[int, Any]:
        number = int("".join(map(chr, body["token_ids"])).rstrip("?"))
        right = body["sampling_params"]["seed"] % 2 == 0 and number < 50
        return 200, said(str(number if right else number + 1), step)

    task = load(recipe.task, recipe.seed)
    names = {question.index: question.source for question in task.train}
    seen: dict[int, int] = {}
    with standing_in(answer) as server, JudgePool(recipe.task) as judge:
        asker = Asker(Fleet([EngineClient(server.url)]), LETTERS, judge)
        rollouts = Rollouts(recipe, tmp_path, RolloutSource(recipe, task, asker))
        for step in range(4):
            rollout = rollouts.of(step, plan(recipe, {}))
            assert rollout_files.read(tmp_path, step) == rollout
            assert all(names[s.item] == s.source for s in rollout.samples)
            found = source_metrics(rollout, False)
            assert (found["source/a/prompts"], found["source/b/prompts"]) == (4, 2)
            assert found["source/b/right_share"] == found["source/b/grader/c/mean"] == 0
            assert (
                0 < found["source/a/grader/last_number/mean"] == found["source/a/right_share"] < 1
            )
            # those whose groups were discarded count as asked: b's never have signal
            thrown = len(rollout.outcomes) - 6
            assert 0 < thrown <= 3
            assert {(0, 4)} == {rollout.outcomes[i] for i in rollout.outcomes if names[i] == "b"}
            for item in rollout.outcomes:
                seen[item] = seen.get(item, 0) + 1
            assert {item: known.times for item, known in rollouts.record.items()} == seen
    assert max(seen[item] for item in seen if names[item] == "b") == 1  # until none is left
    assert max(seen[item] for item in seen if names[item] == "a") > 1  # replayed
    assert rollouts.noted["curriculum/known"] == len(seen)
    assert rollouts.noted["curriculum/repeated_share"] == pytest.approx(
        sum(n > 1 for i, n in seen.items() if i in rollout.outcomes) / len(rollout.outcomes)
    )


@pytest.mark.parametrize("limit", [3, 40])
def test_a_batch_with_early_spares_is_the_one_of_rounds(tmp_path: Any, limit: int) -> None:
    """From a server whose answers come after a random moment, so that groups end in any order; the
    reference asks in rounds, each when the one before has been judged. Some places need several."""
    recipe = load_recipe(
        data_path("recipes/cpu/tiny.yaml"),
        [
            f"task={{{two_sources(tmp_path)}}}", "rollout.prompts_per_step=6",
            "rollout.samples_per_prompt=3", f"rollout.replacement_prompts={limit}",
        ],
    )  # fmt: skip
    chance = random.Random(7)

    def answer(_path: str, body: dict[str, Any]) -> tuple[int, Any]:
        number = int("".join(map(chr, body["token_ids"])).rstrip("?"))
        time.sleep(chance.random() / 30)
        right = body["sampling_params"]["seed"] % 2 == 0 and number % 3 == 0
        return 200, said(str(number if right else number + 1))

    task, how = load(recipe.task, recipe.seed), plan(recipe, {})
    replaced: set[int] = set()
    with standing_in(answer) as server, JudgePool(recipe.task) as judge:
        asker = Asker(Fleet([EngineClient(server.url)]), LETTERS, judge)
        source = RolloutSource(recipe, task, asker)
        for step in range(3):
            before = server.asked.count(GENERATE)
            found = source.next(step, how, step)
            asked = (server.asked.count(GENERATE) - before) / 3
            assert found == in_rounds(source, step, how)
            replaced |= {sample.replaced for sample in found.samples}
            # a group asked for early is discarded unseen only if the limit ends the replacements
            assert len(found.outcomes) <= asked <= len(found.outcomes) + limit
            assert asked == len(found.outcomes) or limit == 3
    assert max(replaced) > (limit > 3)


def in_rounds(source: RolloutSource, step: int, how: Plan) -> Rollout:
    """What the step samples if a round of replacements is asked for when the one before is over."""
    choice = choose(source.task, step, 6, source.recipe.seed)
    outcomes = {}

    def sample(places: list[tuple[int, Question]]) -> list[Rollout]:
        asked = [Prompted(place, question, 3) for place, question in places]
        groups = [group for _, group in source._sample(step, asked, how, step)]
        for (_, question), group in zip(places, groups):
            outcomes[question.index] = outcome(group, False)
        return groups

    groups = sample(list(enumerate(choice.questions)))
    replace_groups(groups, spares(choice, source.recipe.rollout.replacement_prompts), sample)
    return replace(Rollout.join(groups), temperature=how.temperature, outcomes=outcomes)
