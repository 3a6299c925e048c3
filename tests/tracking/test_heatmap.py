"""The page of a step's tokens, in a real browser."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from aent.tracking import heatmap
from aent.tracking.heatmap import Response, Step

HOSTILE = "</script><b>&{{data}}"
STEP = Step(
    title="trial <1>, step 3",
    measure="clamped entropy",
    mean=0.6,
    forking_from=1.0,
    forking_share=0.2,
    left_out=2,
    responses=[
        Response(HOSTILE, 7, 0, 1.0, ["So", " 4", ""], [11, 12, 2], [0.25, 1.0, float("nan")],
                 [0.5, 0.123456, 1.0], [0.7] * 3, [0.01, -2.5, 0.0], [False, True, False]),
        Response(HOSTILE, 7, 0, 0.0, ["\n", HOSTILE], [13, 14], [0.0, 2.0],
                 [1.0, 0.2], [-0.7] * 2, [0.0, 0.3], [False, False]),
    ],
)  # fmt: skip
HOVER = """<script>
  document.querySelector('[data-at="0 1"]').dispatchEvent(
    new PointerEvent("pointerover", {bubbles: true}));
</script></body>"""


@pytest.mark.slow
def test_the_browser_colours_every_token_and_tells_what_is_under_the_pointer(
    browse, tmp_path: Path
) -> None:
    file = tmp_path / "step.html"
    file.write_text(heatmap.page(STEP).replace("</body>", HOVER), encoding="utf-8")
    dom = browse(file, "--dump-dom")
    spans = re.findall(r"<span ([^>]*data-at[^>]*)>(.*?)</span>", dom, re.S)
    texts = [unescape(text) for _, text in spans]
    assert texts == ["So", " 4", "▯", "⏎\n", HOSTILE]
    shades = [float(re.search(r"0\.?\d*(?=\))", a).group()) for a, _ in spans]
    assert shades == pytest.approx([0.25 / 2 * 0.85, 0.5 * 0.85, 0, 0, 0.85], abs=2e-3)
    forks = [number for number, (a, _) in enumerate(spans) if 'class="fork"' in a]
    assert forks == [1, 4]
    tip = unescape(re.search(r'<div id="tip"[^>]*>(.*?)</div>', dom, re.S).group(1))
    told = dict(line.split(maxsplit=1) for line in tip.splitlines())
    assert told["entropy"] == "1 nats"
    assert told["probability"] == "0.123"
    assert (told["advantage"], told["covariance"], told["clipped"]) == ("0.7", "-2.5", "yes")
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>(.*?)</td>", dom)
    assert [(unescape(piece), n) for piece, n in rows] == [(HOSTILE, "1"), ("␣4", "1")]


def test_the_page_needs_nothing_from_outside() -> None:
    page = heatmap.page(STEP)
    assert re.findall(r"(?:src|href|url)\s*[=(]", page) == []
    assert re.findall(r"https?://", page) == []
    assert "trial &lt;1&gt;, step 3" in page
    assert "2 more responses" in page


def test_forking_tokens_are_counted_by_their_text() -> None:
    again = Response("?", 8, 1, 0.0, [" 4", " 4"], [12, 12], [3.0, 0.5], [0.1, 0.9],
                     [0.0] * 2, [0.0] * 2, [False] * 2)  # fmt: skip
    rows = heatmap.forking([*STEP.responses, again], 1.0)
    assert rows[0][:3] == (" 4", 2, 3)
    assert rows[0][3] == 2.0
    assert rows[1][:3] == (HOSTILE, 1, 1)


def test_a_step_without_tokens_of_any_entropy_has_a_page() -> None:
    flat = Response("?", 1, 0, 0.0, ["a"], [5], [0.0], [1.0], [0.0], [0.0], [False])
    page = heatmap.page(Step("t", "entropy", 0.0, 0.0, 0.2, 0, [flat]))
    assert '"entropy":[0.0]' in page
