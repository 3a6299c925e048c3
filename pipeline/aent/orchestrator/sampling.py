"""How a step is sampled: prompts to the engines, responses to the graders (rank 0 only)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from aent import tasks
from aent.algorithm.entropy_controls import Plan
from aent.data.question import Question
from aent.data.rollout import Rollout
from aent.data.sample import Sample
from aent.recipe.schema import Recipe
from aent.tasks.asking import Answer, Asked, Asker, SamplingParams
from aent.tasks.choice import Choice, choose
from aent.tasks.curriculum import Record
from aent.tasks.verifiers import answer_in


def reward_by(
    group: Rollout, reward: Callable[[Sequence[str | None]], list[float]], grader: str
) -> None:
    """Replace the graders' rewards of one group by rewards from its answers, as the first grader's
    kind reads them."""
    answers = [answer_in(grader, response) for response in group.responses]
    for sample, value in zip(group.samples, reward(answers)):
        sample.reward = value


def sample_seed(run_seed: int, step: int, item: int, index: int) -> int:
    """A seed for each sample: the same when a step is repeated."""
    key = f"{run_seed}/{step}/{item}/{index}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") & 0x7FFFFFFF


def replace_groups(
    groups: list[Rollout],
    spare: Callable[[int], Question | None],
    sample: Callable[[list[tuple[int, Question]]], list[Rollout]],
) -> None:
    """Dynamic sampling (DAPO, arXiv 2503.14476 eq. 11): a group whose rewards are all the same is
    replaced by that of a spare question, until every group has signal or no question is left.

    If its replacements have no signal either, the first group stays, so that the batch keeps its
    size. (DAPO samples without a bound; verl ends the run with an error after max_num_gen_batches.)
    ``Sample.replaced`` counts the groups discarded for a place; it is saved with the sample, so
    that a step read from disk counts the same.

    Args:
        groups: changed in place; group i has the group id i.
        spare: the next spare question for place i; None: there is none.
        sample: one group for each (group id, question).
    """
    while flat := [place for place, group in enumerate(groups) if not group.has_signal]:
        drawn = ((place, spare(place)) for place in flat)
        places = [(place, question) for place, question in drawn if question is not None]
        if not places:
            return
        for (place, _), group in zip(places, sample(places)):
            thrown_away = groups[place].samples[0].replaced + 1
            if group.has_signal:
                groups[place] = group
            for one in groups[place].samples:
                one.replaced = thrown_away


def spares(choice: Choice, limit: int) -> Callable[[int], Question | None]:
    """The next spare question for a place of the step, from the same source as the place's
    question, ``limit`` in all; None: there is none."""
    left = {source: iter(questions) for source, questions in choice.spare.items()}
    given = 0

    def spare(place: int) -> Question | None:
        nonlocal given
        question = None
        if given < limit:
            question = next(left[choice.questions[place].source], None)
        given += question is not None
        return question

    return spare


def outcome(group: Rollout, finished_only: bool) -> tuple[int, int]:
    """(right responses, graded responses) of a group."""
    judged = [right for right in group.right(finished_only) if right is not None]
    return sum(judged), len(judged)


def better_ones(groups: Sequence[Rollout], limit: int) -> Rollout:
    """The responses with more than the mean reward of their group, the first ``limit`` overall
    (AEPO: those that would have a positive advantage)."""
    chosen = []
    for group in groups:
        rewards = [s.reward for s in group.samples]
        mean = sum(rewards) / len(rewards)
        chosen.append(group.select([i for i, r in enumerate(rewards) if r > mean]))
    joined = Rollout.join(chosen)
    return joined.select(range(min(limit, len(joined.samples))))


@dataclass(frozen=True)
class Prompted:
    """A question of a step, and how it is asked."""

    group: int
    question: Question
    samples: int
    again: bool = False  # asked a second time (AEPO's re-rolled responses)


def asked_early(
    spare: Callable[[int], Question | None],
) -> Callable[[Prompted, Rollout], list[Prompted]]:
    """What is to be asked for after a group, while others are still being written.

    Each group without signal costs its source one spare question, the next in order: which one is
    known at once, for which place it is only when the round has ended (``replace_groups``). What is
    asked for early is therefore what the rounds will ask for, unless the limit ends first and
    another source has taken its last: such a group is thrown away unseen.
    """

    def further(each: Prompted, group: Rollout) -> list[Prompted]:
        question = None if group.has_signal else spare(each.group)
        return [] if question is None else [Prompted(each.group, question, each.samples)]

    return further


@dataclass
class RolloutSource:
    """Samples a step's responses from the engines and has them graded."""

    recipe: Recipe
    task: tasks.Task
    asker: Asker

    def next(
        self, step: int, plan: Plan, max_staleness: int = 0, record: Record | None = None
    ) -> Rollout:
        """The rollouts of ``step``, written by weights at most ``max_staleness`` steps old, as the
        plan has them: one group per prompt, those without signal replaced where the recipe says
        so, re-rolled responses behind them.

        record: what the curriculum knows of the questions.

        (Step t is sampled with weight version t.) Raises RuntimeError if a token came from another
        version, EngineError as the client does.
        """
        rollout, section = self.recipe.rollout, self.recipe.task
        wanted, limit = rollout.prompts_per_step, rollout.replacement_prompts
        choice = choose(self.task, step, wanted, self.recipe.seed, section.curriculum, record)
        counts = plan.samples([question.index for question in choice.questions])
        asked: dict[int, Question] = {}
        outcomes: dict[int, tuple[int, int]] = {}
        early: dict[int, Rollout] = {}  # groups that no place has yet, by question

        def note(each: Prompted, group: Rollout) -> None:
            asked[each.question.index] = each.question
            outcomes[each.question.index] = outcome(group, section.finished_only)

        def sample(places: list[tuple[int, Question]]) -> list[Rollout]:
            prompted = [Prompted(place, question, counts[place]) for place, question in places]
            anew = [p for p in prompted if not _fits(p, early.get(p.question.index))]
            for each, group in self._sample(step, anew, plan, max_staleness):
                early[each.question.index] = group
            groups = [early.pop(each.question.index) for each in prompted]
            for each, group in zip(prompted, groups):
                group.move(each.group)
                note(each, group)
            return groups

        first = [Prompted(g, q, counts[g]) for g, q in enumerate(choice.questions)]
        done = self._sample(step, first, plan, max_staleness, asked_early(spares(choice, limit)))
        early |= {each.question.index: group for each, group in done[wanted:]}
        for each, group in done[:wanted]:
            note(each, group)
        groups = [group for _, group in done[:wanted]]
        replace_groups(groups, spares(choice, limit), sample)
        if plan.reroll is not None:
            first_ones = groups[: math.ceil(plan.reroll.share * wanted)]
            items = [group.samples[0].item for group in first_ones]
            again = [Prompted(g, asked[i], counts[g], again=True) for g, i in enumerate(items)]
            at = replace(plan, temperature=plan.reroll.temperature)
            rerolled = [group for _, group in self._sample(step, again, at, max_staleness)]
            groups.append(better_ones(rerolled, plan.reroll.limit))
        return replace(Rollout.join(groups), temperature=plan.temperature, outcomes=outcomes)

    def _sample(
        self,
        step: int,
        prompted: Sequence[Prompted],
        plan: Plan,
        max_staleness: int,
        further: Callable[[Prompted, Rollout], list[Prompted]] = lambda each, group: [],
    ) -> list[tuple[Prompted, Rollout]]:
        """One group of samples for each question, followed by the groups that ``further`` asks for
        as each group is complete."""
        places: list[tuple[Prompted, list[Asked]]] = []
        groups: dict[int, Rollout] = {}

        def wanted(more: Sequence[Prompted]) -> list[list[Asked]]:
            asked = [list(self._wanted(step, each)) for each in more]
            places.extend(zip(more, asked))
            return asked

        def take(place: int, answers: list[Answer]) -> list[list[Asked]]:
            for answer in answers:
                check_versions(answer.completion.versions, step, max_staleness)
            each, asked = places[place]
            groups[place] = self._group(each, asked, answers, plan)
            return wanted(further(each, groups[place]))

        params = SamplingParams(self.recipe.rollout.max_response_tokens, plan.temperature)
        forks = None if plan.fork is None else (plan.fork.forks, plan.fork.branches)
        self.asker.ask(wanted(prompted), params, take, forks)
        return [(each, groups[place]) for place, (each, _) in enumerate(places)]

    def _group(
        self, each: Prompted, asked: Sequence[Asked], answers: Sequence[Answer], plan: Plan
    ) -> Rollout:
        """The responses to one question, with rewards."""
        group = _rollout(each, asked, answers)
        if plan.reward is not None:
            grader = tasks.graders_of(self.recipe.task, each.question)[0]
            reward_by(group, plan.reward, grader.kind)
        if self.recipe.task.finished_only:
            group.reward_finished_only()
        return group

    def _wanted(self, step: int, each: Prompted) -> Iterator[Asked]:
        """The requests for all responses to a question."""
        recipe, question = self.recipe, each.question
        prompt_ids = self.asker.tokenizer.chat_prompt(*question.turns(recipe.task.system_prompt))
        if len(prompt_ids) > recipe.rollout.max_prompt_tokens:
            raise ValueError(
                f"task question {question.index} has {len(prompt_ids)} tokens, more than "
                f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
            )
        for index in range(each.samples):
            # the seeds of responses that are asked for again go on where the first ones end
            place = index + each.again * each.samples
            yield Asked(question, prompt_ids, sample_seed(recipe.seed, step, question.index, place))


