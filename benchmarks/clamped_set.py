"""The cost of finding a clamped set over ranks: four rounds and one wait of the host, or counting
alone, the only way if the host must not wait.

    PYTHONPATH=benchmarks:tests .venv/bin/python benchmarks/clamped_set.py [TOKENS]

Two ranks, V = 151,936, one third dropped, normal logits (of deviation 2, rounded to bfloat16 or
not). Of one forward: rows that the four rounds leave to the search, collectives, bytes per token
that each rank sends, waits of the host for the device (``syncs.Syncs``), processor time per token.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from distributed.ranks import run_ranks

VOCAB, DROP = 151_936, 1 / 3


def measured(rank: int, ranks: int, tokens: int) -> list[tuple[Any, ...]]:
    from aent.entropy import sharded, token_statistics
    from aent.entropy.shard import VocabShard
    from syncs import Syncs

    counts: Counter[str] = Counter()

    def counting(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            sent = args[0] if isinstance(args[0], torch.Tensor) else args[1]
            counts["collectives"] += 1
            counts["bytes"] += sent.numel() * sent.element_size()
            return function(*args, **kwargs)

        return wrapped

    for name in ("all_reduce", "all_gather"):
        setattr(dist, name, counting(getattr(dist, name)))
    in_rounds, counted_out = sharded._block, sharded._counted_out

    def nothing_done(*args: Any) -> tuple[torch.Tensor, ...]:
        """Skip the rounds and their collectives."""
        x, target = args[1], args[2]
        columns = [target.new_zeros(len(x)) for _ in range(6)]
        cut = torch.zeros(len(x), dtype=torch.int32)
        return target, *columns, cut, torch.zeros(len(x), dtype=torch.bool)

    def left(*args: Any) -> Any:
        counts["left"] += len(args[1])
        return counted_out(*args)

    sharded._counted_out = left
    group = dist.group.WORLD
    shard = VocabShard.locate(VOCAB // ranks, None, group, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    generator.manual_seed(rank + 1)
    wide = 2 * torch.randn(tokens, VOCAB // ranks, generator=generator)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        logits = wide.to(dtype)
        for name, block in (("four rounds", in_rounds), ("counting alone", nothing_done)):
            sharded._block = block
            counts.clear()
            with Syncs([targets]) as syncs:
                token_statistics(logits, targets, drop_fraction=DROP, tp_group=shard)
            asked = sum(n for (*_, of, _), n in syncs.counts.items() if of != "_trimmed")
            of_call = dict(counts)
            begin = time.process_time()
            token_statistics(logits, targets, drop_fraction=DROP, tp_group=shard)
            spent = (time.process_time() - begin) / tokens * 1e6
            found.append((str(dtype)[6:], name, of_call, asked, spent))
    return found


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(f"{tokens} tokens  rows left  collectives  bytes a token  waits  us a token")
    for dtype, name, counts, asked, spent in run_ranks(measured, 2, tokens)[0]:
        each = counts["bytes"] / tokens
        print(
            f"{dtype} {name}: {counts.get('left', 0)}  {counts['collectives']}  {each:.0f}  "
            f"{asked}  {spent:.0f}"
        )


if __name__ == "__main__":
    main()
