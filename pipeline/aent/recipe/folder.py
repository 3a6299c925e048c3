"""Where a run writes."""

from __future__ import annotations

from pathlib import Path

from aent.recipe.schema import Recipe


def run_folder(recipe: Recipe) -> Path:
    """Where the run writes: ``run_dir``; runs/NAME where nobody has named a folder yet."""
    if recipe.run_dir is None:
        return Path("runs") / recipe.name
    return Path(recipe.run_dir).expanduser()