def _fits(each: Prompted, group: Rollout | None) -> bool:
    """Whether a group that was sampled early is the one needed now."""
    return group is not None and len(group.samples) == each.samples


def check_versions(versions: Sequence[int], step: int, max_staleness: int) -> None:
    """Raise RuntimeError if a token of a response was sampled with weights other than those of
    ``step`` and of the ``max_staleness`` steps before."""
    if not step - max_staleness <= min(versions) <= max(versions) <= step:
        raise RuntimeError(
            f"step {step}: an engine wrote tokens with weight versions {sorted(set(versions))}, "
            f"the trainer is at {step}"
        )


def _rollout(each: Prompted, asked: Sequence[Asked], answers: Sequence[Answer]) -> Rollout:
    """The responses to one question."""
    samples = [
        Sample(
            prompt_ids=list(one.prompt_ids),
            response_ids=list(answer.completion.token_ids),
            logprobs=list(answer.completion.logprobs),
            versions=list(answer.completion.versions),
            finish_reason=answer.completion.finish_reason,
            group=each.group,
            item=each.question.index,
            reward=answer.verdict.reward,
            rerolled=each.again,
            source=each.question.source,
        )
        for one, answer in zip(asked, answers)
    ]
    return Rollout(
        samples,
        [each.question.prompt] * each.samples,
        [answer.response for answer in answers],
        [answer.verdict for answer in answers],
    )
