"""The faults of a node that preflight finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aent.slurm import preflight
from processes import free_port
from wording import assert_names


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Takes what nvidia-smi, which a node without GPUs does not have, is to do: a line of sh."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").touch(0o755)
    return lambda line: (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{line}\n")


def test_missing_and_busy_gpus_are_named(smi):
    smi("echo '0, GPU-a, 79000, 81559\n1, GPU-b, 3000, 81559'")
    (busy,) = preflight.gpu_faults(2, 0.9)
    assert_names(busy, "GPU 1", 3000, 81559)
    few, again = preflight.gpu_faults(4, 0.9)
    assert_names(few, "2 GPUs", 4)
    assert again == busy
    assert preflight.gpu_faults(2, 0.01) == []


def test_on_a_shared_node_the_gpus_of_other_jobs_do_not_count(smi, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    smi("echo '0, GPU-a, 79000, 81559\n1, GPU-b, 3000, 81559\n2, GPU-c, 79000, 81559'")
    monkeypatch.setenv("SLURM_STEP_GPUS", "0,2")
    assert preflight.gpu_faults(2, 0.9) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-c")
    (busy,) = preflight.gpu_faults(2, 0.9)
    assert_names(busy, "GPU 1", 3000)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("SLURM_STEP_GPUS")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,2")  # of the job's first node, which may be another
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    unknown, _ = preflight.gpu_faults(2, 0.9)
    assert_names(unknown, "3 GPUs", 2, "SLURM_STEP_GPUS")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert preflight.gpu_faults(2, 0.9) == []


def test_what_nvidia_smi_cannot_tell_is_a_fault_in_its_words(smi):
    smi("echo '0, GPU-a, [N/A], [N/A]\n1, GPU-b, 79000, 81559'")
    (fault,) = preflight.gpu_faults(2, 0.9)
    assert_names(fault, "nvidia-smi", "0, GPU-a, [N/A], [N/A]")
    smi("echo 'Unable to determine the device handle for GPU'; echo Lost >&2; exit 15")
    (fault,) = preflight.gpu_faults(1, 0.9)
    said = "Unable to determine the device handle for GPU Lost"
    assert_names(fault, "nvidia-smi", 15, said)


def test_no_driver_is_a_fault_of_a_node_that_must_have_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = preflight.gpu_faults(1, 0.9)
    assert_names(fault, "nvidia-smi")


def test_a_folder_that_is_missing_or_too_small_is_named(tmp_path):
    assert preflight.folder_faults(tmp_path, 0.0) == []
    (fault,) = preflight.folder_faults(tmp_path / "no", 1.0)
    assert_names(fault, f"{tmp_path}/no", os.strerror(2))
    (fault,) = preflight.folder_faults(tmp_path, 1e9)
    assert_names(fault, tmp_path, "GiB", "1e+09")


def test_nodes_that_meet_are_content(tmp_path):
    tasks = [start(tmp_path, place, nodes=3) for place in range(3)]
    for task in tasks:
        assert task.communicate(timeout=600)[1] == ""
        assert task.returncode == 0


def start(folder: Path, place: int, nodes: int) -> subprocess.Popen[str]:
    """One node's task, as srun starts it."""
    slurm = {"SLURM_NTASKS": str(nodes), "SLURM_PROCID": str(place), "SLURM_JOB_ID": "7"}
    slurm |= {"SLURM_STEP_ID": "1", "SLURMD_NODENAME": f"n{place}", "GLOO_SOCKET_IFNAME": "lo"}
    argv = [sys.executable, "-m", "aent.slurm.preflight", str(folder)]
    return subprocess.Popen(
        [*argv, "--disk-gib=0", "--shm-gib=0"],
        env={**os.environ, **slurm},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_node_that_does_not_come_or_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(preflight, "PEERS_DEADLINE_S", 1.0)
    preflight._write(tmp_path / "1.here", ["n1", "127.0.0.1", free_port()])  # nothing listens there
    lost, silent = preflight.peer_faults(tmp_path, nodes=3, place=0, name="n0")
    assert_names(lost, "node 2")
    assert_names(silent, "n1", "127.0.0.1")
