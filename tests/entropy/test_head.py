"""linear_token_statistics against token_statistics on the logits it never holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aent.entropy import TokenStatistics, linear_token_statistics, token_statistics
from wording import naming

NAMES = (
    "log_prob", "entropy", "clamped_entropy", "kept_mass", "covariance", "entropy_slope",
)  # fmt: skip
WIDTH, COLUMNS, VOCAB = 16, 120, 113


def problem(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and a weight that make logits of a policy far from uniform; targets."""
    g = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, WIDTH, generator=g, dtype=torch.float64)
    weight = 0.7 * torch.randn(COLUMNS, WIDTH, generator=g, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), torch.randint(0, VOCAB, (tokens,), generator=g)


def total(stats: TokenStatistics) -> Tensor:
    """All three terms, with another weight for each token."""
    weight = torch.linspace(-1, 2, stats.log_prob.numel(), dtype=stats.log_prob.dtype)
    terms = stats.log_prob + 0.7 * stats.entropy - 1.3 * stats.clamped_entropy
    return (weight * terms.flatten()).sum()


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 4, 5, 11, 1024])
def test_equals_the_statistics_of_the_logits(dtype: torch.dtype, chunk: int) -> None:
    *inputs, targets = problem(11, dtype)
    settings: dict[str, Any] = {"temperature": 0.8, "vocab_size": VOCAB, "slopes": True}
    hidden, weight = leaves(*inputs)
    got = linear_token_statistics(hidden, weight, targets, chunk_tokens=chunk, **settings)
    total(got).backward()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    h, w = leaves(*(t.to(wide) for t in inputs))
    # the same logits, rounded to the same dtype; a gradient that was never rounded to it
    logits = h @ w.t()
    rounded = logits + (logits.to(dtype).to(wide) - logits).detach()
    want = token_statistics(rounded, targets, **settings)
    total(want).backward()
    tol = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for name in NAMES:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=tol, atol=tol)
    for ours, theirs in ((hidden, h), (weight, w)):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad.to(wide), theirs.grad, rtol=tol, atol=10 * tol)
    assert not weight.grad[VOCAB:].any()


