"""Entropy controls against their formulas, worked per token in plain Python."""

import pytest
import torch

from aent.algorithm import entropy_controls
from aent.algorithm.entropy_controls.base import over_response
from aent.algorithm.losses import policy_loss
from aent.data.batch import Batch
from aent.data.sample import Sample
from aent.recipe.schema import AlgorithmSection, Recipe

LENGTHS, GROUPS = (3, 2, 4, 1), (0, 0, 1, 1)
N = sum(LENGTHS)


def make_batch(seed: int = 0) -> Batch:
    """Two groups of two responses with advantages, old log-probs and old entropies."""
    samples = [
        Sample([5, 6], [1] * n, [-0.5] * n, [0] * n, "stop", g, g) for n, g in zip(LENGTHS, GROUPS)
    ]
    batch = Batch.from_samples(samples)
    g = torch.Generator().manual_seed(seed)

    def flat(values: torch.Tensor) -> torch.Tensor:
        return over_response(batch, values)

    batch.advantages = flat(torch.tensor([1.0] * 3 + [-1.0] * 2 + [0.5] * 4 + [-0.5]))
    batch.old_logprobs = flat(-3 * torch.rand(N, generator=g))
    batch.old_entropies = flat(2 * torch.rand(N, generator=g))
    return batch


def applied(batch: Batch, *controls: dict, step: int = 0) -> Batch:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "seed": 3,
            "model": {"path": "none"},
            "controller": {"initial": 0.0},
            "algorithm": {"kl_coefficient": 0.6},
            "entropy_controls": controls,
        }
    )
    entropy_controls.apply(batch, recipe, step, vocab_size=100, memory={})
    return batch


def response(batch: Batch, values: torch.Tensor) -> list[float]:
    assert not values[~batch.loss_mask].any()
    return values[batch.loss_mask].tolist()


@pytest.mark.parametrize(("share", "kept"), [(0.2, 2), (0.21, 3), (0.001, 1), (0.99, 10)])
def test_top_entropy_tokens_keeps_the_share(share, kept):
    batch = make_batch()
    entropies = response(batch, batch.old_entropies)
    weight = response(
        batch, applied(batch, {"kind": "top_entropy_tokens", "share": share}).importance
    )
    threshold = sorted(entropies)[-kept]
    assert weight == [float(h >= threshold) for h in entropies]


def test_top_entropy_tokens_multiplies_what_other_weights_there_are():
    batch = make_batch()
    batch.importance = over_response(batch, torch.full((N,), 0.5))
    applied(batch, {"kind": "top_entropy_tokens", "share": 0.3})
    assert sorted(response(batch, batch.importance)) == [0.0] * 7 + [0.5] * 3


def covariances(batch: Batch) -> list[float]:
    a, p = response(batch, batch.advantages), response(batch, batch.old_logprobs)
    return [(x - sum(a) / N) * (y - sum(p) / N) for x, y in zip(a, p)]


def test_clip_cov_drops_some_tokens_between_the_bounds():
    cov = covariances(make_batch(5))
    between = {i for i, c in enumerate(cov) if 0.2 < c < 1}
    assert 2 < len(between) < N
    assert max(cov) > 1
    control = {"kind": "clip_cov", "share": 0.25, "low": 0.2, "high": 1.0}

    def weight(step: int) -> list[float]:
        batch = applied(make_batch(5), control, step=step)
        return response(batch, batch.importance)

    seen = set()
    for step in range(30):
        drawn = weight(step)
        assert drawn == weight(step)  # a step executed again drops the same
        assert sorted(drawn) == [0.0] * 2 + [1.0] * 8  # int(.25 * 10)
        seen |= {i for i, w in enumerate(drawn) if w == 0}
    assert seen == between


def test_clip_cov_without_candidates_drops_nothing():
    batch = applied(make_batch(), {"kind": "clip_cov", "low": 50, "high": 60})
    assert response(batch, batch.importance) == [1.0] * N


def test_kl_cov_adds_the_distance_to_the_old_policy_where_covariance_is_highest():
    batch = applied(make_batch(), {"kind": "kl_cov", "share": 0.2, "coefficient": 0.7})
    cov = covariances(batch)
    highest = sorted(range(N), key=lambda i: cov[i])[-2:]
    weight = response(batch, batch.old_kl_weight)
    assert weight == pytest.approx([0.7 if i in highest else 0.0 for i in range(N)])

    mask = batch.loss_mask
    old = batch.old_logprobs[mask]
    log_prob = (old + 0.1 * torch.arange(-4, 6)).requires_grad_()
    given = {"advantages": batch.advantages[mask], "old_logprobs": old}
    settings = AlgorithmSection()
    plain = policy_loss(log_prob, given, settings).loss
    loss = policy_loss(
        log_prob, given | {"old_kl_weight": batch.old_kl_weight[mask]}, settings
    ).loss
    added = torch.tensor(weight) * (log_prob - old).abs()
    torch.testing.assert_close(loss - plain, added)
    (gradient,) = torch.autograd.grad((loss - plain).sum(), log_prob)
    torch.testing.assert_close(gradient, torch.tensor(weight) * (log_prob - old).sign())


