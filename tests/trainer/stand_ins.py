"""What Megatron's precision-aware optimizers need of a machine with GPUs, on one without."""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class FusedAdam(torch.optim.Optimizer):
    """Transformer Engine's, which has no kernel for a CPU: its signature, its names, and its
    kernel's arithmetic (``AdamFunctorMaster`` in ``common/multi_tensor/adam.cu``, version 2.9) by
    torch, for 16-bit parameters with moments of 16 or 32 bits."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, amsgrad: bool = False, *,
        bias_correction: bool = True, adam_w_mode: bool = True, capturable: bool = False,
        master_weights: bool = False, master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32, exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False, store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ) -> None:  # fmt: skip
        assert all((adam_w_mode, bias_correction, master_weights, use_decoupled_grad))
        assert not any((amsgrad, capturable, store_param_remainders))
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.dtypes = {
            "exp_avg": exp_avg_dtype,
            "exp_avg_sq": exp_avg_sq_dtype,
            "master_param": master_weight_dtype,
        }

    def initialize_state(self, param: Any) -> None:
        for name, dtype in self.dtypes.items():
            self.state[param][name] = torch.zeros_like(param, dtype=dtype)
        self.state[param]["master_param"].copy_(param)

    def get_unscaled_state(self, param: Any, name: str) -> torch.Tensor:
        return self.state[param][name].float()

    def set_scaled_state(self, param: Any, name: str, value: torch.Tensor) -> None:
        assert value.dtype == torch.float32
        if name not in self.state[param]:
            self.state[param][name] = torch.empty_like(param, dtype=self.dtypes[name])
        self.state[param][name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        for number, values in found["state"].items():
            found["state"][number] = {name: value.float() for name, value in values.items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, values in state_dict["state"].items():
            self.state[parameters[number]] = {}
            for name, value in values.items():
                self.set_scaled_state(parameters[number], name, value.float())

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.decoupled_grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), count = group["betas"], group["step"]
            for p in group["params"]:
                if not self.state[p]:
                    self.initialize_state(p)
                if (g := getattr(p, "decoupled_grad", None)) is None:
                    continue
                m, v, main = (self.get_unscaled_state(p, name) for name in self.dtypes)
                m = beta1 * m + (1 - beta1) * g
                v = beta2 * v + (1 - beta2) * g * g
                size = (v / (1 - beta2**count)).sqrt() + group["eps"]
                update = m / (1 - beta1**count) / size + group["weight_decay"] * main
                main = main - group["lr"] * update
                for name, value in zip(self.dtypes, (m, v, main)):
                    self.set_scaled_state(p, name, value)
                p.copy_(main)


class TwoDevices(TorchFunctionMode):
    """Inside it tensors are on a GPU by their own word, except copies in host memory."""

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        on_host = bool(args) and getattr(args[0], "on_host", False)
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return not on_host
        if func is torch.Tensor.pin_memory or args[1:] in (("cpu",), ("cuda",)):  # of Tensor.to
            return args[0]
        on_host |= kwargs.pop("pin_memory", False) or func is torch.Tensor.cpu
        result = func(*args, **kwargs)
        if on_host and isinstance(result, torch.Tensor):
            result.on_host = True  # type: ignore[attr-defined]
        return result


def as_on_a_gpu() -> None:
    """Change this process so that Megatron accepts its precision-aware optimizers."""
    from megatron.core import utils
    from megatron.core.optimizer import HybridDeviceOptimizer
    from packaging.version import Version

    from aent.runtime import megatron_cpu
    from aent.trainer import optimizer

    megatron_cpu.enter()
    utils._te_version = Version("2.9.0")
    package = ModuleType("transformer_engine.pytorch.optimizers")
    package.FusedAdam = FusedAdam  # type: ignore[attr-defined]
    for name in ("transformer_engine", "transformer_engine.pytorch", package.__name__):
        sys.modules[name] = package if name == package.__name__ else ModuleType(name)
    optimizer.optimizer_implementation = lambda requested: requested  # type: ignore
    done = SimpleNamespace(synchronize=lambda: None, wait=lambda stream: None)
    stream = megatron_cpu._current_stream()
    stream.record_event = lambda: done
    torch.cuda.current_stream = lambda device=None: stream
    torch.cuda.stream = lambda stream: nullcontext()  # type: ignore
    for name in (
        "_get_sub_optimizer_param_groups",
        "_set_sub_optimizer_grads",
        "_move_new_state_to_right_device",
    ):
        setattr(HybridDeviceOptimizer, name, _on_two(getattr(HybridDeviceOptimizer, name)))


def _on_two(method: Any) -> Any:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        with TwoDevices():
            return method(*args, **kwargs)

    return called
