import json
from decimal import Decimal

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from aent.cli.main import app
from aent.recipe.schema import TaskSection
from aent.recipe.sources import ColumnsSection
from aent.tasks import files, graders_of, load, sources, without_long_prompts
from wording import assert_names, naming


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_math_hard_of_hendrycks_files(tmp_path):
    rows = [
        {"problem": "a?", "level": "Level 5", "type": "Algebra", "solution": r"$\boxed{1}$"},
        {"problem": "b?", "level": "Level 4", "type": "Algebra", "solution": r"$\boxed{2}$"},
        {"problem": "a?", "level": "Level 5", "type": "Algebra", "solution": r"$\boxed{1}$"},
        {"problem": "c?", "level": "Level 5", "type": "Algebra", "solution": "none"},
    ]
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "algebra.parquet")
    more = write(tmp_path / "geometry.jsonl", [dict(rows[0], problem="d?")])
    out = tmp_path / "data" / "math-hard.jsonl"
    done = sources.prepare("math-hard", [tmp_path / "algebra.parquet", more], out)
    assert done == sources.Prepared(read=5, left_out=2, repeated=1, written=2)
    assert [(q.prompt, q.answer) for q in files.questions(out)] == [("a?", "1"), ("d?", "1")]


@pytest.mark.parametrize(
    ("name", "row", "question", "answer"),
    [
        ("gsm8k", {"question": "n?", "answer": "6*7=<<6*7=42>>42\n#### 1,042"}, "n?", "1042"),
        ("amc", {"id": 0, "question": "n?", "answer": 27.0, "url": ""}, "n?", "27"),
        ("aime24", {"problem": "n?", "answer": "073", "solution": "-"}, "n?", "073"),
        ("olympiadbench", {"question": "n?", "final_answer": ["$2$", "$3$"]}, "n?", "2, 3"),
        ("olympiadbench", {"question": "n?", "final_answer": ["$2$,$3$"]}, "n?", "2,3"),
        ("minerva", {"problem": "n?", "solution": r"$\boxed{\$5}$"}, "n?", r"\$5"),
        ("deepmath-6k", {"question": "n?", "final_answer": "$0$", "topic": ""}, "n?", "0"),
        (
            "openr1-math-40k",
            {"problem": "n?", "answer": "x^2", "correctness_math_verify": [False, True]},
            "n?",
            "x^2",
        ),
        (
            "humaneval-plus",
            {
                "task_id": "HumanEval/0",
                "prompt": 'def f(x):\n    """Is x $1?"""\n',
                "canonical_solution": "    return x == '$1'\n",
                "entry_point": "f",
                "test": "def check(candidate):\n    assert candidate('$1')\n",
            },
            'def f(x):\n    """Is x $1?"""',
            "def check(candidate):\n    assert candidate('$1')\n\n\ncheck(f)",
        ),
        (
            "mbpp",
            {
                "task_id": 2,
                "prompt": "Square x.",
                "code": "def f(x): return x * x",
                "test_imports": ["import math"],
                "test_list": ["assert f(2) == 4", "assert f(3) == 9"],
            },
            "Square x.\nYour code should pass these tests:\n\nassert f(2) == 4\nassert f(3) == 9",
            "import math\nassert f(2) == 4\nassert f(3) == 9",
        ),
        (
            "mbpp-plus",
            {
                "prompt": "Square x.",
                "test_imports": [],
                "test_list": ["assert f(2) == 4"],
                "test": "for x in range(99):\n    assert f(x) == x * x",
            },
            "Square x.\nYour code should pass these tests:\n\nassert f(2) == 4",
            "for x in range(99):\n    assert f(x) == x * x",
        ),
    ],
)
def test_columns_of_the_public_files(tmp_path, name, row, question, answer):
    file = write(tmp_path / "raw.jsonl", [row])
    out = tmp_path / "out.jsonl"
    assert sources.prepare(name, [file], out).written == 1
    (found,) = files.questions(out)
    assert (found.prompt, found.answer) == (question, answer)


