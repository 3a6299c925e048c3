"""The samples of one step, with the texts and verdicts that a person reads beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aent.data.sample import Sample


@dataclass(frozen=True)
class Grade:
    """The result of one grader for one response."""

    name: str  # of the grader
    reward: float | None  # before its weight; None: the grader does not score this response
    parts: dict[str, float] = field(default_factory=dict)  # components of the reward, by name
    error: str = ""  # "timeout" or "exception: ..." (then the reward is 0)
    seconds: float = field(default=0.0, compare=False)  # that grading took


@dataclass(frozen=True)
class Verdict:
    """The result of all graders for one response."""

    reward: float  # the weighted sum
    error: str = ""  # of the first grader that failed, with its name (then the reward is 0)
    grades: tuple[Grade, ...] = ()  # in the recipe's order; earlier versions kept none

    @property
    def score(self) -> float:
        """The first grader's reward: a response is right if it is 1 or more."""
        return (self.grades[0].reward or 0.0) if self.grades else self.reward


@dataclass
class Rollout:
    """The samples of one step and, beside them, what a person reads."""

    samples: list[Sample]
    prompts: list[str]
    responses: list[str]
    verdicts: list[Verdict]
    temperature: float | None = None  # of the policy in this step, which is trained on the samples
    # by question index: (right responses, graded responses) of every question that was asked,
    # including those whose groups were discarded; earlier versions kept none
    outcomes: dict[int, tuple[int, int]] = field(default_factory=dict)
    anew: bool = False  # an earlier start began to sample this step but did not write it

    @property
    def has_signal(self) -> bool:
        """Whether its responses, which form one group, got different rewards."""
        return len({s.reward for s in self.samples}) > 1

    def right(self, finished_only: bool) -> list[bool | None]:
        """Whether each response is right by its first grader (and not cut off, if
        ``finished_only``); None if a grader failed."""
        return [
            None
            if verdict.error
            else verdict.score >= 1 and not (finished_only and sample.finish_reason == "length")
            for sample, verdict in zip(self.samples, self.verdicts)
        ]

    def reward_finished_only(self) -> None:
        """Set the rewards of responses that were cut off to 0."""
        for sample in self.samples:
            if sample.finish_reason == "length":
                sample.reward = 0.0

    def move(self, place: int) -> None:
        """Give its responses, which form one group, this group id."""
        for sample in self.samples:
            sample.group = place

    def select(self, chosen: Sequence[int]) -> Rollout:
        """These responses, in this order."""
        return Rollout(
            [self.samples[i] for i in chosen],
            [self.prompts[i] for i in chosen],
            [self.responses[i] for i in chosen],
            [self.verdicts[i] for i in chosen],
            self.temperature,
        )

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """All parts, one after the other."""
        return Rollout(
            [s for part in parts for s in part.samples],
            [p for part in parts for p in part.prompts],
            [r for part in parts for r in part.responses],
            [v for part in parts for v in part.verdicts],
        )
