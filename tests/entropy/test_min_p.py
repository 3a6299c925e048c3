"""The divergence from a policy without its unlikeliest tokens, against autograd in float64, on one
rank and over several."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist

from aent.entropy import min_p_divergence
from distributed.ranks import run_ranks
from entropy import reference
from wording import naming

COLUMNS, VOCAB = 120, 113  # the last columns are padding
CASES = [  # (style, dtype, masked, ratio, temperature)
    ("normal", torch.float64, False, 0.1, 1.0),
    ("normal", torch.float64, True, 0.02, 0.7),
    ("normal", torch.float32, False, 0.5, 1.3),
    ("grid", torch.bfloat16, False, 0.02, 0.6),  # many ties
    ("one_hot", torch.float32, False, 0.02, 1.0),
    ("constant", torch.float32, False, 0.9, 1.0),
    ("wide", torch.float64, False, 0.02, 1.0),
]
WEIGHTS = torch.arange(1.0, 7.0, dtype=torch.float64)


def problem(case: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and targets of which every other one is the likeliest token."""
    style, dtype, masked, *_ = case
    logits = torch.full((6, COLUMNS), 7.0, dtype=dtype)
    logits[:, :VOCAB] = reference.make_logits(6, VOCAB, dtype, style, masked, seed=3)
    targets = torch.arange(6) * 17
    targets[::2] = logits[::2, :VOCAB].argmax(dim=1)
    return logits, targets


def by_definition(z: torch.Tensor, targets: torch.Tensor, ratio: float) -> torch.Tensor:
    """[6] of tempered logits [6, VOCAB]: sum of q log(q / p), q a constant."""
    log_p = z.log_softmax(dim=1)
    least = log_p.detach().amax(dim=1, keepdim=True) + math.log(ratio)
    kept = log_p.detach() >= least - 1e-12
    log_q = log_p.detach().masked_fill(~kept, -torch.inf).log_softmax(dim=1)
    parts = torch.where(kept, log_q.exp() * (log_q - log_p), 0)
    return torch.where(kept.gather(1, targets[:, None])[:, 0], parts.sum(dim=1), 0)


def check(case: tuple, values: torch.Tensor, grad: torch.Tensor) -> None:
    *_, ratio, temperature = case
    logits, targets = problem(case)
    leaf = logits.double().requires_grad_()
    want = by_definition(leaf[:, :VOCAB] / temperature, targets, ratio)
    (want_grad,) = torch.autograd.grad((WEIGHTS * want).sum(), leaf)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}[case[1]]
    near = max(1e-5 * (case[1] != torch.float64), 1e-11)
    torch.testing.assert_close(values.double(), want.detach(), atol=near, rtol=1e-5)
    torch.testing.assert_close(
        grad.double(), want_grad.nan_to_num(), atol=tolerance, rtol=tolerance
    )
    assert not grad[:, VOCAB:].any()


def divergence(leaf: torch.Tensor, case: tuple, **sharding: Any) -> torch.Tensor:
    return min_p_divergence(leaf, problem(case)[1], *case[3:], vocab_size=VOCAB, **sharding)


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_value_and_gradient_are_those_of_the_definition(case):
    leaf = problem(case)[0].requires_grad_()
    values = divergence(leaf, case)
    (WEIGHTS * values).sum().backward()
    check(case, values.detach(), leaf.grad)


def test_it_is_minus_the_log_of_the_mass_that_is_kept():
    logits = torch.tensor([[0.5, 0.3, 0.19, 0.01]], dtype=torch.float64).log()
    for target, want in ((0, -math.log(0.99)), (2, -math.log(0.99)), (3, 0.0)):
        value = min_p_divergence(logits, torch.tensor([target]), 0.1)
        assert value.item() == pytest.approx(want)


def on_rank(rank: int, ranks: int) -> list[Any]:
    """Value and gradient of each case, of this rank's columns (the last rank has but padding)."""
    ends = [0, 40, 100, 114, COLUMNS] if ranks == 4 else [0, 50, COLUMNS]
    out = []
    for case in CASES:
        leaf = problem(case)[0][:, ends[rank] : ends[rank + 1]].clone().requires_grad_()
        values = divergence(leaf, case, tp_group=dist.group.WORLD)
        (WEIGHTS * values).sum().backward()
        out.append((values.detach(), leaf.grad))
    return out


@pytest.mark.slow
def test_every_sharding_gives_the_same():
    for ranks in (2, 4):
        answers = run_ranks(on_rank, ranks)
        for i, case in enumerate(CASES):
            parts = [answer[i] for answer in answers]
            for values, _ in parts:
                assert torch.equal(values, parts[0][0])
            check(case, parts[0][0], torch.cat([grad for _, grad in parts], dim=1))


def test_a_bad_row_spoils_itself_alone():
    logits = torch.randn(3, 20)
    logits[1, 4] = torch.nan
    targets = logits.nan_to_num().argmax(dim=1)
    values = min_p_divergence(logits, targets, 0.1)
    assert values.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"ratio": 0.0}, ValueError, "ratio 0.0"),
        ({"ratio": 1.1}, ValueError, "ratio 1.1"),
        ({"ratio": float("nan")}, ValueError, "ratio nan"),
        ({"temperature": 0.0}, ValueError, "temperature 0.0"),
        ({"softcap": -1.0}, ValueError, "softcap -1.0"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, "targets (3,)"),
        ({"vocab_size": 21}, ValueError, "vocab_size 21"),
    ],
)
def test_errors_name_the_argument(changes: dict, error: type[Exception], names: str) -> None:
    targets = torch.zeros(4, dtype=torch.int64)
    arguments = {"logits": torch.zeros(4, 20), "targets": targets, "ratio": 0.1}
    with pytest.raises(error, match=naming(*names.split())):
        min_p_divergence(**{**arguments, **changes})


def test_a_softcap_is_as_if_autograd_had_applied_it():
    leaf = (torch.randn(4, 30, dtype=torch.float64) * 4).requires_grad_()
    other = leaf.detach().clone().requires_grad_()
    targets = leaf.detach().argmax(dim=1)
    got = min_p_divergence(leaf, targets, 0.1, 0.7, softcap=3.0).sum()
    want = min_p_divergence(3 * (other / 3).tanh(), targets, 0.1, 0.7).sum()
    torch.testing.assert_close(got, want)
    grads = torch.autograd.grad(got, leaf)[0], torch.autograd.grad(want, other)[0]
    torch.testing.assert_close(*grads)


def test_there_are_no_second_derivatives() -> None:
    logits = torch.randn(3, 50, requires_grad=True)
    total = min_p_divergence(logits, logits.argmax(dim=1), 0.1).sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(total, logits, create_graph=True)
