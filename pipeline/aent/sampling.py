"""Where batches come from: prompts to the engines, responses to the judges (rank 0 only)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from aent import tasks
from aent.batch import Sample
from aent.recipe.schema import Recipe
from aent.rollout.client import Fleet, GenerationRequest
from aent.tasks import Question
from aent.tasks.judge import JudgePool, Verdict
from aent.tokenizer import Tokenizer


@dataclass
class Rollout:
    """What one step sampled: samples and, beside them, what a person wants to read."""

    samples: list[Sample]
    prompts: list[str]
    responses: list[str]
    verdicts: list[Verdict]

    @property
    def has_signal(self) -> bool:
        """Whether its responses, of one group, got different rewards."""
        return len({s.reward for s in self.samples}) > 1

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """All of them, one after the other."""
        return Rollout(
            [s for part in parts for s in part.samples],
            [p for part in parts for p in part.prompts],
            [r for part in parts for r in part.responses],
            [v for part in parts for v in part.verdicts],
        )


def sample_seed(run_seed: int, step: int, item: int, index: int) -> int:
    """A seed of its own for each sample: the same when a step is executed again."""
    key = f"{run_seed}/{step}/{item}/{index}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") & 0x7FFFFFFF


def replace_groups(
    groups: list[Rollout],
    spare: Iterator[Question],
    sample: Callable[[list[tuple[int, Question]]], list[Rollout]],
) -> None:
    """Dynamic sampling (DAPO, arXiv 2503.14476 eq. 11): a group whose rewards are all the same
    gives its place to that of a spare question, until every group has signal or no question is
    left.

    A place whose replacements have no signal either keeps its first group, so that the batch keeps
    its size. (DAPO samples on without a bound; verl ends the run with an error after
    max_num_gen_batches.) ``Sample.replaced`` counts the groups thrown away for a place; it is saved
    with the sample, so that a step read from disk counts the same.

    Args:
        groups: changed in place; group i has the group id i.
        sample: one group for each (group id, question).
    """
    while flat := [place for place, group in enumerate(groups) if not group.has_signal]:
        places = [(place, question) for place, question in zip(flat, spare)]
        if not places:
            return
        for (place, _), group in zip(places, sample(places)):
            thrown_away = groups[place].samples[0].replaced + 1
            if group.has_signal:
                groups[place] = group
            for one in groups[place].samples:
                one.replaced = thrown_away


@dataclass
class RolloutSource:
    """Samples a step's responses from the engines and has them judged."""

    recipe: Recipe
    task: tasks.Task
    tokenizer: Tokenizer
    fleet: Fleet
    judge: JudgePool
    progress: Callable[[], None]

    def next(self, step: int, max_staleness: int = 0) -> Rollout:
        """The rollouts of ``step``, written by weights at most ``max_staleness`` steps old, one
        group per prompt, those without signal replaced where the recipe says so.

        (Step t is sampled with weight version t.) Raises RuntimeError if a token came from another
        version, EngineError as the client does.
        """
        rollout, seed = self.recipe.rollout, self.recipe.seed
        wanted = rollout.prompts_per_step
        questions = tasks.questions_for_step(self.task, step, wanted, seed)
        groups = self._sample(step, list(enumerate(questions)), max_staleness)
        spare = tasks.replacements_for_step(self.task, step, wanted, seed)
        replace_groups(
            groups,
            islice(spare, rollout.replacement_prompts),
            lambda places: self._sample(step, places, max_staleness),
        )
        return Rollout.join(groups)

    def _sample(
        self, step: int, questions: Sequence[tuple[int, Question]], max_staleness: int
    ) -> list[Rollout]:
        """One group of samples for each (group id, question)."""
        recipe = self.recipe
        requests, owners = [], []
        for group, question in questions:
            prompt_ids = self.tokenizer.chat_prompt(question.prompt, recipe.task.system_prompt)
            if len(prompt_ids) > recipe.rollout.max_prompt_tokens:
                raise ValueError(
                    f"task question {question.index} has {len(prompt_ids)} tokens, more than "
                    f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
                )
            for index in range(recipe.rollout.samples_per_prompt):
                requests.append(
                    GenerationRequest(
                        prompt_ids=prompt_ids,
                        max_tokens=recipe.rollout.max_response_tokens,
                        temperature=recipe.rollout.temperature,
                        seed=sample_seed(recipe.seed, step, question.index, index),
                        stop_token_ids=self.tokenizer.stop_ids,
                    )
                )
                owners.append((group, question))
        completions = self.fleet.generate_sync(requests, on_progress=self.progress)
        responses = [self.tokenizer.decode(c.token_ids) for c in completions]
        verdicts = self.judge.judge([q for _, q in owners], responses)
        samples = []
        for (group, question), request, done, verdict in zip(
            owners, requests, completions, verdicts
        ):
            if not step - max_staleness <= min(done.versions) <= max(done.versions) <= step:
                raise RuntimeError(
                    f"step {step}: an engine wrote tokens with weight versions "
                    f"{sorted(set(done.versions))}, the trainer is at {step}"
                )
            samples.append(
                Sample(
                    prompt_ids=list(request.prompt_ids),
                    response_ids=list(done.token_ids),
                    logprobs=list(done.logprobs),
                    versions=list(done.versions),
                    finish_reason=done.finish_reason,
                    group=group,
                    item=question.index,
                    reward=verdict.reward,
                )
            )
        n = recipe.rollout.samples_per_prompt
        return [
            Rollout(
                samples[i : i + n],
                [q.prompt for _, q in owners[i : i + n]],
                responses[i : i + n],
                verdicts[i : i + n],
            )
            for i in range(0, len(samples), n)
        ]
