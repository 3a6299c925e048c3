"""Peak memory of the chunked head beside an output layer followed by token_statistics.

    python benchmarks/head_memory.py [--tokens 8192] [--vocab 151936] [--hidden 256] ...

Forward and backward of log-prob and clamped entropy in float32, each in its own process. The memory
is the rise of the process's resident peak (ru_maxrss) after the hidden states and the weight exist:
logits, their gradient, the gradients of both inputs, temporaries. The output layer that is not
chunked may run with fewer tokens (--unfused-tokens), because its memory grows with them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

MIB = 2**20


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(head: str, tokens: int, vocab: int, width: int) -> None:
    """Run one head in this process and print bytes and seconds."""
    import torch

    from aent.entropy import linear_token_statistics, token_statistics

    def step(tokens: int, vocab: int) -> None:
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = torch.randn(vocab, width).mul_(0.1).requires_grad_()
        targets = torch.randint(0, vocab, (tokens,))
        before, start = peak(), time.perf_counter()
        if head == "fused":
            stats = linear_token_statistics(hidden, weight, targets)
        else:
            stats = token_statistics(hidden @ weight.t(), targets)
        (stats.log_prob.sum() + 0.1 * stats.clamped_entropy.sum()).backward()
        print(peak() - before, time.perf_counter() - start)

    step(16, 1000)  # libraries and their buffers
    step(tokens, vocab)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--unfused-tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--only", choices=["fused", "unfused"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return measure(args.only, args.tokens, args.vocab, args.hidden)
    for head, tokens in (("unfused", args.unfused_tokens), ("fused", args.tokens)):
        command = [sys.executable, __file__, f"--only={head}", f"--tokens={tokens}"]
        command += [f"--vocab={args.vocab}", f"--hidden={args.hidden}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rose, seconds = done.stdout.splitlines()[-1].split()
        logits = tokens * args.vocab * 4
        print(
            f"{head:8} {tokens:6} tokens  peak {int(rose) / MIB:8.0f} MiB, "
            f"logits alone {logits / MIB:8.0f} MiB, {float(seconds):6.1f} s"
        )


if __name__ == "__main__":
    main()
