"""A random model of every variant of every family, against transformers in float32: log-probs,
every gradient, every weight bit for bit; and weights that must not be trained from.

All of it runs in one set of ranks: starting them takes longer than the models. Two ranks here, four
and every layout in ``test_every_layout``.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from aent.models.families import FAMILIES, ROPES
from aent.recipe.schema import Recipe
from distributed.ranks import run_ranks
from distributed.test_trainer_parity import not_returned, whole_gradients
from trainer import formulas, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

VOCAB = 97  # odd: padded for two tensor-parallel ranks
BASE = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}  # fmt: skip
SHORT = {"original_max_position_embeddings": 32}  # of 77 tokens


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    given = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **parameters}
    return {"rope_parameters": given}


TIED = {"tie_word_embeddings": True}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8}
MULTIPLIERS = {
    "embedding_multiplier": 6.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-mha": ("llama", {"num_key_value_heads": 4, **TIED}),
    "llama-own-head-dim": ("llama", {"head_dim": 32}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-all-biases": ("llama", {"attention_bias": True, "mlp_bias": True, **TIED}),
    "llama-3.1": ("llama", rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SHORT)),
    "llama-linear": ("llama", rope("linear")),
    "llama-dynamic": ("llama", rope("dynamic")),
    "qwen2.5-yarn": ("qwen2", rope("yarn", **SHORT)),
    "qwen3-yarn-as-given": (
        "qwen3", {"head_dim": 16, **rope("yarn", beta_fast=16, attention_factor=1.3, **SHORT)}
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 8, "head_dim": 32}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "phi3-tied-mha": ("phi3", {"num_key_value_heads": 4, "pad_token_id": 0, **TIED}),
    "phi3-long": ("phi3", {
        "pad_token_id": 0,
        "original_max_position_embeddings": 192,
        **rope("longrope", factor=None, short_factor=[1.3] * 8, long_factor=[2.0] * 8),
    }),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", TIED),
    "qwen2-upper-window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, **TIED}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "olmo2": ("olmo2", {"head_dim": 32, "pad_token_id": 0}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 9.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "granite": ("granite", {"tie_word_embeddings": True, **MULTIPLIERS}),
    "granite-biases": (
        "granite", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}
    ),
}  # fmt: skip
LENGTHS = [(3, 9), (11, 20), (25, 17), (40, 24), (1, 1), (7, 5)]
Layout = tuple[int, int, int, int, bool]  # tensor, context, pipeline, data; sequence parallel
TENSOR: Layout = (2, 1, 1, 1, True)
STAGES: Layout = (1, 1, 2, 1, False)
CONTEXT: Layout = (1, 2, 1, 1, False)
ALONE: Layout = (1, 1, 1, 1, False)
OTHERS: list[Layout] = [
    ALONE, (2, 1, 1, 1, False), (1, 1, 4, 1, False), (2, 1, 2, 1, True), (2, 1, 1, 2, False),
    (2, 2, 1, 1, True),
]  # fmt: skip
WINDOWED = {"mistral-window", "gemma2"}  # only with windows; with softcaps too
# whose names are all stages'
STAGED = {
    "llama-tied-mha", "mistral", "phi3", "qwen2-tied", "qwen3", "smollm3", "olmo2", "gemma2",
    "gemma3", "granite",
}  # fmt: skip
COEFFICIENT = 5.0
RESHARDED = ("olmo2", "gemma3")  # which have all kinds of weights that Qwen2 has not: test_state


def write_model(folder: Path, name: str, layers: int) -> None:
    """Weights so large that the policy is far from uniform, and biases that count."""
    kind, changes = VARIANTS[name]
    torch.manual_seed(0)
    sizes = BASE | {"num_hidden_layers": layers} | changes
    if "layer_types" in sizes:
        sizes["layer_types"] = (sizes["layer_types"] * layers)[:layers]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5).sub_(float(FAMILIES[kind].unit_offset))
            else:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder / name)


def layouts_of(name: str, every: bool) -> list[Layout]:
    if every:
        return [TENSOR, STAGES, CONTEXT, *OTHERS]
    return [TENSOR, *[STAGES] * (name in STAGED), *[CONTEXT] * (name in WINDOWED)]


def recipe_of(path: Path, layout: Layout = ALONE) -> Recipe:
    tp, context, pp, dp, sequence_parallel = layout
    settings = {
        "context_parallel": context,
        "optimizer": {"lr": 1e-30, "clip_grad": 0.0},
        "sequence_parallel": sequence_parallel,
    }
    lengths = {"max_prompt_tokens": 128, "max_response_tokens": 64}
    model = {"path": str(path)}
    return tiny.recipe(tp, pp, dp, 128, trainer=settings, model=model, rollout=lengths)


def expected(path: Path) -> dict[str, Any]:
    """The results of transformers in float32, and how far its log-probs are from float64's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: more only wait for one another
    try:
        model, mini = formulas.load(path), tiny.mini_batch(LENGTHS, vocab=VOCAB)
        want = formulas.expected(model, mini, recipe_of(path), COEFFICIENT)
        want.loss.backward()
        gradients = {name: grad.numpy() for name, grad in formulas.gradients(model).items()}
        exact = formulas.expected(model.double(), mini, recipe_of(path), COEFFICIENT)
    finally:
        torch.set_num_threads(threads)
    score = want.log_prob.numpy()
    rounding = np.abs(score - exact.log_prob.numpy()).max()
    return {
        "score": score, "rounding": rounding, "loss": want.loss.item(), "gradients": gradients
    }  # fmt: skip


