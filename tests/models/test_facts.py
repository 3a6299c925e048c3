"""The facts read from a config.json, and every reason to refuse a model."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from aent.layout.parallel import ParallelLayout
from aent.models import facts
from aent.models.bundled import smollm2 as packaged
from aent.models.bundled import tiny_qwen2
from aent.models.config_json import ModelError, read
from aent.models.decoder import ModelFacts
from aent.models.families import FAMILIES, INERT, table
from aent.models.layer_attention import FULL, SLIDING, LayerAttention
from wording import assert_names, naming

BASE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def refusals(model_type: str, **changes: object) -> list[str]:
    config = {k: v for k, v in (BASE | changes).items() if v is not ...}
    with pytest.raises(ModelError) as refused:
        read(config | {"model_type": model_type}, "config.json")
    assert all("config.json" in fault for fault in refused.value.faults)
    return refused.value.faults


def accepted(model_type: str, **changes: object) -> ModelFacts:
    return read(BASE | {"model_type": model_type} | changes, "config.json")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_covers_every_field_that_transformers_class_has(name):
    """A field that a new version of transformers adds must be looked at before it is passed over:
    the trainer reads a model as that version does."""
    fields = {f.name for f in dataclasses.fields(CONFIG_MAPPING[name])}
    fields -= {f.name for f in dataclasses.fields(PreTrainedConfig)}
    assert {"vocab_size", "rms_norm_eps", "attention_dropout"} < fields
    assert fields - INERT <= FAMILIES[name].known_fields


def layers_of(config: PreTrainedConfig) -> tuple[LayerAttention, ...]:
    """The properties of each of four layers in transformers' configuration."""
    window = getattr(config, "sliding_window", None)
    everywhere = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", [everywhere] * 4)[:4]
    own = "sliding_attention" in (config.rope_parameters or {})
    return tuple(
        LayerAttention(
            window=window if kind == "sliding_attention" else None,
            rope=(int(own and kind == "sliding_attention") if turned else None),
        )
        for kind, turned in zip(kinds, getattr(config, "no_rope_layers", [1] * 4))
    )


def thetas(config: PreTrainedConfig) -> list[float]:
    """Bases of the rotation: of all layers, or of those without and with a window."""
    ropes = config.rope_parameters
    nested = [ropes[k] for k in ("full_attention", "sliding_attention") if k in ropes]
    return [rope["rope_theta"] for rope in nested or [ropes]]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(name):
    family, config = FAMILIES[name], AutoConfig.for_model(name)
    for field, values in family.computed.items():
        assert getattr(config, field, None) == values[0]
    for field, value in {"rms_norm_eps": family.norm_eps, **family.numbers}.items():
        assert getattr(config, field) == value
    assert config.tie_word_embeddings == family.tied
    bare = {k: v for k, v in BASE.items() if "key_value" not in k} | {"pad_token_id": 0}
    config = AutoConfig.for_model(name, **bare)
    assert accepted(name).stated_window == getattr(config, "sliding_window", None)
    assert accepted(name).attention == layers_of(config)
    assert accepted(name).ropes[0]["rope_theta"] == thetas(config)[0]
    if config.num_key_value_heads > 4:  # of a certain size of the family
        (fault,) = refusals(name, num_key_value_heads=...)
        assert_names(fault, "num_key_value_heads", config.num_key_value_heads)
    else:
        assert read(bare | {"model_type": name}, "").kv_groups == config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or 64 // 4
    assert accepted(name).head_dim == head_dim
    assert accepted(name, num_key_value_heads=None).kv_groups == 4


def test_the_bundled_models_are_covered():
    smollm2, tiny = read(packaged.CONFIG, ""), read(tiny_qwen2.CONFIG, "")
    assert (smollm2.family.model_type, smollm2.tied_embeddings) == ("llama", True)
    assert (tiny.family.model_type, tiny.windows) == ("qwen2", [])


