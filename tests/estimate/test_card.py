"""The parts of a card's memory, and the message for one that is too small."""

import pytest

from aent.checks.recipe import check, doubts
from aent.cli.loading import load_recipe
from aent.estimate import card
from aent.estimate.memory import GIB, estimate
from aent.layout.parallel import ParallelLayout
from aent.recipe.load import dump, load
from aent.runtime import environment
from wording import assert_names

BASE = """
name: x
model: {path: models/Qwen2.5-7B-Instruct, dtype: bfloat16}
controller: {initial: 0}
rollout: {prompts_per_step: 8, samples_per_prompt: 8, max_prompt_tokens: 1024,
          max_response_tokens: 15360, engine: {tensor_parallel: 2}}
trainer: {tensor_parallel: 2, data_parallel: 2, micro_batch_tokens: 16384, fused_head: true,
          sequence_parallel: true, optimizer: {distributed: true}}
"""
RECOMPUTED = (
    "trainer.megatron={recompute_granularity: full, recompute_method: uniform, "
    "recompute_num_layers: 1}"
)
PARAMETERS, GROUPS = 7_615_616_512, 4  # of the model, as it was published


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(BASE)
    return lambda *overrides: load(tmp_path / "r.yaml", overrides)


def test_assumptions_stand_beside_what_is_computed(recipe):
    found = recipe(RECOMPUTED)
    memory = estimate(found)
    need = card.card(memory.per_rank[0], ParallelLayout.of(found.trainer))
    assert need.allocated == memory.per_rank[0].allocated
    assert need.nccl == 3 * card.NCCL_BYTES  # tensor, data, and all ranks
    assert need.fragmentation == int(0.05 * need.allocated)
    assumed = card.CONTEXT_BYTES + need.nccl + card.WORKSPACE_BYTES + need.fragmentation
    assert need.total == need.allocated + assumed
    said = card.describe(found, memory, 79 * GIB)
    assert_names(said, f"{need.total / GIB:.1f} of 79.0", "assumed", "context 0.6", "nccl 0.9")
    host = memory.per_rank[0].checkpoint + memory.per_rank[0].process
    assert_names(said, "host memory", f"{host / GIB:.1f} GiB of a rank")


def test_a_trainer_that_does_not_fit_is_one_sentence_before_anything_starts(recipe):
    assert check(recipe(RECOMPUTED), machine=False) == []
    (fault,) = check(recipe(), machine=False)
    assert_names(fault, "memory: rank", "tensor 2", "79.0 GiB", "activations", "docs/scaling.md")
    assert_names(fault, "cluster.gpu_memory_gib")
    assert "assumed" not in fault
    assert check(recipe("cluster.gpu_memory_gib=139"), machine=False) == []
    assert check(recipe("cluster.gpus_per_node=0"), machine=False) == []  # no GPUs, no bound


def test_what_only_assumptions_say_is_a_warning(recipe, tmp_path, capsys):
    found = recipe(RECOMPUTED)
    memory = estimate(found).per_rank[0]
    parts = memory.weights + memory.gradients + memory.optimizer + memory.activations
    assert memory.counted == parts < memory.allocated
    total = card.card(memory, ParallelLayout.of(found.trainer)).total
    for size, refused, doubted in (
        (parts - 1, 1, 1),
        (parts, 0, 1),
        (total - 1, 0, 1),
        (total, 0, 0),
    ):
        assert len([f for f in card.faults(found, size) if "memory:" in f]) == refused
        assert len([d for d in card.doubts(found, size) if "memory:" in d]) == doubted
    tight = recipe(RECOMPUTED, f"cluster.gpu_memory_gib={(parts + 2**28) / GIB}")
    assert check(tight, machine=False) == []
    (doubt,) = doubts(tight, machine=False)
    assert_names(doubt, "memory: rank", "may", "assumed: context 0.6", "cluster.gpu_memory_gib")
    # what submits the job says so, and goes on
    (tmp_path / "tight.yaml").write_text(dump(tight))
    load_recipe(str(tmp_path / "tight.yaml"), None, machine=False)
    assert f"aent: warning: {doubt}" in capsys.readouterr().err


def test_of_this_machine_its_own_gpus_count(recipe, monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "torch_is_for_gpus", lambda: True)
    smi.write_text("#!/bin/sh\necho 81559\necho 24576\n")
    smi.chmod(0o755)
    assert environment.gpu_memory_bytes(2) == environment.gpu_memory_bytes(8) == 24 * GIB
    assert environment.gpu_memory_bytes(1) == 81559 * 2**20  # a GPU that is not needed is no bound
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.gpu_memory_bytes(2) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert environment.gpu_memory_bytes(1) is None
    monkeypatch.setattr(environment, "torch_is_for_gpus", lambda: False)
    assert environment.gpu_memory_bytes(1) is None


