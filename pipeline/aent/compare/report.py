"""The report of a comparison: charts, tables, and what can and cannot be concluded of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from aent.analysis.intervals import LEVEL, Difference, last_quarter, least_p
from aent.compare import numbers
from aent.compare.collect import Comparison
from aent.compare.numbers import WINDOW, Curve, metric
from aent.recipe.changes import changes
from aent.recipe.schema import Recipe
from aent.tasks.mixture import title

NOTHING = "–"


@dataclass(frozen=True)
class Chart:
    """Curves by arm; those of a chart without any are not shown."""

    name: str
    title: str
    x_label: str
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that the page and the Markdown say."""

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
        baseline: the arm that the others are held against; None: the one without any control of the
            entropy, else the first.
        reward: what it costs to reach is told; None: the baseline's mean of its last quarter.

    Raises ValueError for an arm that is not there.
    """
    arms = comparison.arms
    baseline = baseline or next(filter(comparison.is_uncontrolled, arms), arms[0])
    if baseline not in arms:
        raise ValueError(f"baseline: there is no arm {baseline} (there are {', '.join(arms)})")
    arms = [baseline, *(arm for arm in arms if arm != baseline)]
    of_baseline = comparison.of(baseline)
    if reward is None:
        reward = fmean(last_quarter(r.metrics["reward/mean"]) for r in of_baseline.values())
    differences = list(_differences(comparison, arms))
    recipe = comparison.runs[0].recipe
    model = recipe.model.path or recipe.model.bundled
    return Report(
        title=f"{len(arms)} arms, {max(len(comparison.of(a)) for a in arms)} seeds",
        facts=[
            f"Policy {model}, task {title(recipe.task)}, {recipe.steps} steps of "
            f"{recipe.rollout.prompts_per_step} prompts x {recipe.rollout.samples_per_prompt} "
            "samples.",
            f"Differences are to {baseline}, seed by seed: the arms of a seed {_share(recipe)}.",
            "Curves are means over seeds, bands reach from the smallest seed to the largest; a "
            "table's [a, b] does too.",
        ],
        arms=arms,
        charts=[chart for chart in _charts(comparison) if chart.curves],
        tables=[
            _arms_table(comparison, arms),
            _training_table(comparison, arms),
            *_heldout_table(comparison, arms),
            _cost_table(comparison, arms, reward),
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


# -- tables ----------------------------------------------------------------------------------------


def _arms_table(comparison: Comparison, arms: Sequence[str]) -> Table:
    first = next(iter(comparison.of(arms[0]).values())).recipe
    rows = []
    for arm in arms:
        runs = comparison.of(arm)
        recipe = next(iter(runs.values())).recipe
        told = ("entropy", "controller") if arm == arms[0] else ()
        values = [f"{name}: {_given(getattr(recipe, name))}" for name in told]
        values += [
            f"{c.field}: {NOTHING if c.after is None else c.after}"
            for c in changes(first, recipe)
            if c.rule != "free" and c.field != "seed"
        ]
        rows.append([arm, ", ".join(map(str, sorted(runs))), "; ".join(values) or "the same"])
    return Table("Arms", ["arm", "seeds", "what it is (the others: what it changes)"], rows)


def _given(section) -> str:
    given = {k: v for k, v in section.model_dump().items() if v is not None}
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in given.items())


def _training_table(comparison: Comparison, arms: Sequence[str]) -> Table:
    names = {
        "reward": "reward/mean",
        "entropy, nats": "policy/entropy",
        "coefficient": "controller/coefficient",
        "length, tokens": "response/length_mean",
        "truncated": "response/truncated_share",
    }
    others = numbers.common_band(comparison)
    rows, borrowed = [], False
    for arm in arms:
        runs = list(comparison.of(arm).values())
        cells = [spread(last_quarter(run.metrics[key]) for run in runs) for key in names.values()]
        shares = [numbers.share_in_band(run, others) for run in runs]
        in_band = spread(s for s in shares if s is not None)
        if in_band != NOTHING and numbers.band(runs[0]) is None:
            borrowed, in_band = True, in_band + " *"
        rows.append([arm, *cells, in_band])
    note = "Means over the last quarter of the steps; the last column counts all steps."
    if borrowed and others:
        note += f" *: no band of its own; held against the others', {others[0]:g} to {others[1]:g}."
    return Table("Training", ["arm", *names, "steps in the band"], rows, note)


def _heldout_table(comparison: Comparison, arms: Sequence[str]) -> Iterator[Table]:
    runs = [run for run in comparison.runs if run.evaluations]
    if not runs:
        return
    known = sorted(set.intersection(*(set(run.ks) for run in runs)))
    rows = []
    for arm in arms:
        of_arm = [run for run in comparison.of(arm).values() if run.evaluations]
        before = [numbers.pass_at_1(run)[0] for run in of_arm if 0 in run.evaluations]
        after = [numbers.pass_at_ks(run) for run in of_arm]
        rows.append([arm, spread(before), *(spread(a[k] for a in after) for k in known)])
    questions = len(runs[0].evaluations[max(runs[0].evaluations)].correct)
    samples = runs[0].evaluations[max(runs[0].evaluations)].samples
    note = (
        f"{questions} questions a seed, {samples} samples each, after the last step (the first "
        "column: before the first). pass@k is the unbiased estimate 1 - C(n - c, k) / C(n, k)."
    )
    head = ["arm", "pass@1 before", *(f"pass@{k}" for k in known)]
    yield Table("Held-out questions", head, rows, note)


def _cost_table(comparison: Comparison, arms: Sequence[str], reward: float) -> Table:
    rows = []
    for arm in arms:
        runs = list(comparison.of(arm).values())
        costs = [numbers.cost_to_reach(run, reward) for run in runs]
        there = [c for c in costs if c is not None]
        rows.append(
            [
                arm,
                spread(fmean(run.seconds.values()) for run in runs),
                spread((fmean(run.metrics["tokens/total"].values()) for run in runs), ".0f"),
                f"{len(there)} of {len(runs)}",
                spread((c.steps for c in there), ".0f"),
                spread((c.seconds for c in there), ".1f"),
                spread((c.tokens for c in there), ".0f"),
            ]
        )
    return Table(
        "Cost",
        ["arm", "s a step", "tokens a step", f"seeds that reach {reward:.3f}",
         "after steps", "seconds", "tokens"],
        rows,
        f"Reached: a mean of {WINDOW} steps' rewards. Wall seconds of the machine it ran on, of "
        "sampling, scoring, training and weight transfer; start, evaluations and checkpoints are "
        "left out. The last three columns are of the seeds that reached it.",
    )  # fmt: skip


# -- differences -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    arm: str
    outcome: str
    difference: Difference

    @property
    def is_certain(self) -> bool:
        return self.difference.verdict in ("higher", "lower")


def _share(recipe: Recipe) -> str:
    """What the arms of a seed have in common."""
    same = "answer the same held-out questions"
    if recipe.task.curriculum is not None:
        return f"{same}; which prompts come when is the curriculum's choice, in each arm its own"
    return f"see the same prompts in the same order and {same}"


def _differences(comparison: Comparison, arms: Sequence[str]) -> Iterator[_Compared]:
    baseline = comparison.of(arms[0])
    ks = [set(run.ks) for run in comparison.runs if run.evaluations]
    known = sorted(set.intersection(*ks)) if ks else []
    for arm in arms[1:]:
        runs = comparison.of(arm)
        if not runs.keys() & baseline.keys():
            continue
        yield _Compared(arm, "reward", numbers.reward_difference(runs, baseline))
        for k in dict.fromkeys([*known[:1], *known[-1:]]):
            found = numbers.pass_difference(runs, baseline, k)
            if found is not None:
                yield _Compared(arm, f"held-out pass@{k}", found)


def _difference_table(differences: Sequence[_Compared], baseline: str) -> Table:
    rows = [
        [
            d.arm,
            d.outcome,
            f"{d.difference.mean:+.3f}",
            _interval(d.difference),
            f"{d.difference.p:.2g}",
            d.difference.verdict,
        ]
        for d in differences
    ]
    return Table(
        f"Differences to {baseline}",
        ["arm", "outcome", "difference", "95% interval", "p", "verdict"],
        rows,
        "Reward: mean of the last quarter of the steps. Interval: paired bootstrap over seeds and, "
        "of pass@k, over each seed's questions (percentiles of 10,000 draws). p: sign flips of the "
        "seeds' differences (Fisher's randomisation test), two-sided. A verdict without a reserve "
        f"needs both: an interval without 0 and p <= {LEVEL:g}.",
    )


def _interval(difference: Difference) -> str:
    return f"[{difference.low:+.3f}, {difference.high:+.3f}]"


def _sentence(compared: _Compared, baseline: str) -> str:
    d = compared.difference
    return (
        f"{compared.arm} against {baseline}, {compared.outcome}: {d.verdict} "
        f"({d.mean:+.3f} {_interval(d)}, {d.seeds} seeds)."
    )


def _limits(
    comparison: Comparison, arms: Sequence[str], differences: Sequence[_Compared], baseline: str
) -> Iterator[str]:
    """What the runs do not say."""
    by_verdict: dict[str, list[_Compared]] = {}
    for compared in differences:
        if not compared.is_certain:
            by_verdict.setdefault(compared.difference.verdict, []).append(compared)
    for verdict, group in by_verdict.items():
        named = [f"{d.arm}'s {d.outcome} ({d.difference.mean:+.3f})" for d in group]
        yield f"Against {baseline}, {verdict}: {', '.join(named)}."
    seeds = min((d.difference.seeds for d in differences), default=0)
    if differences and least_p(seeds) > LEVEL:
        yield (
            f"With {seeds} {'seed' if seeds == 1 else 'seeds'}, sign flips cannot give a p-value "
            f"below {least_p(seeds):g}: no "
            f"difference between the methods is concluded at the {LEVEL:.0%} level from so few, "
            "whatever the intervals say (6 seeds are the least). A bootstrap over so few seeds is "
            "too narrow besides."
        )
    if len(differences) > 1:
        yield (
            f"{len(differences)} differences are looked at, and no level is corrected for that: "
            "where there were none, one in twenty would seem to be there."
        )
    counts = {arm: sorted(comparison.of(arm)) for arm in arms}
    if len({tuple(s) for s in counts.values()}) > 1:
        told = "; ".join(f"{arm}: {', '.join(map(str, s))}" for arm, s in counts.items())
        yield f"The arms do not have the same seeds ({told}); differences use those that both have."
    if not any(run.evaluations for run in comparison.runs):
        yield "No answers to held-out questions were recorded (task.heldout): pass@k is not known."
    yield from (f"Left out: {sentence}." for sentence in comparison.left_out)
    yield (
        "One policy, one task and one choice of each arm's settings: what is better or worse here "
        "may be otherwise with another model, or with an arm's best settings."
    )


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Mean, and the smallest and largest where they differ."""
    known = list(values)
    if not known:
        return NOTHING
    mean, low, high = (format(v, form) for v in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"
