"""Where a run writes."""

from __future__ import annotations

from pathlib import Path

from aent.recipe.schema import Recipe


def run_folder(recipe: Recipe) -> Path:
    """Where the run writes: ``run_dir``; runs/NAME where nobody has named a folder yet."""
    return Path(recipe.run_dir) if recipe.run_dir is not None else Path("runs") / recipe.name
