"""One rollout engine of a Slurm job: ``python -m aent.slurm.serve RUN_DIR MODEL_PATH FIRST_GPU``.

Each task of the engines' step runs it. It keeps a vLLM server on the job's network, protected by
the run's token, and writes its address to the run folder when the server is ready. FIRST_GPU is the
index of the first GPU on the node that engines may use.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from aent.inference import engine, registry
from aent.inference.http import EngineError
from aent.inference.keeper import Keeper
from aent.launch import starts
from aent.recipe.load import load
from aent.runtime import children, node_metrics
from aent.runtime.log import begin, log
from aent.runtime.network import LOOPBACK, own_address
from aent.runtime.rank import keep_to_given_gpus

POLL_S = 0.5


def main(run_dir: Path, model_path: Path, first_gpu: int) -> int:
    """Serve until SIGTERM (returns 0), or until the server cannot be restarted any more (1)."""
    children.die_with_parent()
    keep_to_given_gpus()
    recipe = load(run_dir / "recipe.yaml")
    index, place = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_LOCALID"])
    # on nodes with ranks, a rank does it
    first_here = first_gpu == 0 and place == 0 and not recipe.rollout.colocated
    every_s = recipe.tracking.system_metrics_every_s if first_here else 0.0
    first_gpu += place * recipe.rollout.engine.tensor_parallel
    settings = engine.settings_of(recipe, model_path, run_dir, index, first_gpu)
    leaving = False

    def note(number: int, frame: object) -> None:
        # an exception raised here could be lost: Python ignores those in a fork's hooks
        nonlocal leaving
        leaving = True

    signal.signal(signal.SIGTERM, note)
    keeper: Keeper | None = None
    try:
        # weights reach an engine on the ranks' own node through its memory, at this address alone
        host = LOOPBACK if recipe.rollout.colocated else own_address()
        own = dataclasses.replace(settings, host=host)
        keeper = Keeper.start(recipe, run_dir, index, own)
        with node_metrics.reported(run_dir, every_s):
            while not leaving:
                if keeper.look():
                    log.info(f"aent: engine {index} serves at {keeper.engine.url}")
                time.sleep(POLL_S)
        return 0
    except (EngineError, OSError, ValueError) as error:
        if keeper is None:
            registry.publish_failure(run_dir, index, f"engine {index}: {error}")
        log.error(f"aent: engine {index}: {error}")
        return 1
    finally:
        if keeper is not None:
            keeper.stop()


if __name__ == "__main__":
    begin(f"engine {os.environ['SLURM_PROCID']}", starts.attempt(Path(sys.argv[1])))
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
