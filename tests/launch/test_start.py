"""What a run says of its entropy control before it starts: no hidden default."""

from __future__ import annotations

from typing import Any

import pytest

from aent.launch.start import say_what_controls
from aent.recipe.schema import Recipe

BAND = {"kind": "band", "initial": 0.03, "low": 0.5, "high": 1.0, "step_size": 0.2, "min": 0.0,
        "max": 0.5, "warmup_steps": 8}  # fmt: skip


def said(controller: dict[str, Any], entropy: dict[str, Any] | None = None) -> list[str]:
    recipe = Recipe.model_validate(
        {"name": "x", "model": {}, "controller": controller, "entropy": entropy or {}}
    )
    return say_what_controls(recipe).splitlines()


def test_a_band_and_the_clamped_entropy() -> None:
    assert said(BAND) == [
        "aent: entropy bonus: coefficient x the entropy renormalised without the 0.33 unlikeliest "
        "of the vocabulary",
        "aent: coefficient (band): 0.03 at first; from the entropy of step 8 on, +0.2 per nat "
        "below 0.5, -0.2 per nat above 1; kept in [0, 0.5]",
    ]


@pytest.mark.parametrize(
    ("entropy", "words"),
    [
        ({"measure": "full"}, "coefficient x the entropy over the whole vocabulary"),
        ({"top_k": 20}, "coefficient x the entropy renormalised on the 20 likeliest tokens"),
        ({"drop_fraction": 0.4}, "renormalised without the 0.4 unlikeliest of the vocabulary"),
    ],
)
def test_the_entropy_is_named_whatever_the_controller(entropy: dict, words: str) -> None:
    assert words in said(BAND, entropy)[0]
    assert said(BAND, entropy)[1] == said(BAND)[1]


def test_an_entropy_of_the_controllers_own_is_named() -> None:
    lines = said(BAND | {"measure": "full"}, {"top_k": 20})
    assert "the entropy renormalised on the 20 likeliest tokens" in lines[0]
    assert "the entropy over the whole vocabulary" in lines[2]
    assert len(said(BAND | {"measure": "clamped"})) == 2
    (line,) = said({"initial": 0.0, "measure": "full"})
    assert "measured: the entropy over the whole vocabulary" in line


def test_a_coefficient_of_zero_is_called_no_bonus() -> None:
    (line,) = said({"initial": 0.0})
    assert line.startswith("aent: no entropy bonus (coefficient 0); measured: the entropy")
    assert said({"initial": 0.01})[1] == "aent: coefficient (constant): 0.01 at every step"


def test_an_automatic_band_says_when_it_begins() -> None:
    automatic = {"kind": "automatic_band", "initial": 0.01, "low_fraction": 0.2,
                 "high_fraction": 0.5, "reference_steps": 5, "step_size": 0.1, "min": 0.0,
                 "max": 0.3}  # fmt: skip
    assert said(automatic)[1] == (
        "aent: coefficient (automatic_band): 0.01 at first; after 5 steps, +0.1 per nat below 0.2 "
        "times, -0.1 per nat above 0.5 times the mean entropy of the first 5 steps; kept in "
        "[0, 0.3]"
    )
