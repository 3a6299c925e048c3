"""The kernels' numbers against float64 (tests/entropy/reference.py): kept sets exactly, statistics
and gradients to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from aent.entropy import TokenStatistics, kernels, token_statistics
from entropy import reference
from gpu_check.report import Row, bounded
from gpu_check.section import Section

TEMPERATURE = 0.8
WEIGHTS = (1.0, 0.7, -1.3)  # of log-prob, entropy and clamped entropy in the differentiated sum
SLICE = 128  # rows that are in float64 at once
FEW = 256  # rows of the logits that break selections
STATISTIC = 2e-5  # |got - float64| / (1 + |float64|): of fp32 sums
KEPT = "rows with another kept set"
# |got - float64| / (|float64| + 1e-3 of the row's largest): of gradients in the logits' dtype (the
# interpreter cuts bf16 off where a GPU rounds it)
GRADIENT = {torch.float32: 5e-4, torch.bfloat16: 1e-2}
NAMES = ("log_prob", "entropy", "clamped_entropy", "kept_mass")


def check(section: Section, logits: Tensor, targets: Tensor) -> None:
    """Rows for these logits [N, V], all of them, and for ties and masks as wide."""
    left = section.left()  # at most half of it for what is timed too
    section.add(compare(section, "random logits", logits, targets, logits.shape[1], left / 2))
    width, dtype, device = logits.shape[1], logits.dtype, logits.device
    rows = min(FEW, logits.shape[0])
    for style, masked in (("grid", False), ("normal", True), ("sorted", False)):
        made = reference.make_logits(rows, width, dtype, style, masked, seed=1)
        what = {"grid": "ties, padded columns", "sorted": "sorted logits"}.get(style, "masks")
        if masked:  # every other one finite, as many attention masks have it
            made[::2] = made[::2].clamp(min=torch.finfo(dtype).min)
        vocab = width - 36 if style == "grid" else width
        likely = made[:, :vocab].argmax(dim=1)  # a target that no mask hides
        seconds = max(1.0, section.left() / 4)
        section.add(compare(section, what, made.to(device), likely.to(device), vocab, seconds))


def compare(
    section: Section, what: str, logits: Tensor, targets: Tensor, vocab: int, seconds: float
) -> Row:
    """The largest errors of as many rows as ``seconds`` allow, from the first."""
    until = section.left() - seconds
    leaf = logits.detach().requires_grad_()
    stats = token_statistics(leaf, targets, TEMPERATURE, vocab_size=vocab)
    total = sum(w * getattr(stats, name) for w, name in zip(WEIGHTS, NAMES, strict=False))
    (gradient,) = torch.autograd.grad(total.sum(), leaf)
    k = vocab - int(vocab * 0.33)
    _, threshold, cut = kernels.choose(logits).forward(logits[:, :vocab], k, TEMPERATURE)
    worst: dict[str, float] = {}
    done = 0
    while done < len(logits) and (not done or section.left() > until):
        rows = slice(done, done + SLICE)
        found = errors(logits[rows], targets[rows], vocab, k, stats, gradient, rows)
        kept = kept_set(logits[rows, :vocab], threshold[rows], cut[rows])
        other = (kept != reference.kept_mask(logits[rows, :vocab], k)).any(dim=1)
        found[KEPT] = worst.get(KEPT, 0) + float(other.sum())
        worst = {name: largest(worst.get(name, 0.0), value) for name, value in found.items()}
        done = min(done + SLICE, len(logits))
    allowed = dict.fromkeys(NAMES, STATISTIC) | {"gradient": GRADIENT[logits.dtype], KEPT: 0.0}
    invalid = float(stats.invalid_rows)
    return bounded(
        section.name,
        f"{what}: errors against float64, {done} of {len(logits)} rows",
        worst | {"invalid rows": invalid},
        allowed | {"invalid rows": 0.0},
    )


def errors(
    logits: Tensor,
    targets: Tensor,
    vocab: int,
    k: int,
    stats: TokenStatistics,
    gradient: Tensor,
    rows: slice,
) -> dict[str, float]:
    """The largest error of each statistic and of the gradient, among these rows."""
    problem = (logits, targets, TEMPERATURE, k, vocab)
    found = {}
    for name, want in zip(NAMES, reference.statistics(*problem), strict=True):
        off = (getattr(stats, name)[rows].detach().double() - want).abs()
        found[name] = float((off / (1 + want.abs())).max())
    weights = torch.tensor(WEIGHTS, device=logits.device)[:, None].expand(3, len(logits))
    want = reference.gradient(*problem, weights)
    size = want.abs()
    off = (gradient[rows].double() - want).abs()
    found["gradient"] = float((off / (size + 1e-3 * size.amax(dim=1, keepdim=True))).max())
    return found


def kept_set(logits: Tensor, threshold: Tensor, cut: Tensor) -> Tensor:
    """The set that a threshold and a tie cut name, bool [N, V]."""
    wide, at = logits.to(threshold.dtype), threshold[:, None]
    ids = torch.arange(logits.shape[1], device=logits.device)
    return (wide > at) | ((wide == at) & (ids <= cut[:, None]))


def largest(one: float, other: float) -> float:
    """Of two numbers; NaN if one is."""
    return other if other != other or other > one else one
