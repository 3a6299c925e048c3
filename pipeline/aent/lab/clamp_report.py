"""``aent lab clamp``: at which entropies a clamp matters, for a policy at several temperatures."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from aent.lab import clamp, policies
from aent.lab.clamp import RULES, THRESHOLD, Differences

# applied to the same answers' logits, up to nearly uniform
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0)
PROMPTS, SAMPLES, TOKENS = 8, 4, 32  # a thousand tokens at most
FINE = 0.5  # nats: width of the bins in which differences are measured
COARSE = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, math.inf)  # those of the table
LEAST = 10  # tokens a bin must have


@dataclass(frozen=True)
class Bins:
    """Relative differences by the tokens' full entropy; bin i lies in [edges[i], edges[i + 1]).

    tokens: [B]. entropy: [B, S], of the bin's mean entropy. gradient: [B, S], root mean square of
    the difference over that of the full entropy's gradient. NaN for bins with too few tokens.
    """

    edges: Sequence[float]
    tokens: Tensor
    entropy: Tensor
    gradient: Tensor


def run(model: str, seed: int) -> Bins:
    """Print the result (Markdown) and return it in fine bins.

    Raises FileNotFoundError or ValueError if the model cannot be read.
    """
    folder, prompts = policies.find(model, PROMPTS)
    parts = []
    for prompt, logits in zip(prompts, policies.own_logits(folder, prompts, SAMPLES, TOKENS, seed)):
        print(f"aent: {len(logits)} tokens in answer to {prompt!r}", file=sys.stderr)
        vocabulary = logits.shape[-1]
        parts += [clamp.differences(rows, TEMPERATURES) for rows in logits.split(64)]
    found = Differences.join(parts)
    fine = binned(found, [FINE * i for i in range(math.ceil(math.log(vocabulary) / FINE) + 1)])
    print(report(found, fine, vocabulary))
    return fine


def binned(found: Differences, edges: Sequence[float]) -> Bins:
    """Summarize the results in bins of the full entropy."""
    tokens, entropy, gradient = [], [], []
    gap = found.entropy[:, None] - found.clamped
    for low, high in pairwise(edges):
        inside = (found.entropy >= low) & (found.entropy < high)
        number = int(inside.sum())
        tokens.append(number)
        if number < LEAST:
            missing = torch.full((found.clamped.shape[1],), math.nan, dtype=torch.float64)
            entropy.append(missing)
            gradient.append(missing)
            continue
        entropy.append(gap[inside].sum(dim=0) / found.entropy[inside].sum())
        squares = found.gradient_difference[inside].square().sum(dim=0)
        gradient.append((squares / found.gradient[inside].square().sum()).sqrt())
    return Bins(edges, torch.tensor(tokens), torch.stack(entropy), torch.stack(gradient))


def where(edges: Sequence[float], difference: Tensor) -> str:
    """The entropies at which a difference ([B], relative) is at least ``THRESHOLD``, in words."""
    known = [i for i in range(len(difference)) if not math.isnan(difference[i])]
    large = [i for i in known if difference[i] >= THRESHOLD]
    if not large:
        return "nowhere"
    if large == known:
        return "everywhere"
    stretches: list[list[int]] = []
    for i in large:
        if stretches and known.index(i) == known.index(stretches[-1][-1]) + 1:
            stretches[-1].append(i)
        else:
            stretches.append([i])
    words = []
    for stretch in stretches:
        low, high = edges[stretch[0]], edges[stretch[-1] + 1]
        if stretch[-1] == known[-1]:
            words.append(f"from {low:g}")
        elif stretch[0] == known[0]:
            words.append(f"below {high:g}")
        else:
            words.append(f"{low:g} to {high:g}")
    return ", ".join(words)


def report(found: Differences, fine: Bins, vocabulary: int) -> str:
    """Two Markdown tables: at which entropies each rule matters, and how much."""
    coarse = binned(found, COARSE)
    lines = [
        f"{len(found.entropy)} tokens, temperatures {', '.join(f'{t:g}' for t in TEMPERATURES)}, "
        f"vocabulary {vocabulary}, entropies {found.entropy.min():.2g} to "
        f"{found.entropy.max():.3g} nats",
        "",
        "| kept | tokens (median) | entropy differs by 1% at, nats | its gradient at, nats |",
        "|---|---|---|---|",
    ]
    for column, rule in enumerate(RULES):
        kept = int(found.kept[:, column].median())
        entropy, gradient = (
            where(fine.edges, each[:, column]) for each in (fine.entropy, fine.gradient)
        )
        lines.append(f"| {rule} | {kept} | {entropy} | {gradient} |")
    shown = [i for i, number in enumerate(coarse.tokens.tolist()) if number >= LEAST]
    heads = [
        f"{low:g} to {high:g}" if math.isfinite(high) else f"above {low:g}"
        for low, high in pairwise(COARSE)
    ]
    lines += [
        "",
        "Difference in percent of the full entropy / of its gradient's norm, by entropy in nats:",
        "",
        "| kept | " + " | ".join(heads[i] for i in shown) + " |",
        "|---|" + "---|" * len(shown),
        "| (tokens) | " + " | ".join(str(int(coarse.tokens[i])) for i in shown) + " |",
    ]
    for column, rule in enumerate(RULES):
        cells = [
            f"{_percent(coarse.entropy[i, column])} / {_percent(coarse.gradient[i, column])}"
            for i in shown
        ]
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: Tensor) -> str:
    percent = 100 * float(share)
    return (
        f"{percent:.0f}"
        if percent >= 10
        else f"{percent:.1f}"
        if percent >= 1
        else f"{percent:z.2f}"
    )
