"""The bandit's step against its formulas, its file against kills, its statistics against others."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from aent.analysis.intervals import holm
from aent.cli.main import app
from aent.lab import bandit, bandit_report
from aent.lab.bandit import Arm, Scores, Step
from aent.lab.bandit_report import Settings
from wording import assert_names

SETTINGS = Settings(steps=2, target=1.0, learning_rate=1e-4)


def aent(*arguments: object):
    return CliRunner().invoke(app, ["lab", "bandit", *(str(each) for each in arguments)])


@pytest.mark.slow
@pytest.mark.parametrize("text", [".33@.06", "none"])
def test_a_step_is_what_its_formula_says(text: str) -> None:
    """The adapter after one Adam step, by the loss written out in float64."""
    arm, policy = Arm.parse(text), bandit._Policy(seed=3, learning_rate=1e-3)
    again = bandit._Policy(seed=3, learning_rate=1e-3)
    order = torch.randperm(bandit.TRAIN, generator=again.generator)[: bandit.PROMPTS]
    chosen = again.train[order]
    logits = again.logits(chosen).double()
    log_p = logits.log_softmax(-1)
    drawn = torch.multinomial(
        again.logits(chosen).detach().softmax(-1),
        bandit.SAMPLES,
        replacement=True,
        generator=again.generator,
    )
    reward = (drawn == again.answers[chosen][:, None]).double()
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    loss = -(advantage * log_p.gather(1, drawn)).mean()
    if arm.bonus:
        kept = logits.shape[1] - int(logits.shape[1] * 0.33)
        log_q = logits.topk(kept, dim=1).values.log_softmax(-1)
        loss = loss - 0.06 * -(log_q.exp() * log_q).sum(1).mean()
    again.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(again.adapter, 1.0)
    again.optimizer.step()
    entropy, mean_reward = policy.learn(arm, 0.06)
    assert entropy == pytest.approx(-(log_p.exp() * log_p).sum(1).mean().item(), rel=1e-5)
    assert mean_reward == reward.mean().item()
    # the second layer begins at zero: after a step of Adam it is the gradient's sign
    theirs, ours = again.adapter[1].detach(), policy.adapter[1].detach()
    assert (theirs - ours).abs().gt(1e-4).float().mean() < 1e-3


@pytest.mark.slow
def test_a_run_is_kept_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    given = ["--arms", "full,none", "--steps", 2, "--seeds", 2, "--csv", path]
    done = aent(*given, "--plot", tmp_path / "plot.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    before = path.read_text()
    lines = before.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote
    again = aent(*given)
    assert again.exit_code == 0, again.output
    assert path.read_text() == before
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == [
        line for line in done.stdout.splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize(
    "arm", ["half", "1.5", "top_k=0", "top_k=49153", "full@x", "full@", "none@.1", "full@-1"]
)
def test_an_arm_that_is_none_is_refused(arm: str, tmp_path: Path) -> None:
    done = aent("--arms", f"full,{arm}")
    assert done.exit_code == 2
    assert_names(done.output, "--arms", arm)


@pytest.mark.parametrize(
    ("option", "value"), [("target", 10.9), ("target", 0), ("learning-rate", 0)]
)
def test_a_number_out_of_range_is_refused(option: str, value: float) -> None:
    """ln 49,152 is 10.8 nats."""
    done = aent(f"--{option}", value)
    assert done.exit_code == 2
    assert_names(done.output, f"--{option}", f"{value:g}")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n1,2", "no table", "a" * 200_000])
def test_a_file_of_something_else_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    done = aent("--csv", tmp_path / "x.csv")
    assert done.exit_code == 2
    assert_names(done.output, "--csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == text


def test_a_line_that_is_no_step_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    bandit_report.append(path, "full", 0, SETTINGS, of_score(0.5))
    path.write_text(path.read_text() + "full,1,1.0,0.0001,two\n")
    done = aent("--csv", path)
    assert done.exit_code == 2
    assert_names(done.output, "--csv", path, "line 4")


def of_score(value: float) -> list[Step]:
    scores = Scores(value, value, 0.0, 1.0, 0.0)
    return [Step(1.0, 0.1, 0.5, None, None), Step(1.0, 0.1, 0.5, scores, scores)]


def test_contrasts_are_paired_and_corrected() -> None:
    arms, seeds = [Arm.parse(t) for t in ("full", ".33", "top_k=9")], range(8)
    noise = [0.05 * math.sin(9 * seed) for seed in seeds]  # of the seed: the pairs do not see it
    runs = {("full", s): of_score(0.3 + noise[s]) for s in seeds}
    runs |= {(".33", s): of_score(0.3 + noise[s] + 0.001 * (-1) ** s) for s in seeds}
    runs |= {("top_k=9", s): of_score(0.35 + noise[s]) for s in seeds}
    rows = bandit_report.contrasts(arms, seeds, runs).splitlines()[2:]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    assert [c[:2] for c in cells] == [
        [arm, outcome] for arm in (".33", "top_k=9") for outcome in ("pass@1", "pass@8")
    ]
    assert [c[5] for c in cells] == ["yes", "yes", "not shown", "not shown"]
    # 2^-7 from sign flips; the two smallest of four are multiplied by 4 and then not below it
    assert [float(c[4]) for c in cells[2:]] == [pytest.approx(4 * 2**-7, abs=5e-4)] * 2


@pytest.mark.parametrize("sign", [1, -1])
def test_equivalence_is_two_tests_at_five_percent(sign: int) -> None:
    """Against all 6^6 resamples: their 95% quantile just within the margin, and just beyond it.
    (The 97.5% quantile, of a test at 2.5%, is a tenth larger.)"""
    paired = sign * np.array([0.9, -0.4, 1.7, 2.3, -1.1, 0.6])
    every = paired[np.array(list(itertools.product(range(6), repeat=6)))].mean(1)
    end = np.quantile(sign * every, 0.95)
    assert np.quantile(sign * every, 0.975) > 1.08 * end
    assert bandit_report.are_alike(list(0.96 * 0.01 / end * paired))
    assert not bandit_report.are_alike(list(1.04 * 0.01 / end * paired))


@pytest.mark.parametrize(("seeds", "said"), [(1, "?"), (4, "?"), (5, "yes")])
def test_few_seeds_show_no_equivalence(seeds: int, said: str) -> None:
    runs = {(arm, s): of_score(0.3) for arm in ("full", ".33") for s in range(seeds)}
    arms = [Arm.parse(text) for text in ("full", ".33")]
    row = bandit_report.contrasts(arms, range(seeds), runs).splitlines()[-1]
    assert row.split("|")[6].strip() == said


def test_secondary_outcomes() -> None:
    """Steps to the reward, a tail of its own, and which runs collapsed or exploded at their end."""

    def run(entropies: list[float], rewards: list[float], tail: float) -> list[Step]:
        scores = Scores(0.5, 0.5, 0.0, 1.0, tail)
        *begin, last = zip(entropies, rewards, strict=True)
        steps = [Step(h, 0.1, r, None, None) for h, r in begin]
        return [*steps, Step(last[0], 0.1, last[1], scores, scores)]

    arms, seeds = [Arm.parse(t) for t in ("full@.1", ".33@.1")], range(6)
    rewards = [0.0, 0.1, 0.15, 0.1, 0.2, 0.3, 0.3, 0.3]
    runs = {("full@.1", s): run([3.0] * 6 + [1.0] * 2, rewards, 0.01) for s in seeds}
    # the mean of the last two steps decides: 0.05 collapses, 0.15 does not, 6 explodes
    ends = ([0.05, 0.05], [0.15, 0.15], [0.2, 0.02], [0.01, 0.01], [6.0, 6.0], [0.05, 0.14])
    for seed, end in enumerate(ends):
        runs[".33@.1", seed] = run([3.0] * 6 + end, [0.1] * 8 if seed else rewards, 0.03)
    row = bandit_report.table(arms, seeds, runs).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-3:] == [f"{(2 + 5 * 8) / 6:.0f}", "3 of 6", "1 of 6"]
    rows = bandit_report.secondary(arms, seeds, runs).splitlines()[2:]
    tail, steps = ([c.strip() for c in row.strip("|").split("|")] for row in rows)
    assert tail[2:] == ["+0.02000", "[+0.02000, +0.02000]", "0.062"]  # 2 x 2^-5
    assert steps[2] == "+5.0"  # five of six never reach it: 8 - 2 steps later
    assert float(steps[4]) == pytest.approx(0.0625, abs=6e-4)


def test_holm_and_the_seeds_that_are_needed() -> None:
    """Holm's correction is the closed test by Bonferroni: of every set of contrasts that has it."""
    p = [0.01, 0.04, 0.03, 0.3, 0.012]
    sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]
    of_set = {s: min(1.0, len(s) * min(p[i] for i in s)) for s in sets}
    assert holm(p) == pytest.approx([max(of_set[s] for s in sets if i in s) for i in range(5)])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    paired = [0.01, 0.03, -0.01, 0.02]
    needed = ((1.959964 + 0.841621) * statistics.stdev(paired) / 0.02) ** 2
    assert bandit_report.seeds_needed(paired) == str(math.ceil(needed))
    assert bandit_report.seeds_needed([0.1]) == "?"
