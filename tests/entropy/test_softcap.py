"""A bound on the logits, c tanh(x / c): everywhere as if autograd had applied it beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aent.entropy import linear_token_statistics, nucleus_entropy, token_statistics

SOFTCAP = 3.0
ROWS, COLUMNS, VOCAB, WIDTH = 7, 60, 57, 12


def make(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()


TARGETS = torch.arange(ROWS) * 8


def total(statistics: object) -> Tensor:
    """One number that every statistic has a part in."""
    names = ("log_prob", "entropy", "clamped_entropy")
    parts = [getattr(statistics, name) for name in names]
    return sum((k + 1) * (part * torch.arange(1, ROWS + 1)).sum() for k, part in enumerate(parts))


def by_autograd(logits: Tensor) -> Tensor:
    return SOFTCAP * torch.tanh(logits / SOFTCAP)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "drop_fraction": None, "top_k": 9}])
def test_statistics(inplace: bool, settings: dict) -> None:
    settings = settings | {"vocab_size": VOCAB}
    logits, other = make(ROWS, COLUMNS), make(ROWS, COLUMNS)
    product = logits * 1  # a graph's logits, which are not read again
    got = token_statistics(product, TARGETS, softcap=SOFTCAP, inplace_backward=inplace, **settings)
    want = token_statistics(by_autograd(other), TARGETS, **settings)
    assert torch.equal(got.kept_mass, want.kept_mass)
    total(got).backward()
    total(want).backward()
    torch.testing.assert_close(total(got), total(want), rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert logits.grad is not None
    assert not logits.grad[:, VOCAB:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bound_on_gradients_is_lost_in_other_dtypes(dtype: torch.dtype) -> None:
    logits, other = make(ROWS, COLUMNS, dtype=dtype), make(ROWS, COLUMNS, dtype=dtype)
    total(token_statistics(logits, TARGETS, softcap=SOFTCAP)).backward()
    total(token_statistics(by_autograd(other), TARGETS)).backward()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits.grad, other.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_fused_head(chunk: int) -> None:
    hidden, weight = make(ROWS, WIDTH), make(COLUMNS, WIDTH, seed=1)
    got = linear_token_statistics(
        hidden, weight, TARGETS, vocab_size=VOCAB, chunk_tokens=chunk, softcap=SOFTCAP
    )
    other_hidden, other_weight = make(ROWS, WIDTH), make(COLUMNS, WIDTH, seed=1)
    logits = by_autograd(other_hidden @ other_weight.T)
    want = token_statistics(logits, TARGETS, vocab_size=VOCAB)
    total(got).backward()
    total(want).backward()
    torch.testing.assert_close(total(got), total(want), rtol=1e-12, atol=0)
    torch.testing.assert_close(hidden.grad, other_hidden.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weight.grad, other_weight.grad, rtol=1e-9, atol=1e-12)


def test_the_nucleus() -> None:
    logits, other = make(ROWS, COLUMNS), make(ROWS, COLUMNS)
    got = nucleus_entropy(logits, 0.9, 20, 0.7, VOCAB, softcap=SOFTCAP)
    want = nucleus_entropy(by_autograd(other), 0.9, 20, 0.7, VOCAB)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softcap", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_bound_is_refused(softcap: float) -> None:
    with pytest.raises(ValueError, match="softcap"):
        token_statistics(make(ROWS, COLUMNS), TARGETS, softcap=softcap)
    with pytest.raises(ValueError, match="softcap"):
        linear_token_statistics(make(ROWS, 2), make(COLUMNS, 2), TARGETS, softcap=softcap)
    with pytest.raises(ValueError, match="softcap"):
        nucleus_entropy(make(ROWS, COLUMNS), 0.9, 20, softcap=softcap)