def test_an_engine_needs_room_for_a_sequence(recipe):
    found = recipe(RECOMPUTED)
    engine = card.engine_card(found, 79 * GIB)
    assert engine.usable == int(0.85 * 79 * GIB)
    assert engine.weights == PARAMETERS * 2 // 2
    # keys and values, of 28 layers, heads of 128, in bfloat16
    assert engine.sequence == 2 * 28 * (GROUPS // 2) * 128 * 2 * 16384
    assert engine.sequences == engine.cache // engine.sequence > 0
    small = recipe(RECOMPUTED, "rollout.engine.gpu_memory_utilization=.09")
    (fault,) = card.faults(small, 79 * GIB)
    assert_names(fault, "rollout.engine.tensor_parallel=2", "key-value cache")
    assert "assumed" not in fault
    close = recipe(RECOMPUTED, "rollout.engine.gpu_memory_utilization=.13")
    assert list(card.faults(close, 79 * GIB)) == []
    (doubt,) = card.doubts(close, 79 * GIB)
    assert_names(doubt, "rollout.engine.tensor_parallel=2", "assumed", "3.0")
    # heads that are fewer than the cards are on each
    spread = card.engine_card(recipe("rollout.engine.tensor_parallel=8"), 79 * GIB)
    assert spread.sequence == engine.sequence // 2


def test_nothing_is_gathered_without_a_distributed_optimizer(recipe):
    plain = ("trainer.optimizer.distributed=false", "checkpoint.memory_efficient=true")
    (fault,) = check(recipe(RECOMPUTED, *plain), machine=False)
    assert_names(fault, "checkpoint.memory_efficient", "trainer.optimizer.distributed")


SHARED = ("rollout.placement=colocated", "rollout.engine.gpu_memory_utilization=.6")


def test_a_card_that_is_shared_holds_both_in_either_turn(recipe):
    """The trainer's share and an engine that sleeps; the engine's and the trainer's weights."""
    found = recipe(RECOMPUTED, *SHARED)
    memory, layout = estimate(found), ParallelLayout.of(found.trainer)
    rank, engine = memory.per_rank[0], card.engine_card(found, 79 * GIB)
    alone = estimate(recipe(RECOMPUTED)).per_rank[0]
    full, rest = card.card(rank, layout), card.resting(rank, layout)
    assert rest.allocated == rank.weights + rank.export + card.PROBE_BYTES
    assert rest.total == rest.allocated + int(0.05 * rest.allocated) + (
        card.CONTEXT_BYTES + 3 * card.NCCL_BYTES + card.WORKSPACE_BYTES
    )
    table = 152_064 * 3584 * 2  # bytes: the largest tensor, which arrives whole
    assert engine.transfer == table
    assert rank.export == 2 * table  # and the parts of two tensor-parallel ranks
    # in host memory: the optimizer, and on a stage's first rank the weights for the engines
    assert rank.parked == alone.optimizer + 2 * rank.weights  # of two tensor-parallel ranks
    assert memory.per_rank[1].parked == alone.optimizer
    assert (rank.host - alone.host, rank.shared) == (rank.parked, 0)
    assert list(card.faults(found, 79 * GIB)) == []
    said = card.describe(found, memory, 79 * GIB)
    training, sampling = full.total + card.ENGINE_BYTES, engine.usable + rest.total
    assert_names(said, f"{training / GIB:.1f} GiB while", f"{sampling / GIB:.1f} while")


def test_weights_by_cuda_ipc_are_on_the_card_twice_and_not_in_host_memory(recipe):
    whole = (*SHARED, "trainer.tensor_parallel=1", "trainer.sequence_parallel=false")
    other = recipe(RECOMPUTED, *whole)
    found = recipe(RECOMPUTED, *whole, "rollout.transfer_backend=cuda_ipc")
    layout = ParallelLayout.of(found.trainer)
    rank, before = estimate(found).per_rank[0], estimate(other).per_rank[0]
    more = card.resting(rank, layout).allocated - card.resting(before, layout).allocated
    assert more == before.parked - rank.parked == rank.weights


def test_a_turn_that_does_not_fit(recipe):
    found = recipe(RECOMPUTED, *SHARED)
    training = card.card(estimate(found).per_rank[0], ParallelLayout.of(found.trainer)).total
    small = training + card.ENGINE_BYTES - 1
    assert list(card.doubts(recipe(RECOMPUTED), small)) == []  # beside no engine it fits
    doubt = next(card.doubts(found, small))
    assert_names(doubt, "memory: rank 0", "a sleeping engine's 3.0")
    greedy = recipe(RECOMPUTED, SHARED[0], "rollout.engine.gpu_memory_utilization=.95")
    (fault,) = card.faults(greedy, 79 * GIB)
    assert_names(fault, "rollout.engine.gpu_memory_utilization=0.95", "rollout.placement=colocated")
    most = float(fault.rpartition("at most ")[2].split()[0])
    for share, number in ((most, 0), (most + 0.01, 1)):
        found = recipe(RECOMPUTED, SHARED[0], f"rollout.engine.gpu_memory_utilization={share:.2f}")
        assert len(list(card.faults(found, 79 * GIB))) == number
