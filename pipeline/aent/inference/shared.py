"""Engines that serve one run after another: those of a comparison (``aent compare``).

Only a run that has ended well leaves its engines to the next one: after a failure or an
interruption nobody knows what an engine is in the middle of.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from aent.inference import registry
from aent.inference.engine import STOP_GRACE_S, EngineSettings
from aent.inference.keeper import Keeper
from aent.recipe.schema import Recipe
from aent.runtime.children import stop_all
from aent.runtime.log import log


@dataclass
class SharedEngines:
    """Those that are left from the run before, by their numbers."""

    folder: Path  # their token, and their logs
    left: dict[int, Keeper] = field(default_factory=dict)

    def engine(self, recipe: Recipe, run_dir: Path, index: int, settings: EngineSettings) -> Keeper:
        """Engine ``index`` of a run: the one that is left, where the run would start the same one,
        else a new one. The run's token becomes theirs."""
        registry.share_token(self.folder, run_dir)
        # name and seed mean nothing to requests that have their own
        ours = dataclasses.replace(
            settings,
            served_name="shared",
            seed=0,
            log_path=self.folder / "logs" / settings.log_path.name,
            token_path=self.folder / "token",
        )
        kept = self.left.pop(index, None)
        if kept is not None:
            if kept.settings == ours and kept.engine.is_healthy():
                kept.serve(recipe, run_dir)
                return kept
            kept.stop()
        return Keeper.start(recipe, run_dir, index, ours)

    def stop(self) -> None:
        """End those that are left; one that cannot be ended is told on stderr."""
        children = [keeper.engine.child for keeper in self.left.values()]
        self.left.clear()
        try:
            stop_all(children, STOP_GRACE_S)
        except TimeoutError as error:
            log.warning(f"aent: {error}")
