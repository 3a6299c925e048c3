"""The process that starts an engine of a run keeps it running: a lost engine is started again.

This process is the launcher or, on a cluster, each task of the engines' step. If a server has
ended, or the trainer has dropped it because it answers nothing (``registry.give_up``), another one
is started, and published when it is ready. It then has the weights of the model's folder; the
trainer sends it the run's before any request (``orchestrator.engines.Engines.push``).
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

RESTARTS = 3  # of one engine; if it is lost more often, there is a cause


def _restarts(recipe: Recipe) -> int:
    return RESTARTS if recipe.rollout.spare_engines > 0 else 0


@dataclass
class Keeper:
    """One engine, from its start to its end. Call it from a thread that lives as long."""

    run_dir: Path
    index: int
    settings: EngineSettings
    patience_s: float  # time for it to be ready
    restarts: int  # left
    engine: Engine = field(init=False)
    has_served: bool = field(default=False, init=False)  # this server, or one before it
    _ready: bool = field(default=False, init=False)
    _started: float = field(init=False)
    _asked: float = field(default=0.0, init=False)  # last time that its health was checked

    def __post_init__(self) -> None:
        self._start()

    @staticmethod
    def start(recipe: Recipe, run_dir: Path, index: int, settings: EngineSettings) -> Keeper:
        """Start engine ``index``. It is restarted only if the run can continue without it."""
        patience_s = recipe.rollout.engine.start_timeout_s
        return Keeper(run_dir, index, settings, patience_s, _restarts(recipe))

    def serve(self, recipe: Recipe, run_dir: Path) -> None:
        """Make it an engine of this run, to be published in its folder at the next ``look``."""
        self.run_dir, self.restarts = run_dir, _restarts(recipe)
        self._started, self._ready = time.monotonic(), False

    def look(self) -> bool:
        """Publish the engine when it is ready (then this returns True); start it again if it is
        lost.

        Raises EngineError, which is also published, if it has ended for good: it was never ready,
        or no restarts are left.
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
        except TimeoutError as stuck:  # it still holds its GPU and its port
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
