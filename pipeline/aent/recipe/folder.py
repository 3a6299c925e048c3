"""The run's folder."""

from __future__ import annotations

from pathlib import Path

from aent.recipe.schema import Recipe


def run_folder(recipe: Recipe) -> Path:
    """The folder that the run writes to: ``run_dir``, else runs/NAME."""
    if recipe.run_dir is None:
        return Path("runs") / recipe.name
    return Path(recipe.run_dir).expanduser()
