"""Whoever starts an engine of a run keeps it: one that is lost is started again.

The launcher does it, and on a cluster each task of the engines' step. After a server that has
ended, or that the trainer has given up (``registry.give_up``: it answers nothing), another one is
started, and published when it is ready. It has the weights of the model's folder then: the trainer
gives it those of the run before it asks it for anything (``orchestrator.engines.Engines.push``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from aent.inference import engine, registry
from aent.inference.engine import Engine, EngineSettings
from aent.inference.http import EngineError
from aent.recipe.schema import Recipe
from aent.runtime.log import log

RESTARTS = 3  # of one engine: what is lost more often is not lost by chance


def _restarts(recipe: Recipe) -> int:
    return RESTARTS if recipe.rollout.spare_engines > 0 else 0


@dataclass
class Keeper:
    """One engine, from its start to its end. Call it from a thread that lives as long."""

    run_dir: Path
    index: int
    settings: EngineSettings
    patience_s: float  # for it to be ready
    restarts: int  # left
    engine: Engine = field(init=False)
    has_served: bool = field(default=False, init=False)  # it, or one before it
    _ready: bool = field(default=False, init=False)
    _started: float = field(init=False)
    _asked: float = field(default=0.0, init=False)  # when its health was

    def __post_init__(self) -> None:
        self._start()

    @staticmethod
    def start(recipe: Recipe, run_dir: Path, index: int, settings: EngineSettings) -> Keeper:
        """Start engine ``index``. It is started again only where the run can do without it."""
        patience_s = recipe.rollout.engine.start_timeout_s
        return Keeper(run_dir, index, settings, patience_s, _restarts(recipe))

    def serve(self, recipe: Recipe, run_dir: Path) -> None:
        """Be an engine of this run from here on, and published in its folder at the next look."""
        self.run_dir, self.restarts = run_dir, _restarts(recipe)
        self._started, self._ready = time.monotonic(), False

    def look(self) -> bool:
        """Publish the engine when it is ready, which is when this returns True; start it again when
        it is lost.

        Raises EngineError, published too, when it has ended for good: it was never ready, or no
        restarts are left.
        """
        if self.engine.child.poll() is not None:
            self._replace(self.engine.child.describe_exit())
        elif self._ready:
            if registry.is_given_up(self.run_dir, self.index, self.engine.url):
                self._replace("does not answer")
        elif self._is_healthy():
            self._ready = self.has_served = True
            registry.publish(self.run_dir, self.index, self.engine.url, self.settings.log_path)
            return True
        elif time.monotonic() > self._started + self.patience_s:
            self._replace(f"is not ready after {self.patience_s:.0f} s")
        return False

    def stop(self) -> None:
        """End it."""
        self.engine.stop()

    def _start(self) -> None:
        try:
            self.engine = engine.start(self.settings)
        except EngineError as error:  # its port is taken
            registry.publish_failure(self.run_dir, self.index, f"engine {self.index}: {error}")
            raise
        self._started, self._ready = time.monotonic(), False

    def _is_healthy(self) -> bool:
        now = time.monotonic()
        if now < self._asked + engine.READY_POLL_S:
            return False
        self._asked = now
        return self.engine.is_healthy()

    def _replace(self, what: str) -> None:
        error = self.engine.error(what)
        try:
            self.stop()
        except TimeoutError as stuck:  # it holds its GPU and its port
            error, self.restarts = EngineError(f"{stuck}; {error}"), 0
        if not self.has_served or self.restarts == 0:
            registry.publish_failure(self.run_dir, self.index, f"engine {self.index}: {error}")
            raise error
        self.restarts -= 1
        log.warning(
            f"aent: engine {self.index} {what} and is started again (at most {self.restarts} more "
            f"times); its log: {self.settings.log_path}"
        )
        self._start()
