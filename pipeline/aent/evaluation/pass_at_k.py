"""pass@k and its confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

Z = statistics.NormalDist().inv_cdf(0.975)  # of a 95% interval


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, include a correct one.

    1 - C(n - c, k) / C(n, k), unbiased for the policy's pass@k (Chen et al., arXiv 2107.03374,
    equation 1). Raises ValueError unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples with {correct} correct has no meaning")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def ks(n: int) -> list[int]:
    """The values of k for which pass@k is reported with ``n`` samples per question: 1, 2, 4, ...,
    n."""
    return sorted({n} | {2**i for i in range(n.bit_length()) if 2**i <= n})


def by_k(n: int, correct: Collection[int]) -> dict[int, list[float]]:
    """pass@k of every question, for each k in ``ks(n)``; correct: the number of right samples of
    n."""
    return {k: [pass_at_k(n, c, k) for c in correct] for k in ks(n)}


def interval(values: Sequence[float], draws: int = 1) -> tuple[float, float]:
    """95% confidence interval of the mean of ``values`` in [0, 1], one per question.

    The questions are treated as a sample of all such questions; ``draws`` is the number of samples
    behind each value. It is Wilson's interval with the effective number of observations m (1 - m) /
    var, with var the variance of the mean over questions (Korn and Graubard, Survey Methodology 24,
    1998). Unlike mean +- 1.96 standard errors it stays in [0, 1], and is not a single point if all
    questions have the same result. (NaN, NaN) for a single question.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    spread, variance = mean * (1 - mean), statistics.variance(values) / count
    if spread <= 0:  # all right or all wrong
        effective = float(count)
    else:
        effective = min(count * draws, spread / variance) if variance > 0 else count * draws
    shrink = 1 + Z**2 / effective
    centre = (mean + Z**2 / (2 * effective)) / shrink
    half = Z / shrink * math.sqrt(max(spread, 0.0) / effective + Z**2 / (4 * effective**2))
    return max(0.0, centre - half), min(1.0, centre + half)
