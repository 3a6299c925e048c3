"""Run a function on several real ranks (one process each, gloo) and collect what each returns.

The ranks are forked from a server process that has imported torch and Megatron and done nothing
else: those imports take longer than most tests.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ALONE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # read when torch is imported
LATER_S = 2.0  # that the report of another failing rank may take


class NotFormedError(RuntimeError):
    """The ranks have not found each other; ``fn`` was not called."""


def server() -> Any:
    """The multiprocessing context whose processes are forked from the server; starts it once."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["aent.trainer.trainer"])
    before = dict(os.environ)
    os.environ.update(ALONE)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _rank_main(rank: int, world: int, port: int, fn: Callable, args: tuple, queue: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    formed = False
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        formed = True
        result, error = fn(rank, world, *args), None
    except Exception:
        result, error = None, traceback.format_exc()
    # pickled here, so that tensors travel by value: a file descriptor would die with its rank
    queue.put((rank, pickle.dumps(result), error, formed))
    if error is None and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _others(queue: Any) -> list[str]:
    """What further ranks report soon after the first failure, which may not be the cause."""
    told = []
    with contextlib.suppress(Empty):
        while True:
            rank, _, error, _ = queue.get(timeout=LATER_S)
            told += [f"rank {rank}:\n{error}"] if error is not None else []
    return told


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 500
) -> list[Any]:
    """Call ``fn(rank, world_size, *args)`` on every rank of a gloo group; return results by rank.

    ``fn`` must be importable (a module-level function) and return picklable data without tensors
    (use ``.tolist()`` or ``.numpy()``). The default process group is initialized before the call.
    Raises RuntimeError with the failing ranks' tracebacks, the first one's first, or queue.Empty
    after ``timeout`` seconds. A group that was not formed is formed once more: gloo lost one of the
    connections between ranks that did nothing else (once in thousands of groups).
    """
    try:
        return _run_ranks(fn, world_size, args, timeout)
    except NotFormedError as error:
        print(f"the group is formed again: {error}", file=sys.stderr)
        return _run_ranks(fn, world_size, args, timeout)


def _run_ranks(fn: Callable[..., Any], world_size: int, args: tuple, timeout: float) -> list[Any]:
    ctx = server()
    queue: Any = ctx.Queue()
    # kept by this process: another one could take a port chosen for ranks that start later
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        ctx.Process(
            target=_rank_main, args=(r, world_size, store.port, fn, args, queue), daemon=True
        )
        for r in range(world_size)
    ]
    for p in processes:
        p.start()
    results: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, result, error, formed = queue.get(timeout=timeout)
            if error is not None:
                told = [f"rank {rank} of {world_size} failed:\n{error}", *_others(queue)]
                told += [f"exit codes: {[p.exitcode for p in processes]}"]
                raise (RuntimeError if formed else NotFormedError)("\n".join(told))
            results[rank] = pickle.loads(result)
        for p in processes:
            p.join(timeout=30)
    finally:
        for p in processes:
            if p.is_alive():
                p.kill()
    return [results[r] for r in range(world_size)]
