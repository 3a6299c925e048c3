"""``aent lab bandit``: arms x seeds of ``bandit``, resumable, and the conclusions from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev

from aent.analysis.intervals import Difference, bootstrap, compare, holm
from aent.lab.bandit import Arm, Scores, Step, simulate
from aent.tracking.journal import drop_torn_line

SETTLING = 50  # steps until the entropy reaches its target; in a short run, half of its steps
DECIDED = 0.02  # difference in pass@k that matters; POWER is for it
ALIKE = 0.01  # two arms are equivalent if their difference certainly lies within this
POWER = 0.8
FEWEST = 5  # seeds of an equivalence test: all of n lie on one side by chance with 2^-n <= 5%
REWARD = 0.15  # "steps to" is until a step's mean reward first reaches this
COLLAPSED = 0.1  # nats: a run has collapsed if its mean entropy over its last quarter is below
EXPLODED = 5.4  # nats, half of ln(49,152): it has exploded if that mean is above
SCORES = ("pass_1", "pass_8", "greedy", "entropy", "tail")
COLUMNS = (
    *("arm", "seed", "target", "learning_rate", "steps", "step", "entropy", "coefficient"),
    *("reward", *(f"train_{name}" for name in SCORES), *(f"heldout_{name}" for name in SCORES)),
)

Runs = dict[tuple[str, int], list[Step]]  # by arm and seed
Known = dict[tuple[str, int, "Settings"], list[Step]]
Outcome = Callable[[Sequence[Step]], float]


@dataclass(frozen=True)
class Settings:
    """The settings that all runs of a table share."""

    steps: int
    target: float  # nats, of the full entropy
    learning_rate: float


def run(
    arms: Sequence[Arm],
    seeds: range,
    settings: Settings,
    known: Known,
    path: Path | None,
    progress: Callable[[range, str], Iterable[int]],
) -> Runs:
    """Run every arm with every seed, except the ``known`` runs, which ``path`` has (``read``). The
    others are appended to it one by one. It goes seed by seed, so that an unfinished file has
    paired runs."""
    runs = {}
    for seed in seeds:
        for arm in arms:
            key = (arm.name, seed, settings)
            if key not in known:
                words = f"{arm.name}, seed {seed}"

                def tell(steps: range, words: str = words) -> Iterable[int]:
                    return progress(steps, words)

                one = simulate(
                    arm, seed, settings.steps, settings.target, settings.learning_rate, tell
                )
                if path is not None:
                    append(path, arm.name, seed, settings, one)
                runs[arm.name, seed] = one
            else:
                runs[arm.name, seed] = known[key]
    return runs


def append(path: Path, arm: str, seed: int, settings: Settings, steps: Sequence[Step]) -> None:
    """Add a run to the file, in one write."""
    begins = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if begins:
            rows.writerow(COLUMNS)
        for number, step in enumerate(steps):
            scores = [*_values(step.train), *_values(step.heldout)]
            common = [arm, seed, settings.target, settings.learning_rate, settings.steps]
            rows.writerow([*common, number, step.entropy, step.coefficient, step.reward, *scores])


def _values(scores: Scores | None) -> list[float | str]:
    return [""] * len(SCORES) if scores is None else [getattr(scores, n) for n in SCORES]


def read(path: Path) -> Known:
    """The complete runs of a file; a run cut short by a kill is removed.

    Raises ValueError if the file has other columns, or a line with something else than numbers.
    """
    if not path.exists() or path.stat().st_size == 0:
        return {}
    try:
        found = _found(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    whole = {key: steps for key, steps in found.items() if len(steps) == key[2].steps}
    if len(whole) < len(found):
        unfinished = path.with_name(f".{path.name}")
        unfinished.unlink(missing_ok=True)
        for (arm, seed, settings), steps in whole.items():
            append(unfinished, arm, seed, settings, steps)
        if whole:
            unfinished.replace(path)
        else:
            path.write_text("")
    return whole


def _found(path: Path) -> Known:
    """All runs of a file, the last of which may be incomplete."""
    with path.open(newline="") as file:
        if tuple(csv.DictReader(file).fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is not a file of aent lab bandit: it has other columns")
    drop_torn_line(path)
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        found: Known = {}
        for row in table:
            try:
                settings = Settings(
                    int(row["steps"]), float(row["target"]), float(row["learning_rate"])
                )
                key = row["arm"], int(row["seed"]), settings
                found.setdefault(key, []).append(_step(row))
            except (TypeError, ValueError):
                raise ValueError(f"{path}: line {table.line_num} is not a step of a run") from None
    return found


def _step(row: dict[str, str]) -> Step:
    def scores(prefix: str) -> Scores | None:
        if not row[f"{prefix}_pass_1"]:
            return None
        return Scores(*(float(row[f"{prefix}_{name}"]) for name in SCORES))

    return Step(
        entropy=float(row["entropy"]),
        coefficient=float(row["coefficient"]),
        reward=float(row["reward"]),
        train=scores("train"),
        heldout=scores("heldout"),
    )


def last_scores(steps: Sequence[Step]) -> Scores:
    """Of the training questions, after the last step."""
    scores = steps[-1].train
    assert scores is not None, "the last step is always scored"
    return scores


def steps_to_reward(steps: Sequence[Step]) -> int:
    """Updates before the first step whose mean reward is REWARD; all of them if there is none."""
    return next((n for n, step in enumerate(steps) if step.reward >= REWARD), len(steps))


def last_entropy(steps: Sequence[Step]) -> float:
    """Mean over the last quarter of the steps, nats."""
    return fmean(step.entropy for step in steps[-max(1, len(steps) // 4) :])


PRIMARY: dict[str, Outcome] = {  # of the training questions, after the last step
    "pass@1": lambda steps: last_scores(steps).pass_1,
    "pass@8": lambda steps: last_scores(steps).pass_8,
}
SECONDARY: dict[str, Outcome] = {
    "tail": lambda steps: last_scores(steps).tail,
    f"steps to a reward of {REWARD:g}": steps_to_reward,
}


def table(arms: Sequence[Arm], seeds: range, runs: Runs) -> str:
    """Markdown: means over seeds of each arm's results, how well its entropy was held, and how many
    runs collapsed or exploded."""
    lines = [
        "| arm | pass@1 | pass@8 | held out | entropy | rms of ln(H / mean) | coefficient | tail | "
        f"steps to {REWARD:g} | collapsed | exploded |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        of_arm = [runs[arm.name, seed] for seed in seeds]
        ends = [last_scores(steps) for steps in of_arm]
        heldout = fmean(s[-1].heldout.pass_1 for s in of_arm if s[-1].heldout is not None)
        counted = [steps[min(SETTLING, len(steps) // 2) :] for steps in of_arm]
        entropy = fmean(step.entropy for steps in counted for step in steps)
        error = math.sqrt(
            fmean(
                math.log(max(step.entropy, 1e-9) / entropy) ** 2
                for steps in counted
                for step in steps
            )
        )
        coefficient = fmean(step.coefficient for steps in counted for step in steps)
        last = [last_entropy(steps) for steps in of_arm]
        lines.append(
            f"| {arm.name} | {fmean(e.pass_1 for e in ends):.3f} | "
            f"{fmean(e.pass_8 for e in ends):.3f} | {heldout:.3f} | {entropy:.2f} | {error:.2f} | "
            f"{coefficient:.4f} | {fmean(e.tail for e in ends):.4f} | "
            f"{fmean(map(steps_to_reward, of_arm)):.0f} | "
            f"{sum(h < COLLAPSED for h in last)} of {len(last)} | "
            f"{sum(h > EXPLODED for h in last)} of {len(last)} |"
        )
    return "\n".join(lines)


def contrasts(arms: Sequence[Arm], seeds: range, runs: Runs) -> str:
    """Markdown: the primary outcomes of every arm against the first, paired by seed; p-values with
    Holm's correction over all of them; whether the two are equivalent (``?`` for fewer than FEWEST
    seeds); the seeds needed to decide a difference of DECIDED."""
    lines = [
        f"| against {arms[0].name} | outcome | difference | 95% interval | p (Holm) | "
        f"within +-{ALIKE:g} | seeds for {DECIDED:g} |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in _differences(arms, seeds, runs, PRIMARY):
        alike = "not shown"
        if len(each.paired) < FEWEST:
            alike = "?"
        elif are_alike(each.paired):
            alike = "yes"
        lines.append(f"{each.cells('+.4f')} {alike} | {seeds_needed(each.paired)} |")
    return "\n".join(lines)


def secondary(arms: Sequence[Arm], seeds: range, runs: Runs) -> str:
    """Markdown: the same of the secondary outcomes, which have a correction of their own."""
    lines = [
        f"| against {arms[0].name} | outcome | difference | 95% interval | p (Holm) |",
        "|---|---|---|---|---|",
    ]
    for each in _differences(arms, seeds, runs, SECONDARY):
        lines.append(each.cells("+.5f" if each.outcome == "tail" else "+.1f"))
    return "\n".join(lines)


@dataclass(frozen=True)
class _Compared:
    arm: str
    outcome: str
    paired: list[float]  # arm minus baseline, by seed
    difference: Difference
    p: float  # with Holm's correction

    def cells(self, form: str) -> str:
        low, high = (format(end, form) for end in (self.difference.low, self.difference.high))
        mean = format(self.difference.mean, form)
        return f"| {self.arm} | {self.outcome} | {mean} | [{low}, {high}] | {self.p:.3f} |"


def _differences(
    arms: Sequence[Arm], seeds: range, runs: Runs, outcomes: dict[str, Outcome]
) -> list[_Compared]:
    baseline, *others = arms
    found: list[tuple[str, str, list[float], Difference]] = []
    for arm in others:
        for name, outcome in outcomes.items():
            paired = {
                seed: outcome(runs[arm.name, seed]) - outcome(runs[baseline.name, seed])
                for seed in seeds
            }
            difference = compare({seed: [value] for seed, value in paired.items()})
            found.append((arm.name, name, list(paired.values()), difference))
    corrected = holm([difference.p for *_, difference in found])
    return [_Compared(*each, p) for each, p in zip(found, corrected, strict=True)]


def are_alike(paired: Sequence[float]) -> bool:
    """Equivalence by two one-sided tests at 5%: the 90% interval lies within +-ALIKE
    (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987)."""
    low, high = bootstrap([[value] for value in paired], level=0.1)
    return low > -ALIKE and high < ALIKE


def seeds_needed(paired: Sequence[float]) -> str:
    """How many pairs detect a mean difference of DECIDED with probability POWER, given the spread
    of these: n = ((z_.975 + z_POWER) s / DECIDED)^2; ``?`` for one pair."""
    if len(paired) < 2:
        return "?"
    normal = NormalDist()
    z = normal.inv_cdf(0.975) + normal.inv_cdf(POWER)
    return str(max(2, math.ceil((z * stdev(paired) / DECIDED) ** 2)))
