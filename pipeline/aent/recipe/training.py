"""The sections of a recipe about training: losses, entropy, the coefficient, ranks, optimizer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from aent.recipe.section import Resume, Section, mark


class AlgorithmSection(Section):
    """GRPO's family: advantages, policy loss, aggregation, corrections (docs/algorithms.md)."""

    advantage: Literal[
        "group_normalized",
        "group_mean",
        "leave_one_out",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
    ] = "group_normalized"
    """group_normalized: GRPO; group_mean: Dr. GRPO; leave_one_out: RLOO; reinforce_plus_plus: over
    the whole batch; reinforce_plus_plus_baseline: the same after the group's mean."""
    policy_loss: Literal["ppo_clip", "gspo", "cispo"] = "ppo_clip"
    """ppo_clip: the clipped ratio of PPO and GRPO; gspo: sequence ratio; cispo: clipped weights."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """Ratios below 1 - clip_low are clipped. 1: none."""
    clip_high: float = Field(0.2, ge=0)
    """Ratios above 1 + clip_high are clipped. DAPO's clip-higher: 0.28."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the ratio for negative advantages (dual-clip PPO). Default: none."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """Weights of the tokens: token_mean; sequence_mean: each response has the same weight;
    constant_length: Dr. GRPO, divided by rollout.max_response_tokens."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's overlong shaping: in this many last tokens before rollout.max_response_tokens the
    reward falls by up to overlong_penalty. 0: off."""
    overlong_penalty: float = Field(1.0, gt=0)
    """How much the reward falls at the end of overlong_buffer."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Coefficient of the KL divergence to the frozen reference (the first weights)."""
    importance: Literal["none", "truncated_token", "masked_sequence"] = "none"
    """Correction of the train-inference mismatch. truncated_token: TIS, min(ratio, cap) per token;
    masked_sequence: MIS, drop sequences whose mean ratio leaves [1 / cap, cap]."""
    importance_cap: float = Field(2.0, gt=1)
    """Cap of the correction."""


class EntropySection(Section):
    """The entropy that is rewarded: of the clamped set, or of the whole vocabulary. The controller
    measures the same one, unless ``controller.measure`` is set."""

    RESUME: ClassVar[Resume] = "warn"
    measure: Literal["clamped", "full"] = "clamped"
    """Entropy that the bonus rewards: of the clamped set, or of the whole vocabulary."""
    drop_fraction: float | None = Field(None, ge=0, lt=1)
    """Share of the vocabulary outside the clamped set; default: 0.33, the paper's."""
    top_k: int | None = Field(None, ge=1)
    """Tokens in the clamped set, instead of drop_fraction."""


class ControllerSection(Section):
    """The coefficient's controller; ``initial`` has no default, so that no coefficient is hidden.

    entropy/controllers/ defines which fields each kind needs and takes; docs/controllers.md
    explains what they do and how to set them.
    """

    RESUME: ClassVar[Resume] = "warn"
    kind: Literal[
        "constant",
        "band",
        "automatic_band",
        "proportional_integral",
        "dual",
        "target",
        "log_pi",
        "observer",
    ] = "constant"
    """Rule that moves the coefficient once per step."""
    initial: float = Field(ge=0)
    """Coefficient of step 0."""
    measure: Literal["clamped", "full"] | None = None
    """Entropy that the controller measures; default: entropy.measure."""
    drives: Literal["bonus", "upper_clip", "advantage_zeta", "gradient_share"] = mark(
        "bonus", "same"
    )
    """What the coefficient scales: the entropy bonus; the upper clip, multiplied by 1 +
    coefficient; REPO-R's zeta on advantages; the bonus's share of the gradient of the logits."""
    low: float | None = None
    """band, log_pi, observer: lower end of the band, nats."""
    high: float | None = None
    """band, log_pi, observer: upper end of the band, nats."""
    low_fraction: float | None = Field(None, ge=0)
    """automatic_band: lower end, as a share of the reference entropy."""
    high_fraction: float | None = Field(None, ge=0)
    """automatic_band: upper end, as a share of the reference entropy."""
    reference_steps: int | None = Field(None, ge=1)
    """automatic_band: the reference is the mean entropy of this many first steps."""
    target: float | None = None
    """proportional_integral, dual, target, log_pi, observer: target entropy, nats."""
    step_size: float | None = Field(None, ge=0)
    """band: per step and nat outside the band; dual: of the coefficient's logarithm; target: per
    step."""
    proportional_gain: float | None = Field(None, ge=0)
    """proportional_integral: coefficient per nat; log_pi: in logarithms of both, default 1.5;
    observer: share of the neutral coefficient per unit of ln H, default 5."""
    integral_gain: float | None = Field(None, ge=0)
    """The same per step; log_pi: default 0.05; observer: of ln of the neutral coefficient per unit
    of surprise, default 0.1."""
    ramp_steps: float | None = Field(None, ge=0)
    """log_pi, observer: time constant, in steps, with which the reference goes from the first
    entropy to the target; default 20; 0: at once."""
    smoothing: float | None = Field(None, ge=0, lt=1)
    """log_pi: weight of the past in the moving average of the log-entropy, default 0.3; observer:
    weight of the model's prediction, default 0.55."""
    response: float | None = Field(None, gt=0)
    """observer: by how much ln H moves in a step at twice the neutral coefficient; default 0.08."""
    lag_steps: float | None = Field(None, ge=0, le=1000)
    """observer: time constant, in steps, with which a coefficient acts; default 3."""
    min: float | None = Field(None, ge=0)
    """Smallest coefficient; log_pi, observer: default 0.001."""
    max: float | None = Field(None, ge=0)
    """Largest coefficient; log_pi, observer: default 1."""
    warmup_steps: int = Field(0, ge=0)
    """Steps before the first update that may move the coefficient."""
    anneal_to: float | None = Field(None, gt=0)
    """The target or band is multiplied by a factor that goes linearly from 1 to this; default: no
    change."""
    anneal_steps: int | None = Field(None, ge=1)
    """Steps in which the factor reaches anneal_to."""


