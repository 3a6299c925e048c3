"""The report of a comparison: charts, tables, and what can and cannot be concluded from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aent.analysis.intervals import LEVEL, Difference, joint_sign_flips, least_p
from aent.compare import numbers, tables
from aent.compare.collect import Comparison
from aent.compare.numbers import WINDOW, Curve, metric
from aent.compare.tables import Table
from aent.recipe.schema import Recipe
from aent.tasks.mixture import title


@dataclass(frozen=True)
class Chart:
    """Curves by arm; a chart without curves is not shown."""

    name: str
    title: str
    x_label: str
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Report:
    """The content of the page and of the Markdown file."""

    title: str
    facts: list[str]
    arms: list[str]  # the baseline first
    charts: list[Chart]
    tables: list[Table]
    concluded: list[str]
    not_concluded: list[str]


def make(comparison: Comparison, baseline: str | None, reward: float | None) -> Report:
    """The report.

    Args:
        baseline: the arm that the others are compared with; None: the one that controls no entropy,
            else the first.
        reward: the report says what it costs to reach it; None: ``numbers.reward_to_reach``.

    Raises ValueError if there is no such arm.
    """
    arms = comparison.arms
    baseline = baseline or next(filter(comparison.is_uncontrolled, arms), arms[0])
    if baseline not in arms:
        raise ValueError(f"baseline: there is no arm {baseline} (there are {', '.join(arms)})")
    arms = [baseline, *(arm for arm in arms if arm != baseline)]
    if reward is None:
        reward = numbers.reward_to_reach(comparison, baseline)
    differences = _differences(comparison, arms)
    recipe = comparison.runs[0].recipe
    model = recipe.model.path or recipe.model.bundled
    return Report(
        title=f"{len(arms)} arms, {max(len(comparison.of(a)) for a in arms)} seeds",
        facts=[
            f"Policy {model}, task {title(recipe.task)}, {recipe.steps} steps of "
            f"{recipe.rollout.prompts_per_step} prompts x {recipe.rollout.samples_per_prompt} "
            "samples.",
            f"Differences are to {baseline}, seed by seed: the arms of a seed {_share(recipe)}.",
            "Curves are means over seeds. Bands, and [a, b] in tables, reach from the smallest "
            "seed to the largest.",
        ],
        arms=arms,
        charts=[chart for chart in _charts(comparison) if chart.curves],
        tables=[
            tables.arms_table(comparison, arms),
            tables.training_table(comparison, arms),
            tables.entropy_table(comparison, arms),
            *tables.heldout_table(comparison, arms),
            tables.cost_table(comparison, arms, reward),
            tables.bottleneck_table(comparison, arms),
            _difference_table(differences, baseline),
        ],
        concluded=[_sentence(d, baseline) for d in differences if d.is_certain],
        not_concluded=[*_limits(comparison, arms, differences, baseline)],
    )


# -- charts ----------------------------------------------------------------------------------------


def _charts(comparison: Comparison) -> Iterator[Chart]:
    def over_steps(name: str, title: str, of_run, window: int = 1) -> Chart:
        return Chart(name, title, "step", numbers.curves(comparison, of_run, window))

    def smoothed(name: str, title: str, key: str) -> Chart:
        return over_steps(name, f"{title} (mean of {WINDOW} steps)", metric(key), WINDOW)

    yield smoothed("reward", "mean reward", "reward/mean")
    yield over_steps("entropy", "entropy, nats per token", metric("policy/entropy"))
    yield over_steps("coefficient", "entropy coefficient", metric("controller/coefficient"))
    yield over_steps("heldout", "held-out pass@1", numbers.pass_at_1)
    passes = numbers.curves(comparison, numbers.pass_at_ks)
    yield Chart("pass_at_k", "held-out pass@k after the last step", "k", passes)
    yield smoothed("length", "response length, tokens", "response/length_mean")
    yield smoothed("truncated", "truncated share", "response/truncated_share")


# -- differences -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    arm: str
    outcome: str
    difference: Difference
    p: float  # corrected for the number of differences

    @property
    def verdict(self) -> str:
        return self.difference.verdict(self.p)

    @property
    def is_certain(self) -> bool:
        return self.verdict in ("higher", "lower")


def _share(recipe: Recipe) -> str:
    """What the arms of a seed have in common."""
    same = "answer the same held-out questions"
    if recipe.task.curriculum is not None:
        return f"{same}; each arm's own curriculum chooses the order of the prompts"
    return f"see the same prompts in the same order and {same}"


def _differences(comparison: Comparison, arms: Sequence[str]) -> list[_Compared]:
    baseline = comparison.of(arms[0])
    ks = [set(run.ks) for run in comparison.runs if run.evaluations]
    known = sorted(set.intersection(*ks)) if ks else []
    found: list[tuple[str, str, Difference]] = []
    for arm in arms[1:]:
        runs = comparison.of(arm)
        if not runs.keys() & baseline.keys():
            continue
        found.append((arm, "reward", numbers.reward_difference(runs, baseline)))
        for k in dict.fromkeys([*known[:1], *known[-1:]]):
            of_k = numbers.pass_difference(runs, baseline, k)
            if of_k is not None:
                found.append((arm, f"held-out pass@{k}", of_k))
    corrected = joint_sign_flips([d.means for *_, d in found], [outcome for _, outcome, _ in found])
    return [_Compared(*each, p) for each, p in zip(found, corrected, strict=True)]


def _difference_table(differences: Sequence[_Compared], baseline: str) -> Table:
    rows = [
        [
            d.arm,
            d.outcome,
            f"{d.difference.mean:+.3f}",
            _interval(d.difference),
            f"{d.difference.p:.2g}",
            f"{d.p:.2g}",
            d.verdict,
        ]
        for d in differences
    ]
    return Table(
        f"Differences to {baseline}",
        ["arm", "outcome", "difference", "95% interval", "p", "corrected p", "verdict"],
        rows,
        "Reward: mean of the last quarter of the steps. Interval: paired bootstrap over seeds and, "
        "of pass@k, over each seed's questions (percentiles of 10,000 draws). p: sign flips of the "
        "seeds' differences (Fisher's randomization test), two-sided. Corrected p: for the number "
        "of differences in this table (step-down maxT of Westfall and Young: a seed has one sign "
        "for all of its differences). A verdict without a reserve needs both: an interval without "
        f"0 and a corrected p <= {LEVEL:g}.",
    )


def _interval(difference: Difference) -> str:
    return f"[{difference.low:+.3f}, {difference.high:+.3f}]"


def _sentence(compared: _Compared, baseline: str) -> str:
    d = compared.difference
    return (
        f"{compared.arm} against {baseline}, {compared.outcome}: {compared.verdict} "
        f"({d.mean:+.3f} {_interval(d)}, {d.seeds} seeds)."
    )


def _limits(
    comparison: Comparison, arms: Sequence[str], differences: Sequence[_Compared], baseline: str
) -> Iterator[str]:
    """What cannot be concluded from the runs."""
    by_verdict: dict[str, list[_Compared]] = {}
    for compared in differences:
        if not compared.is_certain:
            by_verdict.setdefault(compared.verdict, []).append(compared)
    for verdict, group in by_verdict.items():
        named = [f"{d.arm}'s {d.outcome} ({d.difference.mean:+.3f})" for d in group]
        yield f"Against {baseline}, {verdict}: {', '.join(named)}."
    few = {d.arm: d.difference.seeds for d in differences if least_p(d.difference.seeds) > LEVEL}
    if few:
        seeds = max(few.values())
        whose = "" if few.keys() == {d.arm for d in differences} else f" ({', '.join(few)})"
        yield (
            f"With {seeds} {'seed' if seeds == 1 else 'seeds'}{whose}, sign flips cannot give a "
            f"p-value below {least_p(seeds):g}: no "
            f"difference between the methods is concluded at the {LEVEL:.0%} level from so few, "
            "whatever the intervals say (it takes at least 6 seeds). A bootstrap over so few seeds "
            "is also too narrow."
        )
    counts = {arm: sorted(comparison.of(arm)) for arm in arms}
    if len({tuple(s) for s in counts.values()}) > 1:
        told = "; ".join(f"{arm}: {', '.join(map(str, s))}" for arm, s in counts.items())
        yield (
            f"The arms do not have the same seeds ({told}); differences use the seeds that "
            f"both have."
        )
    if not any(run.evaluations for run in comparison.runs):
        yield "No answers to held-out questions were recorded (task.heldout): pass@k is not known."
    yield from (f"Left out: {sentence}." for sentence in comparison.left_out)
    yield (
        "One policy, one task and one choice of each arm's settings: the result may differ with "
        "another model, or with the best settings of an arm."
    )
