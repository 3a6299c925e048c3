"""Charts as plain SVG: a line per arm and a band around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from aent.compare.numbers import Curve
from aent.compare.report import Chart

# by Okabe and Ito: people with color blindness can tell them apart
COLOURS = ("#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800")
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 468, 30, 214  # of the plot, within the picture
TICKS = 5
LEGEND_ROW = 18


def colours(arms: Sequence[str]) -> dict[str, str]:
    """A color for each arm; more than eight share them."""
    return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(arms)}


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to places in the picture."""

    low: float
    high: float
    first: float  # place of ``low``
    last: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    @staticmethod
    def of(values: Sequence[float], first: float, last: float) -> Axis:
        """From the smallest to the largest value; an interval around it if all are equal."""
        low, high = min(values), max(values)
        if low == high:
            room = abs(low) / 10 or 0.5
            low, high = low - room, high + room
        return Axis(low, high, first, last)


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high], about ``count``."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def svg(chart: Chart, colour: Mapping[str, str], legend: bool) -> str:
    """The chart; with ``legend`` it names the arms and has a background, as a file of its own."""
    finite = {arm: _finite(curve) for arm, curve in chart.curves.items()}
    x = Axis.of([v for c in finite.values() for v in c.x], LEFT, RIGHT)
    y = Axis.of([v for c in finite.values() for v in (*c.low, *c.high)], BOTTOM, TOP)
    height = HEIGHT + (LEGEND_ROW if legend else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor" '
        f'data-left="{LEFT}" data-right="{RIGHT}" data-low="{x.low:g}" data-high="{x.high:g}">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>' if legend else "",
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="600">{escape(chart.title)}</text>',
        *_grid(x, y),
        f'<text x="{RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(chart.x_label)}</text>',
        *(_curve(arm, curve, colour[arm], x, y) for arm, curve in finite.items()),
        *(_legend(list(finite), colour) if legend else ()),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _finite(curve: Curve) -> Curve:
    """The curve without points that are NaN."""
    kept = [
        p for p in zip(curve.x, curve.mean, curve.low, curve.high) if all(map(math.isfinite, p))
    ]
    x, mean, low, high = (list(values) for values in zip(*kept)) if kept else ([], [], [], [])
    return Curve(x, mean, low, high)


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    line = 'stroke="currentColor" stroke-opacity=".15"'
    for value in ticks(y.low, y.high):
        place = f"{y(value):.1f}"
        yield f'<path d="M{LEFT} {place}H{RIGHT}" {line}/>'
        yield f'<text x="{LEFT - 6}" y="{place}" dy=".35em" text-anchor="end">{value:.4g}</text>'
    for value in ticks(x.low, x.high):
        yield f'<text x="{x(value):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{value:.4g}</text>'
    yield f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="currentColor" stroke-opacity=".5"/>'


def _curve(arm: str, curve: Curve, colour: str, x: Axis, y: Axis) -> str:
    def points(xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys))

    around = points([*curve.x, *reversed(curve.x)], [*curve.high, *reversed(curve.low)])
    return (
        f'<g data-arm="{escape(arm)}"><title>{escape(arm)}</title>'
        f'<polygon points="{around}" fill="{colour}" fill-opacity=".15"/>'
        f'<polyline points="{points(curve.x, curve.mean)}" fill="none" stroke="{colour}" '
        f'stroke-width="1.8" stroke-linejoin="round"/></g>'
    )


def _legend(arms: Sequence[str], colour: Mapping[str, str]) -> Iterator[str]:
    place = LEFT
    for arm in arms:
        at = f'x="{place}" y="{HEIGHT + 4}"'
        yield f'<rect {at} width="10" height="10" fill="{colour[arm]}"/>'
        yield f'<text x="{place + 14}" y="{HEIGHT + 13}">{escape(arm)}</text>'
        place += 26 + 6 * len(arm)