class OptimizerSection(Section):
    """Adam with decoupled weight decay, through Megatron's optimizer."""

    implementation: Literal["auto", "transformer_engine", "apex", "torch"] = mark("auto", "warn")
    """Adam of Transformer Engine, NVIDIA apex or torch; auto: the first that is installed."""
    lr: float = mark(1e-6, "warn", gt=0)
    """Learning rate."""
    betas: tuple[float, float] = mark((0.9, 0.95), "warn")
    """Adam's betas."""
    eps: float = mark(1e-8, "warn", gt=0)
    """Adam's epsilon."""
    weight_decay: float = mark(0.0, "warn", ge=0)
    """Decoupled weight decay; biases and norms are not decayed."""
    clip_grad: float = mark(1.0, "warn", ge=0)
    """Largest global gradient norm. 0: off."""
    distributed: bool = False
    """Megatron's distributed optimizer: states sharded over data-parallel ranks."""
    megatron: dict[str, Any] = mark({}, "warn")
    """Further fields of Megatron's OptimizerConfig by their names, a dtype by its name:
    {use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16}. Fields that the run sets itself
    are refused."""


class ScheduleSection(Section):
    """The learning rate over optimizer steps (one move per mini-batch), by NeMo's schedules."""

    RESUME: ClassVar[Resume] = "warn"
    kind: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate over optimizer steps."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps in which the rate rises from 0."""
    min_lr: float = Field(0.0, ge=0)
    """Smallest learning rate."""


class TrainerSection(Section):
    """Layout of the policy over ranks; ranks = tensor x context x pipeline x data."""

    tensor_parallel: int = mark(1, "free", ge=1)
    """Ranks that share each layer's matrices and the vocabulary."""
    context_parallel: int = mark(1, "free", ge=1)
    """Ranks that share each sequence: a part of its tokens each, in every layer."""
    pipeline_parallel: int = mark(1, "free", ge=1)
    """Ranks that share the layers, one stage each."""
    data_parallel: int = mark(1, "free", ge=1)
    """Copies of the policy, each on its part of the batch."""
    sequence_parallel: bool = mark(False, "free")
    """Also shard the activations between matrix products over the tensor-parallel ranks."""
    mini_batches: int = Field(1, ge=1)
    """Optimizer steps per step."""
    micro_batch_tokens: int = mark(4096, "free", ge=1)
    """Most tokens of one forward and backward pass, prompts included; the sum over all
    context-parallel ranks."""
    share_prompts: bool = mark(False, "free")
    """Compute a group's prompt once per micro-batch (arXiv 2506.05433); the same results. Not with
    Transformer Engine's attention."""
    attention: Literal["auto", "transformer_engine", "sdpa", "flex"] = mark("auto", "free")
    """transformer_engine: its layers; sdpa, flex: Megatron's local layers with torch's
    scaled_dot_product_attention or flex_attention, the latter on GPUs only. auto:
    transformer_engine if it is installed and computes the model (bfloat16, without
    share_prompts, or windows with context_parallel), else sdpa."""
    fused_head: bool = mark(False, "free")
    """The chunked head: compute the output layer and the loss for some tokens at a time, twice,
    instead of holding all logits of a micro-batch and their gradient; the same results to
    rounding."""
    megatron: dict[str, Any] = mark({}, "warn")
    """Further fields of Megatron's TransformerConfig by their names: {recompute_granularity: full,
    recompute_method: uniform, recompute_num_layers: 1}. Fields that the run sets itself are
    refused."""
    ddp: dict[str, Any] = mark({}, "warn")
    """Further fields of Megatron's DistributedDataParallelConfig: {overlap_grad_reduce: true,
    overlap_param_gather: true, bucket_size: 40000000}."""
    threads_per_rank: int | None = mark(None, "free", ge=1)
    """On a CPU: threads of each rank; default: cores / ranks, at least 1."""
    collective_timeout_s: float = mark(600.0, "free", gt=0)
    """Seconds a collective may wait for the other ranks."""
    phase_timeout_s: float = mark(1800.0, "free", gt=0)
    """Seconds a rank may stay in one phase without progress before it counts as hung; must be above
    all other time-outs, whose messages say more."""
    optimizer: OptimizerSection = OptimizerSection()
    """The optimizer."""
    schedule: ScheduleSection = ScheduleSection()
    """The learning rate's schedule."""
