"""Megatron's data parallelism, and its overlap of communication with computation for two things
that are done differently here: an output layer whose module is never called, and gradients that a
backward adds to Megatron's buffer itself.

``trainer.ddp.overlap_grad_reduce``: DDP reduces a bucket when autograd has delivered a gradient for
each of its parameters, so each must get one. ``trainer.ddp.overlap_param_gather``: DDP waits for a
module's parameters in a hook before its forward, so the hook must run. Both are Megatron's
(``megatron/core/distributed/distributed_data_parallel.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.tensor_parallel import layers
from torch import Tensor

from aent.recipe.training import TrainerSection
from aent.runtime.early_reduction import reduce_early, written


def data_parallel(policy: Any, settings: TrainerSection) -> DistributedDataParallel:
    """The policy (``trainer.model.PolicyModel``) in Megatron's DDP, with float32 gradients."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=settings.optimizer.distributed,
        **settings.ddp,
    )
    model = DistributedDataParallel(policy.config, config, policy)
    if config.overlap_grad_reduce:
        reduce_early(policy.parameters())
        policy.config.no_sync_func = model.no_sync  # except in a step's last micro-batch
    return model


def announced(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden`` itself, for a function that adds the weight's gradient to Megatron's buffer: after
    its backward, DDP is notified."""
    return _Announced.apply(hidden, weight)


class _Announced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = ctx.weight
        if getattr(weight, "reduced_early", False) and not layers._grad_accum_fusion_available:
            # Megatron's linear layer then leaves its gradient to autograd, and DDP adds it
            return grad, torch.zeros_like(weight)
        return grad, written(weight)


def wait_for_parameters(module: torch.nn.Module) -> None:
    """Run the hooks of DDP that a call of the module would run first."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
