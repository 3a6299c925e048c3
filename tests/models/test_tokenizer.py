import base64
import json
import subprocess
import sys
from datetime import datetime

import pytest

from aent.models import model_source, tokenizer
from aent.models.bundled import tiny_qwen2
from aent.recipe.schema import ModelSection
from wording import naming


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return model_source.resolve(ModelSection(bundled="tiny-qwen2"))


def test_importing_the_module_imports_no_nemo():
    code = "import sys, aent.models.tokenizer\n"
    code += "sys.exit('nemo' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_prompt_with_a_token_that_has_no_row_is_refused():
    words = tokenizer.Tokenizer(
        lambda text: [ord(c) for c in text], str, (0,), None, (), rows=ord("z") + 1
    )
    assert words.chat_prompt("xyz") == [120, 121, 122]
    with pytest.raises(ValueError, match=r"'a\{b' has a token with the id 123.* 123 rows"):
        words.chat_prompt("a{b")


@pytest.mark.slow  # imports NeMo
def test_huggingface(tiny):
    loaded = tokenizer.load(ModelSection(bundled="tiny-qwen2"), tiny)
    ids = loaded.chat_prompt("3 + 4?\nNow.")
    characters = [*tiny_qwen2.SPECIAL, *tiny_qwen2.CHARACTERS]
    written = "".join(characters[i] for i in ids).replace("Ċ", "\n").replace("Ġ", " ")
    assert written == "<bos>user: 3 + 4?\nNow.\nassistant: "
    assert loaded.rows == len(characters)
    system = loaded.decode(loaded.chat_prompt("Hi", "Be brief."))
    assert system == "system: Be brief.\nuser: Hi\nassistant: "
    assert loaded.stop_ids == (2,)
    assert loaded.decode([*loaded.encode("it is 7"), 2]) == "it is 7"


@pytest.mark.slow  # imports NeMo
def test_every_eos_of_the_model_stops(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    loaded = tokenizer.load(ModelSection(path=str(tmp_path)), tmp_path)
    assert loaded.stop_ids == (2, 7, 9)


@pytest.mark.slow  # imports NeMo
def test_without_chat_template_the_prompt_is_plain_text(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = tokenizer.load(ModelSection(path=str(tmp_path)), tmp_path)
    assert loaded.chat_prompt("3 + 4 =") == [1, *loaded.encode("3 + 4 =")]
    assert loaded.decode(loaded.chat_prompt("3 + 4 =", "Add.")) == "Add.\n\n3 + 4 ="


@pytest.mark.slow  # imports NeMo
def test_sentencepiece(tiny, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = [f"the sum of {a} and {b} is {a + b}" for a in range(30) for b in range(30)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    section = ModelSection(
        path=str(tiny), tokenizer_library="sentencepiece", tokenizer_path=str(tmp_path)
    )
    loaded = tokenizer.load(section, tiny)
    ids = loaded.chat_prompt("the sum of 3 and 4")
    assert ids == [1, *loaded.encode("the sum of 3 and 4")]  # <s> is 1, </s> is 2
    assert loaded.decode(ids) == "the sum of 3 and 4"
    assert loaded.stop_ids == (2,)


@pytest.mark.slow  # imports NeMo
def test_tiktoken(tiny, tmp_path):
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the", "é".encode()]
    entries = [
        {
            "rank": i,
            "token_bytes": base64.b64encode(t).decode(),
            "token_str": t.decode(errors="replace"),
        }
        for i, t in enumerate(tokens)
    ]
    model, vocabulary = tmp_path / "model", tmp_path / "vocabulary.json"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 300, "eos_token_id": 2}))
    vocabulary.write_text(json.dumps(entries))
    section = ModelSection(
        path=str(model), tokenizer_library="tiktoken", tokenizer_path=str(vocabulary)
    )
    loaded = tokenizer.load(section, model)
    special = 300 - len(tokens)
    assert loaded.encode("the") == [257 + special]
    prompt = "the café costs 日 7"
    ids = loaded.chat_prompt(prompt)
    assert ids[0] == 1  # <s>
    assert max(ids) < 300
    assert loaded.decode([*ids, 2]) == prompt  # "日" has three tokens
    assert loaded.stop_ids == (2,)


@pytest.mark.parametrize("library", ["huggingface", "sentencepiece", "tiktoken"])
def test_missing_tokenizer_is_one_clear_sentence(library, tiny, tmp_path):
    section = ModelSection(
        path=str(tiny), tokenizer_library=library, tokenizer_path=str(tmp_path / "nothing")
    )
    with pytest.raises(
        FileNotFoundError, match=naming("model.tokenizer_path", tmp_path / "nothing")
    ):
        tokenizer.load(section, tiny)


@pytest.mark.slow
def test_smollm2_prompt_has_no_system_turn():
    section = ModelSection(bundled="smollm2-135m-instruct")
    loaded = tokenizer.load(section, model_source.resolve(section))
    ids = loaded.chat_prompt("What is 3 + 4?")
    # <|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n
    assert ids == [1, 4093, 198, 1780, 314, 216, 35, 1232, 216, 36, 47, 2, 198, 1, 520, 9531, 198]
    assert loaded.stop_ids == (2,)


@pytest.mark.slow  # imports NeMo
def test_the_templates_variables_and_date_reach_it(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (
        "{% for m in messages %}{{ kind }} {{ strftime_now('%d %b') }}: {{ m.content }}{% endfor %}"
    )
    (tmp_path / "chat_template.jinja").write_text(text)
    section, now = ModelSection(path=str(tmp_path)), datetime(2024, 7, 26)
    loaded = tokenizer.load(section, tmp_path, {"kind": "on"}, now)
    assert (
        loaded.decode(loaded.chat_prompt("Hi", "Be brief.")) == "on 26 Jul: Be brief.on 26 Jul: Hi"
    )
