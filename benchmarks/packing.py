"""The host's work for a step before Megatron gets it: the plan, then each micro-batch.

    .venv/bin/python benchmarks/packing.py [TOKENS ...]

One core, no ranks. The plan's cost should grow with the step's tokens; a micro-batch's should not:
it should be the same at 400,000 tokens a step and at 6.4 million.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from aent.data.batch import Batch
from aent.trainer.packing import pack
from aent.trainer.partition import make_units, partition
from aent.trainer.segments import see

PROMPT, RESPONSE, GROUP = 500, 2_500, 8  # tokens, tokens at most, responses a prompt
LIMIT = 32_768  # tokens of a micro-batch
PAIRS_PER_TOKEN = 50_000.0  # of Qwen2.5-72B


def batch_of(tokens: int) -> Batch:
    """Groups of responses of many lengths, ``tokens`` of them at least."""
    generator = torch.Generator().manual_seed(0)
    count = GROUP * max(1, round(tokens / GROUP / (PROMPT + RESPONSE / 2)))
    lengths = PROMPT + torch.randint(1, RESPONSE, (count,), generator=generator)
    total = int(lengths.sum())
    group = torch.arange(count) // GROUP
    place = torch.arange(total) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return Batch(
        tokens=torch.where(place < PROMPT, place, torch.randint(9, 99, (total,))),
        loss_mask=place >= PROMPT,
        behaviour_logprobs=torch.zeros(total),
        versions=torch.zeros(total, dtype=torch.int64),
        lengths=lengths,
        group=group,
        reward=torch.zeros(count),
        truncated=torch.zeros(count, dtype=torch.bool),
        item=group,
        rerolled=torch.zeros(count, dtype=torch.bool),
        temperature=1.0,
    )


def main() -> None:
    torch.set_num_threads(1)
    sizes = [int(size) for size in sys.argv[1:]] or [400_000, 1_600_000, 6_400_000]
    print("tokens     micro-batches  plan, ms  plan, us/1000 tokens  micro-batch, ms (median)")
    for size in sizes:
        batch = batch_of(size)
        begin = time.perf_counter()
        units = make_units(batch, False, LIMIT)
        work = [unit.work(PAIRS_PER_TOKEN) for unit in units]
        shares = partition([unit.tokens for unit in units], 1, LIMIT, work)[0]
        plan = time.perf_counter() - begin
        times = []
        for chosen in shares[:20]:
            begin = time.perf_counter()
            packed = pack(batch, [units[u] for u in chosen], 8, torch.device("cpu")).packed
            see(packed.runs, None, torch.device("cpu"))
            times.append(time.perf_counter() - begin)
        tokens = batch.tokens.numel()
        print(
            f"{tokens:<10} {len(shares):<14} {plan * 1e3:<9.1f} {plan / tokens * 1e9:<21.1f} "
            f"{statistics.median(times) * 1e3:.2f}"
        )


if __name__ == "__main__":
    main()
