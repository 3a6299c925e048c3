"""A step's responses as one self-contained HTML page, with every token colored by its entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from aent.tracking.pages import fill, script_data

TEMPLATE = Path(__file__).with_name("heatmap.html")
LISTED = 50  # pieces of text in the list of forking tokens


@dataclass(frozen=True)
class Response:
    """What the page shows of one response; lists with one value per token have equal length."""

    prompt: str
    item: int  # index of the question
    group: int  # shared by the responses to one prompt, which are adjacent
    reward: float
    pieces: list[str]  # text of each token
    token: list[int]
    entropy: list[float]  # nats
    probability: list[float]  # of the token, by the tempered policy
    advantage: list[float]
    covariance: list[float]
    clipped: list[bool]


@dataclass(frozen=True)
class Step:
    """A step's page. ``forking_from``: the entropy from which a token counts as forking (nats). It
    and the mean are of the whole step, of which the page may show a part."""

    title: str
    measure: str  # which entropy
    mean: float
    forking_from: float
    forking_share: float
    left_out: int  # responses that are not shown
    responses: list[Response]


def page(step: Step) -> str:
    """The page, with its numbers as JSON in the element ``data``, with three digits."""
    shown = [h for r in step.responses for h in r.entropy if math.isfinite(h)]
    # the color scale ends at the entropy that one token in a hundred exceeds
    most = sorted(shown)[min(len(shown) - 1, len(shown) * 99 // 100)] if shown else 0.0
    facts = (
        f"Mean entropy of the step {step.mean:.3g} nats ({step.measure}). Forking tokens, the "
        f"{step.forking_share:.0%} with the highest entropy, are those of {step.forking_from:.3g} "
        "nats and more; they are underlined."
    )
    if step.left_out:
        facts += f" {step.left_out} more responses are not shown."
    data = {
        "scale": _number(max(most, 1e-9)),
        "forking_from": _number(step.forking_from),
        "responses": [_rounded(response) for response in step.responses],
    }
    parts = {
        "title": escape(step.title),
        "facts": escape(facts),
        "forking": _table(forking(step.responses, step.forking_from)),
        "data": script_data(data),
    }
    return fill(TEMPLATE, parts)


def forking(
    responses: Sequence[Response], forking_from: float
) -> list[tuple[str, int, int, float, float]]:
    """(piece, how often it forks, how often it occurs, its mean entropy and probability when it
    forks), for the pieces whose forking tokens have the most entropy in total."""
    found: dict[str, list[tuple[float, float]]] = {}
    occurs: dict[str, int] = {}
    for response in responses:
        for piece, h, p in zip(response.pieces, response.entropy, response.probability):
            occurs[piece] = occurs.get(piece, 0) + 1
            if h >= forking_from:
                found.setdefault(piece, []).append((h, p))
    rows = []
    for piece, values in found.items():
        h, p = (sum(column) / len(values) for column in zip(*values))
        rows.append((piece, len(values), occurs[piece], h, p))
    return sorted(rows, key=lambda row: (-row[1] * row[3], row[0]))[:LISTED]


def _table(rows: Sequence[tuple[str, int, int, float, float]]) -> str:
    head = ("token", "forks", "of", "mean entropy", "mean probability")
    cells = [[f"<code>{_visible(p)}</code>", n, all_, f"{h:.3g}", f"{q:.3g}"]
             for p, n, all_, h, q in rows]  # fmt: skip
    lines = ["".join(f"<th>{name}</th>" for name in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in cells]
    return "\n".join(f"<tr>{line}</tr>" for line in lines)


def _visible(piece: str) -> str:
    return escape(piece).replace("\n", "⏎").replace(" ", "␣") or "(no text)"


def _rounded(response: Response) -> dict[str, Any]:
    values = asdict(response)
    for key in ("entropy", "probability", "advantage", "covariance"):
        values[key] = [_number(value) for value in values[key]]
    return values | {
        "reward": _number(response.reward),
        "clipped": list(map(int, response.clipped)),
    }


def _number(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None
