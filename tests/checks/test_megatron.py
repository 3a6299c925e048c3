"""``trainer.megatron``, ``ddp`` and ``optimizer.megatron`` against Megatron's own source."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from dataclasses import fields
from typing import Any

import pytest

from aent.checks import megatron
from aent.recipe.schema import Recipe
from wording import assert_names

FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}


def faults_of(given: dict[str, Any]) -> list[str]:
    return faults_of_trainer({"megatron": given})


def faults_of_trainer(trainer: dict[str, Any]) -> list[str]:
    return list(megatron.faults(recipe_of(trainer)))


def recipe_of(trainer: dict[str, Any]) -> Recipe:
    model = {"dtype": "bfloat16"}
    data = {"name": "x", "model": model, "controller": {"initial": 0}, "trainer": trainer}
    return Recipe.model_validate(data)


@pytest.mark.parametrize(
    "given",
    [FULL, {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}, {}],
)
def test_megatrons_fields_pass(given: dict[str, Any]) -> None:
    assert faults_of(given) == []


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (
            {"recompute_granularty": "full"},
            "trainer.megatron.recompute_granularty recompute_granularity",
        ),
        (
            {"recompute_granularity": "all"},
            "trainer.megatron.recompute_granularity all full selective",
        ),
        (FULL | {"recompute_num_layers": "2"}, "trainer.megatron.recompute_num_layers 2 int"),
        (FULL | {"recompute_num_layers": True}, "trainer.megatron.recompute_num_layers True int"),
        ({"hidden_size": 64}, "trainer.megatron.hidden_size"),
        ({"sequence_parallel": True}, "trainer.megatron.sequence_parallel"),
        ({"autocast_dtype": "bfloat16"}, "trainer.megatron.autocast_dtype torch.dtype"),
        (
            {"recompute_granularity": "full"},
            "trainer.megatron.recompute_granularity recompute_method recompute_num_layers",
        ),
        (
            {"recompute_num_layers": 1},
            "trainer.megatron.recompute_num_layers recompute_granularity",
        ),
        (FULL | {"recompute_num_layers": 0}, "trainer.megatron.recompute_num_layers 0 1"),
        (
            {"recompute_granularity": "selective", "recompute_modules": ["mpl"]},
            "trainer.megatron.recompute_modules mpl mlp",
        ),
        ({"recompute_modules": ["mlp"]}, "trainer.megatron.recompute_modules selective"),
        # weights without a gradient, or layers elsewhere than the estimate and the export expect
        ({"delay_wgrad_compute": True}, "trainer.megatron.delay_wgrad_compute"),
        (
            {"pipeline_model_parallel_layout": "Et|tL"},
            "trainer.megatron.pipeline_model_parallel_layout",
        ),
    ],
)
def test_what_megatron_would_not_take_is_one_sentence(given: dict[str, Any], names: str) -> None:
    (fault,) = faults_of(given)
    assert_names(fault, *names.split())


OVERLAP_GRADIENTS = {"overlap_grad_reduce": True}
OVERLAP = OVERLAP_GRADIENTS | {"overlap_param_gather": True}
PRECISE = {"use_precision_aware_optimizer": True}
SMALL = PRECISE | {"exp_avg_dtype": "bfloat16"}
OFFLOADED = PRECISE | {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5}


def test_fields_of_ddp_and_optimizer_pass() -> None:
    for given in (SMALL, OFFLOADED):
        optimizer = {"distributed": True, "megatron": given}
        assert faults_of_trainer({"ddp": OVERLAP, "optimizer": optimizer}) == []


@pytest.mark.parametrize(
    ("trainer", "names"),
    [
        (
            {"ddp": {"overlap_grad_reduced": True}},
            "trainer.ddp.overlap_grad_reduced overlap_grad_reduce",
        ),
        ({"ddp": OVERLAP_GRADIENTS | {"bucket_size": "1"}}, "trainer.ddp.bucket_size int"),
        ({"ddp": OVERLAP_GRADIENTS | {"bucket_size": 0}}, "trainer.ddp.bucket_size 1"),
        ({"ddp": {"bucket_size": 1}}, "trainer.ddp.bucket_size overlap_grad_reduce"),
        ({"ddp": {"average_in_collective": True}}, "trainer.ddp.average_in_collective"),
        (
            {"ddp": {"overlap_param_gather": True}},
            "trainer.ddp.overlap_param_gather trainer.optimizer.distributed",
        ),
        (
            {"optimizer": {"megatron": SMALL}},
            "trainer.optimizer.megatron.use_precision_aware_optimizer "
            "trainer.optimizer.distributed",
        ),
        ({"optimizer": {"megatron": {"lr": 0.1}}}, "trainer.optimizer.megatron.lr"),
    ],
)
def test_what_ddp_and_optimizer_would_not_take(trainer: dict[str, Any], names: str) -> None:
    (fault,) = faults_of_trainer(trainer)
    assert_names(fault, *names.split())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (
            {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 1.0},
            "optimizer_cpu_offload use_precision_aware_optimizer",
        ),
        # Megatron's default moves nothing
        (
            PRECISE | {"optimizer_cpu_offload": True},
            "optimizer_cpu_offload optimizer_offload_fraction 0",
        ),
        (
            OFFLOADED | {"optimizer_offload_fraction": 1.5},
            "optimizer_cpu_offload optimizer_offload_fraction 1.5",
        ),
        (OFFLOADED | {"optimizer_offload_fraction": "1"}, "optimizer_offload_fraction float"),
        (
            PRECISE | {"optimizer_offload_fraction": 1.0},
            "optimizer_offload_fraction optimizer_cpu_offload",
        ),
        (OFFLOADED | {"exp_avg_dtype": "bfloat16"}, "exp_avg_dtype optimizer_cpu_offload"),
        ({"exp_avg_sq_dtype": "bfloat16"}, "exp_avg_sq_dtype use_precision_aware_optimizer"),
        (PRECISE | {"exp_avg_dtype": "bf16"}, "exp_avg_dtype bf16 bfloat16"),
        (PRECISE | {"main_params_dtype": "bfloat16"}, "main_params_dtype float16"),
        # gradients would be divided by it, and nothing is multiplied
        ({"loss_scale": 1024.0}, "loss_scale"),
        ({"store_param_remainders": True}, "store_param_remainders"),
    ],
)
def test_what_the_optimizers_of_little_memory_would_not_take(
    given: dict[str, Any], names: str
) -> None:
    (fault,) = faults_of_trainer({"optimizer": {"distributed": True, "megatron": given}})
    field, *others = names.split()
    assert_names(fault, f"trainer.optimizer.megatron.{field}", *others)


def test_the_precision_aware_optimizer_needs_16_bits_and_transformer_engine() -> None:
    optimizer = {"distributed": True, "megatron": PRECISE}
    (fault,) = faults_of_trainer({"optimizer": optimizer | {"implementation": "torch"}})
    assert_names(fault, "trainer.optimizer.implementation", "torch")
    recipe = recipe_of({"optimizer": optimizer})
    model = recipe.model.model_copy(update={"dtype": "float32"})
    (fault,) = megatron.faults(recipe.model_copy(update={"model": model}))
    assert_names(fault, "model.dtype", "bfloat16")


def test_low_precision_needs_transformer_engine_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron 0.16 asks for its version, which is None without it, in a rank."""
    recipe = recipe_of({"optimizer": {"distributed": True, "megatron": SMALL}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (fault,) = megatron.machine_faults(recipe)
    small = "trainer.optimizer.megatron.use_precision_aware_optimizer"
    assert_names(fault, small, "Transformer Engine")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert list(megatron.machine_faults(recipe)) == []
    assert list(megatron.machine_faults(recipe_of({}))) == []


def test_the_fields_are_those_of_the_classes_that_are_imported() -> None:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

    for place, cls in (
        (megatron.TRANSFORMER, TransformerConfig),
        (megatron.DDP, DistributedDataParallelConfig),
        (megatron.OPTIMIZER, OptimizerConfig),
    ):
        assert {f.name for f in fields(cls)} == megatron.known_fields(place).keys()
        assert megatron.known_fields(place).keys() >= place.own


def test_what_the_run_sets_itself_is_refused() -> None:
    """All that mbridge and the trainer give to the configuration, by their source."""
    from aent.trainer import bridge, model

    harmless = {"masked_softmax_fusion", "moe_token_dispatcher_type"}  # no model of ours has either
    ours = bridge.DecoderBridge
    built = set(ours._CONFIG_MAPPING)
    for function in (ours._build_base_config, ours._build_config, bridge._by_layer):
        built |= _keywords(function)
    built |= _keywords(model.open_bridge, "set_extra_args")
    assert built - harmless <= megatron.OWN
    assert {"hidden_size", "qk_layernorm", "window_size", "no_rope_freq"} <= built
    assert {"normalization", "calculate_per_token_loss"} <= built


def _keywords(function: Any, call: str = "") -> set[str]:
    """Keys of dictionaries, and names of arguments of calls (of one method), in a function."""
    found: set[str] = set()
    source = inspect.cleandoc("\n" + inspect.getsource(function))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict) and not call:
            found |= {k.value for k in node.keys if isinstance(k, ast.Constant)}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == (call or "_build_base_config")
        ):
            found |= {k.arg for k in node.keywords if k.arg is not None}
    return found
