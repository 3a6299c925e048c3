"""Settings that do not work with trainer and engines on the same GPUs."""

import pytest

from aent.checks import colocation
from aent.checks.recipe import check
from aent.recipe.load import load
from wording import assert_names

PAPER = "recipes/paper/gsm8k-aent-colocated.yaml"


def test_the_recipe_is_refused_where_there_is_no_gpu():
    assert check(load(PAPER), machine=False) == []
    (fault,) = check(load(PAPER, ["cluster.gpus_per_node=0"]), machine=False)
    assert_names(fault, "rollout.placement=colocated", "none", "CPU")


def test_of_this_machine_its_own_gpus_count(monkeypatch):
    monkeypatch.setattr(colocation, "device_kind", lambda: "cpu")
    (fault,) = colocation.faults(load(PAPER), machine=True)
    assert_names(fault, "rollout.placement=colocated", "CPU")
    monkeypatch.setattr(colocation, "device_kind", lambda: "cuda")
    assert list(colocation.faults(load(PAPER), machine=True)) == []


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("rollout.max_staleness=1", ["rollout.max_staleness=1", "sleep"]),
        ("rollout.min_engines=7", ["rollout.min_engines=7", "started again"]),
        ("rollout.transfer_backend=nccl", ["rollout.transfer_backend=nccl", "NCCL"]),
        ("rollout.urls=[http://x:1]", ["rollout.urls", "elsewhere"]),
        (
            "trainer.optimizer.megatron={optimizer_cpu_offload: true}",
            ["trainer.optimizer.megatron.optimizer_cpu_offload"],
        ),
    ],
)
def test_each_is_one_sentence(override, names):
    (fault,) = colocation.faults(load(PAPER, [override]), machine=False)
    assert_names(fault, "rollout.placement=colocated", *names)
    separate = load(PAPER, [override, "rollout.placement=separate"])
    assert list(colocation.faults(separate, machine=False)) == []


def test_cuda_ipc_is_for_gpus_that_are_shared_and_ranks_that_have_the_whole_policy():
    by_ipc = "rollout.transfer_backend=cuda_ipc"
    assert list(colocation.faults(load(PAPER, [by_ipc]), machine=False)) == []
    (fault,) = colocation.faults(load(PAPER, [by_ipc, "rollout.placement=separate"]), machine=False)
    assert_names(fault, by_ipc, "rollout.placement=colocated")
    split = [by_ipc, "trainer.tensor_parallel=2", "trainer.data_parallel=4"]
    (fault,) = colocation.faults(load(PAPER, split), machine=False)
    assert_names(fault, by_ipc, "trainer.tensor_parallel=1")