def test_a_draw_is_the_same_every_time_and_in_the_files_order(tmp_path, monkeypatch):
    rows = [
        {"problem": f"{i:02}?", "answer": "1", "correctness_math_verify": [i % 2 == 0]}
        for i in range(40)
    ]
    file, name = write(tmp_path / "raw.jsonl", rows), "openr1-math-40k"
    few = sources.SOURCES[name].__class__(**vars(sources.SOURCES[name]) | {"sample": 8})
    monkeypatch.setitem(sources.SOURCES, name, few)
    done = sources.prepare(name, [file], tmp_path / "a.jsonl")
    assert done == sources.Prepared(read=40, left_out=32, repeated=0, written=8)
    sources.prepare(name, [file], tmp_path / "b.jsonl")
    drawn = [q.prompt for q in files.questions(tmp_path / "a.jsonl")]
    assert drawn == [q.prompt for q in files.questions(tmp_path / "b.jsonl")] == sorted(drawn)
    assert all(int(prompt[:2]) % 2 == 0 for prompt in drawn)


def test_a_question_with_two_answers_is_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [("a", "1"), ("b", "2"), ("a", "1.0"), ("b", "3"), ("c", "$4$"), ("c", "4")]
    write(tmp_path / "one.jsonl", [{"problem": q, "answer": a} for q, a in rows[:3]])
    write(tmp_path / "two.jsonl", [{"problem": q, "answer": a} for q, a in rows[3:]])
    done = CliRunner().invoke(app, ["data", "math-500", "one.jsonl", "two.jsonl"])
    assert done.exit_code == 0
    conflict, _ = done.stderr.splitlines()
    assert_names(conflict, "two.jsonl", "row 1", "one.jsonl", "row 2", "'3'", "'2'")
    assert_names(done.stdout, "2 questions", "6 rows", "2 repeated", "1 with two answers")
    found = files.questions(tmp_path / "data" / "math-500.jsonl")
    assert [(q.prompt, q.answer) for q in found] == [("a", "1"), ("c", "4")]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1.0", True), ("1,000", "1e3", True), (".5", "0.50", True), ("x", "x", True),
        ("1", "2", False), ("1/2", "0.5", False), ("x", "y", False), ("x", "1", False),
    ],
)  # fmt: skip
def test_one_number_is_one_answer_however_it_is_written(tmp_path, one, other, same):
    assert files.same_answer(one, other) is files.same_answer(other, one) is same
    rows = [{"question": "?", "answer": one}, {"question": "?", "answer": other}]
    path = write(tmp_path / "q.jsonl", rows)
    if same:
        assert files.questions(path)[0].answer == one
    else:
        with pytest.raises(ValueError, match=naming("q.jsonl", "row 2", "row 1")):
            files.questions(path)


def test_numbers_of_a_parquet_file_are_their_digits(tmp_path):
    values = ["3.00", "0.50", "-120.00", "0.25"]
    cells = pyarrow.array([Decimal(value) for value in values], pyarrow.decimal128(10, 2))
    table = pyarrow.table({"question": ["a", "b", "c", "d"], "answer": cells})
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    answers = [q.answer for q in files.questions(tmp_path / "q.parquet")]
    assert answers == ["3", "0.5", "-120", "0.25"]


def test_a_file_of_something_else_leaves_nothing_behind(tmp_path):
    file, out = write(tmp_path / "raw.jsonl", [{"text": "x"}]), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=r"raw\.jsonl.*MATH-500.*'text'"):
        sources.prepare("math-500", [file], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"question": "a", "answer": "1"}\n{', ("line 2", "JSON")),
        ("[1]", ("line 1", "JSON object")),
        ('{"problem": "a", "answer": "1"}', ("row 1", "'question'", "'problem'")),
        ('{"question": "a", "answer": ""}', ("row 1", "'answer'", "text")),
        ('{"question": null, "answer": "1"}', ("row 1", "'question'", "text")),
        ("", ("rows",)),
        ('{"question": "a", "answer": NaN}', ("row 1", "'answer'", "text")),
        ('{"question": "a", "answer": -Infinity}', ("row 1", "'answer'", "text")),
        ('{"question": "a \\ud83d", "answer": "1"}', ("line 1", "'question'", "character")),
        ('{"question": "a", "answer": "1 \\ude00"}', ("line 1", "'answer'", "character")),
        (
            '{"question": "a", "answer": "1"}\n'
            '{"question": "b", "answer": "1", "m": [{"n\\uDFFF": 1}]}',
            ("line 2", "'m'", "character"),
        ),
        (
            '{"question": "a", "answer": "1"}\n{"question": "a", "answer": "2"}',
            ("row 2", "row 1", "'2'", "'1'"),
        ),
        ('{"question": "a", "answer": "1", "answer": "2"}', ("line 1", "'answer'")),
        ('{"question": "a", "answer": "1", "m": ' + "[" * 10**5, ("line 1", "JSON")),
    ],
)
def test_faults_of_a_file_are_one_sentence(tmp_path, text, names):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError, match=naming("q.jsonl", *names)):
        files.questions(tmp_path / "q.jsonl")


