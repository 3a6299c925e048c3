"""Model FLOPs against what torch counts in transformers' models, pairs against a plain count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from aent.models.config_json import read
from aent.models.flops import TRAINING, ForwardFlops, attending_pairs
from models.test_parity import BASE, VARIANTS

LENGTH = 24
CHOSEN = [  # grouped and full heads, heads wider than the hidden size, fused, norms, softcaps
    "llama", "llama-tied-mha", "llama-own-head-dim", "llama-all-biases", "mistral-window", "phi3",
    "qwen2-tied", "qwen3", "smollm3", "olmo2", "gemma2", "gemma3", "granite",
]  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_products_are_what_torch_counts(name: str) -> None:
    """transformers' eager attention multiplies every pair, causal or not, and its output layer sees
    every token."""
    kind, changes = VARIANTS[name]
    config = AutoConfig.for_model(kind, **(BASE | changes))
    config._attn_implementation = "eager"
    config.architectures = [f"{type(AutoModelForCausalLM.from_config(config)).__name__}"]
    model = AutoModelForCausalLM.from_config(config)
    facts = read(config.to_dict(), "config.json")
    products = ForwardFlops.of(facts)
    forward = LENGTH * (products.token + products.predicted)
    forward += facts.layers * products.pair * LENGTH**2
    tokens = torch.arange(LENGTH)[None] % facts.vocab
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    # the angles of the rotation are a product too: of positions and frequencies
    rotation = counter.get_total_flops() - forward
    assert 0 <= rotation <= 2 * len(facts.ropes) * LENGTH * facts.head_dim
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    assert counter.get_total_flops() - rotation == TRAINING * forward


@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
@pytest.mark.parametrize(("prompt", "responses"), [(5, [3]), (6, [4, 1, 7]), (1, []), (8, [0, 2])])
def test_pairs_are_those_that_a_plain_loop_finds(
    window: int | None, prompt: int, responses: list[int]
) -> None:
    """A token is (place in its sequence, its response; None of the prompt)."""
    tokens: list[tuple[int, int | None]] = [(place, None) for place in range(prompt)]
    for number, count in enumerate(responses):
        tokens += [(prompt + place, number) for place in range(count)]
    pairs = 0
    for place, whose in tokens:
        for other, others in tokens:
            seen = others in (None, whose) and other <= place
            pairs += seen and (window is None or place - other < window)
    assert attending_pairs(prompt, responses, window) == pairs


def test_a_shared_prompt_is_counted_once_and_windows_by_layer() -> None:
    kind, changes = VARIANTS["gemma3"]  # one layer with a window of 8, one without
    config = AutoConfig.for_model(kind, **(BASE | changes))
    config.architectures = ["Gemma3ForCausalLM"]
    facts = read(config.to_dict(), "config.json")
    products = ForwardFlops.of(facts)
    pairs = attending_pairs(10, [3, 4], 8) + attending_pairs(10, [3, 4])
    expected = 17 * products.token + pairs * products.pair + 7 * products.predicted
    assert products.of_unit(10, [3, 4]) == expected
    assert expected < products.of_unit(10, [3]) + products.of_unit(10, [4])
