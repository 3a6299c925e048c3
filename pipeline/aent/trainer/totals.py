"""Sums and gathers over the trainer's ranks; every rank gets the result."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from aent.runtime import distributed
from aent.trainer.packing import Packing


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over data- and context-parallel ranks of the last stage's values; the same on every rank,
    on the CPU."""
    values = values.to(distributed.device())
    copies = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(values, group=copies)
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(values, group=pipeline, group_src=pipeline.size() - 1)
    return values.cpu()


def gather_tokens(micro_batches: Packing, values: list[Tensor | None], rows: int) -> Tensor:
    """[rows, T] fp32 on the CPU of every rank, 0 off the mask, from the values [rows, N] that each
    last-stage rank has for its micro-batches' response tokens. One collective for all rows; each
    token belongs to one rank, so the sum is exact."""
    flat = torch.zeros(rows, micro_batches.batch.tokens.numel())
    got = [(i, v) for i, v in zip(micro_batches.indices, values) if v is not None]
    if got:  # all together: the host waits once
        flat[:, torch.cat([i for i, _ in got])] = torch.cat([v for _, v in got], 1).float().cpu()
    return sum_over_ranks(flat)


def sum_parts(parts: list[Tensor | None], count: int) -> list[float]:
    """[count] float64: the sum over micro-batches and ranks of the values of each micro-batch on
    last-stage ranks."""
    sums = torch.zeros(count, dtype=torch.float64, device=distributed.device())
    for part in parts:
        if part is not None:
            sums += part
    return sum_over_ranks(sums).tolist()
