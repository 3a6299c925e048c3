"""The statistics from hidden states and the output layer's weight, never holding the logits.

This is the chunked head. The logits of a few tokens at a time are computed in one buffer, reduced
to the statistics, and overwritten by the next. The backward computes them again, turns them into
their gradient in place, and multiplies that into the gradients of the hidden states and of the
weight. It has one matrix product more than an output layer followed by ``token_statistics``, and
needs chunk_tokens / N of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aent.entropy.arguments import (
    check_arguments,
    check_softcap,
    checked_targets,
    first_derivative_only,
    kept_count,
)
from aent.entropy.chunks import CHUNK_TOKENS
from aent.entropy.kernels.pages import with_large_pages
from aent.entropy.paper import PAPER_DROP_FRACTION
from aent.entropy.rows import SavedRows, backward_rows, capped, forward_rows
from aent.entropy.shard import VocabShard
from aent.entropy.statistics import TokenStatistics, gathered

WEIGHT_ROWS = 8192  # at a time, if a product is added to a wider dtype: bounds its temporary


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    drop_fraction: float | None = PAPER_DROP_FRACTION,
    top_k: int | None = None,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | VocabShard | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    weight_grad: Tensor | None = None,
    *,
    softcap: float | None = None,
    ignore_index: int | None = None,
    slopes: bool = False,
) -> TokenStatistics:
    """``token_statistics(hidden @ weight.T, targets, ...)`` in the memory of a chunk of tokens.

    Args:
        hidden: [..., H] fp16, bf16, fp32 or float64: all of H, the same on all ranks.
        weight: [V_local, H] of the same dtype: this rank's block of the vocabulary.
        targets, temperature, drop_fraction, top_k, vocab_size, tp_group, softcap, ignore_index,
            slopes: as for ``token_statistics``.
        chunk_tokens: tokens whose logits, [chunk_tokens, V_local] in the dtype of ``hidden``, are
            held at once; the same on all ranks. Each chunk has the collectives of one
            ``token_statistics``; a chunk with a row that the four rounds of ``sharded`` leave is
            computed twice.
        weight_grad: [V_local, H], to which the gradient of ``weight`` is added, in place of
            autograd's own accumulation (Megatron's ``weight.main_grad``, mostly fp32); autograd
            then computes none for ``weight``.

    Returns:
        TokenStatistics, as ``token_statistics`` does from the same logits. Differentiable with
        respect to ``hidden`` and ``weight``; the two and 28 bytes a token are kept for it. The
        weight's gradient is complete for this rank's block, and accumulated over chunks in fp32 at
        least. **The gradient of hidden is this rank's part, through its own columns: the parts must
        be summed over tp_group.** That is for the function that brought ``hidden`` here, as for
        Megatron's ColumnParallelLinear: ``copy_to_tensor_model_parallel_region`` (all-reduce in the
        backward) where every rank had ``hidden`` already; with sequence parallelism
        ``gather_from_sequence_parallel_region`` (reduce-scatter in the backward); for a DTensor
        ``to_local(grad_placements=[Partial()])``.

    Raises:
        ValueError, TypeError: one sentence naming the argument.

    Autocast has no effect inside: the logits have the dtype of ``hidden``.
    """
    check_arguments(hidden, targets, temperature, name="hidden")
    check_softcap(softcap)
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight is {weight.dtype}, but hidden is {hidden.dtype}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but must be [V_local, {hidden.shape[-1]}] for"
            f" hidden of shape {tuple(hidden.shape)}"
        )
    if weight_grad is not None and weight_grad.shape != weight.shape:
        raise ValueError(
            f"weight_grad has shape {tuple(weight_grad.shape)}, but weight {tuple(weight.shape)}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, but must be 1 or more")
    shard = VocabShard.locate(weight.shape[0], vocab_size, tp_group, weight.device)
    kept = kept_count(drop_fraction, top_k, shard.vocab_size)
    results = _LinearTokenStatistics.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        checked_targets(targets.reshape(-1), shard.vocab_size, ignore_index),
        temperature,
        kept,
        shard,
        chunk_tokens,
        weight_grad,
        softcap,
        slopes,
    )
    return gathered(results, targets.shape)


class _LinearTokenStatistics(torch.autograd.Function):
    """hidden [N, H], weight [V_local, H] -> the statistics of ``forward_rows``, each [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        k: int,
        shard: VocabShard,
        chunk_tokens: int,
        weight_grad: Tensor | None,
        softcap: float | None,
        slopes: bool,
    ) -> tuple[Tensor, ...]:
        settings = (temperature, k, shard, slopes)
        chunks: list[tuple[Any, ...]] = []
        unsettled: list[Tensor] = []
        logits = _Logits(hidden, weight, chunk_tokens, softcap)
        for rows in logits.chunks():
            chunks.append(forward_rows(logits.of(rows), targets[rows], *settings, unsettled))
        if unsettled:  # asked once for all chunks; the logits of one with such a row are made again
            again = torch.stack([rows.any() for rows in unsettled]).tolist()
            for at, rows in enumerate(logits.chunks()):
                if again[at]:
                    chunks[at] = forward_rows(logits.of(rows), targets[rows], *settings)
        *statistics, saved = zip(*chunks)
        results = [torch.cat(s) for s in statistics]
        joined = (None if s[0] is None else torch.cat(s) for s in zip(*saved))
        ctx.save_for_backward(hidden, weight, targets, *joined)
        ctx.temperature, ctx.shard, ctx.chunk_tokens = temperature, shard, chunk_tokens
        ctx.softcap = softcap
        ctx.weight_grad = weight_grad  # not saved as an input: it changes between micro-batches
        ctx.mark_non_differentiable(*results[3:])
        ctx.set_materialize_grads(False)  # an unused statistic then costs nothing in the backward
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any,
        g_log_prob: Tensor | None,
        g_entropy: Tensor | None,
        g_clamped: Tensor | None,
        *_rest: None,
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, *saved = ctx.saved_tensors
        upstream = (g_log_prob, g_entropy, g_clamped)
        if all(g is None for g in upstream):
            return (None,) * 10
        hidden_grad: Tensor | None = None
        weight_grad: Tensor | None = None
        if ctx.needs_input_grad[0]:
            hidden_grad = torch.empty_like(hidden)
        if ctx.needs_input_grad[1]:
            weight_grad = ctx.weight_grad
            wide = torch.promote_types(weight.dtype, torch.float32)
            if weight_grad is None or torch.promote_types(weight_grad.dtype, wide) != (
                weight_grad.dtype
            ):  # there is no buffer to add to, or its dtype is too narrow for a sum over chunks
                weight_grad = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        chunked = _Logits(hidden, weight, ctx.chunk_tokens, ctx.softcap)
        for rows in chunked.chunks():
            logits = chunked.of(rows)
            saved_rows, gradients = SavedRows(*_of(rows, saved)), _of(rows, upstream)
            settings = (ctx.temperature, ctx.shard, *gradients, logits, ctx.softcap)
            backward_rows(logits, targets[rows], saved_rows, *settings)
            if hidden_grad is not None:
                torch.mm(logits, weight, out=hidden_grad[rows])
            if weight_grad is not None:
                _add_product(weight_grad, logits, hidden[rows])
        owned = ctx.weight_grad
        if weight_grad is None or weight_grad is owned:  # its owner has it
            return hidden_grad, *(None,) * 9
        if owned is not None:
            owned += weight_grad
            return hidden_grad, *(None,) * 9
        return hidden_grad, weight_grad.to(weight.dtype), *(None,) * 8