def test_two_escapes_may_be_one_character_and_a_text_may_have_a_nul(tmp_path):
    row = '{"question": "\\ud83d\\ude00 \\\\ud83d \\u0000", "answer": "1", "m": "\\ud83d\\ude00"}'
    (tmp_path / "q.jsonl").write_text(row)
    (question,) = files.questions(tmp_path / "q.jsonl")
    assert question.prompt == "\U0001f600 \\ud83d \0"
    assert question.metadata == {"m": "\U0001f600"}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_one_sentence(tmp_path, encoding):
    text = '{"question": "a", "answer": "1"}\n{"question": "caf\u00e9", "answer": "1"}'
    (tmp_path / "q.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"q\.jsonl.*line [12]\b.*UTF-8"):
        files.questions(tmp_path / "q.jsonl")


def test_a_byte_order_mark_and_the_same_question_twice_are_no_fault(tmp_path):
    first = '{"question": "a\u2028b", "answer": 1.0}'
    again = first.replace("1.0", '"1"')
    text = f"\ufeff{first}\r\n\r\n{again}"
    (tmp_path / "q.JSONL").write_text(text, encoding="utf-8", newline="")
    (question,) = files.questions(tmp_path / "q.JSONL")
    assert (question.prompt, question.answer, question.row) == ("a\u2028b", "1", 1)


def test_a_recipe_with_such_a_file_is_refused_before_anything_starts(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodel: {bundled: tiny-qwen2}\ncontroller: {initial: 0}\n")
    rows = [{"question": f"{i}?", "answer": "3/4" if i == 7 else str(i)} for i in range(70)]
    path = write(tmp_path / "q.jsonl", rows)
    task = ["task.kind=file", f"task.path={path}", f"run_dir={tmp_path / 'run'}"]
    done = CliRunner().invoke(
        app, ["train", str(recipe), *task, "task.graders=[{kind: last_number}]"]
    )
    assert done.exit_code == 2
    assert_names(done.stderr, "task.graders", "row 8")
    assert not (tmp_path / "run").exists()
    path.write_text('{"question": "a", "answer": NaN}\n')
    done = CliRunner().invoke(
        app, ["train", str(recipe), *task, "task.graders=[{kind: math_verify}]"]
    )
    assert done.exit_code == 2
    assert_names(done.stderr, "task.path", path, "row 1")


VERL = {  # a row of verl's layout
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "3 + 4?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"index": 0, "split": "train"},
}


def test_columns_by_name_and_verls_layout(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def found(path, question, answer):
        columns = ColumnsSection(question=question, answer=answer)
        return files.questions(path, "Think.", columns)

    path = write(tmp_path / "q.jsonl", [{"problem": "a?", "question": "no", "solution": 1}])
    (one,) = found(path, "problem", "solution")
    assert (one.prompt, one.answer, one.system) == ("a?\nThink.", "1", None)
    assert one.metadata == {"problem": "a?", "solution": 1}

    other = {**VERL, "prompt": VERL["prompt"][1:]}
    table = pyarrow.Table.from_pylist([VERL, other, VERL])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    first, second = found(tmp_path / "train.parquet", "prompt", "reward_model.ground_truth")
    assert (first.prompt, first.answer, first.system) == ("3 + 4?\nThink.", "7", "Be short.")
    assert first.turns("Be long.") == ("3 + 4?\nThink.", "Be short.", ())
    assert second.turns("Be long.") == ("3 + 4?\nThink.", "Be long.", ())
    assert first.metadata["extra_info"] == VERL["extra_info"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"reward_model": {"style": "rule"}}, ("'reward_model.ground_truth'", "task.columns")),
        ({"reward_model": {"ground_truth": []}}, ("'reward_model.ground_truth'", "text")),
        ({"prompt": [{"role": "user", "content": ""}]}, ("'prompt'", "text")),
        ({"prompt": [*VERL["prompt"], {"role": "assistant", "content": "7"}]}, ("assistant",)),
        ({"prompt": ["3 + 4?"]}, ("messages",)),
    ],
)
def test_rows_of_such_a_file_that_cannot_be_asked(tmp_path, change, names):
    path = write(tmp_path / "q.jsonl", [VERL, {**VERL, **change}])
    columns = ColumnsSection(question="prompt", answer="reward_model.ground_truth")
    with pytest.raises(ValueError, match=naming("q.jsonl", "row 2", *names)):
        files.questions(path, None, columns)


