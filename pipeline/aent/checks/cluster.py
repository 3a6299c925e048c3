"""Checks of a recipe's ``cluster:`` section, whose values become lines of a batch script."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aent.recipe.operation import ClusterSection

TIME = r"(\d+-)?\d+(:\d{2}){0,2}"
FLAG = r"--([a-z][a-z0-9-]*)(=\S+)?"
SIGNAL = r"=(B|RB|BR):(SIG)?USR1@\d+"  # to the batch script, which handles it; not to its steps
# flags that other fields of the recipe set
OURS = {
    "nodes": "cluster.nodes and cluster.engine_nodes",
    "gpus-per-node": "cluster.gpus_per_node and cluster.engine_gpus_per_node",
    "time": "cluster.time",
    "account": "cluster.account",
    "partition": "cluster.partition and cluster.engine_partition",
    "job-name": "name",
    "output": "run_dir",
    "array": "the seeds and arms of aent compare",
}


def faults(cluster: ClusterSection) -> Iterator[str]:
    """One sentence per fault, as in ``checks.recipe.check``."""
    for name in ("image", "engine_image"):
        given = getattr(cluster, name) is not None
        if given and cluster.container == "none":
            yield f"cluster.{name} has no meaning with cluster.container=none"
        if not given and cluster.container != "none":
            yield f"cluster.container={cluster.container} needs cluster.{name}"
    for mount in cluster.mounts:
        if ":" not in mount or "," in mount:
            yield f"cluster.mounts: {mount} is not HOST:CONTAINER"
    if cluster.time is not None and not re.fullmatch(TIME, cluster.time):
        yield f"cluster.time={cluster.time!r} is not a time limit such as 8:00:00 or 1-12:00:00"
    for name in ("account", "partition", "engine_partition"):
        value = getattr(cluster, name)
        if value is not None and not re.fullmatch(r"\S+", value):
            yield f"cluster.{name} must be one word, got {value!r}"
    for name in ("engine_gpus_per_node", "engine_partition", "engine_flags"):
        if getattr(cluster, name) not in (None, ()) and not cluster.engine_nodes:
            yield f"cluster.{name} has no meaning without cluster.engine_nodes"
    for name in ("flags", "engine_flags"):
        for flag in getattr(cluster, name):
            yield from _flag(f"cluster.{name}", flag)


def _flag(field: str, flag: str) -> Iterator[str]:
    parts = re.fullmatch(FLAG, flag)
    if parts is None:
        yield f"{field}: {flag!r} is not a flag of sbatch (--NAME or --NAME=VALUE)"
        return
    if parts[1] == "signal" and not re.fullmatch(SIGNAL, parts[2] or ""):
        yield f"{field}: {flag} is not --signal=B:USR1@SECONDS, which asks the job for a checkpoint"
    for name, owner in OURS.items():
        if name.startswith(parts[1]):  # sbatch accepts abbreviations of flags
            yield f"{field}: {flag} is not allowed: --{name} is set by {owner}"
