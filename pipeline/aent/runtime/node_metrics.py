"""Metrics of a run's machines: CPU, memory, disk, network and NVIDIA GPUs, with MLflow's names.

One process on each machine (its first trainer rank, or its first engine if it has no ranks) writes
``run_dir/system/HOST.json``; rank 0 reads them all (``tracking.tracker``). MLflow's own monitor
would import MLflow on each machine, send by itself, and lose its samples while the server is
unreachable. GPU metrics come from nvidia-smi, which belongs to the driver and is in every image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from aent.runtime.log import log
from aent.runtime.rank import SMI_S, given_gpus

FOLDER = "system"
GPU = ("index", "uuid", "memory.used", "memory.total", "utilization.gpu", "power.draw")
MIB = 2**20


def host() -> str:
    """This machine's name (in a Slurm job, Slurm's name), in characters that MLflow accepts."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return re.sub(r"[^\w.\-]", "_", name)


def clear(run_dir: Path) -> None:
    """Forget the machines of an earlier start."""
    for file in (run_dir / FOLDER).glob("*.json"):
        file.unlink()


def newest(run_dir: Path) -> dict[str, tuple[float, dict[str, float]]]:
    """For each machine: the time of its last sample (its own seconds since 1970), and the
    metrics."""
    found = {}
    for file in sorted((run_dir / FOLDER).glob("*.json")):
        try:
            sample = json.loads(file.read_text())
        except (OSError, ValueError):  # just being replaced, on some file systems
            continue
        found[file.stem] = (sample["time"], sample["values"])
    return found


@contextmanager
def reported(run_dir: Path, every_s: float) -> Iterator[None]:
    """Update this machine's file from a thread, every ``every_s`` seconds; 0: never. A failure is
    reported once, and the run continues without the metrics."""
    over = threading.Event()

    def report() -> None:
        samples, told = sampled(), False
        while not over.wait(every_s):
            try:
                _write(run_dir, next(samples))
            except (OSError, ValueError, psutil.Error, subprocess.SubprocessError) as error:
                samples = sampled()
                if not told:
                    told = True
                    log.warning(f"aent: the metrics of {host()} are incomplete: {error}")

    thread = threading.Thread(target=report, name="node", daemon=True)
    if every_s:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if every_s:
            thread.join(SMI_S)


def _write(run_dir: Path, values: dict[str, float]) -> None:
    file = run_dir / FOLDER / f"{host()}.json"
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"time": time.time(), "values": values}))
    os.replace(partial, file)


def sampled() -> Iterator[dict[str, float]]:
    """Endless samples, each taken on request. CPU utilization is the mean since the sample before;
    network traffic counts from the first sample. Raises OSError and what psutil raises."""
    psutil.cpu_percent()
    start, has_gpus = psutil.net_io_counters(), shutil.which("nvidia-smi") is not None
    while True:
        memory, disk, network = (
            psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        )  # fmt: skip
        yield {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (network.bytes_recv - start.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - start.bytes_sent) / 1e6,
            **(gpus() if has_gpus else {}),
        }


def gpus() -> dict[str, float]:
    """Metrics of this step's GPUs, from nvidia-smi, without unknown values (``[N/A]``). Raises
    OSError or subprocess.SubprocessError."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S, check=True)
    lines, given, found = answer.stdout.splitlines(), given_gpus(), dict[str, float]()
    for line in lines:
        index, uuid, *words = (word.strip() for word in line.split(","))
        if given is not None and len(lines) > len(given) and not {index, uuid} & given:
            continue  # this GPU belongs to another job
        used, total, busy, power = (float(w) if w[:1].isdigit() else None for w in words)
        if used is not None and total:
            found[f"gpu_{index}_memory_usage_megabytes"] = used * MIB / 1e6
            found[f"gpu_{index}_memory_usage_percentage"] = used / total * 100
        if busy is not None:
            found[f"gpu_{index}_utilization_percentage"] = busy
        if power is not None:
            found[f"gpu_{index}_power_usage_watts"] = power
    return found
