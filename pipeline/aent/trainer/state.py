"""The trainer's state in a folder: model, optimizer, schedule, random state of every rank.

Written and read by Megatron's dist_checkpointing (torch_dist format), so the layout may change in
between: tensors are saved as parts of whole ones. Random streams belong to a rank, and are only
restored for the same layout. Not run on GPUs (CUDA tensors, nccl), since there were none.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.state_dict_saver import (
    save_state_dict_async_finalize,
    save_state_dict_async_plan,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from aent.layout.parallel import ParallelLayout
from aent.recipe.schema import Recipe
from aent.runtime.megatron_cpu import on_device
from aent.trainer import optimizer as optimizers
from aent.trainer import optimizer_state
from aent.trainer.gradient_share import Neutral

if TYPE_CHECKING:
    from aent.trainer.trainer import Trainer


def metadata(recipe: Recipe) -> dict[str, Any]:
    """Megatron's settings: the distributed optimizer's state as whole parameters, for any later
    layout."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": recipe.checkpoint.memory_efficient,
        "chained_optim_avoid_prefix": True,
    }


class WriteInProcess(TorchDistSaveShardedStrategy):
    """torch_dist, written by the ranks themselves, from any thread that calls the request.

    Megatron's own strategy writes the same files from processes that it forks, and keeps a
    multiprocessing manager beside every rank: neither would end with a rank that is killed.

    copied: the state is copied (to host memory) before ``async_save`` returns, so that it may
    change while it is written; except for ``gathered``, storages that are copies already.
    """

    def __init__(self, copied: bool, gathered: frozenset[int]) -> None:
        super().__init__("torch_dist", 1)
        self.copied, self.gathered = copied, gathered

    def async_save(
        self,
        sharded_state_dict: ShardedStateDict,
        checkpoint_dir: str | Path,
        _async_strategy: str = "",  # which of Megatron's own writers, since 0.19
    ) -> AsyncRequest:
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, keep_only_main_replica=True
        )
        writer = Writer(checkpoint_dir, self.copied, self.gathered)
        planned, *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(by_key, False),
            writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
        return AsyncRequest(writer.write, (), [partial(save_state_dict_async_finalize, *planned)])


class Writer(FileSystemWriter):
    """torch's writer of a rank's files, in the steps of Megatron's asynchronous save."""

    def __init__(self, folder: str | Path, copied: bool, gathered: frozenset[int]) -> None:
        # torch copies 10 MB ahead of its writing, on a stream of the thread's current GPU, which in
        # another thread may be another rank's; here there already is a copy
        super().__init__(folder, per_thread_copy_ahead=0 if copied else 10_000_000)
        self._copied, self._gathered = copied, gathered

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        self._plan = plan
        self._data: Any = _Copy(plan, planner, self._gathered) if self._copied else planner

    def write(self) -> None:
        """Write this rank's files to the disk. Raises all errors of torch's writer: OSError,
        RuntimeError (from zip files, on a full disk), errors of pickling."""
        try:
            self._results: Any = self.write_data(self._plan, self._data).value()
        finally:
            del self._data  # a copy is as large as the state

    def retrieve_write_results(self) -> Any:
        return self._results


class _Copy:
    """Replaces a planner: its answers at the time when this was made."""

    def __init__(self, plan: SavePlan, planner: SavePlanner, gathered: frozenset[int]) -> None:
        self._data = {
            item.index: _copy(planner.resolve_data(item), gathered) for item in plan.items
        }

    def resolve_data(self, item: WriteItem) -> Any:
        return self._data[item.index]


def _copy(data: Any, gathered: frozenset[int]) -> Any:
    """A tensor's copy in host memory; other objects are bytes already."""
    if not isinstance(data, torch.Tensor) or data.untyped_storage().data_ptr() in gathered:
        return data
    return data.detach().to("cpu", copy=True)