def test_the_data_source_chooses_the_grader(tmp_path):
    rows = [
        {"question": f"{i}?", "answer": "x" if i % 2 else str(i), "data_source": "ab"[i % 2]}
        for i in range(6)
    ]
    path = str(write(tmp_path / "q.jsonl", rows))

    def section(*graders):
        return TaskSection.model_validate(
            {"kind": "file", "path": path, "heldout": 1, "graders": graders}
        )

    number = {"kind": "last_number", "data_sources": ("a",)}
    others = {"kind": "math_verify", "data_sources": ("b", "c")}
    task = load(section(number, others), seed=0)
    kinds = {
        q.answer == "x": [g.kind for g in graders_of(section(number, others), q)]
        for q in task.train
    }
    assert kinds == {False: ["last_number"], True: ["math_verify"]}
    with pytest.raises(ValueError, match=naming("task.graders", "'b'", "row")):
        load(section(number), seed=0)
    with pytest.raises(ValueError, match=naming("task.graders", "math_verify", "c", "a, b")):
        load(
            section({"kind": "python", "function": "r.py:f"}, others | {"data_sources": ("c",)}), 0
        )


def test_a_task_of_a_file(tmp_path):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(20)]
    path = str(write(tmp_path / "q.jsonl", rows))
    section = TaskSection(kind="file", path=path, size=10, heldout=4, instruction="Think.")
    task = load(section, seed=0)
    assert (len(task.train), len(task.heldout)) == (10, 4)
    assert load(section, seed=0) == task
    assert load(section, seed=1).heldout != task.heldout
    everything = task.train + task.heldout
    assert len({q.index for q in everything}) == 14
    assert all(q.prompt == f"{q.index}?\nThink." and q.answer == str(q.index) for q in everything)
    assert load(section.model_copy(update={"size": 3}), seed=0).heldout == task.heldout
    few = without_long_prompts(task, lambda q: len(q.prompt), len("1?\nThink."))
    assert {len(q.prompt) for q in few.train} == {len("1?\nThink.")}
    with pytest.raises(ValueError, match=r"rollout\.max_prompt_tokens=2"):
        without_long_prompts(task, lambda q: len(q.prompt), 2)
    with pytest.raises(ValueError, match=naming("task.heldout", "q.jsonl", 20)):
        load(section.model_copy(update={"heldout": 20}), seed=0)


def test_the_command_prints_counts_and_says_when_they_are_not_the_published_ones(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    row = {"problem": "a?", "answer": "1"}
    write(tmp_path / "test.jsonl", [row, row, {"problem": "b?", "answer": ""}])
    done = CliRunner().invoke(app, ["data", "math-500", "test.jsonl"])
    assert done.exit_code == 0
    counts, warning = done.output.splitlines()
    assert_names(counts, "data/math-500.jsonl", "1 questions", "3 rows", "1 repeated")
    assert_names(warning, "math-500", 500)
    assert [q.prompt for q in files.questions(tmp_path / "data" / "math-500.jsonl")] == ["a?"]
    for arguments, names in (
        (["math-501", "test.jsonl"], ("math-501", "aime24", "amc")),
        (["math-500", "none.jsonl"], ("none.jsonl",)),
        (["math-500", "test.csv"], ("test.csv",)),
    ):
        done = CliRunner().invoke(app, ["data", *arguments])
        assert done.exit_code == 2
        assert_names(done.output, *names)
