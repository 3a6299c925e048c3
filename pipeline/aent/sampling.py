"""Where batches come from: prompts to the engines, responses to the judges (rank 0 only)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from aent import tasks
from aent.batch import Sample
from aent.recipe.schema import Recipe
from aent.rollout.client import Fleet, GenerationRequest
from aent.tasks.judge import JudgePool, Verdict
from aent.tokenizer import Tokenizer


@dataclass
class Rollout:
    """What one step sampled: samples and, beside them, what a person wants to read."""

    samples: list[Sample]
    prompts: list[str]
    responses: list[str]
    verdicts: list[Verdict]


def sample_seed(run_seed: int, step: int, item: int, index: int) -> int:
    """A seed of its own for each sample: the same when a step is executed again."""
    key = f"{run_seed}/{step}/{item}/{index}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") & 0x7FFFFFFF


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
        """The rollouts of ``step``, written by weights at most ``max_staleness`` steps old.

        (Step t is sampled with weight version t.) Raises RuntimeError if a token came from another
        version, EngineError as the client does.
        """
        recipe = self.recipe
        questions = tasks.questions_for_step(
            self.task, step, recipe.rollout.prompts_per_step, recipe.seed
        )
        requests, owners = [], []
        for group, question in enumerate(questions):
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
        return Rollout(samples, [q.prompt for _, q in owners], responses, verdicts)
