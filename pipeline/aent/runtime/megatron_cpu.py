"""Lets Megatron-core run unmodified on a machine without a GPU. Only this module patches it.

Megatron asks torch.cuda for its device, its random state and its tensors without looking whether
there is a GPU. ``enter`` answers those questions for the CPU, once per process; ``device_mode``
covers the places that name "cuda" as a string. On a machine with a GPU neither does anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from aent.runtime.early_reduction import written

P = ParamSpec("P")
R = TypeVar("R")

_CPU = torch.device("cpu")


class _CudaMeansCpu(TorchFunctionMode):
    """Inside it, device="cuda" makes a CPU tensor and a CPU tensor calls itself a CUDA tensor.

    Megatron creates small tensors (loss scale, token counts, norms) with device="cuda", and its
    optimizer tells fp32 from bf16 parameters by ``tensor.type() == 'torch.cuda.FloatTensor'``.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = _CPU
        result = func(*args, **kwargs)
        if func is Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


def device_mode() -> AbstractContextManager[Any]:
    """Context in which Megatron's own code may say "cuda"; per thread, like every torch mode."""
    return nullcontext() if torch.cuda.is_available() else _CudaMeansCpu()


def on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that calls Megatron: its body runs in ``device_mode``."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with device_mode():
            return function(*args, **kwargs)

    return wrapper


def enter() -> None:
    """Patch this process, if it has no GPU, so that Megatron runs on its CPU. Idempotent."""
    if torch.cuda.is_available() or torch.cuda.current_device is _current_device:
        return
    # before anything is patched: importing it can import torch._dynamo, which makes a table of
    # torch's functions and accepts neither replaced functions nor one under two names
    from megatron.core.tensor_parallel import layers, random

    # Megatron allocates parameters and buffers on torch.cuda.current_device()
    torch.cuda.current_device = _current_device  # type: ignore[assignment]
    torch.cuda.set_device = _set_device
    torch.cuda.synchronize = _synchronize
    torch.cuda.current_stream = _current_stream  # type: ignore[assignment]
    Tensor.cuda = _same_tensor  # type: ignore[assignment, method-assign]
    # its random number tracker keeps "CUDA" states: here the only generator is the CPU's
    torch.cuda.get_rng_state = _get_rng_state
    torch.cuda.set_rng_state = _set_rng_state
    torch.cuda.manual_seed = _manual_seed
    random._get_cuda_rng_state = _get_rng_state
    random._set_cuda_rng_state = _set_rng_state
    # Megatron adds weight gradients to its fp32 buffer with a CUDA kernel, if there is one. BLAS's
    # accumulation instead saves the CPU one pass over each weight's gradient.
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=_accumulate)
    layers._grad_accum_fusion_available = True
    # the same for the embedding, whose gradient would be mostly zeros for each micro-batch
    # (layers.py calls nothing else of torch.nn.functional)
    layers.F = SimpleNamespace(embedding=_embedding)


def _current_device() -> torch.device:
    return _CPU


def _set_device(device: Any) -> None:
    return None


def _synchronize(device: Any = None) -> None:
    return None


def _current_stream(_device: Any = None) -> Any:
    """A stream whose work is always done."""
    return SimpleNamespace(wait_event=_wait, wait_stream=_wait, synchronize=_synchronize)


def _wait(_event_or_stream: Any) -> None:
    return None


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _same_tensor(self: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return self


def _get_rng_state(*_args: Any, **_kwargs: Any) -> Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: Tensor, *_args: Any, **_kwargs: Any) -> None:
    torch.set_rng_state(new_state)


def _accumulate(x: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """main_grad [out, in] fp32 += grad_output [N, out]^T x [N, in]."""
    if x.dtype == main_grad.dtype:
        main_grad.addmm_(grad_output.t(), x)
    else:
        main_grad.add_(grad_output.t() @ x)


def _embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """torch's embedding; once DDP has given the table its buffer, gradients are added there."""
    if hasattr(weight, "main_grad") and weight.requires_grad and torch.is_grad_enabled():
        return _AccumulatingEmbedding.apply(ids, weight)
    return torch.nn.functional.embedding(ids, weight)


class _AccumulatingEmbedding(torch.autograd.Function):
    """[1, T] int64 ids, [V, H] table -> [1, T, H]; backward adds rows to the table's main_grad."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        (ids,) = ctx.saved_tensors
        main_grad = ctx.weight.main_grad
        main_grad.index_add_(0, ids.flatten(), grad.flatten(0, 1).to(main_grad.dtype))
        return None, written(ctx.weight)
