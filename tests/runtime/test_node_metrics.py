"""A machine's own metrics."""

import io
import os
import sys
import time

import psutil
import pytest

from aent.runtime import node_metrics
from waiting import wait_until

SMI = """#!/bin/sh
echo '0, GPU-a, 40960, 81920, 97, 612.50'
echo '1, GPU-b, 0, 81920, [N/A], [N/A]'
"""


def test_a_sample_is_of_this_machine():
    sample = next(node_metrics.sampled())
    assert 0 <= sample["cpu_utilization_percentage"] <= 100
    total = psutil.virtual_memory().total
    used = sample["system_memory_usage_megabytes"] * 1e6
    assert sample["system_memory_usage_percentage"] == pytest.approx(100 * used / total)
    assert sample["disk_available_megabytes"] > 0
    assert sample["network_receive_megabytes"] >= 0


def test_gpus_are_those_of_the_step(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    every = node_metrics.gpus()
    assert every == {
        "gpu_0_memory_usage_megabytes": pytest.approx(42949.67, abs=0.01),
        "gpu_0_memory_usage_percentage": 50.0,
        "gpu_0_utilization_percentage": 97.0,
        "gpu_0_power_usage_watts": 612.5,
        "gpu_1_memory_usage_megabytes": 0.0,
        "gpu_1_memory_usage_percentage": 0.0,
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")  # the other one is another job's
    assert {name.split("_")[1] for name in node_metrics.gpus()} == {"1"}


def test_a_machine_keeps_its_file_while_it_takes_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURMD_NODENAME", "gpu 7")
    with node_metrics.reported(tmp_path, 0.0):  # off
        pass
    assert node_metrics.newest(tmp_path) == {}
    with node_metrics.reported(tmp_path, 0.01):
        wait_until(lambda: node_metrics.newest(tmp_path), "the first sample is written")
    ((name, (when, values)),) = node_metrics.newest(tmp_path).items()
    assert name == "gpu_7"
    assert abs(when - time.time()) < 60
    assert "cpu_utilization_percentage" in values
    node_metrics.clear(tmp_path)
    assert node_metrics.newest(tmp_path) == {}
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_to_is_told_once(tmp_path, monkeypatch):
    (tmp_path / "system").touch()
    said = io.StringIO()  # capsys would lose what the thread writes during a readouterr
    monkeypatch.setattr(sys, "stderr", said)
    with node_metrics.reported(tmp_path, 0.01):
        wait_until(lambda: "incomplete" in said.getvalue(), "the failure is reported")
        time.sleep(0.1)
    assert said.getvalue().count("incomplete") == 1
