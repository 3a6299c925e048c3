"""The loop's own computations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aent.orchestrator.loop import measured_entropy
from aent.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("paid", "measure", "wanted"),
    [
        ("full", None, 2.5),
        ("clamped", None, 1.5),
        ("full", "clamped", 1.5),
        ("clamped", "full", 2.5),
        ("clamped", "clamped", 1.5),
    ],
)
def test_the_controller_sees_its_own_measure(paid: str, measure: str | None, wanted: float) -> None:
    """Mean over all tokens: (1 x 1 + 3 x 3) / 4 = 2.5 and (1 x 0 + 3 x 2) / 4 = 1.5."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {},
            "entropy": {"measure": paid},
            "controller": {"initial": 0.1, "measure": measure},
        }
    )
    results: Any = [
        SimpleNamespace(tokens=1, entropy=1.0, clamped_entropy=0.0),
        SimpleNamespace(tokens=3, entropy=9.0, clamped_entropy=6.0),
    ]
    assert measured_entropy(recipe, results) == pytest.approx(wanted)
