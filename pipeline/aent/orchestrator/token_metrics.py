"""A step's entropy by position and by kind of token, and what changed it.

Everything uses the controller's measure, so that the parts add up to what the controller gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aent.data.rollout import Rollout
from aent.models.pieces import CLASSES
from aent.orchestrator.token_record import TokenRecord
from aent.tasks.verifiers import answer_in

CLASS, SHARE = "entropy/class/", "entropy/class_share/"


@dataclass(frozen=True)
class Mix:
    """The step's response tokens by class: their share and their mean entropy (nats). Only classes
    that occur."""

    share: dict[str, float]
    entropy: dict[str, float]

    def metrics(self) -> dict[str, float]:
        return {SHARE + name: value for name, value in self.share.items()} | {
            CLASS + name: value for name, value in self.entropy.items()
        }

    @staticmethod
    def read(metrics: Mapping[str, float]) -> Mix | None:
        """Undo ``metrics``; None if these have none of them."""
        parts = [
            {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
            for prefix in (SHARE, CLASS)
        ]
        return Mix(*parts) if parts[0] else None


def by_class(record: TokenRecord, token_class: Callable[[int], str]) -> Mix:
    """The mix of a step's tokens."""
    distinct, index = torch.unique(record.token, return_inverse=True)
    number = torch.tensor([CLASSES.index(token_class(int(token))) for token in distinct])[index]
    count = torch.bincount(number, minlength=len(CLASSES)).double()
    total = torch.zeros(len(CLASSES), dtype=torch.float64).index_add(0, number, record.entropy)
    there = [(name, i) for i, name in enumerate(CLASSES) if count[i]]
    return Mix(
        {name: float(count[i] / count.sum()) for name, i in there},
        {name: float(total[i] / count[i]) for name, i in there},
    )


def split_change(before: Mix, now: Mix) -> dict[str, float]:
    """The change of the mean entropy since the step before, in two parts that sum to it.

    For a class with shares w, w' and mean entropies h, h', (w + w') / 2 (h' - h) is the change
    within the *same* kind of token, (h + h') / 2 (w' - w) the change because *other* kinds of
    tokens are written (Oaxaca's decomposition, with means of both steps). A class that only one of
    the steps has counts as the latter, with its entropy in that step.
    """
    same = other = 0.0
    for name in CLASSES:  # in a fixed order: a repeated step has the same last bits
        w, w_now = before.share.get(name, 0.0), now.share.get(name, 0.0)
        h = before.entropy.get(name, now.entropy.get(name, 0.0))
        h_now = now.entropy.get(name, h)
        same += (w + w_now) / 2 * (h_now - h)
        other += (h + h_now) / 2 * (w_now - w)
    return {
        "entropy/change": same + other,
        "entropy/change_same": same,
        "entropy/change_other": other,
    }


def by_position(record: TokenRecord) -> dict[str, float]:
    """Mean entropy of the tokens from position 0, 1, 2, 4, 8, ... of their responses up to the next
    of these positions."""
    first = _powers(record.position)
    found = {}
    for start in first.unique().tolist():
        found[f"entropy/position/from_{start}"] = float(record.entropy[first == start].mean())
    return found


def _powers(position: Tensor) -> Tensor:
    """The largest of 0, 1, 2, 4, ... that is not above the position."""
    exponent = torch.floor(torch.log2(position.clamp(min=1).double())).long()
    return torch.where(position > 0, 2**exponent, 0)


def standard_error(record: TokenRecord) -> float:
    """Of the step's mean entropy, nats, over prompts: tokens of one prompt are not independent.

    The mean is a ratio of sums over G prompts, so its error is
    sqrt(G / (G - 1) sum_g (sum over its tokens of h - H)^2) / N. NaN for one prompt.
    """
    distinct, index = torch.unique(record.group, return_inverse=True)
    groups = distinct.numel()
    if groups < 2:
        return math.nan
    apart = record.entropy - record.entropy.mean()
    sums = torch.zeros(groups, dtype=torch.float64).index_add(0, index, apart)
    return math.sqrt(groups / (groups - 1) * float(sums.square().sum())) / record.entropy.numel()


def distinct_answers(rollout: Rollout, readers: Mapping[str, str]) -> float:
    """Number of distinct answers to a prompt, as the grader of its source reads them; the mean over
    prompts. No answer counts as one.

    readers: a grader's kind by source.
    """
    answers: dict[int, set[str | None]] = {}
    for sample, response in zip(rollout.samples, rollout.responses):
        answer = answer_in(readers[sample.source], response)
        answers.setdefault(sample.group, set()).add(answer)
    return sum(map(len, answers.values())) / len(answers)
