"""The figure is drawn from any points."""

import math

import pytest
from matplotlib.figure import Figure

from aent.recipe.schema import Recipe
from aent.tracking import figures


def recipe(**controller) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "trial",
            "model": {"bundled": "tiny-qwen2"},
            "controller": {"initial": 0.01} | controller,
        }
    )


BAND = {"kind": "band", "low": 0.4, "high": 0.8, "step_size": 0.1, "min": 0.0, "max": 0.03}
KEYS = ("reward/mean", "policy/entropy", "policy/clamped_entropy", "controller/coefficient")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every picture that gets saved."""
    pictures = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        pictures.append(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return pictures


def test_reward_on_top_entropy_in_its_band_coefficient_below(tmp_path, drawn):
    metrics = {key: {step: i + step / 10 for step in range(5)} for i, key in enumerate(KEYS)}
    metrics |= {"evaluation/accuracy": {0: 0.5, 5: 0.5}}
    metrics |= {"policy/entropy_error": {1: 0.3, 2: 0.4}}
    metrics |= {"controller/low": {3: 0.4, 4: 0.4}, "controller/high": {3: 0.8, 4: 0.8}}
    figures.draw(metrics, recipe(**BAND), tmp_path / "figure.png")
    reward, entropy, coefficient = drawn[0]
    lines = {line.get_label(): line for axis in drawn[0] for line in axis.get_lines()}
    assert list(lines["mean reward"].get_ydata()) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert list(lines["clamped entropy"].get_ydata()) == pytest.approx([2, 2.1, 2.2, 2.3, 2.4])
    assert list(lines["coefficient"].get_ydata()) == pytest.approx([3, 3.1, 3.2, 3.3, 3.4])
    assert list(lines["held-out accuracy"].get_xdata()) == [0, 5]
    assert lines["mean reward"].axes is reward
    assert lines["coefficient"].axes is coefficient
    band, bars = entropy.collections
    ends = [(x, low, high) for (x, low), (_, high) in bars.get_segments()]
    assert ends == [(1, pytest.approx(1.8), pytest.approx(2.4)),
                    (2, pytest.approx(1.8), pytest.approx(2.6))]  # fmt: skip
    extent = band.get_datalim(entropy.transData)
    assert (extent.x0, extent.x1, extent.y0, extent.y1) == (3, 4, 0.4, 0.8)
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_a_run_without_points_or_band_draws_too(tmp_path, drawn):
    figures.draw({}, recipe(), tmp_path / "empty.png")
    figures.draw({"reward/mean": {0: math.nan}}, recipe(), tmp_path / "nan.png")
    assert len(drawn) == 2
    assert not drawn[0][1].collections


def test_a_target_is_a_line(tmp_path, drawn):
    aim = {"controller/low": {0: 0.4, 1: 0.4}, "controller/high": {0: 0.4, 1: 0.4}}
    figures.draw(aim, recipe(), tmp_path / "figure.png")
    (line,) = drawn[0][1].get_lines()
    assert line.get_label() == "target 0.4"
    assert not drawn[0][1].collections
