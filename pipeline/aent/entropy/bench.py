"""Time token statistics against a cross-entropy: ``python -m aent.entropy.bench --help``.

Runs forward and backward of every contender on the same logits, interleaved, in one process (one
per rank with --tp). Every contender gets fresh logits; copying them is not timed. The table has
milliseconds per token: the median, the best, and the least processor time of all threads together
(the figure to trust on a busy machine).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.functional import cross_entropy

from aent.entropy import kernels, token_statistics

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIB = 2**20
Loss = Callable[[Tensor, Tensor], Tensor]


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-prob and entropy over the whole vocabulary, in the usual formulation."""
    log_p = logits.float().log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    return (log_p.gather(1, targets[:, None])[:, 0] + 0.01 * entropy).sum()


def liger(logits: Tensor, targets: Tensor) -> Tensor:
    """Liger's fused cross-entropy, which writes the gradient over the logits in its forward."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, targets, reduction="sum")


def obvious(drop: float) -> Loss:
    """The clamped entropy as in its authors' code: topk of the dropped tokens, mask,
    log_softmax."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        z = logits.float()
        log_p = z.log_softmax(dim=-1)
        dropped = z.detach().topk(int(z.shape[1] * drop), largest=False).indices
        mask = torch.zeros_like(z, dtype=torch.bool).scatter_(1, dropped, True)
        log_q = z.masked_fill(mask, -torch.inf).log_softmax(dim=-1)
        clamped = -(log_q.exp() * log_q.masked_fill(mask, 0)).sum(dim=-1)
        return (log_p.gather(1, targets[:, None])[:, 0] + 0.01 * clamped).sum()

    return loss


def ours(drop: float, inplace: bool, group: dist.ProcessGroup | None, slopes: bool = False) -> Loss:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        s = token_statistics(
            logits,
            targets,
            drop_fraction=drop,
            tp_group=group,
            inplace_backward=inplace,
            slopes=slopes,
        )
        return (s.log_prob + 0.01 * s.clamped_entropy).sum()

    return loss


def contenders(
    args: argparse.Namespace, drop: float, group: dist.ProcessGroup | None
) -> dict[str, tuple[Loss, str | None]]:
    """(loss, backend of ours) by name; only ours if the vocabulary is sharded."""
    found: dict[str, tuple[Loss, str | None]] = {}
    if group is None:
        found["cross-entropy"] = (lambda x, t: cross_entropy(x, t, reduction="sum"), None)
        on_triton = args.device != "cpu" or "triton" in args.backends
        if on_triton and find_spec("liger_kernel"):
            found["Liger's cross-entropy"] = (liger, None)
        found["plain"] = (plain, None)
        found["plain, compiled"] = (torch.compile(plain), None)
        found["obvious clamped"] = (obvious(drop), None)
    if args.device == "cpu":
        for backend in args.backends:
            found[f"ours, {backend}"] = (ours(drop, False, group), backend)
            found[f"ours, {backend}, in place"] = (ours(drop, True, group), backend)
            found[f"ours, {backend}, slopes"] = (ours(drop, True, group, slopes=True), backend)
    else:
        found["ours"] = (ours(drop, False, group), None)
        found["ours, in place"] = (ours(drop, True, group), None)
        found["ours, slopes"] = (ours(drop, True, group, slopes=True), None)
    return {n: f for n, f in found.items() if any(n.startswith(only) for only in args.only)}


