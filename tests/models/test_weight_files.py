"""Weight files with real faults (cut, missing, stale, of another model), and their messages."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from aent.cli.main import app
from aent.models import weight_files
from aent.models.facts import folder_facts
from models import folders
from wording import assert_names

CONFIG = {
    "model_type": "qwen3", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 1024,
}  # fmt: skip
TIED = CONFIG | {"tie_word_embeddings": True}
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    return folders.write(tmp_path / "model", CONFIG)


@pytest.fixture
def tied(tmp_path):
    return folders.write(tmp_path / "tied", TIED)


def faults(folder):
    found = weight_files.faults(folder, folder_facts(folder))
    assert all(str(folder) in fault for fault in found)
    return found


def shard(folder, shards=2):
    """model.safetensors as so many files and their index."""
    whole = folder / "model.safetensors"
    names = sorted(folder_facts(folder).weights.items())
    index = {}
    for i in range(shards):
        file = folder / f"model-{i + 1:05}-of-{shards:05}.safetensors"
        folders.write_weights(file, dict(names[i::shards]))
        index |= {name: file.name for name, _ in names[i::shards]}
    whole.unlink()
    write_index(folder, index)
    return index


def write_index(folder, index):
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def test_whole_folders_pass(folder, tied):
    assert faults(folder) == faults(tied) == []
    write_index(folder, dict.fromkeys(folder_facts(folder).weights, "model.safetensors"))
    assert faults(folder) == []
    shard(tied)
    assert faults(tied) == []


def test_what_safetensors_writes_is_read_as_safetensors_reads_it(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(4, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = weight_files.read_headers(tmp_path)
    assert {n: t.shape for n, t in stored.items()} == {"a": (4,), "b": (2, 3)}
    content = (tmp_path / "model.safetensors").read_bytes()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert content[stored[name].begin : stored[name].end] == tensor.tobytes()


def lfs_pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / "model.safetensors").write_text(text)


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def cut_in_the_header(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:100])


def longer(folder):
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")


def another_format(folder):
    (folder / "model.safetensors").write_bytes(b"PK\3\4" * 100)


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_index(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def broken_index(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}')


def missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_of_another_model(folder):
    index = shard(folder)
    write_index(folder, index | {"other.weight": "model-00001-of-00002.safetensors"})


def weight_that_the_index_lacks(folder):
    index = shard(folder)
    del index[TABLE]
    write_index(folder, index)


def stale_index(folder):
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def consolidated_beside(folder):
    shard(folder)
    folders.write_weights(folder / "consolidated.safetensors", {"tok_embeddings.weight": (3, 3)})


def adapter_beside(folder):
    folders.write_weights(folder / "adapter_model.safetensors", {"lora_A.weight": (3, 3)})


def no_head(folder):
    folders.write(folder, CONFIG, **{HEAD: None})


def no_norm(folder):
    folders.write(folder, CONFIG, **{"model.layers.1.self_attn.q_norm.weight": None})


def surplus(folder):
    folders.write(folder, CONFIG, **{"model.layers.2.mlp.up_proj.weight": (96, 64)})


def wider(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 128}))


def quantized(folder):
    folders.write_weights(folder / "model.safetensors", folder_facts(folder).weights, "I16")


@pytest.mark.parametrize(
    ("breaks", "names"),
    [
        (lfs_pointer, "model.safetensors Git LFS"),
        (cut, "model.safetensors bytes"),
        (cut_in_the_header, "model.safetensors header bytes"),
        (longer, "model.safetensors bytes"),
        (another_format, "model.safetensors"),
        (only_bin, "pytorch_model.bin"),
        (no_index, "model.safetensors.index.json"),
        (broken_index, "model.safetensors.index.json"),
        (missing_shard, "model-00002-of-00002.safetensors"),
        (index_of_another_model, "other.weight"),
        (weight_that_the_index_lacks, TABLE),
        (stale_index, "model.safetensors model.safetensors.index.json"),
        (consolidated_beside, "consolidated.safetensors"),
        (adapter_beside, "adapter_model.safetensors"),
        (no_head, HEAD),
        (no_norm, "model.layers.1.self_attn.q_norm.weight"),
        (surplus, "model.layers.2.mlp.up_proj.weight"),
        (wider, f"{TABLE} [97, 64] config.json [128, 64]"),
        (quantized, "I16"),
    ],
)
def test_a_broken_folder_is_one_sentence_that_names_the_file(folder, breaks, names):
    breaks(folder)
    (fault,) = faults(folder)
    assert_names(fault, *names.split())


def test_buffers_of_old_checkpoints_are_passed_over(folder):
    folders.write(folder, CONFIG, **{"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)})
    assert faults(folder) == []


def test_a_stored_head_of_tied_embeddings_must_be_the_embedding(tied):
    table = np.random.default_rng(0).normal(size=(97, 64)).astype(np.float16)
    shapes = folder_facts(tied).weights
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    for head, equal in ((table, True), (table[::-1].copy(), False), (table + 0.5, False)):
        save_file(tensors | {TABLE: table, HEAD: head}, tied / "model.safetensors")
        assert [HEAD in fault for fault in faults(tied)] == ([] if equal else [True])
    save_file(tensors | {HEAD: table}, tied / "model.safetensors")
    (fault,) = faults(tied)  # the embedding is zeros
    assert HEAD in fault
    del tensors[TABLE]
    save_file(tensors | {HEAD: table}, tied / "model.safetensors")
    (fault,) = faults(tied)
    assert_names(fault, TABLE)


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"]])
def test_a_run_that_would_find_broken_weights_is_not_begun(folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    overrides = [
        "model={path: model}", "run_dir=run", "rollout.max_prompt_tokens=64", "task.heldout=0",
    ]  # fmt: skip
    arguments = [command[0], "recipes/cpu/tiny.yaml", *command[1:], *overrides]
    lfs_pointer(folder)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.output.count("Git LFS") == 1
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gemma"}))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert_names(done.output.splitlines()[-1], "model.path", "model/config.json", "model_type")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_dry_run_of_a_whole_folder_passes(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["model={path: model}", "run_dir=run"]
    done = CliRunner().invoke(app, ["train", "recipes/cpu/tiny.yaml", "--dry-run", *overrides])
    assert (done.exit_code, "model.path" in done.output) == (0, False)


def test_a_dry_run_passes_though_this_machine_lacks_the_attention(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["model={path: model}", "run_dir=run", "trainer.attention=flex"]
    done = CliRunner().invoke(app, ["train", "recipes/cpu/tiny.yaml", "--dry-run", *overrides])
    assert done.exit_code == 0
    (line,) = (line for line in done.output.splitlines() if "would not start here" in line)
    assert_names(line, "trainer.attention=flex", "CPU")
