"""How token_statistics handles odd arguments, and which it refuses."""

from __future__ import annotations

import pytest
import torch

from aent.entropy import VocabShard, kernels, token_statistics
from entropy.test_statistics import BACKENDS
from wording import naming


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_that_nobody_owns_is_nan_and_counted(backend: str) -> None:
    """-100, beyond the vocabulary, in the padding; entropies and other rows as they were."""
    logits = torch.randn(6, 3008)
    right = torch.tensor([5, 6, 7, 8, 9, 2999])
    wrong = torch.tensor([-100, 3000, 3007, 4000, 9, 2999])
    bad, good = slice(0, 4), slice(4, 6)
    with kernels.using(backend):
        want = token_statistics(logits, right, vocab_size=3000)
        leaf = logits.clone().requires_grad_()
        got = token_statistics(leaf, wrong, vocab_size=3000)
        assert got.log_prob[bad].isnan().all()
        assert torch.equal(got.log_prob[good], want.log_prob[good])
        for name in ("entropy", "clamped_entropy", "kept_mass"):
            assert torch.equal(getattr(got, name), getattr(want, name))
        assert int(got.invalid_rows) == 4
        with pytest.raises(ValueError, match=naming("targets", "row 0", -100)):
            token_statistics(logits, wrong, vocab_size=3000, raise_on_invalid=True)
        # who leaves them out has no NaN; who does not has it in these rows
        used = torch.where(got.log_prob.isnan(), 0, got.log_prob).sum() + got.entropy.sum()
        (grad,) = torch.autograd.grad(used, leaf, retain_graph=True)
        assert grad.isfinite().all()
        (grad,) = torch.autograd.grad(got.log_prob.sum(), leaf)
        assert grad[bad, :3000].isnan().all()
        assert grad[good].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_targets_are_those_of_cross_entropy(backend: str) -> None:
    leaf = torch.randn(2, 3, 2500, requires_grad=True)
    targets = torch.tensor([[7, -100, 2499], [-100, 0, 12]])
    with kernels.using(backend):
        stats = token_statistics(leaf, targets, ignore_index=-100)
        (ours,) = torch.autograd.grad(-stats.log_prob.sum(), leaf)
    assert (stats.log_prob[targets == -100] == 0).all()
    assert int(stats.invalid_rows) == 0
    loss = torch.nn.functional.cross_entropy(
        leaf.view(6, -1), targets.view(6), ignore_index=-100, reduction="sum"
    )
    torch.testing.assert_close(-stats.log_prob.sum(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, torch.autograd.grad(loss, leaf)[0], rtol=1e-4, atol=1e-6)
    inside = token_statistics(leaf, targets.clamp(min=0), ignore_index=0)  # of the vocabulary, too
    assert (inside.log_prob[targets <= 0] == 0).all()


def test_in_place_gradient_is_refused_for_rows_that_share_memory() -> None:
    targets = torch.zeros(3, dtype=torch.int64)
    one = torch.randn(1, 2000, requires_grad=True)
    overlapping = torch.randn(4000).as_strided((3, 2000), (1000, 1)).requires_grad_()
    for logits in (one.expand(3, 2000), overlapping):
        with pytest.raises(ValueError, match=naming("inplace_backward", "logits")):
            token_statistics(logits, targets, inplace_backward=True)
    token_statistics(one.expand(3, 2000), targets).log_prob.sum().backward()
    assert one.grad is not None
    token_statistics(one.clone(), targets[:1], inplace_backward=True).log_prob.sum().backward()


def test_there_are_no_second_derivatives() -> None:
    """Refused where torch would drop the graph in silence: the upstream gradient needs none."""
    logits = torch.randn(3, 50, requires_grad=True)
    total = token_statistics(logits, torch.zeros(3, dtype=torch.int64)).entropy.sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(total, logits, create_graph=True)
    torch.autograd.grad(total, logits)


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"drop_fraction": 0.2, "top_k": 3}, ValueError, "drop_fraction top_k"),
        ({"drop_fraction": 1.0}, ValueError, "drop_fraction 1.0 0 1"),
        ({"drop_fraction": -0.1}, ValueError, "drop_fraction -0.1"),
        ({"top_k": 0}, ValueError, "top_k 0 20"),
        ({"top_k": 21}, ValueError, "top_k 21 20"),
        ({"vocab_size": 21}, ValueError, "vocab_size 21 20"),
        ({"vocab_size": 0}, ValueError, "vocab_size 0"),
        ({"tp_group": VocabShard(0, 19, 19, None, 19)}, ValueError, "tp_group 19 20"),
        ({"tp_group": VocabShard(0, 21, 21, None)}, ValueError, "tp_group 21 20"),
        (
            {"tp_group": VocabShard(0, 20, 20, None), "vocab_size": 19},
            ValueError,
            "vocab_size 19 tp_group 20",
        ),
        ({"temperature": 0.0}, ValueError, "temperature 0.0"),
        ({"temperature": float("nan")}, ValueError, "temperature nan"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, "targets (3,)"),
        ({"targets": torch.zeros(4, dtype=torch.int32)}, TypeError, "targets int64"),
        ({"logits": torch.zeros(4, 20, dtype=torch.int64)}, TypeError, "logits fp16"),
        ({"logits": torch.tensor(1.0)}, ValueError, "logits shape"),
        ({"logits": torch.zeros(4, 0)}, ValueError, "logits columns"),
    ],
)
def test_errors_name_the_argument(changes: dict, error: type[Exception], names: str) -> None:
    arguments = {"logits": torch.zeros(4, 20), "targets": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=naming(*names.split())):
        token_statistics(**{**arguments, **changes})
