"""Engines that serve one run after another, in a comparison (``aent compare``).

Only a run that ended well leaves its engines to the next one: after a failure or an interruption,
an engine may still be working on something.
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
    """The engines left by the run before, by number."""

    folder: Path  # for their token and their logs
    left: dict[int, Keeper] = field(default_factory=dict)

    def engine(self, recipe: Recipe, run_dir: Path, index: int, settings: EngineSettings) -> Keeper:
        """Engine ``index`` of a run: the one left by the run before if the run would start the same
        one, else a new one. The engines take over the run's token."""
        registry.share_token(self.folder, run_dir)
        # name and seed do not affect requests that have their own
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
        """End the remaining engines; report one that cannot be ended on stderr."""
        children = [keeper.engine.child for keeper in self.left.values()]
        self.left.clear()
        try:
            stop_all(children, STOP_GRACE_S)
        except TimeoutError as error:
            log.warning(f"aent: {error}")
