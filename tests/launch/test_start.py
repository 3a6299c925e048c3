"""A run prints its entropy control before it starts, so that no default is hidden."""

from __future__ import annotations

from typing import Any

import pytest

from aent.launch.start import say_what_controls
from aent.recipe.schema import Recipe
from wording import assert_names

BAND = {"kind": "band", "initial": 0.03, "low": 0.5, "high": 1.0, "step_size": 0.2, "min": 0.0,
        "max": 0.5, "warmup_steps": 8}  # fmt: skip


def said(controller: dict[str, Any], entropy: dict[str, Any] | None = None) -> list[str]:
    recipe = Recipe.model_validate(
        {"name": "x", "model": {}, "controller": controller, "entropy": entropy or {}}
    )
    return say_what_controls(recipe).splitlines()


def test_a_band_and_the_clamped_entropy() -> None:
    entropy, coefficient = said(BAND)
    assert_names(entropy, 0.33)
    assert_names(coefficient, "band", 0.03, "step 8", "+0.2", 0.5, "-0.2", 1, "[0, 0.5]")


@pytest.mark.parametrize(
    ("entropy", "named"),
    [
        ({"measure": "full"}, "vocabulary"),
        ({"top_k": 20}, 20),
        ({"drop_fraction": 0.4}, 0.4),
    ],
)
def test_the_entropy_is_named_whatever_the_controller(entropy: dict, named: object) -> None:
    assert_names(said(BAND, entropy)[0], named)
    assert "0.33" not in said(BAND, entropy)[0]
    assert said(BAND, entropy)[1] == said(BAND)[1]


def test_an_entropy_of_the_controllers_own_is_named() -> None:
    lines = said(BAND | {"measure": "full"}, {"top_k": 20})
    assert_names(lines[0], 20)
    assert_names(lines[2], "entropy", "vocabulary")
    assert "20" not in lines[2]
    assert len(said(BAND | {"measure": "clamped"})) == 2
    (line,) = said({"initial": 0.0, "measure": "full"})
    assert_names(line, "coefficient 0", "vocabulary")
    assert "0.33" not in line


@pytest.mark.parametrize(
    ("drives", "named"),
    [
        ("upper_clip", "algorithm.clip_high"),
        ("advantage_zeta", "advantages"),
        ("gradient_share", "share"),
    ],
)
def test_what_is_driven_is_named(drives: str, named: str) -> None:
    first, second = said(BAND | {"drives": drives})
    assert_names(first, named, 0.33)
    assert second == said(BAND)[1]


def test_a_coefficient_of_zero_is_called_no_bonus() -> None:
    (line,) = said({"initial": 0.0})
    assert_names(line, "coefficient 0")
    assert_names(said({"initial": 0.01})[1], "coefficient", "constant", 0.01)


def test_an_automatic_band_says_when_it_begins() -> None:
    automatic = {"kind": "automatic_band", "initial": 0.01, "low_fraction": 0.2,
                 "high_fraction": 0.5, "reference_steps": 5, "step_size": 0.1, "min": 0.0,
                 "max": 0.3}  # fmt: skip
    names = ("automatic_band", 0.01, "5 steps", "+0.1", 0.2, "-0.1", 0.5, "[0, 0.3]")
    assert_names(said(automatic)[1], *names)


def test_sampling_ahead_says_how_old_what_is_known_may_be() -> None:
    recipe = Recipe.model_validate(
        {"name": "x", "model": {}, "controller": BAND, "rollout": {"max_staleness": 3}}
    )
    assert_names(say_what_controls(recipe).splitlines()[-1], "rollout.max_staleness=3", "3 updates")
    assert "max_staleness" not in "".join(said(BAND))
