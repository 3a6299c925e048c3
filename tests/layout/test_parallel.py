"""Sizes, coordinates and groups of a parallel layout, against Megatron's own."""

import subprocess
import sys

import pytest

from aent.layout.parallel import Coordinates, ParallelLayout
from aent.recipe.training import TrainerSection

LAYOUTS = [
    ParallelLayout(),
    ParallelLayout(tensor=3, data=2, pipeline=2),
    ParallelLayout(tensor=2, context=3, data=2, pipeline=2),
    ParallelLayout(tensor=2, expert=2, data=4, pipeline=2),
    ParallelLayout(context=2, expert=4, data=4),
]


def test_of_a_recipe():
    trainer = TrainerSection(tensor_parallel=3, data_parallel=2, pipeline_parallel=5)
    layout = ParallelLayout.of(trainer)
    assert layout == ParallelLayout(tensor=3, context=1, expert=1, data=2, pipeline=5)
    wide = ParallelLayout.of(trainer.model_copy(update={"context_parallel": 4}))
    assert wide == ParallelLayout(tensor=3, context=4, expert=1, data=2, pipeline=5)
    assert wide.num_ranks == 120
    assert (layout.num_ranks, str(layout)) == (30, "tensor 3 x data 2 x pipeline 5")
    assert layout.coordinates(19) == Coordinates(tensor=1, context=0, expert=0, data=0, pipeline=3)
    assert "context 2" in str(ParallelLayout(context=2))
    for rank in (-1, 30):
        with pytest.raises(ValueError, match=f"{rank} .* 30"):
            layout.coordinates(rank)


def test_the_copy_that_is_exported_has_every_weight_once():
    """Each stage and tensor index once; the first rank, which collects them, among them."""
    for layout in LAYOUTS:
        first = [rank for rank in range(layout.num_ranks) if layout.holds_first_copy(rank)]
        shares = {(p.pipeline, p.tensor) for p in map(layout.coordinates, first)}
        assert len(shares) == len(first) == layout.pipeline * layout.tensor
        assert first[0] == 0


def test_ends_of_the_pipeline():
    layout = ParallelLayout(pipeline=3)
    assert [layout.has_embedding(stage) for stage in range(3)] == [True, False, False]
    assert [layout.has_head(stage) for stage in range(3)] == [False, False, True]
    assert ParallelLayout().has_embedding(0)
    assert ParallelLayout().has_head(0)


@pytest.mark.parametrize(
    ("layers", "head", "stages", "counts"),
    [
        (30, 4.0, 1, [30]),
        (30, 4.0, 2, [17, 13]),
        (24, 0.0, 4, [6, 6, 6, 6]),
        (24, 3.0, 4, [7, 7, 7, 3]),  # 27 / 4 layers' time each: 6.75 and 6.75 - 3
        (4, 50.0, 4, [1, 1, 1, 1]),
    ],
)
def test_stages_take_equally_long(layers, head, stages, counts):
    parts = ParallelLayout(pipeline=stages).stage_layers(layers, head)
    assert [len(part) for part in parts] == counts
    assert [layer for part in parts for layer in part] == list(range(layers))


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"pipeline_parallel=5 .* 4 layers"):
        ParallelLayout(pipeline=5).stage_layers(4, 1.0)


def test_experts_are_dealt_out_evenly():
    with pytest.raises(ValueError, match="expert 3"):
        ParallelLayout(tensor=3, expert=3, data=2)


def test_what_a_checkpoint_says():
    """A layout as it is saved now, and as three sizes were (tensor, pipeline, data)."""
    layout = ParallelLayout(tensor=2, data=3, pipeline=5)
    sizes = {"tensor": 2, "context": 1, "expert": 1, "data": 3, "pipeline": 5}
    assert ParallelLayout.saved(sizes) == ParallelLayout.saved((2, 5, 3)) == layout


def test_no_torch_is_needed():
    code = "import sys, aent.layout.parallel; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow  # imports Megatron
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_groups_are_megatrons(layout):
    """Those that ``initialize_model_parallel`` makes, as every rank sees them: torch's fake backend
    has a world of any size in one process."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group,
        "context": parallel_state.get_context_parallel_group,
        "expert": parallel_state.get_expert_model_parallel_group,
        "data": parallel_state.get_data_parallel_group,
        "pipeline": parallel_state.get_pipeline_model_parallel_group,
    }
    for rank in range(layout.num_ranks):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.num_ranks)
        try:
            parallel_state.initialize_model_parallel(
                **layout.megatron_sizes, create_gloo_process_groups=False
            )
            for dimension, group in groups.items():
                theirs = dist.get_process_group_ranks(group())
                assert list(layout.group(dimension, rank)) == theirs
                assert theirs[getattr(layout.coordinates(rank), dimension)] == rank
            stage = layout.coordinates(rank).pipeline
            assert layout.has_embedding(stage) == parallel_state.is_pipeline_first_stage()
            assert layout.has_head(stage) == parallel_state.is_pipeline_last_stage()
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