@pytest.mark.parametrize("name", ["gemma", "gemma3", "phi", "olmo3", "granitemoe", "mixtral"])
def test_an_unknown_family_is_refused_by_name(name):
    (fault,) = refusals(name)
    assert_names(fault, "model_type", f"'{name}'")


def test_the_nearest_family_is_named():
    for name, nearest in (("qwen3_moe", "qwen3"), ("lama", "llama")):
        assert refusals(name)[0].endswith(f" {nearest}")  # behind the list of all


@pytest.mark.parametrize(
    ("name", "changes", "names"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("llama", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("llama", {"logit_scale": 0.5}, "logit_scale"),
        ("phi3", {"logit_scale": 0.5}, "logit_scale"),
        ("mistral", {"logit_scale": 0.5}, "logit_scale"),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}},
         "dual_chunk_attention_config"),
        *((name, {"sliding_window": 8}, f"sliding_window=8 {name} vLLM")
          for name in ("llama", "olmo2", "granite")),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ("llama", {"rope_scaling": {"type": "su", "factor": 4.0}}, "rope_type 'su'"),
        ("llama", {"rope_theta": "big"}, "rope_theta"),
        ("phi3", {"rope_scaling": LONG | {"long_factor": None}}, "long_factor 8"),
        ("phi3", {"rope_scaling": LONG | {"short_factor": [1.0] * 7}}, "short_factor 8"),
        ("phi3", {"rope_scaling": LONG | {"short_mscale": 1.1}}, "short_mscale longrope"),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("granite", {"logits_scaling": None}, "logits_scaling"),
        ("granite", {"logit_scale": 2.0}, "logit_scale"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor rope_type linear"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": "32"}},
         "beta_fast rope_type yarn"),
        ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "quantization_config awq"),
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "architectures"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0},
         "sliding_window"),
        ("qwen2", {"layer_types": 4}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types num_hidden_layers=4"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("llama", {"head_dim": 15}, "head_dim=15"),
        ("llama", {"vocab_size": True}, "vocab_size"),
        ("llama", {"max_position_embeddings": ...}, "max_position_embeddings"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_its_field(name, changes, names):
    (fault,) = refusals(name, **changes)
    assert_names(fault, *names.split())


def test_null_of_a_rope_is_as_if_it_were_not_there():
    """transformers would multiply by it."""
    scaled = {"type": "linear", "factor": 2.0}
    for changes in (
        {"rope_scaling": scaled, "partial_rotary_factor": None},
        {"rope_scaling": {**scaled, "partial_rotary_factor": None}, "partial_rotary_factor": 1.0},
    ):
        (rope,) = accepted("llama", **changes).ropes
        assert rope["factor"] == 2.0
        assert "partial_rotary_factor" not in rope


def test_every_reason_is_told():
    assert len(refusals("qwen3", attention_bias=True, hidden_act="relu", hidden_size=0)) == 3


def windows(name: str, **changes: object) -> list[int | None]:
    return [layer.window for layer in accepted(name, **changes).attention]


def test_the_window_of_each_layer():
    window = {"use_sliding_window": True, "sliding_window": 8}
    none, upper = [None] * 4, [None, None, None, 8]
    assert windows("qwen2", sliding_window=8, max_window_layers=0) == none
    assert windows("qwen2", sliding_window=8, max_window_layers=None) == none
    assert windows("qwen2", **window, max_window_layers=4) == none
    assert windows("qwen2", **window) == none  # 28 layers and more have none
    assert windows("qwen2", **window, layer_types=[FULL] * 4) == none
    assert windows("qwen3", **window, max_window_layers=3) == upper
    kinds = [FULL, SLIDING] * 2
    assert windows("qwen3", **window, layer_types=kinds) == [None, 8] * 2
    assert windows("mistral", sliding_window=None) == none
    assert windows("mistral") == [4096] * 4  # as transformers takes it
    assert windows("mistral", sliding_window=8, max_window_layers=4) == [8] * 4
    assert windows("gemma2", sliding_window=8) == [8, None, 8, None]
    assert windows("gemma3_text", sliding_window=8) == [8] * 4  # each sixth layer has none
    assert windows("gemma3_text", sliding_window=8, sliding_window_pattern=4) == [8, 8, 8, None]
    assert windows("smollm3", **window) == upper  # a layer without rotary embedding
    assert windows("smollm3", **window, layer_types=kinds) == [None, 8] * 2


def test_the_rotation_of_each_layer():
    def ropes(name: str, **changes: object) -> list[int | None]:
        return [layer.rope for layer in accepted(name, **changes).attention]

    assert ropes("llama", no_rope_layers=[0] * 4) == [0] * 4
    assert ropes("smollm3") == [0, 0, 0, None]
    assert ropes("smollm3", no_rope_layer_interval=2) == [0, None, 0, None]
    assert ropes("smollm3", no_rope_layers=[0, 1, 1, 0, 1, 1]) == [None, 0, 0, None]
    assert ropes("gemma2") == [0] * 4
    assert ropes("gemma3_text", layer_types=[FULL, SLIDING] * 2) == [0, 1] * 2


def test_the_two_ropes_of_an_old_gemma_are_those_of_a_new_one():
    linear = {"rope_type": "linear", "factor": 8.0}
    local = {"rope_type": "default", "rope_theta": 2e4}
    given = {"full_attention": {"rope_theta": 3e6, **linear}, "sliding_attention": local}
    new = accepted("gemma3_text", rope_parameters=given).ropes
    old = {"rope_theta": 3e6, "rope_scaling": linear, "rope_local_base_freq": 2e4}
    assert accepted("gemma3_text", **old).ropes == new == (given["full_attention"], local)


def test_a_softcap_that_is_null_is_none():
    found = accepted("gemma2", attn_logit_softcapping=None).numbers
    assert "attn_logit_softcapping" not in found
    assert found["final_logit_softcapping"] == 30.0


def test_longrope_is_computed_up_to_its_original_length():
    assert accepted("phi3", rope_scaling=LONG, original_max_position_embeddings=64).longest == 64
    assert accepted("phi3", rope_scaling=LONG).longest == 4096  # as transformers takes it
    assert accepted("phi3").longest is None


def test_options_of_other_families_are_not_read():
    assert not accepted("qwen2", attention_bias=True).attention_bias
    assert accepted("llama", sliding_window=4096, use_sliding_window=True).windows == []
    assert accepted("llama", sliding_window=0).windows == []  # vLLM has none then


def test_the_rope_of_an_old_config_is_that_of_a_new_one():
    new = accepted("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}).ropes
    for old in ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": {"type": "default"}}):
        assert accepted("llama", **old).ropes == new


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", True),
        ("mistral", False),
        ("phi3", False),
        ("qwen2", False),
        ("qwen3", True),
        ("smollm3", True),
        ("olmo2", False),
        ("gemma2", True),
        ("gemma3_text", True),
        ("granite", True),
    ],
)
def test_weights_are_those_that_transformers_saves(name, tied):
    import torch
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(name, **BASE, tie_word_embeddings=tied, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {n: tuple(p.shape) for n, p in model.named_parameters()}
    found = accepted(name, tie_word_embeddings=tied)
    assert found.weights == expected
    assert found.parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("layers", "vocab", "stages", "last"),
    [(30, 49152, 2, 13), (2, 100, 2, 1), (30, 49152, 1, 30), (30, 49152, 3, 8)],
)
def test_stages_take_equally_long(layers, vocab, stages, last):
    changes = {"num_hidden_layers": layers, "vocab_size": vocab}
    found = read(packaged.CONFIG | changes, "")
    parts = ParallelLayout(pipeline=stages).stage_layers(found.layers, found.head_layers)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert (len(parts), len(parts[-1])) == (stages, last)


def test_facts_need_no_torch():
    code = "import sys, aent.checks.model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_a_config_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"config\.json"):
        facts.folder_facts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([]))
    with pytest.raises(ModelError, match=naming("config.json", "JSON")):
        facts.folder_facts(tmp_path)


def test_the_documentations_table_is_that_of_the_records():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert "\n".join(table.lines()) in page