def test_gradcheck() -> None:
    hidden, weight, targets = problem(4, torch.float64)
    hidden.requires_grad_()
    weight = weight[:9].clone().requires_grad_()

    def terms(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        s = linear_token_statistics(h, w, targets % 7, 0.8, vocab_size=7, chunk_tokens=3)
        return s.log_prob, s.entropy, s.clamped_entropy

    assert torch.autograd.gradcheck(terms, (hidden, weight), atol=1e-8)


@pytest.mark.parametrize("wanted", NAMES[:3])
def test_one_statistic_alone(wanted: str) -> None:
    *inputs, targets = problem(7, torch.float64)
    hidden, weight = leaves(*inputs)
    alone = getattr(linear_token_statistics(hidden, weight, targets, chunk_tokens=3), wanted)
    got = torch.autograd.grad(alone.sum(), (hidden, weight))
    logits = hidden @ weight.t()
    want = getattr(token_statistics(logits, targets), wanted)
    for ours, theirs in zip(got, torch.autograd.grad(want.sum(), (hidden, weight))):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_shapes_frozen_inputs_and_no_tokens() -> None:
    hidden, weight, targets = problem(6, torch.float32)
    lead = linear_token_statistics(hidden.view(2, 3, WIDTH), weight, targets.view(2, 3))
    assert lead.entropy.shape == (2, 3)
    assert not lead.entropy.requires_grad
    (h,) = leaves(hidden)
    linear_token_statistics(h, weight, targets).log_prob.sum().backward()
    (w,) = leaves(weight)
    linear_token_statistics(hidden, w, targets).log_prob.sum().backward()
    assert h.grad is not None
    assert w.grad is not None
    w.grad = None
    none = linear_token_statistics(hidden[:0], w, targets[:0])
    none.clamped_entropy.sum().backward()
    assert none.entropy.shape == (0,)
    assert w.grad is not None
    assert not w.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_is_added_to_a_buffer(dtype: torch.dtype) -> None:
    """Megatron's main_grad: fp32, with gradients of earlier micro-batches in it."""
    *inputs, targets = problem(11, dtype)
    hidden, weight = leaves(*inputs)
    total(linear_token_statistics(hidden, weight, targets, chunk_tokens=4)).backward()
    assert weight.grad is not None
    wanted = weight.grad.float()
    h, w = leaves(*inputs)
    buffer = torch.full(w.shape, 0.5)
    stats = linear_token_statistics(h, w, targets, chunk_tokens=4, weight_grad=buffer)
    total(stats).backward()
    assert w.grad is None
    assert torch.equal(h.grad, hidden.grad)
    tol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(buffer - 0.5, wanted, rtol=tol, atol=tol)


def test_a_narrow_buffer_is_added_to_once() -> None:
    """In bf16 a small product added to a large sum is lost, chunk after chunk: the chunks are added
    up in fp32 first, and so the buffer is one rounding away from the whole product."""
    *inputs, targets = problem(64, torch.bfloat16)
    hidden, weight = leaves(*inputs)
    wide = torch.zeros(weight.shape)
    stats = linear_token_statistics(hidden, weight, targets, chunk_tokens=1, weight_grad=wide)
    total(stats).backward()
    buffer = torch.full(weight.shape, 8.0, dtype=torch.bfloat16)
    stats = linear_token_statistics(hidden, weight, targets, chunk_tokens=1, weight_grad=buffer)
    total(stats).backward()
    want = (8.0 + wide).bfloat16()
    # the fp32 sum is rounded to bf16 twice at most: by itself, and with what was there
    torch.testing.assert_close(buffer.float(), want.float(), rtol=2**-8, atol=0)
    summed = torch.full(weight.shape, 8.0, dtype=torch.bfloat16)
    for token in range(64):
        h, w = leaves(inputs[0][token : token + 1], inputs[1])
        one = linear_token_statistics(h, w, targets[token : token + 1])
        scale = torch.linspace(-1, 2, 64)[token]
        (scale * (one.log_prob + 0.7 * one.entropy - 1.3 * one.clamped_entropy)).sum().backward()
        assert w.grad is not None
        summed += w.grad
    error, before = ((x - (8.0 + wide)).abs().max() for x in (buffer, summed))
    assert error < before / 2


def test_targets_nobody_owns_and_ignored_ones() -> None:
    *inputs, targets = problem(6, torch.float64)
    hidden, weight = leaves(*inputs)
    targets[1], targets[4] = -100, VOCAB
    settings: dict[str, Any] = {"vocab_size": VOCAB, "ignore_index": -100}
    got = linear_token_statistics(hidden, weight, targets, chunk_tokens=4, **settings)
    want = token_statistics(hidden @ weight.t(), targets, **settings)
    torch.testing.assert_close(got.log_prob, want.log_prob, equal_nan=True)
    assert got.log_prob[1] == 0
    assert got.log_prob.isnan().tolist() == [False] * 4 + [True, False]
    assert int(got.invalid_rows) == 1
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(got.entropy.sum(), hidden, create_graph=True)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.element_size()
                 for t in tree_leaves(out) if isinstance(t, Tensor)]  # fmt: skip
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_a_chunk_and_what_is_kept_is_the_input(dtype: torch.dtype) -> None:
    tokens, chunk = 64, 8
    *inputs, targets = problem(tokens, dtype)
    hidden, weight = leaves(*inputs)
    kept: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with Largest() as made, hooks:
        loss = total(linear_token_statistics(hidden, weight, targets, chunk_tokens=chunk))
    own = {hidden.data_ptr(), weight.data_ptr(), targets.data_ptr()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) <= 20 * tokens
    with made:
        loss.backward()
    # the weight's gradient and the chunk's logits, never all logits
    assert chunk * COLUMNS <= made.elements <= max(WIDTH, chunk) * COLUMNS < tokens * COLUMNS


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"weight": torch.zeros(9, 3)}, ValueError, ("weight", "(9, 3)")),
        ({"weight": torch.zeros(9, 4).double()}, TypeError, ("weight", "torch.float64", "hidden")),
        ({"weight_grad": torch.zeros(8, 4)}, ValueError, ("weight_grad", "(8, 4)")),
        ({"chunk_tokens": 0}, ValueError, ("chunk_tokens", 0)),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, ("hidden", "(2, 4)")),
        ({"vocab_size": 10}, ValueError, ("vocab_size", 10, 9)),
        ({"top_k": 10}, ValueError, ("top_k", 10)),
    ],
)
def test_errors_name_the_argument(changes: dict, error: type[Exception], names: tuple) -> None:
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(9, 4)}
    arguments["targets"] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(error, match=naming(*names)):
        linear_token_statistics(**{**arguments, **changes})
