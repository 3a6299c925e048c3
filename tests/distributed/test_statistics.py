"""token_statistics over real ranks: the same set bit for bit, the same values and gradients."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from aent.entropy import kernels, sharded, token_statistics
from aent.entropy.kernels.torch_path import kept_mask
from aent.entropy.rows import forward_rows
from aent.entropy.shard import VocabShard
from distributed.ranks import run_ranks
from entropy import reference
from wording import assert_names


@dataclass(frozen=True)
class Case:
    """Logits [5, columns] of which ``vocab`` are real, cut at shares of the columns."""

    vocab: int
    columns: int
    k: int
    dtype: torch.dtype = torch.float32
    style: str = "normal"
    masked: bool = False
    temperature: float = 1.0
    cuts: str = "even"
    seed: int = 0
    backend: str | None = None  # None: the best here

    def data(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = torch.full((5, self.columns), 7.0, dtype=self.dtype)  # padding must not matter
        made = reference.make_logits(5, self.vocab, self.dtype, self.style, self.masked, self.seed)
        logits[:, : self.vocab] = made
        targets = made.double().argmax(dim=1)
        weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(self.seed))
        return logits, targets, weights

    def widths(self, ranks: int) -> list[int]:
        if self.cuts == "narrow":  # first blocks narrower than K, the rest in the last
            cuts = [3 * i for i in range(1, ranks)]
        elif self.cuts == "random":  # of one column at least
            places = np.arange(1, self.columns)
            cuts = sorted(np.random.default_rng(self.seed).choice(places, ranks - 1, replace=False))
        else:
            return [len(part) for part in np.array_split(range(self.columns), ranks)]
        return np.diff([0, *cuts, self.columns]).tolist()


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    columns = draw.randint(9, 600)
    vocab = draw.randint(1, columns)
    return Case(
        vocab,
        columns,
        draw.choice([draw.randint(1, vocab), vocab - vocab // 3]),
        draw.choice([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
        draw.choice(["normal", "wide", "grid", "constant", "one_hot", "tiny", "sorted"]),
        masked=draw.random() < 0.3,
        temperature=draw.choice([1.0, 0.7, 1.5]),
        cuts=draw.choice(["even", "narrow", "random"]),
        seed=seed,
        backend=draw.choice([None, "torch"]),
    )


CASES = [
    Case(100, 100, 67),
    Case(100, 100, 1),
    Case(100, 100, 100),
    Case(97, 128, 65, temperature=0.7),
    Case(40, 128, 30),  # blocks that are all padding
    Case(3, 128, 2, style="grid"),
    Case(100, 100, 67, cuts="narrow"),
    Case(100, 112, 5, cuts="narrow", style="grid", dtype=torch.bfloat16),
    Case(500, 512, 335, torch.bfloat16, temperature=1.3),
    Case(500, 512, 335, torch.float16, "grid"),
    Case(500, 512, 335, torch.float64, "wide"),
    Case(500, 512, 335, style="wide", temperature=0.6),
    Case(500, 512, 335, style="constant"),
    Case(500, 512, 335, style="one_hot"),
    Case(500, 512, 335, style="tiny"),
    Case(500, 512, 470, masked=True),  # masked tokens among the kept
    Case(500, 512, 335, masked=True, style="grid", cuts="narrow"),
    Case(9000, 9216, 6030),
    Case(9000, 9216, 6030, backend="torch"),
    Case(9000, 9216, 6030, style="sorted"),
    Case(9000, 9216, 6030, torch.bfloat16, "sorted", backend="torch"),
    Case(9000, 9216, 6030, style="sorted", cuts="narrow"),
    Case(9000, 9216, 6030, torch.bfloat16, "sorted"),
    Case(9000, 9216, 20, style="grid"),
    Case(9000, 9216, 6030, style="tiny", masked=True),
    *(random_case(seed) for seed in range(20)),
]


def one_case(case: Case, rank: int, ranks: int) -> dict[str, Any]:
    logits, targets, weights = case.data()
    widths = case.widths(ranks)
    start = sum(widths[:rank])
    leaf = logits[:, start : start + widths[rank]].clone().requires_grad_()
    group = dist.group.WORLD
    stats = token_statistics(
        leaf, targets, case.temperature, top_k=case.k, vocab_size=case.vocab, tp_group=group,
        slopes=True,
    )  # fmt: skip
    terms = (stats.log_prob, stats.entropy, stats.clamped_entropy)
    sum((w * t).sum() for w, t in zip(weights, terms, strict=True)).backward()
    assert leaf.grad is not None

    shard = VocabShard.locate(widths[rank], case.vocab, group, leaf.device)
    real = leaf.detach()[:, : shard.width]
    with pytest.MonkeyPatch.context() as patch:  # three rows a block
        room = 8 * (1024 + case.vocab // ranks // 4)
        patch.setattr(sharded, "CANDIDATE_BYTES", 3 * room)
        again = token_statistics(
            real, targets, case.temperature, top_k=case.k, tp_group=replace(shard, columns=None),
            slopes=True,
        )  # fmt: skip
        *_, saved = forward_rows(real, targets, case.temperature, case.k, shard)
    assert torch.equal(again.clamped_entropy, stats.clamped_entropy)
    assert torch.equal(again.kept_mass, stats.kept_mass)
    mask, threshold = torch.ones_like(real, dtype=torch.bool), np.zeros(0)
    if saved.threshold is not None and saved.cut is not None:
        inner = real.to(saved.threshold.dtype)
        mask = kept_mask(inner, saved.threshold, saved.cut, shard.start).bool()
        threshold = saved.threshold.double().numpy()
    assert stats.covariance is not None
    assert stats.entropy_slope is not None
    slopes = stats.covariance, stats.entropy_slope
    values = torch.stack([*terms, stats.kept_mass, *slopes]).detach()
    return {
        "values": values.double().numpy(),
        "grad": leaf.grad.double().numpy(),
        "mask": mask.numpy(),
        "threshold": threshold,
    }


def on_rank(rank: int, ranks: int) -> list[dict[str, Any]]:
    answers = []
    for case in CASES:
        with kernels.using(case.backend) if case.backend else nullcontext():
            answers.append(one_case(case, rank, ranks))
    return answers


def errors_said(rank: int, ranks: int) -> list[str]:
    """What wrong arguments say on a rank: a vocabulary that is too large, a last rank without a
    column. They must be said on all ranks alike."""
    said = []
    for columns, vocab in ((4, 4 * ranks + 1), (4 * (rank < ranks - 1), None)):
        try:
            token_statistics(
                torch.zeros(2, columns), torch.zeros(2, dtype=torch.int64),
                vocab_size=vocab, tp_group=dist.group.WORLD,
            )  # fmt: skip
        except ValueError as error:
            said.append(str(error))
    return said


def on_rank_with_errors(rank: int, ranks: int) -> tuple[list[dict[str, Any]], list[str]]:
    return on_rank(rank, ranks), errors_said(rank, ranks)


@dataclass(frozen=True)
class Expected:
    """What any number of ranks must find of a case."""

    mask: np.ndarray
    values: np.ndarray
    gradient: np.ndarray

    @staticmethod
    @cache
    def of(case: Case) -> Expected:
        logits, targets, weights = case.data()
        problem = (logits, targets, case.temperature, case.k, case.vocab)
        slopes = reference.slopes(logits, targets, case.temperature, case.vocab)
        return Expected(
            reference.kept_mask(logits[:, : case.vocab], case.k).numpy(),
            torch.stack([*reference.statistics(*problem), *slopes]).numpy(),
            reference.gradient(*problem, weights).numpy(),
        )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_sharding_equals_the_reference(ranks: int) -> None:
    answers = run_ranks(on_rank_with_errors, ranks)
    for i, case in enumerate(CASES):
        parts = [results[i] for results, _ in answers]
        want = Expected.of(case)
        mask = np.concatenate([part["mask"] for part in parts], axis=1)
        assert np.array_equal(mask, want.mask), case
        for part in parts:  # bit for bit the same on every rank
            assert np.array_equal(part["values"], parts[0]["values"]), case
            assert np.array_equal(part["threshold"], parts[0]["threshold"]), case

        tol = 1e-11 if case.dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(
            parts[0]["values"], want.values, rtol=tol, atol=tol, err_msg=str(case)
        )
        grad = np.concatenate([part["grad"] for part in parts], axis=1)
        tol = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(case.dtype, tol)
        np.testing.assert_allclose(grad, want.gradient, rtol=tol, atol=tol, err_msg=str(case))
        assert (grad[:, case.vocab :] == 0).all(), case
    for _, (too_large, no_columns) in answers:
        assert_names(too_large, "vocab_size", 4 * ranks + 1, 4 * ranks)
        assert_names(no_columns, f"rank {ranks - 1}", "columns")


def traffic(rank: int, ranks: int) -> list[tuple[int, int]]:
    """(rounds, bytes a token) of forwards over vocabularies and K of several sizes; of the last
    one, with sums of squares as well."""
    sizes: list[int] = []
    names = ("all_reduce", "all_gather")
    plain = {name: getattr(dist, name) for name in names}

    def counted(name: str) -> Any:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            tensors = first if isinstance(first, list) else [first]
            sizes.append(sum(t.numel() * t.element_size() for t in tensors))
            return plain[name](first, *args, **kwargs)

        return call

    rows, found = 50, []
    for name in names:
        setattr(dist, name, counted(name))
    for vocab, k in ((1000, 10), (1000, 670), (151_936, 50), (151_936, 101_798)):
        g = torch.Generator().manual_seed(0)
        width = vocab // ranks
        logits = torch.randn(rows, vocab, generator=g)[:, rank * width : (rank + 1) * width]
        shard = VocabShard(rank * width, width, vocab, dist.group.WORLD)
        sizes.clear()
        forward_rows(logits, torch.zeros(rows, dtype=torch.int64), 1.0, k, shard)
        found.append((len(sizes), sum(sizes) // rows))
    sizes.clear()
    forward_rows(logits, torch.zeros(rows, dtype=torch.int64), 1.0, k, shard, slopes=True)
    return [*found, (len(sizes), sum(sizes) // rows)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 8])
def test_traffic_does_not_depend_on_the_vocabulary_or_k(ranks: int) -> None:
    """Four rounds and 404 + 68 t bytes a token, as sharded.py says; no row needs the search."""
    for rank in run_ranks(traffic, ranks):
        assert rank == [(4, 404 + 68 * ranks)] * 4 + [(4, 404 + 80 * ranks)]
