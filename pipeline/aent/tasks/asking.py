"""The only way to sample: sends questions to the engines and responses to the graders, each group
as soon as it is complete.

Training, held-out questions and suites differ in which questions they ask, how often, with which
seeds, and in what they keep.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aent.data.question import Question
from aent.data.response import Response
from aent.data.rollout import Verdict
from aent.inference.completion import Completion, GenerationRequest
from aent.inference.fleet import Fleet, Submit
from aent.inference.forks import generate_forked
from aent.models.tokenizer import Tokenizer
from aent.runtime.interrupt import Interrupt
from aent.runtime.texts import whole
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
    """A requested response. The same weights, prompt and seed give the same tokens, up to the
    engine's rounding."""

    question: Question
    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """A response, decoded and graded."""

    question: Question
    completion: Completion
    response: str
    verdict: Verdict

    @property
    def tokens(self) -> int:
        """Number of the response's tokens."""
        return len(self.completion.token_ids)

    @property
    def truncated(self) -> bool:
        """Whether the length limit ended it."""
        return self.completion.finish_reason == "length"


Group = Sequence[Asked]  # responses that are graded together
# gets the place of a group and its answers; returns further groups to sample
Take = Callable[[int, list[Answer]], Sequence[Group]]


@dataclass(frozen=True)
class Asker:
    """Engines, tokenizer and graders; for any thread."""

    fleet: Fleet
    tokenizer: Tokenizer
    judge: JudgePool
    progress: Callable[[], None] = lambda: None  # called at every sign of progress
    interrupt: Interrupt = field(default_factory=Interrupt)  # cancels the requests of other threads

    def ask(
        self,
        groups: Sequence[Group],
        params: SamplingParams,
        take: Take = lambda place, answers: (),
        forks: tuple[int, int] | None = None,
    ) -> list[list[Answer]]:
        """Sample every response, and grade each group while others are still being sampled.

        Args:
            take: called for every group, in the order in which they end, one at a time, in another
                thread than the event loop's; further groups get the next places.
            forks: (tokens at which others branch off, branches at each): a group's responses are
                trees, see ``generate_forked``.

        Returns:
            The answers of each group, in the order of its responses; further groups at the end.

        Raises EngineError as ``Fleet.open`` does, what graders and ``take`` raise, and
        asyncio.CancelledError if ``interrupt`` is called.
        """
        return asyncio.run(self._ask(groups, params, take, forks)) if groups else []

    async def _ask(
        self,
        groups: Sequence[Group],
        params: SamplingParams,
        take: Take,
        forks: tuple[int, int] | None,
    ) -> list[list[Answer]]:
        ended: asyncio.Queue[asyncio.Task[list[Answer]]] = asyncio.Queue()
        places: dict[asyncio.Task[list[Answer]], int] = {}
        found: dict[int, list[Answer]] = {}

        with self.interrupt.possible():
            async with self.fleet.open(self.progress) as submit:

                def begin(more: Sequence[Group]) -> None:
                    for group in more:
                        work = self._answers(submit, group, params, forks)
                        task = asyncio.create_task(work)
                        places[task] = len(places)
                        task.add_done_callback(ended.put_nowait)

                begin(groups)
                try:
                    while len(found) < len(places):
                        task = await ended.get()
                        place, answers = places[task], task.result()
                        found[place] = answers
                        begin(await asyncio.to_thread(take, place, answers))
                finally:
                    for task in places:
                        task.cancel()
                    await asyncio.gather(*places, return_exceptions=True)
        return [found[place] for place in range(len(found))]

    async def _answers(
        self,
        submit: Submit,
        group: Group,
        params: SamplingParams,
        forks: tuple[int, int] | None,
    ) -> list[Answer]:
        """A group, sampled and graded."""

        async def generate(requests: Sequence[GenerationRequest]) -> list[Completion]:
            return await asyncio.gather(*map(submit, requests))

        requests = self._requests(group, params)
        if forks is None:
            completions = await generate(requests)
        else:
            completions = await generate_forked(generate, requests, *forks)
        begin = time.time()
        responses = await asyncio.to_thread(self._read, completions)
        seen = [
            Response(text, len(c.token_ids), c.finish_reason != "length")
            for text, c in zip(responses, completions)
        ]
        questions = [one.question for one in group]
        verdicts = await asyncio.wrap_future(self.judge.submit(questions, seen, self.progress))
        self.fleet.timeline.add("grading", begin, "grading", responses=len(group))
        return [Answer(*each) for each in zip(questions, completions, responses, verdicts)]

    def _read(self, completions: Sequence[Completion]) -> list[str]:
        return [whole(self.tokenizer.decode(c.token_ids)) for c in completions]

    def _requests(self, wanted: Group, params: SamplingParams) -> list[GenerationRequest]:
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
