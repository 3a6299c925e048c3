"""linear_token_statistics over real ranks, against token_statistics on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy import TokenStatistics, linear_token_statistics, sharded, token_statistics
from distributed.ranks import run_ranks

pytestmark = pytest.mark.slow

VOCAB, CHUNK = 500, 4
# rows of the weight on each rank: even, uneven, narrower than K, the last all padding
WIDTHS = ([250, 250], [170, 171, 171], [3, 5, 504], [250, 250, 12])
DTYPES = (torch.float64, torch.float32)


def problem(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    hidden = torch.randn(11, 16, generator=g, dtype=torch.float64)
    weight = 0.7 * torch.randn(rows, 16, generator=g, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), torch.randint(0, VOCAB, (11,), generator=g)


def total(stats: TokenStatistics) -> Tensor:
    weight = torch.linspace(-1, 2, 11, dtype=stats.log_prob.dtype)
    return (weight * (stats.log_prob + 0.7 * stats.entropy - 1.3 * stats.clamped_entropy)).sum()


def values(stats: TokenStatistics) -> np.ndarray:
    terms = (stats.log_prob, stats.entropy, stats.clamped_entropy, stats.kept_mass)
    return torch.stack(terms).detach().numpy()


def on_rank(rank: int, _world: int) -> dict[Any, Any]:
    groups = {n: dist.new_group(range(n)) for n in (2, 3)}
    out: dict[Any, Any] = {}
    counted_out, searched = sharded._counted_out, []

    def counting(*args: Any) -> Any:
        searched.append(len(args[1]))
        return counted_out(*args)

    sharded._counted_out = counting
    for left in (False, True):
        if left:  # so coarse that most rows are left to the search, and their chunks made again
            sharded.BUCKETS, sharded.SLOTS = 2, 1
        out |= {(*key, left): value for key, value in of_cases(rank, groups).items()}
        out["searched", left] = sum(searched)
    return out


def of_cases(rank: int, groups: dict[int, Any]) -> dict[Any, Any]:
    out = {}
    for case, widths in enumerate(WIDTHS):
        if rank >= len(widths):
            continue
        for dtype in DTYPES:
            hidden, weight, targets = problem(sum(widths), dtype)
            leaf = hidden.requires_grad_()
            block = weight.split(widths)[rank].clone().requires_grad_()
            stats = linear_token_statistics(
                leaf, block, targets, 0.8, vocab_size=VOCAB,
                tp_group=groups[len(widths)], chunk_tokens=CHUNK,
            )  # fmt: skip
            total(stats).backward()
            assert leaf.grad is not None
            assert block.grad is not None
            out[case, dtype] = values(stats), leaf.grad.numpy(), block.grad.numpy()
    return out


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(on_rank, 3)


@pytest.mark.parametrize("case", range(len(WIDTHS)))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left", [False, True])
def test_values_and_summed_gradients_are_those_of_one_rank(
    ranks: list[dict], case: int, dtype: torch.dtype, left: bool
) -> None:
    assert (ranks[0]["searched", left] > 0) == left
    parts = [r[case, dtype, left] for r in ranks if (case, dtype, left) in r]
    assert len(parts) == len(WIDTHS[case])
    hidden, weight, targets = problem(sum(WIDTHS[case]), dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    stats = token_statistics(hidden @ weight.t(), targets, 0.8, vocab_size=VOCAB)
    total(stats).backward()
    tol = 1e-11 if dtype == torch.float64 else 2e-5
    for got, _, _ in parts:
        assert np.array_equal(got, parts[0][0])
        np.testing.assert_allclose(got, values(stats), rtol=tol, atol=tol)
    assert hidden.grad is not None
    assert weight.grad is not None
    summed = sum(part[1] for part in parts)
    np.testing.assert_allclose(summed, hidden.grad.numpy(), rtol=tol, atol=10 * tol)
    joined = np.concatenate([part[2] for part in parts])
    np.testing.assert_allclose(joined, weight.grad.numpy(), rtol=tol, atol=10 * tol)
    assert not joined[VOCAB:].any()
