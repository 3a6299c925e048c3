"""The optimizer's part of a checkpoint: how Megatron's description of it is written, and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import HybridDeviceOptimizer, MegatronOptimizer
from torch.overrides import TorchFunctionMode

# kinds of tensors in a distributed optimizer's state, by Megatron's names
KINDS = ("param", "exp_avg", "exp_avg_sq")


def has_state(optimizer: MegatronOptimizer) -> bool:
    """Whether this rank's optimizer has a state to save."""
    return any(len(part.optimizer.state) > 0 for part in _parts(optimizer))


def describe(optimizer: MegatronOptimizer, model: Any, how: dict[str, Any]) -> dict[Any, Any]:
    """Megatron's description of the state, to be saved. Collective: it gathers a distributed
    optimizer's. model: the description of the model's weights. how: Megatron's settings."""
    state = optimizer.sharded_state_dict(model, metadata=how)
    _drop_classes(state)
    return state


def describe_to_read(
    optimizer: MegatronOptimizer, model: Any, how: dict[str, Any]
) -> tuple[dict[Any, Any], list[Any]]:
    """As ``describe``, without values: (what is read at once, what ``read_kinds`` reads: of each
    part of the optimizer the tensors of a distributed one, else None). This may change weights,
    which are read from the file afterwards."""
    for part in _parts(optimizer):
        # it must have its state before it can describe it; others allocate it themselves
        if hasattr(part, "_init_optimizer_states_with_dummy_values") and not part.optimizer.state:
            part._init_optimizer_states_with_dummy_values()
    with _Unwritten():
        state = optimizer.sharded_state_dict(model, is_loading=True, metadata=how)
    return state, [each.pop("param_state", None) for each in _states(optimizer, state)]


def take(optimizer: MegatronOptimizer, loaded: dict[Any, Any]) -> None:
    """Take over what was read at once."""
    for part, state in zip(_parts(optimizer), _states(optimizer, loaded)):
        distributed = hasattr(part, "buffers")
        if not distributed and isinstance(part.optimizer, torch.optim.AdamW):
            # Megatron saves one count of steps for all parameters, but not a count of 0
            state.get("optimizer", state)["state"].setdefault("common_step", torch.zeros(()))
        # the recipe's hold; Megatron 0.19 distinguishes groups by them, 0.16 ignores them
        for group in state.get("optimizer", state)["param_groups"]:
            group["max_lr"], group["min_lr"] = part.config.lr, part.config.min_lr
        part.load_state_dict(state)
        for of_parameter in part.optimizer.state.values() if distributed else ():
            if "step" in of_parameter:  # torch's: Megatron gives all parameters one counter
                of_parameter["step"] = of_parameter["step"].clone()


def read_kinds(optimizer: MegatronOptimizer, tensors: list[Any], folder: Path) -> None:
    """Read the state of distributed optimizers. Collective.

    Every rank reads whole tensors, in host memory, and takes its share of them: one kind after the
    other, so that it holds 4 bytes a parameter instead of 12 (Megatron joins the two halves of
    each linear_fc1 beside that).

    tensors: from ``describe_to_read``; it is emptied.
    """
    for kind in KINDS if any(each is not None for each in tensors) else ():
        asked = {
            number: {index: {kind: of_parameter.pop(kind)} for index, of_parameter in each.items()}
            for number, each in enumerate(tensors)
            if each is not None
        }
        whole = dist_checkpointing.load({"kind": asked}, str(folder), strict="raise_unexpected")
        del asked
        for number, part in enumerate(_parts(optimizer)):
            if tensors[number] is not None:
                _take_kind(part, kind, whole["kind"][number])
        del whole
    for part in _parts(optimizer):
        if isinstance(part.optimizer, HybridDeviceOptimizer):
            part.optimizer._sync_hdo_state_to_sub_optimizers()


@torch.no_grad()
def _take_kind(part: Any, kind: str, whole: dict[int, dict[str, torch.Tensor]]) -> None:
    """Copy this rank's share of whole tensors, numbered as Megatron's ``sharded_state_dict`` of a
    fully reshardable state numbers them."""
    parameters = (p for buffer in part.buffers for p in buffer.param_index_map)
    for index, parameter in enumerate(parameters):
        if parameter not in part.model_param_gbuf_map:
            continue  # this rank has no part of it
        own = part._get_model_param_range_map(parameter)["param"]
        values = whole[index][kind].flatten()[own.start : own.end]
        if part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            # it may keep the tensor itself: without the clone all of the whole one
            part._set_main_param_and_optimizer_states(parameter, {kind: values.clone()})
        else:
            part._get_main_param_and_optimizer_states(parameter)[kind].copy_(values)


class _Unwritten(TorchFunctionMode):
    """Inside it, zeros in host memory are whatever is there: Megatron describes what is to be read
    by such tensors, 12 bytes a parameter, which would take memory before anything is read."""

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and kwargs.get("device") == "cpu":
            func = torch.empty
        return func(*args, **kwargs)


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _states(optimizer: MegatronOptimizer, state: dict[Any, Any]) -> list[dict[Any, Any]]:
    """Of each part."""
    return [state] if len(_parts(optimizer)) == 1 else [state[index] for index in sorted(state)]


def _drop_classes(state: Any) -> None:
    """Remove the classes that Megatron's optimizer in host memory has among its settings: torch
    does not read them back (``weights_only``), and every such optimizer has its own."""
    if isinstance(state, dict):
        for name in [name for name, value in state.items() if isinstance(value, type)]:
            del state[name]
    for value in state.values() if isinstance(state, dict) else state:
        if isinstance(value, dict | list):
            _drop_classes(value)