def run(loss: Loss, backend: str | None, x: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of one forward and backward: wall time, and processor time of all threads."""
    start, processor = time.perf_counter(), time.process_time()
    if backend is None:
        torch.autograd.grad(loss(x, targets), x)
    else:
        with kernels.using(backend):
            torch.autograd.grad(loss(x, targets), x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The peak memory of a call, beyond what the process held before."""
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the process' peak begins anew
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(args: argparse.Namespace, rank: int, group: dist.ProcessGroup | None) -> list[dict]:
    """Rows of the table: one per size, dtype, dropped share and contender."""
    rows = []
    sizes = itertools.product(args.tokens, args.vocab, args.dtype, args.drop)
    for tokens, vocab, dtype, drop in sizes:
        torch.manual_seed(rank)
        width = vocab // args.tp
        source = (torch.randn(tokens, width, device=args.device) * 2.5).to(DTYPES[dtype])
        targets = torch.randint(0, vocab, (tokens,)).to(args.device)
        if group is not None:
            dist.broadcast(targets, 0, group=group)
        x = source.clone().requires_grad_()
        running = contenders(args, drop, group)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        memory = {}
        for turn in range(args.rounds + 1):
            for name, (loss, backend) in running.items():
                x.data.copy_(source)
                if group is not None:
                    dist.barrier(group=group)

                call = functools.partial(run, loss, backend, x, targets)
                if turn == 0:  # compiles, fills caches
                    call()
                    x.data.copy_(source)
                    memory[name] = peak_bytes(call, args.device)
                else:
                    seconds[name].append(call())
        nothing = [(float("nan"), float("nan"))]
        floor = statistics.median(wall for wall, _ in seconds.get("cross-entropy", nothing))
        for name, times in seconds.items():
            median = statistics.median(wall for wall, _ in times)
            rows.append({
                "tokens": tokens, "vocab": vocab, "dtype": dtype, "drop": drop, "tp": args.tp,
                "contender": name, "ms_per_token": median / tokens * 1e3,
                "best_ms_per_token": min(wall for wall, _ in times) / tokens * 1e3,
                "processor_ms_per_token": min(cpu for _, cpu in times) / tokens * 1e3,
                "of_cross_entropy": median / floor, "peak_mib": memory[name] / MIB,
                "logits_mib": source.numel() * source.element_size() / MIB,
            })  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text."""
    heads = (
        "tokens", "vocab", "dtype", "drop", "contender", "ms/token", "best", "processor", "x CE",
        "peak MiB",
    )  # fmt: skip
    lines = [heads]
    for r in rows:
        lines.append((
            str(r["tokens"]), str(r["vocab"]), r["dtype"], f"{r['drop']:g}", r["contender"],
            f"{r['ms_per_token']:.4f}", f"{r['best_ms_per_token']:.4f}",
            f"{r['processor_ms_per_token']:.4f}", f"{r['of_cross_entropy']:.2f}",
            f"{r['peak_mib']:.0f}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join(text)


def on_rank(rank: int, args: argparse.Namespace, store: str, out: str) -> None:
    """One rank of --tp; the first writes the rows."""
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=args.tp)
    rows = measure(args, rank, dist.group.WORLD)
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aent.entropy.bench", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64])
    parser.add_argument("--vocab", type=int, nargs="+", default=[151_936])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--drop", type=float, nargs="+", default=[0.33], help="dropped share")
    parser.add_argument("--tp", type=int, default=1, help="ranks that share the vocabulary (gloo)")
    parser.add_argument("--backends", nargs="+", help="torch, avx512_bf16, avx512, avx2, portable")
    parser.add_argument("--only", nargs="+", default=[""], help="contenders that begin so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args()
    if args.tp > 1 and args.device != "cpu":
        parser.error("--tp is timed on a CPU only")
    if args.backends is None:
        from aent.entropy.kernels import c_path

        args.backends = [c_path.best_variant(), "torch"]
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]]
    if args.tp == 1:
        rows = measure(args, 0, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/rows.json"
            mp.spawn(on_rank, (args, f"{folder}/store", out), nprocs=args.tp)
            rows = json.loads(Path(out).read_text())
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{args.threads} threads a rank, {args.tp} rank(s); {kernels.cpu_path()}")
    print("THP_MEM_ALLOC_ENABLE =", os.environ.get("THP_MEM_ALLOC_ENABLE", "not set"))
    print(table(rows))


if __name__ == "__main__":
    main()
