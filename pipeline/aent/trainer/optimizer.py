"""Megatron's optimizer, with NeMo's learning rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import megatron.core.optimizer as megatron_optimizer
import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    HybridDeviceOptimizer,
    MegatronOptimizer,
    OptimizerConfig,
    distrib_optimizer,
    get_megatron_optimizer,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from aent.recipe.schema import Recipe
from aent.recipe.training import OptimizerSection
from aent.runtime.environment import Implementation, optimizer_implementation, why_not
from aent.runtime.log import log

Requested = Literal["auto", "transformer_engine", "apex", "torch"]
# those that ``auto`` prefers
BETTER: dict[Implementation, tuple[Implementation, ...]] = {
    "transformer_engine": (),
    "apex": ("transformer_engine",),
    "torch": ("transformer_engine", "apex"),
}


def select_implementation(requested: Requested) -> Implementation:
    """Make Megatron use the requested Adam; return which one it is.

    When Megatron is imported, it picks Transformer Engine's, apex's or torch's Adam, whichever it
    finds, and keeps class and choice in two of its modules: one makes the optimizer, the other
    decides how a checkpoint stores the distributed optimizer's steps. Only this changes it.
    """
    chosen = optimizer_implementation(requested)
    because = "; ".join(filter(None, map(why_not, BETTER[chosen]))) if requested == "auto" else ""
    log.info(f"aent: Adam: {chosen}" + (f" ({because})" if because else ""))
    if chosen == "transformer_engine":
        from transformer_engine.pytorch.optimizers import FusedAdam as adam
    elif chosen == "apex":
        from apex.optimizers import FusedAdam as adam
    else:
        from torch.optim import AdamW as adam
    megatron_optimizer.Adam = distrib_optimizer.Adam = adam
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = chosen == "torch"
    distrib_optimizer.HAVE_APEX_OR_TE = chosen != "torch"
    distrib_optimizer.USING_TE_OPTIMIZER = chosen == "transformer_engine"
    distrib_optimizer.USING_APEX_OPTIMIZER = chosen == "apex"
    return chosen


def build_optimizer(
    settings: OptimizerSection, model: DistributedDataParallel, dtype: torch.dtype
) -> MegatronOptimizer:
    """Adam with decoupled weight decay over this rank's shard of the parameters.

    Raises ValueError if states of low precision are wanted without Transformer Engine's Adam.
    """
    implementation = select_implementation(settings.implementation)
    given = settings.megatron
    small = given.get("use_precision_aware_optimizer") and not given.get("optimizer_cpu_offload")
    if small and implementation != "transformer_engine":
        raise ValueError(
            "trainer.optimizer.megatron.use_precision_aware_optimizer needs Transformer Engine's "
            f"optimizer, and this is {implementation}'s"
        )
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        decoupled_weight_decay=True,
        clip_grad=settings.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=settings.distributed,
        overlap_param_gather=model.ddp_config.overlap_param_gather,
        # Transformer Engine could keep only the lower 16 bits of the main weights, but Megatron
        # gathers them for a checkpoint as if they were numbers, and cannot read them back
        store_param_remainders=False,
        **{name: _value(given) for name, given in settings.megatron.items()},
    )
    optimizer = get_megatron_optimizer(config, [model])
    for group in optimizer.param_groups:
        if implementation == "torch":
            group["fused"], group["foreach"] = True, False  # one pass over memory, not a dozen
    apply_settings(optimizer, settings)
    return optimizer


def _value(given: Any) -> Any:
    """A field's value; a recipe gives a torch type by its name."""
    return getattr(torch, given) if isinstance(given, str) else given


