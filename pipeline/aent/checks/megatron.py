"""Checks of fields that are passed on to Megatron's configurations: ``trainer.megatron``,
``trainer.ddp`` and ``trainer.optimizer.megatron``.

Names and types are read from Megatron's source, without importing torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aent.recipe.schema import Recipe
from aent.runtime import megatron


@dataclass(frozen=True)
class Passed:
    """One of Megatron's dataclasses whose fields a recipe may set."""

    field: str  # of the recipe
    classes: tuple[tuple[str, str], ...]  # file and name of the dataclass and of its bases
    own: frozenset[str]  # fields that the run sets itself, or does not use

    @property
    def name(self) -> str:
        return self.classes[0][1]


DTYPES = ("float32", "bfloat16", "float16", "uint8")  # uint8: the optimizer's fp8
RECOMPUTED = ("core_attn", "mlp", "layernorm")
OFFLOAD, SHARE = "optimizer_cpu_offload", "optimizer_offload_fraction"
OF_OFFLOAD = frozenset((SHARE, "overlap_cpu_optimizer_d2h_h2d", "pin_cpu_grads", "pin_cpu_params"))
STATES = frozenset(("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"))
# decided by the model's config.json, other fields of the recipe, or the trainer; or without effect
# here; or breaking the trainer's own schedule, loss or layout
OWN = frozenset((
    "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split",
    "activation_func", "activation_func_clamp_value", "add_bias_linear", "add_qkv_bias",
    "apply_rope_fusion", "attention_dropout", "batch_p2p_comm", "bf16", "calculate_per_token_loss",
    "context_parallel_size", "cp_comm_type", "cross_entropy_fusion_impl",
    "cross_entropy_loss_fusion", "defer_embedding_wgrad_compute", "delay_wgrad_compute",
    "embedding_init_method", "embedding_init_method_std",
    "expert_model_parallel_size", "expert_tensor_parallel_size", "ffn_hidden_size",
    "finalize_model_grads_func", "fp16", "gated_linear_unit", "glu_linear_offset",
    "grad_scale_func", "grad_sync_func", "gradient_accumulation_fusion", "hidden_dropout",
    "hidden_size", "hierarchical_context_parallel_sizes", "hybrid_context_parallel", "init_method",
    "init_method_std", "init_model_with_meta_device", "is_hybrid_model", "kv_channels",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma", "max_seqlen_per_dp_cp_rank", "mtp_num_layers",
    "multi_latent_attention", "no_rope_freq", "no_sync_func", "normalization",
    "num_attention_heads", "num_layers", "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage", "num_microbatches_with_partial_activation_checkpoints",
    "num_moe_experts", "num_query_groups", "output_layer_init_method",
    "overlap_moe_expert_parallel_comm", "overlap_p2p_comm", "overlap_p2p_comm_warmup_flush",
    "param_sync_func", "params_dtype",
    "perform_initialization", "pipeline_dtype", "pipeline_model_parallel_layout",
    "pipeline_model_parallel_size", "qk_layernorm", "rotary_interleaved", "sequence_parallel",
    "softmax_scale", "tensor_model_parallel_size", "test_mode", "timers", "transformer_impl",
    "use_cpu_initialization", "variable_seq_lengths", "virtual_pipeline_model_parallel_size",
    "wgrad_deferral_limit", "window_attn_skip_freq", "window_size",
))  # fmt: skip
OWN_DDP = frozenset((
    "align_param_gather", "average_in_collective", "data_parallel_sharding_strategy",
    "delay_wgrad_compute",
    "fp8_param_gather", "fsdp_double_buffer", "fsdp_manual_registration", "grad_reduce_in_fp32",
    "num_distributed_optimizer_instances", "outer_dp_sharding_strategy",
    "reuse_grad_buf_for_mxfp8_param_ag", "use_custom_fsdp", "use_distributed_optimizer",
    "use_megatron_fsdp",
))  # fmt: skip
OWN_OPTIMIZER = frozenset((
    "adam_beta1", "adam_beta2", "adam_eps", "barrier_with_L1_time", "bf16", "clip_grad",
    "config_logger_dir", "decoupled_lr", "decoupled_min_lr", "decoupled_weight_decay", "fp16",
    "fp8_recipe", "hysteresis", "initial_loss_scale", "log_num_zeros_in_grad", "loss_scale",
    "loss_scale_window", "lr", "main_grads_dtype", "min_loss_scale", "min_lr", "muon_momentum",
    "muon_split_qkv", "optimizer", "overlap_param_gather",
    "overlap_param_gather_with_optimizer_step", "params_dtype", "reuse_grad_buf_for_mxfp8_param_ag",
    "sgd_momentum", "store_param_remainders", "timers", "use_distributed_optimizer",
    "use_torch_optimizer_for_cpu_offload", "weight_decay",
))  # fmt: skip
TRANSFORMER = Passed(
    "trainer.megatron",
    (
        ("core/transformer/transformer_config.py", "TransformerConfig"),
        ("core/model_parallel_config.py", "ModelParallelConfig"),
    ),
    OWN,
)
DDP = Passed(
    "trainer.ddp",
    (
        (
            "core/distributed/distributed_data_parallel_config.py",
            "DistributedDataParallelConfig",
        ),
    ),
    OWN_DDP,
)
OPTIMIZER = Passed(
    "trainer.optimizer.megatron",
    (("core/optimizer/optimizer_config.py", "OptimizerConfig"),),
    OWN_OPTIMIZER,
)