def computed(path: Path, layout: Layout, rank: int) -> dict[str, Any]:
    from aent.trainer.trainer import Trainer

    mini = tiny.mini_batch(LENGTHS, vocab=VOCAB)
    trainer = Trainer(recipe_of(path, layout), path)
    score = trainer.score(mini.batch)[mini.batch.loss_mask].numpy()
    result = trainer.train_minibatch(mini, COEFFICIENT)
    gradients = whole_gradients(trainer)
    missing = not_returned(trainer, str(path))
    if layout == TENSOR:
        trainer.save_pretrained(path.with_name(f"{path.name}-saved"))
    missing = missing if rank == 0 else []
    return {"score": score, "loss": result.loss, "gradients": gradients, "missing": missing}


def doubled(path: Path, layout: Layout, folder: Path, rank: int) -> list[str]:
    """TENSOR writes a state with weights twice as large; names that another layout, which reads it,
    does not export so."""
    from aent.trainer import state
    from aent.trainer.trainer import Trainer

    trainer = Trainer(recipe_of(path, layout), path)
    if layout != TENSOR:
        state.load(trainer, folder)
        got, stored = dict(trainer.export()), load_file(path / "model.safetensors")
        return [name for name in stored if not torch.equal(got[name], 2 * stored[name])]
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter *= 2
    if rank == 0:
        folder.mkdir()
    torch.distributed.barrier()
    request = state.begin_save(trainer, folder, copied=False)
    request.async_fn()
    state.finish_save(request)
    return []


def refused(path: Path, layout: Layout, token: int) -> str:
    """The trainer's results for the weights, with a token that it must not train on."""
    from aent.trainer.trainer import Trainer

    batch = tiny.mini_batch(LENGTHS, vocab=VOCAB).batch
    batch.tokens[2] = token  # of a prompt
    try:
        Trainer(recipe_of(path, layout), path).score(batch)
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, _world: int, root: str, folder: str, every: bool) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for name in VARIANTS:
        path = Path(root) / name
        for layout in layouts_of(name, every):
            settings = recipe_of(path, layout).trainer
            with tiny.world(settings, rank, folder, f"{name}-{layout}") as mine:
                if mine:
                    out[name, layout] = computed(path, layout, rank)
    for name in RESHARDED:
        for layout in (TENSOR, ALONE):
            settings = recipe_of(Path(root) / name, layout).trainer
            with tiny.world(settings, rank, folder, f"state-{name}-{layout}") as mine:
                if mine:
                    state = Path(folder, f"{name}.state")
                    out["state", name] = doubled(Path(root) / name, layout, state, rank)
    for what, layout, token in (("nan", ALONE, 3), ("qwen2", TENSOR, VOCAB)):
        path = Path(root) / what
        with tiny.world(recipe_of(path, layout).trainer, rank, folder, what) as mine:
            out[what] = refused(path, layout, token) if mine else ""
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), layers=2)