def _gathered(optimizer_state: dict[Any, Any]) -> frozenset[int]:
    """Addresses of the storages of a distributed optimizer's state, which Megatron gathered in host
    memory for the checkpoint only: twelve bytes a parameter, which must not be copied again."""
    found: set[int] = set()
    for key, value in optimizer_state.items():
        if key == "param_state":
            tensors = (each.data for each in nested_values(value or {}))
            found |= {t.untyped_storage().data_ptr() for t in tensors}
        elif isinstance(value, dict):
            found |= _gathered(value)
    return frozenset(found)


@on_device
def begin_save(trainer: Trainer, folder: Path, copied: bool) -> AsyncRequest:
    """Plan how to write the state to the empty ``folder``. Collective.

    Each rank then calls the request's ``async_fn``, in any thread, and then ``finish_save``. Until
    then the state must not change, unless it was ``copied``.

    The state includes the optimizer's from the start, so a checkpoint before the first update shows
    that both fit, in memory and on disk.
    """
    trainer.gather_parameters()
    optimizers.allocate_state(trainer.optimizer)
    sharded: dict[str, Any] = {
        "layout": asdict(trainer.layout),
        "optimizer_steps": trainer.learning_rate.moves,
        "skipped_updates": trainer.skipped_updates,
        "neutral": trainer.neutral.to_dict(),
        "model": trainer.policy.sharded_state_dict(metadata=metadata(trainer.recipe)),
        "rng": _rng_object(rng_state()),
    }
    if optimizer_state.has_state(trainer.optimizer):  # a rank may own no parameter
        sharded["optimizer"] = optimizer_state.describe(
            trainer.optimizer, sharded["model"], metadata(trainer.recipe)
        )
    strategy = WriteInProcess(copied, _gathered(sharded.get("optimizer", {})))
    return dist_checkpointing.save(sharded, str(folder), strategy, async_sharded_save=True)


@on_device
def finish_save(request: AsyncRequest) -> None:
    """Write the index of the checkpoint. Collective, after every rank has written its files: if one
    could not, ranks must tell each other before.
    """
    for finalize in request.finalize_fns:
        finalize()


@on_device
def load(trainer: Trainer, folder: Path) -> bool:
    """Restore the state in ``folder`` to a freshly built trainer. Collective.

    The recipe's settings of the optimizer (rate, betas, weight decay...) hold from here on; the
    schedule continues from the saved number of optimizer steps.

    Returns:
        Whether the random streams were restored: only if the layout is the same.
    """
    common = dist_checkpointing.load_common_state_dict(str(folder))
    same_layout = ParallelLayout.saved(common["layout"]) == trainer.layout
    how = metadata(trainer.recipe)
    sharded: dict[str, Any] = {"model": trainer.policy.sharded_state_dict(metadata=dict(how))}
    later: list[Any] = []
    if "optimizer" in common:
        sharded["optimizer"], later = optimizer_state.describe_to_read(
            trainer.optimizer, sharded["model"], how
        )
    if same_layout:
        sharded["rng"] = _rng_object(None)
    loaded = dist_checkpointing.load(sharded, str(folder), strict="raise_unexpected")
    trainer.policy.load_state_dict(loaded.pop("model"))  # has copies: gone before more is read
    if "optimizer" in common:
        optimizer_state.take(trainer.optimizer, loaded["optimizer"])
        optimizer_state.read_kinds(trainer.optimizer, later, folder)
        optimizers.apply_settings(trainer.optimizer, trainer.recipe.trainer.optimizer)
    trainer.learning_rate.move_to(common["optimizer_steps"])
    trainer.skipped_updates = common["skipped_updates"]
    trainer.neutral = Neutral(**common.get("neutral", {}))  # older checkpoints have none
    if same_layout:
        set_rng_state(loaded["rng"])
    return same_layout


def rng_state() -> dict[str, Any]:
    """Every random stream of this process: Python's, NumPy's, torch's, Megatron's."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),  # on a CPU: torch's again
        "megatron": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo ``rng_state``."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron"])


def _rng_object(state: dict[str, Any] | None) -> ShardedObject:
    return ShardedObject("rng", state, (dist.get_world_size(),), (dist.get_rank(),))