def test_entropy_advantage_adds_at_most_a_share_of_the_advantage():
    batch = make_batch()
    a, h = response(batch, batch.advantages), response(batch, batch.old_entropies)
    applied(batch, {"kind": "entropy_advantage", "scale": 0.4, "limit": 2.0})
    want = [x + min(0.4 * e, abs(x) / 2) for x, e in zip(a, h)]
    assert response(batch, batch.advantages) == pytest.approx(want, rel=1e-5)
    assert any(x + 0.4 * e > x + abs(x) / 2 for x, e in zip(a, h))
    assert any(x + 0.4 * e < x + abs(x) / 2 for x, e in zip(a, h))


def test_response_entropy_advantage_by_hand():
    batch = make_batch()
    per_response = [0.2, 0.6, 0.1, 2.9]  # means of the groups: .4, 1.5
    each = [h for h, n in zip(per_response, LENGTHS) for _ in range(n)]
    batch.old_entropies = over_response(batch, torch.tensor(each))
    applied(batch, {"kind": "response_entropy_advantage"})
    factor = [1.5, 0.5, 1 + 1.4 / 1.5, 1 - 1.4 / 1.5]
    want = [a * f for a, f, n in zip((1, -1, 0.5, -0.5), factor, LENGTHS) for _ in range(n)]
    assert response(batch, batch.advantages) == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("entropy", [0.0, 1.3])
def test_response_entropy_advantage_changes_nothing_among_equals(entropy):
    batch = make_batch()
    before = response(batch, batch.advantages)
    batch.old_entropies = over_response(batch, torch.full((N,), entropy))
    applied(batch, {"kind": "response_entropy_advantage"})
    assert response(batch, batch.advantages) == pytest.approx(before)


def test_response_entropy_advantage_never_turns_a_sign():
    batch = make_batch()
    each = torch.tensor([0.1] * 3 + [0.1] * 2 + [0.0] * 4 + [9.0])
    batch.group = torch.zeros(4, dtype=torch.int64)  # mean 2.3: the last factor would be -1.9
    batch.old_entropies = over_response(batch, each)
    applied(batch, {"kind": "response_entropy_advantage"})
    assert response(batch, batch.advantages)[-1] == 0


def test_advantage_clip_bounds_both_signs():
    batch = make_batch()
    batch.advantages = over_response(batch, torch.linspace(-2.7, 1.8, N))
    applied(batch, {"kind": "advantage_clip", "bound": 1.5})
    want = [-1.5, -1.5, -1.5, -1.2, -0.7, -0.2, 0.3, 0.8, 1.3, 1.5]
    assert response(batch, batch.advantages) == pytest.approx(want)


def test_entropy_ratio_clip_gates_the_surrogate_and_not_the_reference():
    batch = applied(make_batch(), {"kind": "entropy_ratio_clip", "low": 0.1, "high": 0.2})
    mask = batch.loss_mask
    old, change = batch.old_entropies[mask], torch.tensor([0.0, -0.09, -0.11, 0.19, 0.21] * 2)
    outside = [False, False, True, False, True] * 2
    log_prob = batch.old_logprobs[mask].requires_grad_()
    given = {"advantages": batch.advantages[mask], "old_logprobs": log_prob.detach()}
    plain = policy_loss(log_prob, given, AlgorithmSection())
    assert not plain.clipped.any()
    given |= {name: getattr(batch, name)[mask] for name in ("entropy_low", "entropy_high")}
    given |= {"entropy": old * (1 + change), "reference_logprobs": log_prob.detach() - 0.5}
    gated = policy_loss(log_prob, given, AlgorithmSection(kl_coefficient=0.3))
    kept = torch.tensor([0.0 if out else 1.0 for out in outside])
    torch.testing.assert_close(gated.loss, plain.loss * kept + 0.3 * gated.kl_reference)
    assert gated.clipped.tolist() == outside


def test_advantage_kl_weighs_the_reference_by_what_a_response_lacks():
    batch = make_batch()
    batch.reference_logprobs = batch.old_logprobs - 0.5
    applied(batch, {"kind": "advantage_kl"})
    weight = response(batch, batch.kl_weight)
    each = [max(0.0, 0.6 - a) for a in response(batch, batch.advantages)]  # 0, 1.6, .1, 1.1
    assert weight == pytest.approx(each)

    mask = batch.loss_mask
    given = {"advantages": torch.zeros(N), "reference_logprobs": batch.reference_logprobs[mask]}
    given["kl_weight"] = batch.kl_weight[mask]
    loss = policy_loss(batch.old_logprobs[mask], given, AlgorithmSection(kl_coefficient=0.6))
    torch.testing.assert_close(loss.loss, torch.tensor(each) * loss.kl_reference)


SCORED = [
    kind
    for kind, control in entropy_controls.CONTROLS.items()
    if control.needs not in (None, "item")
]


@pytest.mark.parametrize("kind", SCORED)
def test_a_batch_that_was_not_scored_is_refused(kind):
    batch = make_batch()
    batch.old_logprobs = batch.old_entropies = None
    target = {"target": 1.0} if kind in ("probability_push", "reroll") else {}
    with pytest.raises(ValueError, match=rf"{kind}.*\b(old|reference)_"):
        applied(batch, {"kind": kind} | target)


def test_controls_are_applied_in_their_order():
    token, whole = {"kind": "entropy_advantage"}, {"kind": "response_entropy_advantage"}
    both = applied(make_batch(), token, whole).advantages
    assert torch.equal(both, applied(applied(make_batch(), token), whole).advantages)
    assert not torch.equal(both, applied(make_batch(), whole, token).advantages)
