"""Nucleus entropy against its definition in float64, on one rank and over several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from aent.entropy import nucleus_entropy
from distributed.ranks import run_ranks
from entropy import reference
from wording import naming

COLUMNS, VOCAB = 120, 113  # the last columns are padding
CASES = [  # (style, dtype, masked, top_p, top_k, temperature)
    ("normal", torch.float64, False, 0.8, 10_000, 1.0),
    ("normal", torch.float64, True, 0.95, 20, 0.7),
    ("normal", torch.float32, False, 0.3, 113, 1.3),
    ("grid", torch.bfloat16, False, 0.8, 10_000, 1.0),  # many ties
    ("one_hot", torch.float32, False, 0.8, 5, 1.0),
    ("constant", torch.float32, False, 0.5, 113, 1.0),
    ("wide", torch.float64, False, 0.999, 113, 1.0),
]


def logits_of(case: tuple) -> torch.Tensor:
    style, dtype, masked, *_ = case
    logits = torch.full((6, COLUMNS), 7.0, dtype=dtype)
    logits[:, :VOCAB] = reference.make_logits(6, VOCAB, dtype, style, masked, seed=3)
    return logits


def by_definition(logits: torch.Tensor, case: tuple) -> torch.Tensor:
    *_, top_p, top_k, temperature = case
    z = logits[:, :VOCAB].double() / temperature
    rows = []
    for row in z:
        p = row.softmax(0).tolist()
        kept, mass, last = [], 0.0, None
        for j in sorted(range(VOCAB), key=lambda j: -p[j]):
            full = mass >= top_p - 1e-12 or len(kept) >= top_k
            if full and float(row[j]) != last:
                break
            kept.append(j)
            mass, last = mass + p[j], float(row[j])
        log_q = row[kept].log_softmax(0)
        rows.append(-(log_q.exp() * log_q.clamp(min=-1e300)).sum())
    return torch.stack(rows)


WEIGHTS = torch.arange(1.0, 7.0, dtype=torch.float64)


def on_rank(rank: int, ranks: int) -> list[Any]:
    """Value and gradient of each case, of this rank's columns (the last rank has but padding)."""
    ends = [0, 40, 100, 114, COLUMNS] if ranks == 4 else [0, 50, COLUMNS]
    out = []
    for case in CASES:
        leaf = logits_of(case)[:, ends[rank] : ends[rank + 1]].clone().requires_grad_()
        values = nucleus_entropy(leaf, *case[3:], vocab_size=VOCAB, tp_group=dist.group.WORLD)
        (WEIGHTS * values).sum().backward()
        out.append((values.detach(), leaf.grad))
    return out


def check(case: tuple, values: torch.Tensor, grad: torch.Tensor) -> None:
    leaf = logits_of(case).double().requires_grad_()
    want = by_definition(leaf, case)
    (want_grad,) = torch.autograd.grad((WEIGHTS * want).sum(), leaf)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2}[case[1]]
    torch.testing.assert_close(
        values.double(),
        want.detach(),
        atol=max(1e-5 * (case[1] != torch.float64), 1e-11),
        rtol=1e-5,
    )
    torch.testing.assert_close(grad.double(), want_grad, atol=tolerance, rtol=tolerance)
    assert not grad[:, VOCAB:].any()


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_value_and_gradient_are_those_of_the_definition(case):
    leaf = logits_of(case).requires_grad_()
    values = nucleus_entropy(leaf, *case[3:], vocab_size=VOCAB)
    (WEIGHTS * values).sum().backward()
    check(case, values.detach(), leaf.grad)


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
    values = nucleus_entropy(logits, 0.8, 10)
    assert values.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"top_p": 0.0}, ValueError, "top_p 0.0"),
        ({"top_p": 1.1}, ValueError, "top_p 1.1"),
        ({"top_p": float("nan")}, ValueError, "top_p nan"),
        ({"top_k": 0}, ValueError, "top_k 0"),
        ({"temperature": 0.0}, ValueError, "temperature 0.0"),
        ({"temperature": float("inf")}, ValueError, "temperature inf"),
        ({"logits": torch.zeros(4, 20, dtype=torch.int64)}, TypeError, "logits fp16"),
        ({"logits": torch.tensor(1.0)}, ValueError, "logits shape"),
        ({"vocab_size": 21}, ValueError, "vocab_size 21"),
    ],
)
def test_errors_name_the_argument(changes: dict, error: type[Exception], names: str) -> None:
    arguments = {"logits": torch.zeros(4, 20), "top_p": 0.9, "top_k": 5}
    with pytest.raises(error, match=naming(*names.split())):
        nucleus_entropy(**{**arguments, **changes})


def test_there_are_no_second_derivatives() -> None:
    logits = torch.randn(3, 50, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(nucleus_entropy(logits, 0.9, 9).sum(), logits, create_graph=True)
