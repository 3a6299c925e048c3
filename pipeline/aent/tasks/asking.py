"""The one way to sample: questions to the engines, their responses to the judges.

Training, held-out questions and suites differ in which questions they ask, how often, by which
seeds, and in what they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aent.data.question import Question
from aent.data.response import Response
from aent.data.rollout import Verdict
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.fleet import Fleet
from aent.inference.forks import generate_forked
from aent.models.tokenizer import Tokenizer
from aent.tasks.judge import JudgePool


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn from the policy."""

    max_tokens: int  # of a response
    temperature: float
    top_p: float = 1.0
    top_k: int = 0  # 0: off


@dataclass(frozen=True)
class Asked:
    """A response that is wanted: same weights, same prompt, same seed, the same tokens up to the
    engine's rounding."""

    question: Question
    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """A response, read and judged."""

    question: Question
    completion: Completion
    response: str
    verdict: Verdict

    @property
    def tokens(self) -> int:
        """How many the response has."""
        return len(self.completion.token_ids)

    @property
    def truncated(self) -> bool:
        """Whether the length limit ended it."""
        return self.completion.finish_reason == "length"


@dataclass(frozen=True)
class Asker:
    """Engines, tokenizer and judges."""

    fleet: Fleet
    tokenizer: Tokenizer
    judge: JudgePool
    progress: Callable[[], None] = lambda: None  # called at every sign of it

    def ask(
        self, wanted: Sequence[Asked], params: SamplingParams, forks: tuple[int, int] | None = None
    ) -> list[Answer]:
        """Have every response written, then judged; in the order of ``wanted``.

        Args:
            forks: (tokens at which others branch off, branches at each): responses are trees, see
                ``generate_forked``.

        Raises EngineError as ``Fleet.generate`` does.
        """
        requests = self._requests(wanted, params)
        generate = partial(self.fleet.generate_sync, on_progress=self.progress)
        if forks is None:
            completions = generate(requests)
        else:
            completions = generate_forked(generate, requests, *forks)
        return self._judged(wanted, completions)

    def ask_bit_by_bit(
        self,
        wanted: Sequence[Asked],
        params: SamplingParams,
        take: Callable[[list[tuple[int, Answer]]], None],
    ) -> None:
        """Have every response written, and judged as soon as there is one for every judge; ``take``
        gets those answers with their places in ``wanted``, in any order.

        Raises EngineError as ``Fleet.generate`` does.
        """
        pending: list[tuple[int, Completion]] = []

        def hand_over() -> None:
            places = [place for place, _ in pending]
            answers = self._judged([wanted[p] for p in places], [done for _, done in pending])
            pending.clear()
            take(list(zip(places, answers)))

        def keep(place: int, completion: Completion) -> None:
            pending.append((place, completion))
            if len(pending) >= self.judge.size:
                hand_over()

        requests = self._requests(wanted, params)
        self.fleet.generate_sync(requests, self.progress, on_completion=keep)
        if pending:
            hand_over()

    def _requests(self, wanted: Sequence[Asked], params: SamplingParams) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                prompt_ids=one.prompt_ids,
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                seed=one.seed,
                stop_token_ids=self.tokenizer.stop_ids,
            )
            for one in wanted
        ]

    def _judged(self, wanted: Sequence[Asked], completions: Sequence[Completion]) -> list[Answer]:
        questions = [one.question for one in wanted]
        responses = [self.tokenizer.decode(c.token_ids) for c in completions]
        seen = [
            Response(text, len(c.token_ids), c.finish_reason != "length")
            for text, c in zip(responses, completions)
        ]
        with self.fleet.timeline.span("grading", "grading", responses=len(responses)):
            verdicts = self.judge.judge(questions, seen, self.progress)
        return [Answer(*each) for each in zip(questions, completions, responses, verdicts)]
