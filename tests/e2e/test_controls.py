"""Entropy controls that act on rollouts and rewards, with the real parts in every place. (Those
that remember earlier steps are in test_resume.py, which holds them to an exact resume.)"""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from aent.algorithm.entropy_controls.rollouts import majority
from aent.checkpoint import rollout_files
from aent.tasks.verifiers import answer_in
from e2e.jobs import Job

pytestmark = pytest.mark.slow

STEPS = 4
SHARES = "entropy/class_share/"
CONTROLS = (
    "entropy_controls=[{kind: reroll, target: 9, share: 1, high: 1.5, limit: 3}, "
    "{kind: majority_reward}, {kind: difficulty_coefficient}, "
    "{kind: forked_rollouts, forks: 1, branches: 1}]"
)


@pytest.fixture(scope="module")
def finished(shared_engine, tmp_path_factory):
    one_rank = ("trainer.tensor_parallel=1", "trainer.pipeline_parallel=1")
    job = Job(
        tmp_path_factory.mktemp("controls"), f"steps={STEPS}", "task.heldout=0",
        "checkpoint.every=9", CONTROLS, *shared_engine, *one_rank,
    )  # fmt: skip
    assert job.wait() == 0, job.text
    return job


@pytest.fixture(scope="module")
def rollouts(finished):
    return [rollout_files.read(finished.run_dir, step) for step in range(STEPS)]


def series(job: Job, key: str) -> list[float]:
    lines = (job.run_dir / "journal.jsonl").read_text().splitlines()
    points = [point for point in map(json.loads, lines) if point.get("key") == key]
    return [point["value"] for point in sorted(points, key=lambda point: point["step"])]


def test_rewards_are_those_of_the_vote(rollouts):
    for rollout in rollouts:
        for group in range(4):
            places = [
                i for i, s in enumerate(rollout.samples) if s.group == group and not s.rerolled
            ]
            answers = [answer_in("last_number", rollout.responses[i]) for i in places]
            assert [rollout.samples[i].reward for i in places] == majority(answers)
    assert any(s.reward != v.reward for r in rollouts for s, v in zip(r.samples, r.verdicts))


def test_every_second_response_branches_off_its_neighbour(rollouts):
    """With its tokens and log-probs up to there, and others behind."""
    shared = []
    for rollout in rollouts:
        own = [s for s in rollout.samples if not s.rerolled]
        for trunk, branch in zip(own[::2], own[1::2]):
            pairs = list(zip(trunk.response_ids, branch.response_ids))
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            equal = [a == b for a, b in zip(trunk.logprobs, branch.logprobs)]
            shared.append(equal.index(False) if False in equal else len(equal))
            assert shared[-1] <= same
            assert len(branch.response_ids) <= 16
    assert sum(s > 0 for s in shared) > len(shared) / 2


def test_better_responses_of_another_temperature_are_added(finished, rollouts):
    """From the second step on; at most three; no mismatch and no mean includes them."""
    counts = [sum(s.rerolled for s in rollout.samples) for rollout in rollouts]
    assert counts[0] == 0
    assert 0 < max(counts) <= 3
    assert series(finished, "reward/rerolled") == counts
    assert max(series(finished, "policy/logprob_gap")) < 1e-3
    for rollout, mean in zip(rollouts, series(finished, "reward/mean"), strict=True):
        own = [s.reward for s in rollout.samples if not s.rerolled]
        assert len(own) == 16
        assert mean == pytest.approx(sum(own) / 16)
    masked = series(finished, "policy/masked_share")
    assert [m > 0 for m in masked] == [c > 0 for c in counts]


def test_every_step_has_a_page_of_its_tokens(finished, rollouts):
    """Named in the journal, for MLflow; with the text that was sampled."""
    lines = (finished.run_dir / "journal.jsonl").read_text().splitlines()
    pages = [e["file"] for e in map(json.loads, lines) if e.get("folder") == "tokens"]
    assert pages == [f"tokens/step_{step:06d}.html" for step in range(STEPS)]
    for page, rollout in zip(pages, rollouts):
        text = (finished.run_dir / page).read_text()
        data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
        said = ["".join(response["pieces"]) for response in data["responses"]]
        assert said == rollout.responses
        assert all(h >= 0 for response in data["responses"] for h in response["entropy"])


def test_the_parts_of_the_entropy_make_it_up(finished):
    entropy, error = (series(finished, f"policy/{n}") for n in ("clamped_entropy", "entropy_error"))
    points = [*map(json.loads, (finished.run_dir / "journal.jsonl").read_text().splitlines())]
    parts = {(p["key"], p["step"]): p["value"] for p in points if "key" in p}
    for step, whole in enumerate(entropy):
        shares = {k: v for (k, s), v in parts.items() if s == step and k.startswith(SHARES)}
        assert sum(shares.values()) == pytest.approx(1)
        means = (parts[k.replace("_share", ""), step] * v for k, v in shares.items())
        assert sum(means) == pytest.approx(whole, rel=1e-5)
    changes = series(finished, "entropy/change")
    assert changes == pytest.approx([b - a for a, b in pairwise(entropy)], abs=1e-6)
    assert all(0 < e < h for e, h in zip(error, entropy))


def test_a_step_is_seen_in_its_entropy(finished):
    kept = series(finished, "control/reroll/entropy")
    assert len(kept) == STEPS
    assert all(0 < entropy < 9 for entropy in kept)
