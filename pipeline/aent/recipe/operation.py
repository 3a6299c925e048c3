"""The sections of a recipe about running it: evaluation, checkpoints, MLflow, alerts, Slurm."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from aent.recipe.section import Resume, Section, mark


class EvaluationSection(Section):
    """Held-out tasks and suites, scored before, after and every n steps, on the same engines."""

    RESUME: ClassVar[Resume] = "free"
    every: int = Field(0, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    samples: int = Field(1, ge=1)
    """Samples per question, for pass@k."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature. 0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the sampling. 1: off."""
    top_k: int = Field(0, ge=0)
    """Likeliest tokens sampled from. 0: off."""
    suites: tuple[str, ...] = ()
    """Suites of `aent eval --suite` to score too, with the settings above."""


class CheckpointSection(Section):
    """Checkpoints of the whole run, in ``run_dir/checkpoints``, written only between steps."""

    RESUME: ClassVar[Resume] = "free"
    every: int = Field(10, ge=0)
    """Steps between checkpoints; also one before the first and one after the last step. 0: only
    when a signal asks for one."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    asynchronous: bool = False
    """Write a checkpoint in a thread while the next steps run, from a copy in host memory."""
    memory_efficient: bool = False
    """Gather a distributed optimizer's state on one rank of each data-parallel group, over gloo,
    instead of on all of them by the training backend: less memory, and slower. Megatron calls it
    distrib_optim_fully_reshardable_mem_efficient."""


class TrackingSection(Section):
    """MLflow."""

    RESUME: ClassVar[Resume] = "free"
    uri: str | None = mark(None, "warn")
    """MLflow's tracking URI; default: MLFLOW_TRACKING_URI, else a SQLite file beside the runs."""
    experiment: str = mark("aent", "warn", min_length=1)
    """MLflow experiment."""
    samples_every: int = Field(1, ge=0)
    """Steps between tables, pages and traces of sampled responses. 0: never."""
    traces: int = Field(4, ge=0, le=64)
    """Responses of such a step that become MLflow traces."""
    register_as: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")
    """Name in MLflow's model registry of the trained policy, which is uploaded with its weights;
    default: not registered."""
    system_metrics_every_s: float = Field(10.0, ge=0)
    """Seconds between metrics of every machine (CPU, memory, GPUs). 0: off."""
    parent_run_id: str | None = None
    """Parent run in MLflow (of a sweep)."""


class ProfileSection(Section):
    """Profiles of single steps, and the peak speed for MFU."""

    RESUME: ClassVar[Resume] = "free"
    steps: tuple[int, ...] = ()
    """Steps, from 0, of which torch.profiler records a trace in run_dir/profiles. Default: none."""
    ranks: tuple[int, ...] = (0,)
    """Trainer ranks that record it."""
    peak_tflops: float | None = Field(None, gt=0)
    """10^12 floating point operations that one rank computes per second at most, for MFU. Default:
    no MFU is recorded."""
    measure_peak: bool = False
    """Measure peak_tflops by matrix products at the start."""


class AlertsSection(Section):
    """Alerts in the log, as tags of the MLflow run and in `aent status` (docs/tracking.md). A
    reward that is not finite always gives an alert; 0 turns the others off."""

    RESUME: ClassVar[Resume] = "free"
    at_bound_steps: int = Field(20, ge=0)
    """Alert if the coefficient is at a bound for this many steps in a row. 0: off."""
    slow_step: float = Field(2.0, ge=0)
    """Alert if a step takes this many times the median of the steps before it. 0: off."""
    idle_share: float = Field(0.9, ge=0, le=1)
    """Alert if trainer or engines are idle for more than this share of the newest steps' time. 0:
    off."""


class ClusterSection(Section):
    """The Slurm job that `aent slurm` makes from a recipe; all other commands ignore it."""

    RESUME: ClassVar[Resume] = "free"
    nodes: int = Field(1, ge=1)
    """Nodes with trainer ranks."""
    engine_nodes: int = Field(0, ge=0)
    """Nodes of a heterogeneous job's second group, for engines. 0: no second group."""
    gpus_per_node: int = Field(8, ge=0)
    """GPUs per node. 0: a job without GPUs."""
    gpu_memory_gib: float = Field(79.0, gt=0)
    """Memory of each GPU, GiB, as torch reports it: 79 of a card of 80 GB. A job whose ranks or
    engines do not fit is refused."""
    time: str | None = None
    """Time limit as sbatch takes it, as a text: 8:00:00, 1-12:00:00, or minutes, "30"."""
    account: str | None = None
    """Slurm account."""
    partition: str | None = None
    """Slurm partition."""
    engine_gpus_per_node: int | None = Field(None, ge=0)
    """GPUs per node of the second group; default: gpus_per_node."""
    engine_partition: str | None = None
    """Partition of the second group; default: partition."""
    container: Literal["none", "pyxis", "apptainer"] = "none"
    """Container runtime on the nodes."""
    image: str | None = None
    """The trainer's image."""
    engine_image: str | None = None
    """The engines' image."""
    mounts: tuple[str, ...] = ()
    """HOST:CONTAINER; default: the folder that the job is submitted from."""
    env_file: str | None = None
    """Shell file with NCCL and vLLM settings, such as slurm/cluster.env."""
    flags: tuple[str, ...] = ()
    """Further flags of sbatch for every group, such as --qos=high."""
    engine_flags: tuple[str, ...] = ()
    """Flags of the second group, in place of those of the same name."""
    max_requeues: int = Field(3, ge=0)
    """Requeues in a row without a new checkpoint between them."""
