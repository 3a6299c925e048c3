"""What checks, estimates and the trainer know of a model, read from its config.json.

Nothing is guessed: a configuration that no record of ``aent.models.families`` covers is refused,
each reason being one sentence that names the field.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent.models.families import FAMILIES, ROPES, Family
from aent.models.model_source import hf_config
from aent.models.published import PUBLISHED
from aent.recipe.schema import ModelSection


class ModelError(ValueError):
    """A model that cannot be trained; ``faults`` are sentences, each naming a file and a field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder, and what its family does with them."""

    family: Family
    layers: int
    hidden: int
    ffn: int  # width of the feed-forward, gate and up each
    heads: int
    kv_groups: int
    head_dim: int
    vocab: int
    max_positions: int
    tied_embeddings: bool
    attention_bias: bool  # of all four projections
    mlp_bias: bool
    window: int | None  # tokens that one attends to at most, itself included, in some layer
    rope: dict[str, Any]  # rope_type, rope_theta and the type's own parameters

    @property
    def layer_weights(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names of one layer's weights, below model.layers.N., and their shapes."""
        hidden, ffn, head = self.hidden, self.ffn, self.head_dim
        queries, keys = self.heads * head, self.kv_groups * head
        weights: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        for name in self._biased:
            weights[f"{name}.bias"] = weights[f"{name}.weight"][:1]
        if self.family.qk_norm:
            weights |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk"}
        return weights

    @property
    def _biased(self) -> Iterator[str]:
        if self.family.qkv_bias or self.attention_bias:
            yield from ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        if self.attention_bias:
            yield "self_attn.o_proj"
        if self.mlp_bias:
            yield from ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names and shapes of all weights; no lm_head.weight with tied embeddings."""
        table = (self.vocab, self.hidden)
        weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.layers):
            for name, shape in self.layer_weights.items():
                weights[f"model.layers.{layer}.{name}"] = shape
        weights["model.norm.weight"] = (self.hidden,)
        return weights if self.tied_embeddings else weights | {"lm_head.weight": table}

    @property
    def layer_parameters(self) -> int:
        return sum(map(math.prod, self.layer_weights.values()))

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the model; a tied output layer counts once."""
        tables = 1 if self.tied_embeddings else 2
        return (
            self.layers * self.layer_parameters + tables * self.embedding_parameters + self.hidden
        )

    def stage_layers(self, stages: int) -> list[int]:
        """Layers of each pipeline stage, so that all take equally long.

        The last one has the output layer too, on response tokens only: taken as half of all tokens
        and weighed in layers by its multiplications. The others have equal shares (Megatron's
        num_layers_in_last_pipeline_stage), so there may be one stage for every layer at most.

        Raises:
            ValueError: if there are fewer layers than stages.
        """
        if stages == 1:
            return [self.layers]
        if self.layers < stages:
            raise ValueError(
                f"trainer.pipeline_parallel={stages} exceeds the model's {self.layers} layers"
            )
        matrices = (shape for shape in self.layer_weights.values() if len(shape) == 2)
        head = self.embedding_parameters / 2 / sum(map(math.prod, matrices))
        ideal = (self.layers + head) / stages - head
        choices = [n for n in range(1, self.layers) if (self.layers - n) % (stages - 1) == 0]
        last = min(choices, key=lambda n: abs(n - ideal))
        return [(self.layers - last) // (stages - 1)] * (stages - 1) + [last]

    def past_window(self, tokens: int) -> str | None:
        """What such a length is above, where the window would hide tokens; None where it would not.

        No attention of the trainer's has a window: up to its size every layer is the same without.
        """
        if self.window is None or tokens <= self.window:
            return None
        return f"more than the model's sliding_window={self.window}, which is not implemented"


def is_published(model: ModelSection) -> bool:
    """Whether the model is not here, and its sizes are those that were published for its name."""
    if model.path is None:
        return False
    folder = Path(model.path).expanduser()
    return folder.name in PUBLISHED and not folder.exists()


def is_here(model: ModelSection) -> bool:
    """Whether the model is bundled, or its folder has a config.json."""
    return model.path is None or (Path(model.path).expanduser() / "config.json").is_file()


def are_known(model: ModelSection) -> bool:
    """Whether there is anything to read the model's facts from."""
    return is_here(model) or is_published(model)


def model_facts(model: ModelSection) -> ModelFacts:
    """Facts of the recipe's model: of its folder; of a bundled one, made or not; of a published one
    (``models.published``) by its folder's name, where there is no such folder.

    Raises:
        ModelError: with one sentence for each file and field that is missing, wrong or unknown.
    """
    where = str(Path(model.path, "config.json")) if model.path is not None else str(model.bundled)
    try:
        published = is_published(model)
        config = PUBLISHED[Path(str(model.path)).name] if published else hf_config(model)
    except json.JSONDecodeError as error:
        raise ModelError([f"{where} is not valid JSON: {error}"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError([f"{where} cannot be read: {error}"]) from error
    return read(config, where)


def folder_facts(folder: Path) -> ModelFacts:
    """``model_facts`` of a Hugging Face folder."""
    return model_facts(ModelSection(path=str(folder)))


def read(config: Any, where: str) -> ModelFacts:
    """Facts from the content of a config.json; ``where`` names it in the sentences of ModelError.

    Refused is what no record covers. A field that transformers' class of this model_type does not
    have is not read, as transformers does not read it either.
    """
    if not isinstance(config, dict):
        raise ModelError([f"{where} is not a JSON object"])
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ModelError([f"{where}: {_unknown_type(config)}"])
    faults = [*_not_computed(config, family)]
    sizes: dict[str, int] = {}

    def size(name: str, default: int | None = None) -> None:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"{name} must be a positive whole number, got {value!r}")
        else:
            sizes[name] = value

    for name in (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
        "vocab_size", "max_position_embeddings",
    ):  # fmt: skip
        size(name)
    heads, hidden = sizes.get("num_attention_heads", 1), sizes.get("hidden_size", 2)
    stated = "num_key_value_heads" in config  # null means: as many as heads
    size("num_key_value_heads", heads if stated else family.key_value_heads or heads)
    size("head_dim", family.head_dim or max(1, hidden // heads))
    if not faults and heads % sizes["num_key_value_heads"]:
        groups = sizes["num_key_value_heads"]
        faults.append(f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
    if not faults and "head_dim" not in config and family.head_dim is None and hidden % heads:
        faults.append(f"hidden_size={hidden} is no multiple of num_attention_heads={heads}")
    if not faults and sizes["head_dim"] % 2:
        faults.append(f"head_dim={sizes['head_dim']} is odd: it cannot be rotated in two halves")
    rope = rope_parameters(config)
    faults += _rope_faults(rope)
    window = None if faults else _window(config, family, sizes["num_hidden_layers"], faults)
    if faults:
        raise ModelError([f"{where}: {fault}" for fault in faults])
    return ModelFacts(
        family=family,
        layers=sizes["num_hidden_layers"],
        hidden=hidden,
        ffn=sizes["intermediate_size"],
        heads=heads,
        kv_groups=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        vocab=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=_flag(config, family, "attention_bias"),
        mlp_bias=_flag(config, family, "mlp_bias"),
        window=window,
        rope=rope,
    )


def _flag(config: dict[str, Any], family: Family, name: str) -> bool:
    """Whether an option of the family is on; transformers does not read what it does not have."""
    return name in family.computed and bool(config.get(name))


def _unknown_type(config: dict[str, Any]) -> str:
    given = config.get("model_type")
    known = ", ".join(FAMILIES)
    if given is None:
        return f"it has no model_type; known are {known}"
    near = difflib.get_close_matches(str(given), FAMILIES, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"model_type {given!r} cannot be trained; known are {known}{hint}"


def _not_computed(config: dict[str, Any], family: Family) -> Iterator[str]:
    """Values that change the computation and that the trainer does not compute."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        yield f"quantization_config ({method or 'unknown'}): quantized weights cannot be trained"
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        yield f"architectures={_shown(architectures)}: trained is {family.architecture} only"
    for name, values in family.computed.items():
        value = config.get(name)
        if value is not None and value not in values:
            implemented = " or ".join(_shown(v) for v in values)
            yield (
                f"{name}={_shown(value)} is not implemented for {family.model_type}, only "
                f"{implemented}"
            )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a config.json, in the form of transformers 5 (rope_parameters) or 4
    (rope_theta and rope_scaling), as the former."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        return {"rope_type": given}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **given}
    rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    rope.pop("type", None)
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return rope


def _rope_faults(rope: dict[str, Any]) -> Iterator[str]:
    kind = rope["rope_type"]
    if kind not in ROPES:
        known = ", ".join(ROPES)
        yield f"rope_type {kind!r} of the rotary embedding is not implemented; known are {known}"
        return
    if not _is_number(rope["rope_theta"]) or rope["rope_theta"] <= 1:
        yield f"rope_theta must be a number above 1, got {rope['rope_theta']!r}"
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        yield (
            f"partial_rotary_factor={rope['partial_rotary_factor']} is not implemented: whole "
            "heads are rotated"
        )
    needed, others = ROPES[kind]
    for name in needed:
        if not _is_number(rope.get(name)) or rope[name] <= 0:
            yield f"{name} of rope_type {kind} must be a number above 0, got {rope.get(name)!r}"
    for name in others:
        if rope.get(name) is not None and not _is_number(rope[name]) and name != "truncate":
            yield f"{name} of rope_type {kind} must be a number, got {rope[name]!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _window(config: dict[str, Any], family: Family, layers: int, faults: list[str]) -> int | None:
    """The sliding window of the layers that have one; None where every layer sees all tokens."""
    if family.window == "none":
        return None
    window, kinds = config.get("sliding_window", 4096), config.get("layer_types")
    if family.window == "all_layers":
        kinds = ["sliding_attention"]
    elif not config.get("use_sliding_window"):
        window = None
    if kinds is None:
        upper = config.get("max_window_layers", 28)
        kinds = ["full_attention", "sliding_attention"] if upper < layers else ["full_attention"]
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        faults.append(f"layer_types has {', '.join(unknown)}, which is not implemented")
    if window is None or "sliding_attention" not in kinds:
        return None
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        faults.append(f"sliding_window must be a positive whole number, got {window!r}")
    return window


def max_positions(model: ModelSection) -> int:
    """Tokens of a prompt and its response together, for a model of any family, trained or not.

    Raises ValueError where config.json does not say.
    """
    value = hf_config(model).get("max_position_embeddings")
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{model.path}/config.json: max_position_embeddings must be a positive whole number, "
            f"got {value!r}"
        )
    return value
