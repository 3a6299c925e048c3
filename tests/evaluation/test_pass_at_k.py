import itertools
import math
import random
import statistics

import pytest

from aent.evaluation.pass_at_k import interval, pass_at_k
from wording import naming


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_against_every_draw(n):
    for correct in range(n + 1):
        right = [i < correct for i in range(n)]
        for k in range(1, n + 1):
            draws = list(itertools.combinations(right, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_against_the_hypergeometric_distribution():
    from scipy.stats import hypergeom

    for n, correct, k in ((64, 3, 16), (256, 17, 8), (1024, 1, 512), (200, 150, 100)):
        exact = hypergeom.sf(0, n, correct, k)  # at least one correct among k of n
        assert pass_at_k(n, correct, k) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_what_has_no_meaning(n, correct, k):
    with pytest.raises(ValueError, match=naming(f"pass@{k}", n, correct)):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    ("count", "samples", "mean"), [(200, 4, 0.5), (300, 8, 0.3), (400, 1, 0.8)]
)
def test_interval_against_a_bootstrap_over_questions(count, samples, mean):
    draw = random.Random(0)
    values = []
    for _ in range(count):  # questions differ in how hard they are
        hardness = draw.betavariate(2 * mean, 2 * (1 - mean))
        values.append(sum(draw.random() < hardness for _ in range(samples)) / samples)
    resampled = sorted(statistics.fmean(draw.choices(values, k=count)) for _ in range(4000))
    low, high = interval(values, samples)
    assert low == pytest.approx(resampled[100], abs=0.01)
    assert high == pytest.approx(resampled[3900], abs=0.01)


def test_interval_holds_the_truth_nineteen_times_in_twenty():
    # 30 questions answered once, as AIME's, most of them wrong: where mean +- 1.96 errors fails
    draw, truth, held = random.Random(1), 0.1, 0
    for _ in range(2000):
        low, high = interval([float(draw.random() < truth) for _ in range(30)])
        held += low <= truth <= high
    assert 0.93 < held / 2000 < 0.99


def test_interval_where_every_question_went_the_same_way():
    # Wilson's interval of 0 of 30: [0, z^2 / (30 + z^2)]
    low, high = interval([0.0] * 30, 4)
    assert low == 0.0
    assert high == pytest.approx(1.959964**2 / (30 + 1.959964**2))
    low, high = interval([1.0] * 30, 4)
    assert (low, high) == (pytest.approx(1 - 1.959964**2 / (30 + 1.959964**2)), 1.0)
    assert interval([0.5] * 30, 4)[0] < 0.5 < interval([0.5] * 30, 4)[1]


def test_interval_of_one_question_is_unknown():
    assert all(map(math.isnan, interval([0.5], 4)))