def apply_settings(optimizer: MegatronOptimizer, settings: OptimizerSection) -> None:
    """Write the recipe's settings of Adam (except the rate, see ``LearningRate``) to its groups."""
    for group in optimizer.param_groups:
        # Megatron leaves this to its training loop's scheduler: vectors are not decayed
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = tuple(settings.betas), settings.eps


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Have Adam allocate its moments, as before the first update: zeros, with no step counted. Does
    nothing if it has them.

    It makes steps of rate 0 with gradients of 0, which change no weight, so every Adam allocates
    what it needs (Transformer Engine's and apex's were not run here). It does so for one parameter
    at a time, if it can: gradients of all would need memory that the run never needs.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        if inner.state:
            continue
        before = [(group["lr"], group["weight_decay"]) for group in inner.param_groups]
        for group in inner.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        inner.zero_grad()
        parameters = [p for group in inner.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.numel() > 0]  # fused kernels accept no empty ones
        # each step of the one in host memory is a step of all that ever had a gradient
        at_once = len(parameters) if isinstance(inner, HybridDeviceOptimizer) else 1
        for first in range(0, len(parameters), max(at_once, 1)):
            some = parameters[first : first + at_once]
            for parameter in some:
                parameter.grad = torch.zeros_like(parameter)
            inner.step()
            for parameter in some:
                parameter.grad = None
        for group, (lr, weight_decay) in zip(inner.param_groups, before):
            group["lr"], group["weight_decay"] = lr, weight_decay
            if "step" in group:  # apex's and Transformer Engine's
                group["step"] = 0
        for state in inner.state.values():
            if "step" in state:  # torch's
                state["step"].zero_()


@dataclass
class Update:
    """The result of one optimizer step."""

    grad_norm: float  # before clipping, over all parameters
    skipped: bool  # the norm was not finite: no parameter and no state was touched


def apply_gradients(optimizer: MegatronOptimizer, clip_grad: float) -> Update:
    """Clip by global norm and step. Collective; the same decision on every rank."""
    optimizer.prepare_grads()
    grad_norm = optimizer.get_grad_norm()
    if not math.isfinite(grad_norm):
        return Update(grad_norm, skipped=True)
    if clip_grad > 0:
        clip_grad_by_total_norm_fp32(
            optimizer.get_parameters(),
            max_norm=clip_grad,
            total_norm=grad_norm,
            # where Megatron keeps the gradients of its precision-aware optimizer
            use_decoupled_grad=optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
        )
    optimizer.step_with_ready_grads()
    return Update(grad_norm, skipped=False)


class LearningRate:
    """NeMo's schedule, moved once per mini-batch, whose rate is written to Megatron's optimizer.

    torch's schedulers (and so NeMo's) accept only torch optimizers: this one belongs to an
    optimizer of a single unused parameter, and its rate is copied.
    """

    def __init__(self, recipe: Recipe, optimizer: MegatronOptimizer) -> None:
        self.optimizer = optimizer
        self.moves = 0  # its only state: a schedule is a function of it and the recipe
        self._carrier = torch.optim.SGD([torch.zeros(1)], lr=recipe.trainer.optimizer.lr)
        self._schedule = _nemo_schedule(recipe, self._carrier)
        self._write()

    @property
    def value(self) -> float:
        """The rate of the next optimizer step."""
        return self._carrier.param_groups[0]["lr"]

    def move(self) -> None:
        """Move once, to the rate of the next mini-batch."""
        self.moves += 1
        if self._schedule is not None:
            self._carrier.step()  # torch expects the optimizer's step before the schedule's
            self._schedule.step()
            self._write()

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.value

    def move_to(self, moves: int) -> None:
        """Move a fresh schedule to where it is after ``moves`` moves."""
        while self.moves < moves:
            self.move()
        self._write()


def _nemo_schedule(recipe: Recipe, carrier: torch.optim.Optimizer) -> Any:
    """The recipe's schedule; None for a constant rate, which needs no ten-second import."""
    settings = recipe.trainer.schedule
    if settings.kind == "constant" and settings.warmup_steps == 0:
        return None
    from nemo.core.optim import lr_scheduler

    policies = {
        "constant": lr_scheduler.WarmupPolicy,
        "cosine": lr_scheduler.CosineAnnealing,
        "linear": partial(lr_scheduler.WarmupHoldAnnealLinear, hold_steps=0),
    }
    return policies[settings.kind](
        carrier,
        max_steps=recipe.steps * recipe.trainer.mini_batches,
        warmup_steps=settings.warmup_steps,
        min_lr=settings.min_lr,
    )
