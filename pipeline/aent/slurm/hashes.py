"""``python -m aent.slurm.hashes RUN_DIR``: the nodes of a requeued job hash its checkpoint
together.

One task on each node hashes its part of the newest checkpoint's files. The next step,
``slurm.prepare``, compares the hashes with those in the checkpoint, and hashes missing files
itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aent.checkpoint import folders
from aent.launch import starts
from aent.runtime.log import begin, log

FOLDER = "hashes"


def main(run_dir: Path) -> int:
    """Return 0: a failure is reported, and ``slurm.prepare`` does the work."""
    nodes, place = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"])
    target = _of_this_start(run_dir) / f"{place}.json"
    try:
        whole = [each.folder for each in folders.found(run_dir) if not each.ending]
        if not whole:
            return 0
        paths = share(whole[-1], nodes, place)
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(map(str, paths), pool.map(folders.checksum, paths)))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(digests))
    except (OSError, ValueError) as error:
        log.warning(f"aent: node {place} did not hash its part of the checkpoint: {error}")
    return 0


def share(folder: Path, nodes: int, place: int) -> list[Path]:
    """The files of a checkpoint that this node hashes; every node divides them alike, by size.

    Raises OSError or ValueError.
    """
    paths = [folder / name for name in folders.written_sums(folder)]
    by_size = sorted(paths, key=lambda path: (-path.stat().st_size, path.name))
    return by_size[place::nodes]


def take(run_dir: Path) -> Mapping[str, str]:
    """SHA-256 by path, of what the nodes of this start hashed; removes the nodes' files."""
    found: dict[str, str] = {}
    for file in _of_this_start(run_dir).glob("*.json"):
        try:
            found |= json.loads(file.read_text())
        except (OSError, ValueError):
            continue
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
    return found


def _of_this_start(run_dir: Path) -> Path:
    """Names this start; a requeued job keeps its id."""
    job, again = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return run_dir / FOLDER / f"{job}-{again}"


if __name__ == "__main__":
    begin(f"hashes {os.environ['SLURM_PROCID']}", starts.attempt(Path(sys.argv[1])) + 1)
    sys.exit(main(Path(sys.argv[1]).absolute()))