def write_models(root: Path, layers: int) -> Path:
    for name in VARIANTS:
        write_model(root, name, layers)
    shutil.copytree(root / "qwen2", root / "nan")
    tensors = load_file(root / "nan" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, root / "nan" / "model.safetensors")
    for extra in ("pytorch_model.bin", "consolidated.00.pth", "flax_model.msgpack", "merges.txt"):
        (root / "llama" / extra).write_text("old")
    return root


@pytest.fixture(scope="module")
def ranks(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_ranks(work, 2, str(root), str(tmp_path_factory.mktemp("worlds")), False)


def test_every_family_option_and_rope_has_a_variant() -> None:
    assert {kind for kind, _ in VARIANTS.values()} == set(FAMILIES)
    ropes = {c.get("rope_parameters", {}).get("rope_type", "default") for _, c in VARIANTS.values()}
    assert ropes == set(ROPES)
    for kind, family in FAMILIES.items():
        for field, values in family.computed.items():
            tried = {c.get(field, values[0]) for k, c in VARIANTS.values() if k == kind}
            assert tried == set(values), (kind, field)


def assert_equal(got: dict[str, Any], want: dict[str, Any]) -> None:
    norm = math.sqrt(sum(float((g**2).sum()) for g in want["gradients"].values()))
    # of four layers, transformers' own rounding may be more than 1e-5
    atol = max(1e-5, 2 * want["rounding"])
    np.testing.assert_allclose(got["score"], want["score"], rtol=0, atol=atol)
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    assert got["missing"] == []
    assert got["gradients"].keys() == want["gradients"].keys()
    for key, gradient in want["gradients"].items():
        error = np.linalg.norm(got["gradients"][key] - gradient)
        # a gradient near zero is rounding: compared with the norm of the whole one
        assert error < 1e-4 * max(np.linalg.norm(gradient), 1e-3 * norm), key


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_computed_as_transformers_does(root: Path, ranks: list[dict], name: str) -> None:
    want = expected(root / name)
    for layout in layouts_of(name, every=False):
        assert_equal(ranks[0][name, layout], want)


@pytest.mark.full
def test_every_layout(tmp_path: Path) -> None:
    root = write_models(tmp_path / "models", layers=4)
    ranks = run_ranks(work, 4, str(root), str(tmp_path), True, timeout=1000)
    for name in VARIANTS:
        want = expected(root / name)
        for layout in layouts_of(name, every=True):
            assert_equal(ranks[0][name, layout], want)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_folder_is_the_model_again(root: Path, ranks: list[dict], name: str) -> None:
    first, saved = root / name, root / f"{name}-saved"
    before, after = (json.loads((f / "config.json").read_text()) for f in (first, saved))
    assert before == after
    left = {"pytorch_model.bin", "consolidated.00.pth", "flax_model.msgpack"}  # old weights
    assert {f.name for f in first.iterdir()} - left == {f.name for f in saved.iterdir()}
    again, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    whole = load_file(first / "model.safetensors")
    assert all(torch.equal(p, whole[n]) for n, p in again.named_parameters())


@pytest.mark.parametrize("name", RESHARDED)
def test_a_state_is_taken_up_by_another_layout(ranks: list[dict], name: str) -> None:
    assert ranks[0]["state", name] == []


def test_weights_that_are_not_finite_are_named(ranks: list[dict]) -> None:
    assert "NaN" in ranks[0]["nan"]
    assert "model.layers.1.mlp.up_proj.weight" in ranks[0]["nan"]


def test_a_token_without_a_row_in_the_embedding_is_refused(ranks: list[dict]) -> None:
    for rank in ranks:
        assert f"id {VOCAB}" in rank["qwen2"]
        assert f"{VOCAB} rows" in rank["qwen2"]
