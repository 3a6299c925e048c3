"""A report's numbers from a real MLflow store, against those computed from the recorded values."""

from __future__ import annotations

import re
from math import comb
from statistics import fmean

import pytest

from aent.compare import collect, numbers
from aent.compare.report import make
from aent.tracking.recorded import SourceError
from compare.conftest import QUESTIONS, SAMPLES, STEPS, entropy, reward, right
from wording import assert_names, naming

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(comparison):
    return collect.read(str(comparison))


@pytest.fixture(scope="module")
def tables(found):
    """Tables by title; of each, cells by row and column."""
    return {
        table.title: {row[0]: dict(zip(table.head, row)) for row in table.rows}
        for table in make(found, None, 0.3).tables
    }


def test_finished_runs_are_read_and_the_other_is_named(found):
    assert [(r.arm, r.seed) for r in found.runs] == [
        ("plain", 0), ("held", 0), ("plain", 1), ("held", 1), ("held", 2),
    ]  # fmt: skip
    (left_out,) = found.left_out
    assert_names(left_out, "plain", "seed 2", "KILLED")
    assert any("KILLED" in sentence for sentence in make(found, None, None).not_concluded)


def test_arms_and_training(tables):
    assert tables["Arms"]["held"]["seeds"] == "0, 1, 2"
    told = " ".join(tables["Arms"]["held"].values())
    assert_names(told, "controller.low: 0.5", "entropy.drop_fraction: 0.2")
    last = range(STEPS - STEPS // 4, STEPS)
    low, high = (fmean(reward("held", seed, s) for s in last) for seed in (0, 2))
    assert tables["Training"]["held"]["reward"] == f"{(low + high) / 2:.3f} [{low:.3f}, {high:.3f}]"
    for arm, mark in (("held", ""), ("plain", " *")):
        share = fmean(0.5 <= entropy(arm, s) <= 1 for s in range(STEPS))
        assert tables["Training"][arm]["steps in the band"] == f"{share:.3f}{mark}"


def test_how_sure_an_entropy_is_and_what_was_predicted_of_it(tables):
    row = tables["Entropy"]["held"]
    last = range(STEPS - STEPS // 4, STEPS)
    assert row["entropy, nats"] == f"{fmean(entropy('held', s) for s in last):.3f}"
    assert row["noise of a step"] == "0.100"
    assert row["distinct answers"] == "4.000 [3.000, 5.000]"
    assert row["predicted and observed"] == "1.000"  # both fall as exp(-step / 4)


def test_pass_at_k_of_the_last_evaluation(tables, found):
    def chance(correct: int, k: int) -> float:
        return 1 - comb(SAMPLES - correct, k) / comb(SAMPLES, k)

    for k in (1, 2, 4):
        for run in found.runs:
            mean = fmean(chance(right(run.arm, run.seed, q), k) for q in range(QUESTIONS))
            assert numbers.pass_at_ks(run)[k] == pytest.approx(mean)
    assert tables["Held-out questions"]["plain"]["pass@1 before"] == "0.000"


def test_the_cost_of_a_reward_is_what_was_spent_until_then(tables):
    """Rewards rise by the same every step: the mean of ten is that of their middle. A step costs
    1.5 s and 100 tokens: evaluations do not count. The plain arm ends below."""
    row = tables["Cost"]["held"]
    steps = [next(s for s in range(9, STEPS) if reward("held", seed, s - 4.5) >= 0.3) + 1
             for seed in range(3)]  # fmt: skip
    assert row["seeds that reach 0.300"] == "3 of 3"
    assert row["after steps"] == f"{fmean(steps):.0f} [{min(steps)}, {max(steps)}]"
    assert row["tokens"] == f"{100 * fmean(steps):.0f} [{100 * min(steps)}, {100 * max(steps)}]"
    assert row["s a step"] == "1.500"
    assert tables["Cost"]["plain"]["seeds that reach 0.300"] == "0 of 2"
    assert tables["Cost"]["plain"]["after steps"] == "–"


def test_the_reward_to_reach_is_above_the_baselines_own(found):
    """Every arm passes the reward of a collapsed baseline within a few steps."""
    last = range(STEPS - STEPS // 4, STEPS)
    plain, held = (
        fmean(reward(arm, seed, s) for seed in seeds for s in last)
        for arm, seeds in (("plain", (0, 1)), ("held", (0, 1, 2)))
    )
    (cost,) = (table for table in make(found, None, None).tables if table.title == "Cost")
    assert f"seeds that reach {(plain + held) / 2:.3f}" in cost.head
    (cost,) = (table for table in make(found, "held", None).tables if table.title == "Cost")
    assert f"seeds that reach {held:.3f}" in cost.head


def test_the_bottleneck_is_told_of_every_arm(tables):
    told = "The bottleneck is training: 1.0 of a step's 1.5 s (67%)."
    found = tables["Where the seconds go"]
    assert {arm: row["of its first seed"] for arm, row in found.items()} == {
        "plain": told, "held": told
    }  # fmt: skip


def test_two_seeds_conclude_nothing(found):
    report = make(found, None, None)
    assert report.concluded == []
    assert any(re.search(naming("p-value", 0.5), s) for s in report.not_concluded)
    assert any("held: 0, 1, 2" in s for s in report.not_concluded)
    (reward_row,) = (row for row in report.tables[-1].rows if row[1] == "reward")
    last = range(STEPS - STEPS // 4, STEPS)
    gain = fmean(reward("held", 0, s) - reward("plain", 0, s) for s in last)
    assert reward_row[2] == f"{gain:+.3f}"
    assert reward_row[4:6] == ["0.5", "0.5"]  # both seeds agree: no correction makes it larger
    assert_names(reward_row[6], "higher", "seeds")


def test_what_is_no_comparison_is_a_sentence(tmp_path, found):
    with pytest.raises(SourceError, match=naming(tmp_path)):
        collect.read(str(tmp_path))
    with pytest.raises(SourceError, match="nothing"):
        collect.read("nothing")
    with pytest.raises(ValueError, match=naming("arm", "other")):
        make(found, "other", None)
