"""One trainer rank: ``python -m aent.launch.rank RUN_DIR MODEL_PATH``, started by ``aent train``,
torchrun or srun (see ``runtime.rank``)."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from aent.runtime import children, signals

# new objects after which garbage is looked for. With Python's default, 700, that is a third of what
# a request to an engine costs. (Megatron's own training loop can do without: --manual-gc.)
GARBAGE_EVERY = 10_000


def main(run_dir: Path, model_path: Path) -> int:
    """Build this rank's run and train; return the exit code."""
    children.die_with_parent()
    gc.disable()  # a start creates a million lasting objects: collecting takes 2 s
    stop = signals.listen()  # before the slow imports: until here a signal kills this process
    from aent.recipe.load import load
    from aent.runtime.rank import keep_to_given_gpus, read_place, set_gpu_defaults

    recipe = load(run_dir / "recipe.yaml", [])
    set_gpu_defaults(recipe.trainer)
    from aent.launch import starts
    from aent.orchestrator import loop
    from aent.orchestrator.run import Run
    from aent.runtime import failures, log, node_metrics
    from aent.runtime.phases import Phases

    rank = read_place()
    log.begin_rank(rank, starts.attempt(run_dir))
    keep_to_given_gpus()
    phases = Phases.of(run_dir, rank, recipe.trainer.phase_timeout_s)
    first_here = os.environ["LOCAL_RANK"] == "0"
    every_s = recipe.tracking.system_metrics_every_s if first_here else 0.0
    with (
        node_metrics.reported(run_dir, every_s),
        failures.recorded(run_dir, rank),
        phases.beating(),
        Run.open(recipe, run_dir, model_path, stop, phases) as run,
    ):
        gc.enable()
        gc.set_threshold(GARBAGE_EVERY)
        ended = loop.train(run)
    return 0 if ended else signals.CHECKPOINTED


def leave(code: int) -> None:
    """End at once: freeing a million objects takes 2 s, and threads that the communication library
    still has would end the process by SIGABRT."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception:
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(code)
