"""How functions are found and called, and what their values are worth. (Their processes:
test_judge.py.)"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.sources import ColumnsSection
from aent.tasks import files, functions, graders
from wording import naming

QUESTION = Question(3, "3 + 4?", "7", {"level": 5, "data_source": "sums"}, row=9)
RESPONSES = [Response("it is 7", tokens=4), Response("8", tokens=1, finished=False)]


def spec(function: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "python", "name": "own", "function": function,
        "style": "aent", "group": False, "arguments": {}, **changes,
    }  # fmt: skip


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A factory: a text of Python in, the spec of its function ``f`` out."""
    count = iter(range(99))

    def write(text: str, **changes: Any) -> dict[str, Any]:
        path = tmp_path / f"r{next(count)}.py"
        path.write_text(text)
        return spec(f"{path}:f", **changes)

    return write


def readings(grader_spec: dict[str, Any], responses: list[Response]) -> list[graders.Reading]:
    grader = graders.make(grader_spec, "chain_sum", {})
    return grader.read(grader.call(responses, QUESTION), len(responses))


def test_ones_own_function_sees_response_and_question(written: Any) -> None:
    own = written(
        "def f(response, question, bonus=0):\n"
        "    right = question.answer in response.text\n"
        "    return {'right': right, 'level': question.metadata['level'] / 10,\n"
        "            'short': bonus * (response.tokens < 5 and response.finished)}\n",
        arguments={"bonus": 2},
    )
    assert readings(own, RESPONSES[:1]) == [(3.5, {"right": 1, "level": 0.5, "short": 2})]
    assert readings(own, RESPONSES[1:]) == [(0.5, {"right": 0, "level": 0.5, "short": 0})]


def test_verls_compute_score_as_verl_calls_it(written: Any) -> None:
    own = written(
        "def f(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': float(ground_truth in solution_str), 'kind': data_source,\n"
        "            'level': extra_info['level']}\n",
        style="verl",
    )
    assert readings(own, RESPONSES[:1]) == [(1.0, {"level": 5.0})]
    pair = written("def f(data_source, solution_str, ground_truth, extra_info):\n"
                   "    return (data_source == 'sums', 'why')\n", style="verl")  # fmt: skip
    assert readings(pair, RESPONSES[:1]) == [(1.0, {})]


def test_the_recipes_functions() -> None:
    own = spec("recipes/rewards/rewards.py:compute_score", style="verl")
    sums = Question(0, "1 + 1 + 1?", "3", {"data_source": "sums", "terms": 3})
    grader = graders.make(own, "", {})
    for text, reward in (("3", 1.0), ("4", 0.0)):
        values = grader.call([Response(text)], sums)
        assert grader.read(values, 1) == [(reward, {"right": reward})]


@pytest.mark.parametrize(
    ("name", "arguments", "text", "tokens", "reward"),
    [
        ("matches", {"pattern": r"<a>.*</a>"}, "<a>1\n2</a> ", 4, 1),
        ("matches", {"pattern": r"<a>.*</a>"}, "so: <a>1</a>", 4, 0),
        ("finished_thought", {}, "<think>a</think> 7", 4, 1),
        ("finished_thought", {}, "a</think>7", 4, 1),  # the template began it
        ("finished_thought", {}, "<think>a</think>", 4, 0),
        ("finished_thought", {}, "<think>a</think>b<think>c", 4, 0),
        ("finished_thought", {}, "7", 4, 0),
        ("finished_thought", {"begin": "[", "end": "]"}, "[a][b]c", 4, 1),
        ("length", {"free": 10, "limit": 20}, "", 10, 0),
        ("length", {"free": 10, "limit": 20}, "", 15, -0.5),
        ("length", {"free": 10, "limit": 20}, "", 40, -1),
    ],
)
def test_parts_that_come_with_aent(
    name: str, arguments: dict[str, Any], text: str, tokens: int, reward: float
) -> None:
    own = spec(f"aent.tasks.parts:{name}", arguments=arguments)
    assert readings(own, [Response(text, tokens)]) == [(reward, {})]


def test_trls_reward_functions_as_trl_calls_them(written: Any) -> None:
    texts = written(
        "def f(prompts, completions, level, **columns):\n"
        "    assert columns == {'question': prompts, 'answer': ['7'] * len(prompts),\n"
        "                       'data_source': ['sums'] * len(prompts)}\n"
        "    return [None if '8' in c else float(n) for c, n in zip(completions, level)]\n",
        style="trl", group=True,
    )  # fmt: skip
    assert readings(texts, RESPONSES) == [(5.0, {}), (None, {})]
    messages = written(
        "def f(completions, answer):\n"
        "    return [float(a in c[0]['content']) for a, c in zip(answer, completions)]\n",
        style="trl_chat",
    )
    with pytest.raises(ValueError, match="prompts"):
        readings(messages, RESPONSES[:1])  # TRL gives prompts by name: it would fail there too
    messages = written(
        "def f(completions, answer, **_):\n"
        "    return [float(a in c[0]['content']) for a, c in zip(answer, completions)]\n",
        style="trl_chat",
    )
    assert readings(messages, RESPONSES[:1]) == [(1.0, {})]
    assert functions.columns(texts) == ["level"]
    assert functions.columns(messages) == []