class _Logits:
    """The logits of one chunk of tokens at a time, all in one buffer.

    A chunk has the same shape whenever it is computed, so its logits are the same bit for bit.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, chunk_tokens: int, softcap: float | None
    ) -> None:
        self.hidden, self.weight, self.softcap = hidden, weight, softcap
        self.tokens, self.chunk_tokens = hidden.shape[0], chunk_tokens
        rows = min(chunk_tokens, self.tokens)
        self.buffer = with_large_pages(hidden.new_empty(rows, weight.shape[0]))

    def chunks(self) -> Iterator[slice]:
        """Slices of the tokens, at least one: an empty one if there are no tokens."""
        for first in range(0, max(self.tokens, 1), self.chunk_tokens):
            yield slice(first, min(first + self.chunk_tokens, self.tokens))

    def of(self, rows: slice) -> Tensor:
        """[n, V_local], until the next chunk's are asked for."""
        logits = self.buffer[: rows.stop - rows.start]
        # autocast leaves products with out= alone
        torch.mm(self.hidden[rows], self.weight.t(), out=logits)
        return logits if self.softcap is None else capped(logits, self.softcap)


def _of(rows: slice, values: Sequence[Tensor | None]) -> list[Any]:
    return [None if v is None else v[rows] for v in values]


def _add_product(total: Tensor, logits_grad: Tensor, hidden: Tensor) -> None:
    """total [V_local, H] += logits_grad [n, V_local]^T hidden [n, H]."""
    if total.dtype == hidden.dtype:
        total.addmm_(logits_grad.t(), hidden)
        return
    for first in range(0, total.shape[0], WEIGHT_ROWS):
        block = slice(first, first + WEIGHT_ROWS)
        total[block] += logits_grad[:, block].t() @ hidden
