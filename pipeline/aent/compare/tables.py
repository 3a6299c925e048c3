"""The tables of a comparison's report, each a function of the recorded runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from aent.analysis import bottleneck
from aent.analysis.intervals import last_quarter
from aent.compare import numbers
from aent.compare.collect import Comparison
from aent.compare.numbers import WINDOW
from aent.recipe.changes import changes

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def arms_table(comparison: Comparison, arms: Sequence[str]) -> Table:
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
    return Table("Arms", ["arm", "seeds", "what it is (the others: what they change)"], rows)


def _given(section) -> str:
    given = {k: v for k, v in section.model_dump().items() if v is not None}
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in given.items())


def training_table(comparison: Comparison, arms: Sequence[str]) -> Table:
    names = {
        "reward": "reward/mean",
        "entropy, nats": "policy/entropy",
        "coefficient": "controller/coefficient",
        "length, tokens": "response/length_mean",
        "truncated": "response/truncated_share",
    }
    others = numbers.common_bands(comparison)
    rows, borrowed = [], False
    for arm in arms:
        runs = list(comparison.of(arm).values())
        cells = [spread(last_quarter(run.metrics[key]) for run in runs) for key in names.values()]
        shares = [numbers.share_in_band(run, others) for run in runs]
        in_band = spread(s for s in shares if s is not None)
        if in_band != NOTHING and not numbers.bands(runs[0]):
            borrowed, in_band = True, in_band + " *"
        rows.append([arm, *cells, in_band])
    note = (
        "Means over the last quarter of the steps; the last column counts all steps, each with "
        "the band of that step (it moves during controller.ramp_steps)."
    )
    if borrowed and others:
        low, high = (f"{edge:.3g}" for edge in others[max(others)])
        note += f" *: no band of its own; compared with the others' (in the end {low} to {high})."
    return Table("Training", ["arm", *names, "steps in the band"], rows, note)


def entropy_table(comparison: Comparison, arms: Sequence[str]) -> Table:
    """The noise of the entropy, the variety of answers, and how well its change was predicted."""

    def known(values: Iterable[float | None]) -> str:
        return spread(v for v in values if v is not None)

    rows = []
    for arm in arms:
        runs = list(comparison.of(arm).values())
        distinct = [run.metrics.get("response/distinct_answers") for run in runs]
        cells = [
            known(last_quarter(run.measured_entropy) for run in runs),
            known(numbers.relative_noise(run) for run in runs),
            known(last_quarter(series) if series else None for series in distinct),
            known(numbers.prediction(run) for run in runs),
        ]
        rows.append([arm, *cells])
    head = ["arm", "entropy, nats", "noise of a step", "distinct answers", "predicted and observed"]
    return Table(
        "Entropy",
        head,
        rows,
        "Means over the last quarter of the steps, of the entropy that the controller measures. "
        "Noise: its standard error over a step's prompts, as a share of it. Distinct answers: "
        "among "
        "a prompt's responses. Last column: correlation, over the steps that have any "
        "gradient, between the change of entropy that it predicts and the change that followed.",
    )


def heldout_table(comparison: Comparison, arms: Sequence[str]) -> Iterator[Table]:
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


def cost_table(comparison: Comparison, arms: Sequence[str], reward: float) -> Table:
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
        f"Reached: by the mean reward of {WINDOW} steps. Without --reward the level is halfway "
        "between the last rewards of the baseline and of the best arm. Wall seconds on the machine "
        "it ran on, for sampling, scoring, training and weight transfer, without start, "
        "evaluations and checkpoints. The last three columns are of the seeds that reached it.",
    )  # fmt: skip


def bottleneck_table(comparison: Comparison, arms: Sequence[str]) -> Table:
    """Of each arm's first seed."""
    rows = []
    for arm in arms:
        run = next(iter(comparison.of(arm).values()))
        rows.append([arm, bottleneck.sentence(run.recipe, run.metrics)])
    return Table("Where the seconds go", ["arm", "of its first seed"], rows)


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Mean, with the smallest and largest if they differ."""
    known = list(values)
    if not known:
        return NOTHING
    mean, low, high = (format(v, form) for v in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"
