"""A rank's place in its job, and its own device."""

import pytest
import torch.distributed as dist

from aent.recipe.training import TrainerSection
from aent.runtime import rank
from distributed.ranks import run_ranks
from wording import assert_names

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

TORCHRUN = ("TORCHELASTIC_RUN_ID",)
GPUS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_JOB_NUM_NODES")


@pytest.fixture
def environ(monkeypatch):
    """Neither torchrun's nor Slurm's variables; what a test sets is gone after it."""
    for name in (*NAMES, *rank.SLURM.values(), *TORCHRUN, *GPUS):
        monkeypatch.setenv(name, "x")  # so that what read_place sets is undone as well
        monkeypatch.delenv(name)
    return monkeypatch


def test_srun_and_torchrun_give_the_same_place(environ):
    import os

    for name, value in zip(rank.SLURM.values(), ("5", "8", "1", "4")):
        environ.setenv(name, value)
    environ.setenv("MASTER_ADDR", "node0")
    environ.setenv("MASTER_PORT", "20001")
    assert rank.read_place() == 5
    assert [os.environ[name] for name in NAMES] == ["5", "8", "1", "4", "node0", "20001"]
    environ.setenv("RANK", "3")  # of the shell that sent the job: not this task's
    assert rank.read_place() == 5
    environ.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun inside a Slurm job: its own hold
    environ.setenv("RANK", "3")
    assert rank.read_place() == 3


def test_a_rank_that_nobody_placed_says_what_is_missing(environ):
    environ.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        rank.read_place()


def test_gpus_of_other_jobs_are_left_alone_where_slurm_sets_no_variable(environ, tmp_path):
    import os

    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0\nGPU 1\nGPU 2\nGPU 3'\n")
    smi.chmod(0o755)
    environ.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rank.keep_to_given_gpus()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # nothing is known
    environ.setenv("SLURM_STEP_GPUS", "0,1,2,3")
    rank.keep_to_given_gpus()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # it has all; or sees no others
    environ.setenv("SLURM_STEP_GPUS", "3,1")
    rank.keep_to_given_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,3"


@pytest.mark.parametrize(
    ("sizes", "queues"), [({}, None), ({"tensor_parallel": 2}, "1"), ({"context_parallel": 2}, "1")]
)
def test_what_a_gpu_reads_first_is_set_where_nobody_has(environ, sizes, queues):
    import os

    trainer = TrainerSection(**sizes)

    names = ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        environ.setenv(name, "x")  # so that what is set is undone
        environ.delenv(name)
    rank.set_gpu_defaults(trainer)
    assert [os.environ.get(n) for n in names] == [queues, "expandable_segments:True", None]
    environ.setenv(names[0], "8")
    environ.setenv(names[1], "backend:native")
    rank.set_gpu_defaults(trainer)
    assert [os.environ.get(n) for n in names] == ["8", "backend:native", None]
    environ.delenv(names[1])
    environ.setenv(names[2], "backend:native")
    rank.set_gpu_defaults(trainer)
    assert names[1] not in os.environ


def test_own_device_of_many_or_the_only_one():
    assert rank.own_device(3, 8) == 3
    assert rank.own_device(3, 1) == 0
    with pytest.raises(RuntimeError, match=r"4\b.*\b4\b"):
        rank.own_device(4, 4)


def shared_device(number: int, world: int, names: list[str]) -> str:
    store = dist.distributed_c10d._get_default_store()
    try:
        rank.assert_own_devices(store, number, world, names[number])
    except RuntimeError as error:
        return str(error)
    return ""


def test_two_ranks_on_one_device_name_each_other():
    said = run_ranks(shared_device, 3, ["GPU a", "GPU b", "GPU a"])
    assert said[1] == ""
    for number, other in ((0, 2), (2, 0)):
        assert_names(said[number], number, other, "GPU a")