def test_a_ground_truth_reaches_verls_function_as_it_is(written: Any, tmp_path: Path) -> None:
    """A list or a mapping is an answer as JSON; verl's compute_score gets the column itself, TRL's
    functions all turns."""
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Twice?"},
    ]
    truth = {"target": 14, "numbers": [3, 4]}
    row = {"data_source": "s", "prompt": talk, "reward_model": {"ground_truth": truth}}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    columns = ColumnsSection(question="prompt", answer="reward_model.ground_truth")
    (question,) = files.questions(tmp_path / "q.jsonl", None, columns)
    assert json.loads(question.answer) == truth
    own = written(
        "def f(data_source, solution_str, ground_truth, extra_info):\n"
        "    return float(ground_truth['target'] == int(solution_str))\n", style="verl",
    )  # fmt: skip
    assert graders.make(own, "", {}).call([Response("14")], question) == 1.0
    chat = written(
        f"def f(prompts, completions, **_):\n    return [float(p == {talk!r}) for p in prompts]\n",
        style="trl_chat",
    )
    assert graders.make(chat, "", {}).call([Response("14")], question) == [1.0]


@pytest.mark.parametrize(
    "returned",
    ["None", "float('nan')", "float('inf')", "'1'", "{}", "{'a': None}", "{'a/b': 1}", "[1, 2]"],
)
def test_what_is_no_reward_is_refused(written: Any, returned: str) -> None:
    with pytest.raises(ValueError, match=r"returned|name"):
        readings(written(f"def f(response, question):\n    return {returned}\n"), RESPONSES[:1])


@pytest.mark.parametrize("returned", ["1", "[1]", "[1, 2, 3]", "{1: 2}", "'ab'"])
def test_a_group_has_a_value_for_each(written: Any, returned: str) -> None:
    own = written(f"def f(responses, question):\n    return {returned}\n", group=True)
    with pytest.raises(ValueError, match="returned for 2 responses"):
        readings(own, RESPONSES)


def test_numbers_of_every_kind_are_rewards(written: Any) -> None:
    for value, reward in (("True", 1.0), ("numpy.float32(.5)", 0.5), ("numpy.array(2)", 2.0)):
        own = written(f"import numpy\ndef f(response, question):\n    return {value}\n")
        assert readings(own, RESPONSES[:1]) == [(reward, {})]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def g(response, question): pass", "no function f"),
        ("def f(response): pass", "response question"),
        ("def f(response, question, more): pass", "more"),
        ("f = 3", "int"),
        ("import no_such_module", "no_such_module line 1"),
        ("\ndef f(:", "SyntaxError"),
        ("raise SystemExit(2)", "SystemExit"),
    ],
)
def test_a_function_that_cannot_be_called_is_one_sentence(
    written: Any, text: str, names: str
) -> None:
    own = written(text + "\n")
    with pytest.raises(ValueError, match=naming("r0.py", *names.split())) as raised:
        graders.make(own, "", {})
    assert "\n" not in str(raised.value)


def test_modules_and_files_are_found_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "own_rewards" / "deep"
    package.mkdir(parents=True)
    (tmp_path / "own_rewards" / "__init__.py").write_text("raise RuntimeError")
    (package / "math.py").write_text("raise RuntimeError")
    assert functions.source_of("own_rewards.deep.math:f") == package / "math.py"
    assert functions.source_of("own_rewards/deep/math.py:f") == Path("own_rewards/deep/math.py")
    for nothing in (
        "own_rewards.shallow:f",
        "own_reward:f",
        "math.py:f",
        "own_rewards.deep.math.x:f",
    ):
        assert functions.source_of(nothing) is None


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("WORTH = 7\n")
    (tmp_path / "r.py").write_text(
        "import beside_it\ndef f(response, question):\n    return beside_it.WORTH\n"
    )
    assert readings(spec(f"{tmp_path}/r.py:f"), RESPONSES[:1]) == [(7.0, {})]


def test_a_failed_grader_takes_the_whole_reward() -> None:
    from aent.data.rollout import Grade

    weights = {"a": 2.0, "b": 1.0, "c": -1.0}
    good, silent = Grade("a", 1.0), Grade("b", None)
    bad = Grade("c", 0.0, error="timeout")
    assert graders.verdict([good, silent], weights).reward == 2.0
    failed = graders.verdict([good, bad], weights)
    assert (failed.reward, failed.score) == (0.0, 1.0)
    assert failed.error.startswith("timeout")
    assert not math.isnan(graders.verdict([silent], weights).reward)