def faults(recipe: Recipe) -> Iterator[str]:
    """One sentence for each entry that Megatron or aent would refuse."""
    trainer = recipe.trainer
    yield from _passed(TRANSFORMER, trainer.megatron)
    yield from _recomputation(trainer.megatron)
    yield from _passed(DDP, trainer.ddp)
    yield from _passed(OPTIMIZER, trainer.optimizer.megatron)
    if trainer.ddp.get("overlap_param_gather") and not trainer.optimizer.distributed:
        yield "trainer.ddp.overlap_param_gather needs trainer.optimizer.distributed=true"
    if (size := trainer.ddp.get("bucket_size")) is not None:
        if isinstance(size, int) and size < 1:
            yield f"trainer.ddp.bucket_size={size} must be 1 or more"
        if not trainer.ddp.get("overlap_grad_reduce"):
            yield "trainer.ddp.bucket_size needs overlap_grad_reduce=true: else there is one bucket"
    yield from _optimizer(recipe)


def _optimizer(recipe: Recipe) -> Iterator[str]:
    """Faults of the precision-aware optimizer and of the one in host memory: what Megatron would
    report in a rank, or ignore."""
    optimizer, where = recipe.trainer.optimizer, "trainer.optimizer.megatron"
    given = optimizer.megatron
    small, offload = (given.get(n) for n in ("use_precision_aware_optimizer", OFFLOAD))
    if small:
        needs = f"{where}.use_precision_aware_optimizer needs"
        if not optimizer.distributed:
            yield f"{needs} trainer.optimizer.distributed=true"
        if recipe.model.dtype != "bfloat16":
            yield f"{needs} model.dtype=bfloat16: other weights are their own main weights"
        if not offload and optimizer.implementation in ("torch", "apex"):
            yield (
                f"{needs} Transformer Engine's optimizer, not trainer.optimizer.implementation="
                f"{optimizer.implementation}"
            )
    if offload and not small:
        yield (
            f"{where}.{OFFLOAD} needs use_precision_aware_optimizer=true beside it: Megatron "
            "offloads no other optimizer"
        )
    share = given.get(SHARE, 0.0)
    if offload and isinstance(share, int | float) and not 0 < share <= 1:
        yield f"{where}.{OFFLOAD} moves the share {SHARE}={share:g}, which must be in (0, 1]"
    for name in given:
        if name in OF_OFFLOAD and not offload:
            yield f"{where}.{name} needs {OFFLOAD}=true beside it"
        if name in STATES and offload:
            yield f"{where}.{name} has no meaning with {OFFLOAD}, which has its state in float32"
        elif name in STATES and not small:
            yield f"{where}.{name} needs use_precision_aware_optimizer=true beside it"
    if given.get("main_params_dtype") in ("bfloat16", "uint8"):
        yield (
            f"{where}.main_params_dtype={given['main_params_dtype']!r} is not one of float32, "
            "float16, the types that Transformer Engine has for it"
        )


def machine_faults(recipe: Recipe) -> Iterator[str]:
    """One sentence for each thing that an entry needs and this machine lacks, which Megatron would
    only report in a rank."""
    small = recipe.trainer.optimizer.megatron.get("use_precision_aware_optimizer")
    if small and importlib.util.find_spec("transformer_engine") is None:
        yield (
            "trainer.optimizer.megatron.use_precision_aware_optimizer needs Transformer Engine, "
            "which is not installed here"
        )


def _passed(place: Passed, given: dict[str, Any]) -> Iterator[str]:
    known = known_fields(place) if given else {}
    for name, value in given.items():
        where = f"{place.field}.{name}"
        if name in place.own:
            yield (
                f"{where} cannot be set: the run sets it itself (by the model or another field of "
                "the recipe), or does not use it"
            )
        elif name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"{where}: Megatron's {place.name} has no such field{hint}"
        else:
            yield from _of_type(where, known[name], value)


def _of_type(where: str, annotation: str, value: Any) -> Iterator[str]:
    if annotation == "torch.dtype":
        if value not in DTYPES:
            yield f"{where}={value!r} is not one of {', '.join(DTYPES)}"
        return
    try:
        # the annotation is Megatron's text, not the recipe's
        kind = eval(annotation, dict(vars(typing)))
        adapter = TypeAdapter(kind)
    except Exception:  # a type of torch, or a function, which a recipe cannot write
        yield f"{where} is of the type {annotation}, which a recipe cannot write"
        return
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        yield f"{where}={value!r} is not of Megatron's type {annotation}"


def _recomputation(given: dict[str, Any]) -> Iterator[str]:
    """Faults that Megatron would report in a rank, after the engines have started."""
    granularity = given.get("recompute_granularity")
    others = [n for n in ("recompute_method", "recompute_num_layers") if given.get(n) is not None]
    if granularity == "full" and len(others) < 2:
        yield (
            "trainer.megatron.recompute_granularity=full needs recompute_method (uniform or block) "
            "and recompute_num_layers"
        )
    if granularity != "full" and others:
        yield f"trainer.megatron.{others[0]} needs recompute_granularity=full"
    layers = given.get("recompute_num_layers")
    if isinstance(layers, int) and layers < 1:
        yield f"trainer.megatron.recompute_num_layers={layers} must be 1 or more"
    modules = given.get("recompute_modules")
    if modules is not None and granularity != "selective":
        yield "trainer.megatron.recompute_modules needs recompute_granularity=selective"
    for name in modules if isinstance(modules, list) else ():
        if name not in RECOMPUTED:
            yield (
                f"trainer.megatron.recompute_modules: {name!r} is not one of "
                f"{', '.join(RECOMPUTED)}, the parts of these models' layers"
            )


@cache
def known_fields(place: Passed) -> dict[str, str]:
    """Every field of the installed dataclass, with its annotation as text."""
    return {name: kind for each in place.classes for name, kind in _fields(*each).items()}


def _fields(file: str, name: str) -> dict[str, str]:
    path = megatron.source(file)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    raise LookupError(f"{path} has no class {name}")
