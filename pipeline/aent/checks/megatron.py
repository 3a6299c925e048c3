"""``trainer.megatron``: further fields of Megatron's TransformerConfig, by their names.

Names and types are read from Megatron's source, which costs no import of torch.
"""

from __future__ import annotations

import ast
import difflib
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aent.recipe.schema import Recipe
from aent.runtime import megatron

CONFIG = (
    ("core/transformer/transformer_config.py", "TransformerConfig"),
    ("core/model_parallel_config.py", "ModelParallelConfig"),
)
# what the model's config.json, the recipe's other fields or the trainer decide
OWN = frozenset((
    "activation_func", "activation_func_clamp_value", "add_bias_linear", "add_qkv_bias",
    "apply_rope_fusion", "attention_dropout", "batch_p2p_comm", "bf16", "calculate_per_token_loss",
    "context_parallel_size", "embedding_init_method", "embedding_init_method_std",
    "expert_model_parallel_size", "expert_tensor_parallel_size", "ffn_hidden_size",
    "finalize_model_grads_func", "fp16", "gated_linear_unit", "glu_linear_offset",
    "grad_scale_func", "grad_sync_func", "gradient_accumulation_fusion", "hidden_dropout",
    "hidden_size", "init_method", "init_method_std", "kv_channels", "layernorm_epsilon",
    "layernorm_zero_centered_gamma", "mtp_num_layers", "multi_latent_attention", "no_rope_freq",
    "no_sync_func",
    "normalization", "num_attention_heads", "num_layers", "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage", "num_moe_experts", "num_query_groups",
    "output_layer_init_method", "overlap_p2p_comm", "param_sync_func", "params_dtype",
    "perform_initialization", "pipeline_dtype", "pipeline_model_parallel_size", "qk_layernorm",
    "rotary_interleaved", "sequence_parallel", "softmax_scale", "tensor_model_parallel_size",
    "timers", "use_cpu_initialization", "variable_seq_lengths",
    "virtual_pipeline_model_parallel_size", "window_attn_skip_freq", "window_size",
))  # fmt: skip


def faults(recipe: Recipe) -> Iterator[str]:
    """One sentence for each entry that Megatron, or this project, would not take."""
    given = recipe.trainer.megatron
    for name, value in given.items():
        where = f"trainer.megatron.{name}"
        if name in OWN:
            yield f"{where} is set by the run itself (by the model or another field of the recipe)"
        elif name not in transformer_fields():
            nearest = difflib.get_close_matches(name, transformer_fields(), n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"{where}: Megatron's TransformerConfig has no such field{hint}"
        else:
            yield from _of_type(where, transformer_fields()[name], value)
    yield from _recomputation(given)


def _of_type(where: str, annotation: str, value: Any) -> Iterator[str]:
    try:
        kind = eval(annotation, dict(vars(typing)))  # Megatron's own text, not the recipe's
        adapter = TypeAdapter(kind)
    except Exception:  # a type of torch's, or a function: nothing that a recipe can write
        yield f"{where} is of the type {annotation}, which a recipe cannot write"
        return
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        yield f"{where}={value!r} is not of Megatron's type {annotation}"


def _recomputation(given: dict[str, Any]) -> Iterator[str]:
    """What Megatron would say in a rank, after the engines have started."""
    granularity = given.get("recompute_granularity")
    others = [n for n in ("recompute_method", "recompute_num_layers") if given.get(n) is not None]
    if granularity == "full" and len(others) < 2:
        yield (
            "trainer.megatron.recompute_granularity=full needs recompute_method (uniform or block) "
            "and recompute_num_layers"
        )
    if granularity != "full" and others:
        yield f"trainer.megatron.{others[0]} needs recompute_granularity=full"


@cache
def transformer_fields() -> dict[str, str]:
    """Every field of the TransformerConfig that is installed, with its type as it is written."""
    return {name: kind for place in CONFIG for name, kind in _fields(*place).items()}


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
