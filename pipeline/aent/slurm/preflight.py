"""``python -m aent.slurm.preflight RUN_DIR`` checks every node for a few seconds before any
loading.

One task per node checks GPUs, disk and shared memory, and if it can reach the other nodes. If a
node is bad, the step fails and names the node and the fault. To start fast, it imports neither
torch nor vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aent.launch import starts
from aent.runtime.log import begin, log
from aent.runtime.network import own_address
from aent.runtime.rank import given_gpus

GIB = 2**30
PEERS_DEADLINE_S = 120.0  # seconds until the other nodes must have arrived and been reached
CONNECT_S = 5.0
POLL_S = 0.1


def main(arguments: list[str]) -> int:
    """Return the exit code: 0, or 1 with one line per fault on stderr."""
    parser = argparse.ArgumentParser(prog="aent.slurm.preflight")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--gpus", type=int, default=0, help="that a node with ranks must have")
    parser.add_argument(
        "--trainer-nodes", type=int, help="how many nodes have ranks (the first ones); default: all"
    )
    parser.add_argument("--engine-gpus", type=int, default=0, help="that the other nodes must have")
    parser.add_argument("--gpu-free", type=float, default=0.9, help="share of its memory")
    parser.add_argument("--disk-gib", type=float, default=10.0, help="free in the run folder")
    parser.add_argument("--shm-gib", type=float, default=1.0, help="free in /dev/shm")
    given = parser.parse_args(arguments)
    name = node_name()
    nodes, place = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"])
    with_ranks = given.trainer_nodes is None or place < given.trainer_nodes
    gpus = given.gpus if with_ranks else given.engine_gpus
    faults = gpu_faults(gpus, given.gpu_free) if gpus else []
    faults += folder_faults(given.run_dir, given.disk_gib)
    faults += folder_faults(Path("/dev/shm"), given.shm_gib)
    faults += folder_faults(Path(tempfile.gettempdir()), 0.1)
    try:
        # a requeued job keeps its id: files of its earlier start must not be found
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        start = f"{os.environ['SLURM_JOB_ID']}-{restarts}-{os.environ['SLURM_STEP_ID']}"
        faults += peer_faults(given.run_dir / "preflight" / start, nodes, place, name)
    except OSError as error:
        faults.append(str(error))
    for fault in faults:
        log.error(f"aent: preflight: {name}: {fault}")
    return 1 if faults else 0


def node_name() -> str:
    """Slurm's name of this machine."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def gpu_faults(wanted: int, free_share: float) -> list[str]:
    """GPUs that are missing, or whose memory another process still holds (by nvidia-smi).

    If jobs share a node and see all of its GPUs, only those that Slurm gave to this job count.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total"]
    query += ["--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi: {error}"]
    if answer.returncode:
        words = " ".join(f"{answer.stdout} {answer.stderr}".split())
        return [f"nvidia-smi ended with code {answer.returncode}: {words}"]
    lines = answer.stdout.splitlines()
    faults = [] if len(lines) >= wanted else [f"{len(lines)} GPUs, {wanted} are needed"]
    own = given_gpus() if len(lines) > wanted else None
    if len(lines) > wanted and own is None:
        faults.append(
            f"{len(lines)} GPUs are visible and {wanted} belong to this job, but neither "
            "CUDA_VISIBLE_DEVICES nor SLURM_STEP_GPUS says which"
        )
    for line in lines:
        index, uuid, *memory = (word.strip() for word in line.split(","))
        if own is not None and not {index, uuid} & own:
            continue
        try:
            free, total = map(int, memory)
        except ValueError:  # "[N/A]", or an error instead of a number
            faults.append(
                f"nvidia-smi reports no memory for a GPU (index, uuid, free, total): {line}"
            )
            continue
        if free < free_share * total:
            faults.append(f"GPU {index} has {free} of {total} MiB free: another process holds it")
    return faults


def folder_faults(folder: Path, gib: float) -> list[str]:
    """A folder that does not exist, cannot be written to, or has too little space."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free / GIB
    except OSError as error:
        return [f"{folder}: {error.strerror}"]
    return [f"{folder} has {free:.2f} GiB free, {gib:g} are needed"] if free < gib else []


def peer_faults(meeting: Path, nodes: int, place: int, name: str) -> list[str]:
    """Nodes that do not appear in the shared folder, or that this node cannot reach."""
    meeting.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PEERS_DEADLINE_S
    with socket.create_server((own_address(), 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        _write(meeting / f"{place}.here", [name, *server.getsockname()[:2]])
        here = _wait(meeting, "here", nodes, deadline)
        faults = [
            f"node {peer} of the job did not appear" for peer in range(nodes) if peer not in here
        ]
        for peer, address, port in here.values():
            try:
                socket.create_connection((address, port), CONNECT_S).close()
            except OSError as error:
                faults.append(f"cannot reach {peer} ({address}): {error}")
        _write(meeting / f"{place}.done", [name])
        _wait(meeting, "done", len(here), deadline)  # the others still have to reach this node
    return faults


def _wait(meeting: Path, what: str, count: int, deadline: float) -> dict[int, list]:
    while len(found := list(meeting.glob(f"*.{what}"))) < count and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return {int(path.stem): json.loads(path.read_text()) for path in found}


def _write(path: Path, content: list) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content))
    beside.replace(path)


def _accept(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:  # closed: the check is over
            return


if __name__ == "__main__":
    begin(f"preflight of {node_name()}", starts.attempt(Path(sys.argv[1])))
    sys.exit(main(sys.argv[1:]))
