"""How the policy is split over the trainer's ranks: the indices of each rank and what it owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise

from aent.recipe.training import TrainerSection


@dataclass(frozen=True)
class Coordinates:
    """A rank's index along each dimension."""

    tensor: int
    context: int
    expert: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of the parallel dimensions.

    Ranks are numbered in Megatron's order tp-cp-ep-dp-pp: the tensor index changes first, then
    context, data, pipeline. Experts add no ranks: the context x data ranks of a pipeline stage that
    have the same tensor index are numbered again, with the expert index first.

    Raises ValueError if the expert size does not divide context x data.
    """

    tensor: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        if self.context * self.data % self.expert:
            raise ValueError(f"expert {self.expert} does not divide context x data of {self}")

    @classmethod
    def of(cls, trainer: TrainerSection) -> ParallelLayout:
        """A recipe's."""
        return cls(
            tensor=trainer.tensor_parallel,
            context=trainer.context_parallel,
            data=trainer.data_parallel,
            pipeline=trainer.pipeline_parallel,
        )

    @classmethod
    def saved(cls, value: Mapping[str, int] | tuple[int, int, int]) -> ParallelLayout:
        """Read what ``dataclasses.asdict`` made of a layout; older checkpoints have three sizes."""
        if isinstance(value, Mapping):
            return cls(**value)
        tensor, pipeline, data = value
        return cls(tensor=tensor, data=data, pipeline=pipeline)

    def __str__(self) -> str:
        """The factors of the number of ranks, such as tensor 2 x data 1 x pipeline 4."""
        context = f" x context {self.context}" if self.context > 1 else ""
        expert = f" (expert {self.expert})" if self.expert > 1 else ""
        ranks = f"tensor {self.tensor}{context} x data {self.data} x pipeline {self.pipeline}"
        return ranks + expert

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline

    @property
    def megatron_sizes(self) -> dict[str, int]:
        """Arguments of ``megatron.core.parallel_state.initialize_model_parallel``, which derives
        the data-parallel size from the number of ranks."""
        return {
            "tensor_model_parallel_size": self.tensor,
            "context_parallel_size": self.context,
            "expert_model_parallel_size": self.expert,
            "pipeline_model_parallel_size": self.pipeline,
        }

    def coordinates(self, rank: int) -> Coordinates:
        """Raises ValueError if there is no such rank."""
        if not 0 <= rank < self.num_ranks:
            raise ValueError(f"rank {rank} is not one of the {self.num_ranks} of {self}")
        sizes = asdict(self)
        return Coordinates(**{d: rank // self._stride(d) % size for d, size in sizes.items()})

    def group(self, dimension: str, rank: int) -> range:
        """The ranks, including this one, that work together along a dimension (a field's name),
        ordered by their index along it."""
        stride, index = self._stride(dimension), getattr(self.coordinates(rank), dimension)
        first = rank - index * stride
        return range(first, first + getattr(self, dimension) * stride, stride)

    def _stride(self, dimension: str) -> int:
        """Distance between the numbers of neighboring ranks along a dimension."""
        strides = {
            "tensor": 1,
            "context": self.tensor,
            "expert": self.tensor,
            "data": self.tensor * self.context,
            "pipeline": self.tensor * self.context * self.data,
        }
        return strides[dimension]

    def holds_first_copy(self, rank: int) -> bool:
        """Whether this rank exports its share of the weights: all ranks along data and context have
        the same share (except for experts' weights)."""
        place = self.coordinates(rank)
        return place.data == place.context == 0

    def has_embedding(self, stage: int) -> bool:
        """Whether a pipeline stage turns tokens into the first hidden states."""
        return stage == 0

    def has_head(self, stage: int) -> bool:
        """Whether a pipeline stage has the last norm, the output layer and the loss."""
        return stage == self.pipeline - 1

    def stage_layers(self, layers: int, head: float) -> list[range]:
        """The layers of each pipeline stage, chosen so that all stages take equally long.

        All stages but the last have equal shares (Megatron's num_layers_in_last_pipeline_stage).

        Args:
            layers: number of layers of the model.
            head: cost of the output layer, in layers.

        Raises:
            ValueError: if there are fewer layers than stages.
        """
        stages = self.pipeline
        if layers < stages:
            raise ValueError(
                f"trainer.pipeline_parallel={stages} is more than the model's {layers} layers"
            )
        if stages == 1:
            return [range(layers)]
        ideal = (layers + head) / stages - head
        choices = [n for n in range(1, layers) if (layers - n) % (stages - 1) == 0]
        last = min(choices, key=lambda n: abs(n - ideal))
        counts = [(layers - last) // (stages - 1)] * (stages - 1) + [last]
        return [range(*ends) for ends in pairwise(accumulate(counts, initial=0))]
