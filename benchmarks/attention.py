"""Processor time and peak memory of the local attention: in pieces, as the trainer computes it, and
as one padded batch with one mask, as before.

    .venv/bin/python benchmarks/attention.py [--threads 1]

Forward and backward of one layer, float32, 9 heads of 64 numbers in 3 groups (SmolLM2's), each way
in its own process. The memory is the rise of the process's resident peak after the queries, keys
and values exist. Shared: a prompt of 400 tokens with 8 responses of 50 to 750; unequal: sequences
of 2,000 tokens down to 260; short: units that are padded both ways.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

HEADS, GROUPS, SIZE = 9, 3, 64
CASES = {
    "shared": [(400, [50, 150, 250, 350, 450, 550, 650, 750])],
    "unequal": [(100, [n - 100]) for n in (2000, 800, 500, 300, 280, 270, 260)],
    "short, shared": [(40, [16, 12, 16, 9, 16, 16, 5, 14])] * 24,
}
ROUNDS = 2


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, case: str, threads: int) -> None:
    """One way in this process: prints bytes and seconds."""
    import torch

    from aent.trainer import segments
    from aent.trainer.attention import attend_by_pieces

    torch.set_num_threads(threads)
    units = CASES[case]
    total = sum(prompt + sum(responses) for prompt, responses in units)
    tensors = [torch.randn(total, n, SIZE).requires_grad_() for n in (HEADS, GROUPS, GROUPS)]
    upstream = torch.randn(total, HEADS, SIZE)
    if way == "padded":  # one batch of all units, of any length
        segments.SHORT = 2**30
    scoring = segments.Scoring(window=None, scale=SIZE**-0.5, softcap=None)
    before, times = peak(), []
    for _ in range(ROUNDS):
        begin = time.process_time()
        visible = segments.see(segments.runs_of(units), None, torch.device("cpu"))
        out = attend_by_pieces(*tensors, visible, scoring)
        torch.autograd.grad(out, tensors, upstream)
        times.append(time.process_time() - begin)
    print(peak() - before, min(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return measure(*args.only, args.threads)
    print("case            way     peak, MiB  processor s (least)")
    for case in CASES:
        for way in ("padded", "pieces"):
            command = [sys.executable, __file__, f"--threads={args.threads}", "--only", way, case]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rose, seconds = done.stdout.split()[-2:]
            print(f"{case:15} {way:7} {int(rose) / 2**20:<10.0f} {float(seconds):.3f}")


if __name__ == "__main__":
    main()
