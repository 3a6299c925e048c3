"""Chat templates in the manner of real families: prompts, variables, dates, refusals."""

import json
from datetime import datetime

import pytest

from aent.models import chat
from aent.models.chat import ChatTemplate
from aent.recipe.schema import Recipe
from wording import assert_names

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA = (
    "{{ bos_token }}{% if not date_string is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set start = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set start = '' %}{% endif %}"
    "{{ '<|system|>Today Date: ' + date_string + '\n\n' + start + '<|eot|>' }}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% if enable_thinking is defined and "
    "not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
FIRST_TURN_ONLY = (
    "{% for m in messages %}{% if loop.first %}{{ 'FIRST ' }}{% else %}{{ 'later ' }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("prompt", ["What is 3 + 4?", "?", "!", "", "<|im_start|>system\nx"])
def test_default_system_turn_is_left_out(prompt):
    expected = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(SMOLLM2, {"bos_token": "<|im_start|>"}).prompt(prompt, None) == expected


def test_beginning_of_sequence_stays_and_roles_may_have_to_alternate():
    assert ChatTemplate(MISTRAL, SPECIAL).prompt("Hi", None) == "<s>[INST] Hi [/INST]"


def test_an_end_of_sequence_after_an_unanswered_text_is_no_part_of_the_turn():
    template = ChatTemplate(PHI, {"eos_token": "<|endoftext|>"})
    assert template.prompt("Hi", None) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    system = template.prompt("Hi", "Be brief.")
    assert system == "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"


def test_a_date_is_that_of_the_runs_start():
    pinned = ChatTemplate(LLAMA, SPECIAL, now=datetime(2024, 7, 26, 23, 59))
    assert pinned.prompt("Hi", "Be brief.").startswith("<s><|system|>Today Date: 26 Jul 2024\n")
    given = ChatTemplate(LLAMA, SPECIAL, {"date_string": "1 Jan 1970"}, datetime(2024, 7, 26))
    assert "Today Date: 1 Jan 1970\n" in given.prompt("Hi", "Be brief.")
    assert pinned.prompt("Hi", None) == "<s><|user|>Hi<|eot|><|assistant|>"


def test_earlier_turns_stand_before_the_users_last_one():
    earlier = [("user", "3 + 4?"), ("assistant", "7")]
    smollm2 = ChatTemplate(SMOLLM2, {"bos_token": "<|im_start|>"})
    turns = (
        "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n"
        "<|im_start|>user\nTwice?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.prompt("Twice?", None, earlier) == turns  # without its default system turn
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert smollm2.prompt("Twice?", "Be brief.", earlier) == system + turns
    mistral = ChatTemplate(MISTRAL, SPECIAL).prompt("Twice?", None, earlier)
    assert mistral == "<s>[INST] 3 + 4? [/INST]7</s>[INST] Twice? [/INST]"
    phi = ChatTemplate(PHI, {"eos_token": "<|endoftext|>"}).prompt("Twice?", None, earlier)
    assert phi == (
        "<|user|>\n3 + 4?<|end|>\n<|assistant|>\n7<|end|>\n<|user|>\nTwice?<|end|>\n<|assistant|>\n"
    )


def test_variables_reach_the_template_and_are_known():
    template = ChatTemplate(QWEN3, {})
    assert template.known_variables() == ["enable_thinking"]
    assert "date_string" in ChatTemplate(LLAMA, SPECIAL).known_variables()
    off = ChatTemplate(QWEN3, {}, {"enable_thinking": False})
    assert off.prompt("Hi", None) == template.prompt("Hi", None) + "<think></think>"


def test_the_prompt_is_what_transformers_renders(tmp_path):
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é ü"}]
    more = [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "And?"}]
    for text in (SMOLLM2, PHI, QWEN3):
        rendered = render_jinja_template([turns], chat_template=text, add_generation_prompt=True)
        template = ChatTemplate(text, {})
        assert template.prompt("é ü", "Be brief.") == rendered[0][0]
        rendered = render_jinja_template(
            [turns + more], chat_template=text, add_generation_prompt=True
        )
        earlier = [("user", "é ü"), ("assistant", "ok")]
        assert template.prompt("And?", "Be brief.", earlier) == rendered[0][0]


def recipe(folder, **task):
    values = {"name": "x", "model": {"path": str(folder)}, "controller": {"initial": 0.0}}
    return Recipe.model_validate(values | {"task": task})


@pytest.fixture
def folder(tmp_path):
    def write(template, **special):
        config = {"chat_template": template, **SPECIAL, **special}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("template", "task", "field"),
    [
        (MISTRAL, {"system_prompt": "Be brief."}, "task.system_prompt"),
        (FIRST_TURN_ONLY, {}, "task.system_prompt"),
        (QWEN3, {"template": {"enable_thinkin": False}}, "task.template.enable_thinkin"),
        (QWEN3, {"template": {"messages": []}}, "task.template.messages"),
        (MISTRAL, {"template": {"enable_thinking": False}}, "task.template.enable_thinking"),
        (None, {"template": {"enable_thinking": False}}, "task.template"),
        ("{% for m in messages %}", {}, "model.path"),
        ([{"name": "default"}], {}, "model.path"),
        ([{"name": "default", "template": 5}], {}, "model.path"),
        ({"default": QWEN3}, {}, "model.path"),
        ("{{ 1 / 0 }}", {}, "model.path"),
        ("{{ messages[0].content.index('x') }}", {}, "model.path"),
    ],
)
def test_what_a_template_cannot_do_is_one_sentence(folder, template, task, field):
    (fault,) = chat.faults(recipe(folder(template), **task))
    assert_names(fault, field)


@pytest.mark.parametrize("template", [MISTRAL, PHI, QWEN3, LLAMA, None])
def test_what_a_template_can_do_is_no_fault(folder, template):
    assert chat.faults(recipe(folder(template))) == []


def test_a_system_turn_is_refused_in_the_templates_own_words(folder):
    (fault,) = chat.faults(recipe(folder(MISTRAL), system_prompt="Be brief."))
    assert "roles must alternate" in fault
    assert chat.faults(recipe(folder(QWEN3), system_prompt="Be brief.")) == []


def test_templates_are_found_where_transformers_finds_them(folder, tmp_path):
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": QWEN3}]
    special = {"eos_token": {"content": "<end>", "lstrip": False}, "pad_token": None}
    found = chat.find(folder(named, **special))
    assert found is not None
    assert (found.text, found.special) == (QWEN3, {"bos_token": "<s>", "eos_token": "<end>"})
    (tmp_path / "chat_template.jinja").write_text(PHI)
    assert chat.find(tmp_path).text == PHI
    assert chat.find(tmp_path / "nowhere") is None


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": MISTRAL}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    assert chat.faults(recipe(tmp_path)) == []
    (fault,) = chat.faults(recipe(tmp_path, system_prompt="Be brief."))
    assert fault.startswith("task.system_prompt")
    assert chat.find(tmp_path).special == SPECIAL
    own = {"chat_template": MISTRAL, "bos_token": "<own>"}  # which transformers takes then, too
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    assert chat.find(tmp_path).special == SPECIAL | {"bos_token": "<own>"}


def test_special_tokens_may_be_those_of_the_tokenizers_class(tmp_path):
    """LlamaTokenizer has <s> and </s> even if no file says so."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": MISTRAL}))
    assert chat.faults(recipe(tmp_path)) == []
    (fault,) = chat.faults(recipe(tmp_path, template={"a": 1}))
    assert fault.startswith("task.template.a")


def test_bundled_models_take_no_variables():
    model = {"bundled": "tiny-qwen2"}
    values = {"name": "x", "model": model, "controller": {"initial": 0.0}}
    assert chat.faults(Recipe.model_validate(values)) == []
    (fault,) = chat.faults(Recipe.model_validate(values | {"task": {"template": {"a": 1}}}))
    assert_names(fault, "task.template", "tiny-qwen2")
