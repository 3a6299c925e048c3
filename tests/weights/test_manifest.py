"""Manifests: the expected tensors, checksums that depend on positions, differences by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aent.models.bundled import tiny_qwen2
from aent.weights.manifest import TensorSpec, checksum, differences, expected_manifest
from inference import models
from wording import assert_names, naming


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_checksum_sees_content_and_positions(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 200, (64, 64), generator=torch.Generator().manual_seed(0)).to(dtype)
    same = checksum(tensor)
    assert checksum(tensor.clone()) == same
    assert checksum(tensor.T) != same
    assert checksum(tensor.T.contiguous().T) == same  # of the values, not of the strides
    assert checksum(tensor.roll(1, 0)) != same
    assert checksum(-tensor) != same
    changed = tensor.clone()
    changed[-1, -1] += 1
    assert checksum(changed) != same


def test_checksum_over_several_chunks_sees_exchanged_chunks() -> None:
    tensor = torch.randn(3 << 20, generator=torch.Generator().manual_seed(0))
    assert checksum(tensor) != checksum(tensor.roll(1 << 20))
    assert checksum(torch.zeros(3)) != checksum(torch.zeros(4))
    assert checksum(torch.tensor(1.5)) != checksum(torch.tensor(2.5))  # no dimensions


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 2**32))
@settings(max_examples=50)
def test_checksum_sees_two_exchanged_words(i: int, j: int, seed: int) -> None:
    words = torch.randint(0, 2**31 - 1, (1000,), generator=torch.Generator().manual_seed(seed))
    other = words.clone()
    other[i], other[j] = words[j], words[i]
    assert (checksum(words) == checksum(other)) == bool(words[i] == words[j])


@pytest.mark.parametrize("tied", [False, True])
def test_expected_manifest_of_a_folder(tmp_path: Path, tied: bool) -> None:
    model = models.make(0, tied)
    folder = models.save(model, tmp_path)
    exported = {n: TensorSpec.of(t) for n, t in models.named_tensors(model).items()}
    assert expected_manifest(folder, content=True) == exported
    names = expected_manifest(folder)
    assert ("lm_head.weight" in names) is not tied
    assert names["model.layers.0.self_attn.k_proj.weight"] == TensorSpec((64, 128), "float32")
    half = expected_manifest(folder, "bfloat16", content=True)
    weight = model.model.norm.weight.detach().bfloat16()
    assert half["model.norm.weight"] == TensorSpec.of(weight)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_qwen2.CONFIG))
    with pytest.raises(FileNotFoundError, match=naming(tmp_path, "*.safetensors")):
        expected_manifest(tmp_path)


def test_differences_name_the_tensor() -> None:
    a, b = TensorSpec((2, 3), "float32", "0a"), TensorSpec((2, 3), "float32", "0b")
    assert differences({"w": a}, {"w": a}) == []
    (missing,), (surplus,) = differences({"w": a}, {}), differences({}, {"w": a})
    assert missing != surplus
    assert differences({"w": TensorSpec((2, 3), "float32")}, {"w": b}) == []  # content not known
    turned, half = TensorSpec((3, 2), "float32"), TensorSpec((2, 3), "bfloat16")
    for other, names in (
        (b, ("checksum", "0b", "0a")),
        (turned, ("shape", "[3, 2]", "[2, 3]")),
        (half, ("dtype", "bfloat16", "float32")),
    ):
        (fault,) = differences({"w": a}, {"w": other})
        assert_names(fault, "w", *names)
    assert_names(missing, "w")
    assert_names(surplus, "w")
