"""The report's page in a real browser, and the Markdown beside it."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from aent.cli.main import app
from aent.compare import collect, numbers
from wording import assert_names

pytestmark = pytest.mark.slow
WIDTH, HEIGHT = 1100, 1600  # title and all charts


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    done = CliRunner().invoke(app, ["report", str(comparison), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(folder / "report.html"), str(folder / "report.md")]
    return folder


def test_the_browser_draws_the_curves_that_mlflow_has(comparison, written, browse):
    """The page's script reads the data and says each arm's last value; the lines are at the places
    of the data; both are MLflow's."""
    dom = browse(written / "report.html", "--dump-dom")
    data = json.loads(re.search(r'<script [^>]*id="data">(.*?)</script>', dom, re.S).group(1))
    found = collect.read(str(comparison))
    for name, key in (("entropy", "policy/entropy"), ("length", "response/length_mean")):
        chart = data["charts"][name]
        for arm, curve in numbers.curves(found, numbers.metric(key)).items():
            assert chart["curves"][arm]["mean"] == pytest.approx(curve.mean, rel=1e-5)
            assert chart["curves"][arm]["x"] == curve.x
    figure = re.search(r'<figure data-chart="entropy">(.*?)</figure>', dom, re.S).group(1)
    said = unescape(re.search(r"<figcaption>(.*?)</figcaption>", figure).group(1))
    plain, held = (data["charts"]["entropy"]["curves"][arm]["mean"][-1] for arm in data["arms"])
    assert said == f"step 23: plain {float(f'{plain:.3g}'):g} · held {float(f'{held:.3g}'):g}"
    for arm, points in re.findall(r'<g data-arm="(\w+)">.*?<polyline points="(.*?)"', figure, re.S):
        heights = [float(p.partition(",")[2]) for p in points.split()]
        values = data["charts"]["entropy"]["curves"][arm]["mean"]
        scale = (heights[-1] - heights[0]) / (values[-1] - values[0])
        assert scale < 0  # up is more
        expected = [heights[0] + scale * (v - values[0]) for v in values]
        assert heights == pytest.approx(expected, abs=0.11)  # a tenth of a unit is written


def test_the_browser_shows_it(written, browse, tmp_path):
    picture = tmp_path / "page.png"
    browse(written / "report.html", f"--screenshot={picture}", f"--window-size={WIDTH},{HEIGHT}")
    with Image.open(picture) as image:
        assert image.size == (WIDTH, HEIGHT)
        colours = {c for _, c in image.convert("RGB").getcolors(maxcolors=1 << 22)}
    assert {(0x55, 0x55, 0x55), (0x00, 0x72, 0xB2)} <= colours  # the arms' own


def test_a_picture_for_the_docs(browse):
    """Write report.png, a picture of the page in the folder AENT_REPORT, to that folder."""
    folder = os.environ.get("AENT_REPORT")
    if folder is None:
        pytest.skip("AENT_REPORT names no report: no picture of one is taken")
    page = Path(folder).resolve() / "report.html"
    picture = page.with_suffix(".png")
    browse(page, f"--screenshot={picture}", f"--window-size={WIDTH},{HEIGHT}")
    with Image.open(picture) as image:
        assert image.size == (WIDTH, HEIGHT)


def test_a_report_that_cannot_be_written_is_refused(comparison, tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["report", str(comparison), "--out", str(tmp_path / "file")])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert_names(line, tmp_path / "file", "File exists")


def test_the_page_needs_nothing_from_outside(written):
    page = (written / "report.html").read_text()
    assert re.findall(r"(?:src|href|url)\s*[=(]", page) == []
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "{{" not in page


def test_markdown_has_the_same_tables_and_its_charts_beside_it(written):
    text = (written / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert "charts/entropy.svg" in pictures
    assert all((written / picture).read_text().startswith("<svg") for picture in pictures)
    page = unescape((written / "report.html").read_text())
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            assert all(cell in page for cell in line.strip("| ").split(" | ")), line
