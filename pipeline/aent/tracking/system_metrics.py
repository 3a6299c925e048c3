"""What this machine does while a run goes on, by MLflow's own names, for the journal.

MLflow's SystemMetricsMonitor would send by itself: what it reads while the server is away is lost.
Its readers are used without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def sample_system() -> Iterator[dict[str, float]]:
    """Endless samples of CPU, memory, disk, network and (NVIDIA, with nvidia-ml-py) GPUs.

    Each is taken when it is asked for; CPU utilisation is a mean since the one before.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    readers = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
        readers.append(GPUMonitor())
    while True:
        sample: dict[str, float] = {}
        for reader in readers:
            reader.collect_metrics()
            sample |= {f"system/{k}": float(v) for k, v in reader.aggregate_metrics().items()}
            reader.clear_metrics()
        yield sample
