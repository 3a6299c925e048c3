"""Which columns of the vocabulary a rank has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """This rank's block of the vocabulary.

    start: global id of the first column. width: columns that are real tokens, the rest of the
    block being padding. vocab_size: real tokens over all ranks. group: the ranks that share the
    vocabulary, None for one rank alone. columns: of the block, padding included, if they are known.

    ``locate`` makes one with a collective, for which the host waits. If you need statistics of the
    same block repeatedly, pass the result in place of the group (``tp_group``).
    """

    start: int
    width: int
    vocab_size: int
    group: dist.ProcessGroup | None
    columns: int | None = None

    @classmethod
    def locate(
        cls,
        columns: int,
        vocab_size: int | None,
        group: dist.ProcessGroup | VocabShard | None,
        device: torch.device,
    ) -> VocabShard:
        """Find the block from the number of ``columns`` on each rank (one tiny collective). A block
        given in place of the group is returned unchanged.

        Raises ValueError, on every rank, if ``vocab_size`` is not in [1, columns over all ranks],
        if a rank has no columns, or if a given block has other columns.
        """
        if isinstance(group, VocabShard):
            return group._checked(columns, vocab_size)
        widths = [columns]
        rank = 0
        if group is not None:
            rank = dist.get_rank(group)
            shared = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
            shared[rank] = columns
            dist.all_reduce(shared, group=group)
            widths = shared.tolist()
        if 0 in widths:
            whose = "they have" if group is None else f"rank {widths.index(0)} of the group has"
            raise ValueError(f"logits: {whose} no columns")
        total = sum(widths)
        real = total if vocab_size is None else vocab_size
        if not 1 <= real <= total:
            raise ValueError(f"vocab_size is {real}, but the logits have {total} columns")
        start = sum(widths[:rank])
        return cls(start, max(0, min(columns, real - start)), real, group, columns)

    def _checked(self, columns: int, vocab_size: int | None) -> VocabShard:
        if columns < self.width or self.columns not in (None, columns):
            raise ValueError(
                f"tp_group is a block of {self.columns or self.width} columns, but the logits have "
                f"{columns}"
            )
        if vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"vocab_size is {vocab_size}, but tp_group is a block of a vocabulary of "
                f"{self.vocab_size}"
            )
        return self

    @property
    def ranks(self) -> int:
        """How many ranks share the vocabulary."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Reduce ``tensor`` in place over the ranks and return it."""
        if self.group is not None:
            dist.all_reduce(tensor, op=op, group=self.group)
        return tensor
