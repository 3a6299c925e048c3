"""A step's metrics of tokens, against numbers computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aent.data.batch import Batch
from aent.data.rollout import Rollout, Verdict
from aent.data.sample import Sample
from aent.orchestrator import token_record as module
from aent.orchestrator.token_metrics import (
    Mix,
    by_class,
    by_position,
    distinct_answers,
    split_change,
    standard_error,
)
from aent.orchestrator.token_record import TokenRecord, shown, token_record

RESPONSES = [(0, [5, 6]), (0, [5]), (1, [7, 5, 6]), (1, [8])]  # (group, tokens)
TEXTS = {5: "five", 6: " 6", 7: "=", 8: ""}
CLASSES = {5: "words", 6: "digits", 7: "punctuation", 8: "special"}


@pytest.fixture
def rollout() -> Rollout:
    samples = [
        Sample([1, 2], ids, [0.0] * len(ids), [0] * len(ids), "stop", group, 40 + group)
        for group, ids in RESPONSES
    ]
    return Rollout(samples, ["?"] * 4, ["so 7", "7.0", "8", "none"], [Verdict(0.0)] * 4)


@pytest.fixture
def record(rollout: Rollout) -> TokenRecord:
    """Of two mini-batches, a group each; entropies are 0.1, 0.2, ... in the batch's order."""
    batch = Batch.from_samples(rollout.samples, 1.0)
    number = torch.cumsum(batch.loss_mask, 0) * batch.loss_mask

    def result(group: int) -> Any:
        part = number[batch.group[batch.sequence_of_token] == group].float()
        return SimpleNamespace(
            logprobs=-part,
            entropies=part / 10,
            clamped_entropies=part / 20,
            clipped=(part == 3).float(),
        )

    return token_record(batch, number * 2.0, [result(0), result(1)], "entropy")


def test_mini_batches_are_put_together(record: TokenRecord) -> None:
    count = torch.arange(1.0, 8.0, dtype=torch.float64)
    assert record.token.tolist() == [5, 6, 5, 7, 5, 6, 8]
    assert record.position.tolist() == [0, 1, 0, 0, 1, 2, 0]
    assert record.group.tolist() == [0, 0, 0, 1, 1, 1, 1]
    torch.testing.assert_close(record.entropy, (count.float() / 10).double())
    torch.testing.assert_close(record.logprob, -count)
    assert record.clipped.nonzero().flatten().tolist() == [2]
    # both are the tokens' numbers times a constant: covariance is -2 (i - 4)^2
    assert record.covariance.tolist() == [-18, -8, -2, 0, -2, -8, -18]
    assert record.response_means() == pytest.approx([0.15, 0.3, 0.5, 0.7])
    assert record.forking_from(0.3) == pytest.approx(0.6)  # two of seven


def test_classes_and_positions(record: TokenRecord) -> None:
    mix = by_class(record, CLASSES.__getitem__)
    assert mix.share == pytest.approx(
        {"words": 3 / 7, "digits": 2 / 7, "punctuation": 1 / 7, "special": 1 / 7}
    )
    assert mix.entropy == pytest.approx(
        {"words": 0.9 / 3, "digits": 0.4, "punctuation": 0.4, "special": 0.7}
    )
    assert Mix.read(mix.metrics() | {"policy/entropy": 1.0}) == mix
    assert Mix.read({"policy/entropy": 1.0}) is None
    assert by_position(record) == pytest.approx(
        {
            "entropy/position/from_0": (0.1 + 0.3 + 0.4 + 0.7) / 4,
            "entropy/position/from_1": (0.2 + 0.5) / 2,
            "entropy/position/from_2": 0.6,
        }
    )


def test_positions_are_grouped_by_powers_of_two() -> None:
    assert module_powers([0, 1, 2, 3, 4, 7, 8, 1023, 1024]) == [0, 1, 2, 2, 4, 4, 8, 512, 1024]


def module_powers(positions: list[int]) -> list[int]:
    from aent.orchestrator.token_metrics import _powers

    return _powers(torch.tensor(positions)).tolist()


def test_a_change_is_split_into_the_same_and_other_tokens() -> None:
    words, digits = {"words": 1.0, "digits": 0.2}, {"words": 0.5, "digits": 0.2}
    mixed, half = {"words": 0.8, "digits": 0.2}, {"words": 0.4, "digits": 0.6}
    only_same = split_change(Mix(mixed, words), Mix(mixed, digits))
    assert only_same["entropy/change_same"] == pytest.approx(-0.4)
    assert only_same["entropy/change_other"] == 0
    only_other = split_change(Mix(mixed, words), Mix(half, words))
    assert only_other["entropy/change_other"] == pytest.approx(-0.4 + 0.08)
    assert only_other["entropy/change_same"] == 0
    new = split_change(Mix({"words": 1.0}, {"words": 1.0}), Mix(half, digits))
    total = 0.4 * 0.5 + 0.6 * 0.2 - 1.0
    assert new["entropy/change"] == pytest.approx(total)
    assert new["entropy/change_same"] == pytest.approx((1 + 0.4) / 2 * -0.5)


def test_the_standard_error_is_over_prompts(record: TokenRecord) -> None:
    """Prompt 0 has entropies 0.1, 0.2, 0.3, prompt 1 has 0.4 to 0.7; their mean is 0.4."""
    sums = (-0.6, 0.6)
    want = math.sqrt(2 * sum(s**2 for s in sums)) / 7
    assert standard_error(record) == pytest.approx(want, rel=1e-6)
    one = TokenRecord(**vars(record) | {"group": torch.zeros(7, dtype=torch.int64)})
    assert math.isnan(standard_error(one))


def test_distinct_answers_by_the_verifiers_reading(rollout: Rollout) -> None:
    assert distinct_answers(rollout, {"": "last_number"}) == (1 + 2) / 2
    assert distinct_answers(rollout, {"": "reasoning_gym"}) == 2


def test_a_page_shows_whole_groups(
    record: TokenRecord, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: Any = SimpleNamespace(of=lambda ids: [TEXTS[i] for i in ids])
    step = shown(record, rollout, pieces, "trial", "entropy")
    assert step.left_out == 0
    assert [r.item for r in step.responses] == [40, 40, 41, 41]
    third = step.responses[2]
    assert third.pieces == ["=", "five", " 6"]
    assert third.entropy == pytest.approx([0.4, 0.5, 0.6])
    assert third.probability == pytest.approx([math.exp(-x) for x in (4, 5, 6)])
    assert third.advantage == [8, 10, 12]
    monkeypatch.setattr(module, "MAX_TOKENS", 3)
    cut = shown(record, rollout, pieces, "trial", "entropy")
    assert [r.item for r in cut.responses] == [40, 40]
    assert cut.left_out == 2
    assert cut.mean == step.mean
