"""The policy's weights under Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from aent.layout.parallel import ParallelLayout
from aent.trainer.bridge import DecoderBridge
from aent.trainer.model import PolicyModel


@dataclass
class _Shard:
    """One Megatron parameter, as its pipeline stage describes it to the others."""

    name: str  # with the global layer number
    stage: int
    shape: torch.Size  # of one tensor-parallel shard
    dtype: torch.dtype
    split: bool  # over the tensor-parallel group


class Exporter:
    """Collects full tensors, one Megatron parameter at a time: of the whole policy on rank 0, or of
    each pipeline stage on its first rank."""

    def __init__(self, bridge: DecoderBridge, model: PolicyModel, layout: ParallelLayout) -> None:
        """Collective over the pipeline: the stages exchange lists of their parameters.

        Raises:
            ValueError: if the Hugging Face names do not match the facts.
        """
        self.bridge, self.layout = bridge, layout
        self.place = layout.coordinates(dist.get_rank())
        global_names = bridge._weight_name_mapping_mcore_local_to_global(model)
        self.parameters = {global_names[n]: p for n, p in model.named_parameters()}
        mine = [
            _Shard(
                n, self.place.pipeline, p.shape, p.dtype, getattr(p, "tensor_model_parallel", False)
            )
            for n, p in self.parameters.items()
        ]
        pipeline = parallel_state.get_pipeline_model_parallel_group()
        everyones: list[list[_Shard]] = [[]] * pipeline.size()
        dist.all_gather_object(everyones, mine, group=pipeline)
        self.shards = [shard for stage in everyones for shard in stage]
        if bridge.facts.tied_embeddings:  # the last stage's copy of the embedding
            self.shards = [s for s in self.shards if s.name != "output_layer.weight"]
        names = [n for s in self.shards for n in bridge._weight_name_mapping_mcore_to_hf(s.name)]
        if wrong := set(names) ^ set(bridge.facts.weights):
            raise ValueError(f"the trainer and the model disagree about {', '.join(sorted(wrong))}")

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) on rank 0; elsewhere (Megatron name, empty tensor), once
        per parameter. Every rank must iterate to the end. A tensor is on its rank's device and may
        be a view of the live parameter: copy it to keep it."""
        for shard in self.shards:
            whole = self._collect(shard)
            if whole is None:
                yield shard.name, torch.empty(0)
                continue
            names, tensors = self.bridge._weight_to_hf_format(shard.name, whole)
            for name, tensor in zip(names, tensors):
                yield name, tensor.contiguous()

    @property
    def collects_stage(self) -> bool:
        """Whether this rank gets the tensors of its pipeline stage from ``stage``."""
        return self.layout.holds_first_copy(dist.get_rank()) and self.place.tensor == 0

    def planned(self, copies: bool = False) -> list[tuple[str, tuple[int, ...]]]:
        """Hugging Face names and shapes that ``stage`` yields here, in its order."""
        if not (copies or self.collects_stage):
            return []
        shapes = self.bridge.facts.weights
        mine = [shard for shard in self.shards if shard.stage == self.place.pipeline]
        names = [n for s in mine for n in self.bridge._weight_name_mapping_mcore_to_hf(s.name)]
        return [(name, shapes[name]) for name in names]

    @torch.no_grad()
    def stage(self, copies: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) of this rank's pipeline stage, on the stage's first
        rank; nothing elsewhere. All ranks of a stage must iterate to the end; stages are
        independent. Tensors as for ``__iter__``.

        copies: on every rank, its own copy; without tensor parallelism."""
        for shard in self.shards:
            if shard.stage != self.place.pipeline:
                continue
            whole = self.parameters[shard.name].detach() if copies else self._merge(shard)
            if whole is not None:
                names, tensors = self.bridge._weight_to_hf_format(shard.name, whole)
                for name, tensor in zip(names, tensors):
                    yield name, tensor.contiguous()

    def _merge(self, shard: _Shard) -> Tensor | None:
        """The whole parameter of this rank's stage, on the stage's first rank; None elsewhere.
        Other copies of the weights take no part."""
        if not self.layout.holds_first_copy(dist.get_rank()):
            return None
        first = self.place.tensor == 0
        parameter = self.parameters[shard.name]
        pieces = [parameter.detach()]
        if shard.split and self.layout.tensor > 1:
            pieces = [torch.empty_like(parameter) for _ in range(self.layout.tensor)]
            group = parallel_state.get_tensor_model_parallel_group()
            dist.gather(parameter.detach(), pieces if first else None, group=group, group_dst=0)
        if not first:
            return None
        if not shard.split:
            return pieces[0]
        merged: Tensor = self.bridge._weight_merge_across_tp(shard.name, pieces, parameter)
        return merged

    def _collect(self, shard: _Shard) -> Tensor | None:
        """The whole parameter on global rank 0, None elsewhere: merged in its stage, then sent to
        stage 0."""
        stage = self.place.pipeline
        pipeline = parallel_state.get_pipeline_model_parallel_group()
        whole = self._merge(shard) if stage == shard.stage else None
        if not self.collects_stage:
            return None
        if shard.stage == 0:
            return whole if stage == 0 else None
        if stage == shard.stage:
            assert whole is not None
            dist.send(whole.contiguous(), group=pipeline, group_dst=0)
        elif stage == 0:
            whole = torch.empty(self._full_shape(shard), dtype=shard.dtype, device=_device())
            dist.recv(whole, group=pipeline, group_src=shard.stage)
            return whole
        return None

    def _full_shape(self, shard: _Shard) -> list[int]:
        shape = list(shard.shape)
        if shard.split:
            dimension = 1 if _is_row_parallel(shard.name) else 0
            shape[dimension] *= self.layout.tensor
        return shape


def _is_row_parallel(name: str) -> bool:
    return "linear_proj.weight" in name or "linear_fc2.weight" in name


def _device() -> torch.device:
    from aent.runtime import distributed

    return distributed.device()
