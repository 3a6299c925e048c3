"""The trained policy as a folder: huggingface_hub's files, each written by one stage."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from distributed.ranks import run_ranks
from trainer import tiny
from wording import assert_names

pytestmark = pytest.mark.slow

FILE = 8_000_000  # bytes: an eighth of the large model
LIMIT = 250_000  # bytes: a few tensors of the tiny model; its largest has 98,304
INDEX = "model.safetensors.index.json"
# tensor, pipeline, data parallel sizes; tied embeddings
LAYOUTS = {
    "one": (1, 1, 1, False),
    "tensor 2": (2, 1, 1, False),
    "pipeline 2": (1, 2, 1, True),
    "data 2": (1, 1, 2, True),
}


def save(rank: int, _world: int, folder: str) -> dict[str, str]:
    from aent.trainer import saved_policy
    from aent.trainer.trainer import Trainer

    errors = {}
    for name, (tp, pp, dp, tied) in LAYOUTS.items():
        recipe = tiny.recipe(tp, pp, dp)
        model = Path(folder) / ("tied" if tied else "untied")
        with tiny.world(recipe.trainer, rank, folder, name) as mine:
            if not mine:
                continue
            trainer = Trainer(recipe, model)
            target = Path(folder) / f"saved {name}"
            saved_policy.save_pretrained(trainer.exporter, model, target, LIMIT)
            if name == "one":
                trainer.save_pretrained(Path(folder) / "whole")
                weights = {n: t.clone() for n, t in trainer.export()}
                for limit in (LIMIT, saved_policy.FILE_BYTES):
                    (reference := Path(folder) / f"reference {limit}").mkdir()
                    save_torch_state_dict(weights, reference, max_shard_size=limit)
            if name == "data 2":  # what engines on the ranks' own GPUs would read
                copy = {n: t.clone() for n, t in trainer.export_stage(copies=True)}
                planned = trainer.exporter.planned(copies=True)
                assert planned == [(n, tuple(t.shape)) for n, t in copy.items()]
                save_file(copy, Path(folder) / f"copy {rank}.safetensors")
            if name == "pipeline 2":
                for wrong in ("there already", "not written"):
                    errors[wrong] = refused(trainer, Path(folder), wrong, rank)
    return errors


def refused(trainer: Any, folder: Path, wrong: str, rank: int) -> str:
    """What a rank says of a folder that is there, or of a file that rank 1 cannot write."""
    from aent.trainer import saved_policy

    target = folder / ("saved one" if wrong == "there already" else "unwritten")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1 and wrong == "not written":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        saved_policy.save_pretrained(trainer.exporter, trainer.model_path, target, LIMIT)
    except RuntimeError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "went well"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("run")
    tiny.write_model(folder / "tied", tied=True)
    tiny.write_model(folder / "untied", tied=False)
    return folder, run_ranks(save, 2, str(folder))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_back_bit_for_bit_in_files_of_bounded_size(run: Any, layout: str) -> None:
    folder, (*_, tied) = run[0], LAYOUTS[layout]
    saved = folder / f"saved {layout}"
    index = json.loads((saved / INDEX).read_text())
    files = {file: load_file(saved / file) for file in set(index["weight_map"].values())}
    assert {p.name for p in saved.glob("*.safetensors")} == set(files)
    sizes = [sum(t.nbytes for t in tensors.values()) for tensors in files.values()]
    assert max(sizes) <= LIMIT
    assert sum(sizes) == index["metadata"]["total_size"]
    want = load_file(folder / ("tied" if tied else "untied") / "model.safetensors")
    got = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    assert got.keys() == want.keys() == index["weight_map"].keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], want[name]) for name in want)


def test_every_data_parallel_rank_has_the_whole_policy_to_give(run: Any) -> None:
    want = load_file(run[0] / "tied" / "model.safetensors")
    for rank in range(2):
        copy = load_file(run[0] / f"copy {rank}.safetensors")
        assert copy.keys() == want.keys()
        assert all(torch.equal(copy[name], want[name]) for name in want)


def test_stages_share_no_file(run: Any) -> None:
    where = json.loads((run[0] / "saved pipeline 2" / INDEX).read_text())["weight_map"]
    first = {file for name, file in where.items() if "layers.0." in name or "embed" in name}
    last = {file for name, file in where.items() if "layers.1." in name or "model.norm" in name}
    assert first | last == set(where.values())
    assert not first & last


@pytest.mark.parametrize(("saved", "reference"), [("saved one", LIMIT), ("whole", 5 * 10**9)])
def test_files_of_one_stage_are_huggingface_hubs_byte_for_byte(
    run: Any, saved: str, reference: int
) -> None:
    want = sorted((run[0] / f"reference {reference}").glob("model*"))
    got = sorted((run[0] / saved).glob("model*"))
    assert [p.name for p in got] == [p.name for p in want]
    for ours, theirs in zip(got, want):
        if ours.suffix == ".safetensors":
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            assert (
                json.loads(ours.read_text())["weight_map"]
                == (json.loads(theirs.read_text())["weight_map"])
            )


def test_every_rank_hears_of_a_fault_and_nothing_gets_the_name(run: Any) -> None:
    folder, (zero, one) = run
    assert zero == one
    assert_names(zero["there already"], "rank 0", folder / "saved one", "exists")
    assert_names(zero["not written"], "rank 1", folder / "unwritten.partial")
    assert not (folder / "unwritten").exists()


def save_large(_rank: int, _world: int, folder: str) -> int:
    """By how many bytes the resident memory rises at most while the policy is saved."""
    from aent.trainer import saved_policy
    from aent.trainer.trainer import Trainer

    recipe = tiny.recipe()
    with tiny.world(recipe.trainer, 0, folder, "world"):
        trainer = Trainer(recipe, Path(folder) / "large")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = peak()
        saved_policy.save_pretrained(
            trainer.exporter, trainer.model_path, Path(folder) / "out", FILE
        )
        return peak() - before


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def test_host_memory_is_bounded_by_a_file(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=4000, hidden_size=256, intermediate_size=2048, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "large")
    whole = (tmp_path / "large" / "model.safetensors").stat().st_size
    largest = 2 * 2048 * 256 * 4  # gate and up, gathered as one
    (rise,) = run_ranks(save_large, 1, str(tmp_path))
    assert rise < FILE + 3 * largest < whole / 2
