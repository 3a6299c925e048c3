from decimal import Decimal
from pathlib import Path

import pytest
from sympy import SympifyError

from aent.data.question import Question
from aent.tasks import verifiers


def question(answer, **metadata):
    return Question(0, "?", answer, metadata)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 7.", "7"),
        ("3 + 4 = 7", "7"),
        ("3 - 5 = -2", "-2"),
        ("3 - 5 = \N{MINUS SIGN}2.", "-2"),
        ("7-5", "5"),
        ("7 - 5", "5"),
        ("it is $1,234.50", "1234.50"),
        ("1,2", "2"),
        (r"\boxed{-12}", "-12"),
        ("**8**", "8"),
        ("so...9", "9"),
        ("007", "7"),
        ("2.50", "2.5"),
        ("version x2 has 3", "3"),
        ("x2", None),
        ("seven", None),
        ("", None),
        (".5", "0.5"),
        ("it is -.5", "-0.5"),
        ("so 1e3", "1000"),
        ("1.5E-2 m", "0.015"),
        ("2e", "2"),
        ("1e9999", "1"),
        ("\N{EN DASH}5", "-5"),
        ("5\N{EN DASH}10", "10"),
        ("3.0.1", "3.0"),
        (r"\boxed{1{,}234}", "1234"),
        (r"$1,\!234,\!567$", "1234567"),
        ("f(2,1000)", "1000"),
    ],
)
def test_last_number_in(text, number):
    found = verifiers.last_number_in(text)
    assert found == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("7", "7"), (" -1,234.50 ", "-1234.5"), (".5", "0.5"), ("+2", "2"), ("1e3", "1000"),
        ("1{,}000", "1000"),
        ("3/4", None), (r"\frac{3}{4}", None), ("50%", None), ("10:30", None), ("7.", None),
        ("5-10", None), ("1 234", None), ("12,34,567", None), ("nan", None), ("x2", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_reference_is_a_number_as_a_whole(answer, number):
    assert verifiers.as_number(answer) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("It is 0.5", ".5", 1.0),
        ("It is 5", ".5", 0.0),
        ("So 1000", "1e3", 1.0),
        ("The answer is 4.", "3/4", 0.0),
        ("3 + 4 = 7", "7", 1.0),
        ("7, because 3 + 4 = 8", "7", 0.0),
        ("7.0", "7", 1.0),
        ("77", "7", 0.0),
        ("-7", "7", 0.0),
        ("1,000", "1000", 1.0),
        ("no idea", "7", 0.0),
    ],
)
def test_last_number(response, answer, reward):
    assert verifiers.last_number(response, question(answer)) == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("7", 1.0),
        (" +7.0 \n", 1.0),
        ("<answer> 7 </answer>", 1.0),
        ("Easy: <answer>8</answer>", 0.0),
        ("the 7", 0.2),  # the scorer's partial credit: length of the answer over all
        ("eight", 0.0),
        ("", 0.0),
    ],
)
def test_reasoning_gym(response, reward):
    verify = verifiers.make("reasoning_gym", "chain_sum", {})
    assert verify(response, question("7")) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("The answer is 7.", "7", 1.0),
        (r"so $\boxed{\frac{1}{2}}$", "0.5", 1.0),
        (r"$\frac{2}{4}$", r"$\frac{1}{2}$", 1.0),
        ("$x + 1$", "$1 + x$", 1.0),
        ("$x + 2$", "$1 + x$", 0.0),
        ("I do not know", "7", 0.0),
        (r"\boxed{east}", "seat", 0.0),
        (r"\boxed{no}", "on", 0.0),
        (r"\boxed{\text{No~solution}}", "no solution", 1.0),
        (r"\boxed{\text{even}}", r"\text{even}", 1.0),
        (r"\boxed{neve}", r"\text{even}", 0.0),
        (r"\boxed{x \cdot y}", "xy", 1.0),
        (r"\boxed{yx}", "xy", 1.0),
        (r"\boxed{\text{A}}", "A", 1.0),
    ],
)
def test_math_verify(response, answer, reward):
    verify = verifiers.make("math_verify", "chain_sum", {})
    assert verify(response, question(answer)) == reward


def pairs():
    lines = (Path(__file__).parent / "answers.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@pytest.mark.slow
def test_math_verify_judges_the_table_of_answers():
    verify = verifiers.make("math_verify", "", {})
    table = pairs()
    assert len({tuple(row[:3]) for row in table}) == len(table) >= 290
    assert {row[3] for row in table} == {"right", "wrong"}
    surprises = []
    for kind, reference, response, expected, *limit in table:
        verdict = "right" if verify(response, question(reference)) else "wrong"
        if (verdict == expected) is bool(limit):  # a limit that is none any more is news too
            surprises.append((kind, reference, response, verdict, *limit))
    assert surprises == []


@pytest.mark.parametrize(
    ("answer", "delimited"),
    [
        (r"\frac{1}{2}", r"$\frac{1}{2}$"),
        ("$x$", "$x$"),
        (r"\boxed{7}", r"\boxed{7}"),
        (r"\$18", r"$\$18$"),
        ("the sum, $7$", "the sum, $7$"),
    ],
)
def test_a_reference_is_set_in_mathematics_once(answer, delimited):
    assert verifiers.in_mathematics(answer) == delimited


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $x = \boxed{7}$.", "7"),
        (r"\boxed{1} is wrong, $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\{1, \sqrt{2}\}}", r"\{1, \sqrt{2}\}"),
        (r"we get $\boxed 5$ in all", "5"),
        (r"no answer", None),
        (r"\boxed{7", None),
        (r"\boxed{ }", None),
    ],
)
def test_last_boxed(solution, answer):
    assert verifiers.last_boxed(solution) == answer


@pytest.mark.parametrize(
    ("verifier", "response", "answer"),
    [
        ("last_number", "so 1,200.50", "1200.5"),
        ("last_number", "100", "100"),
        ("last_number", "-0.0", "0"),
        ("last_number", "none", None),
        ("math_verify", r"\boxed{ 1 / 2 }, no: \boxed{\frac{1} {2}}", r"\frac{1}{2}"),
        ("math_verify", "1/2", None),
        ("reasoning_gym", "<answer>no</answer> <answer>\nyes </answer>", "yes"),
        ("reasoning_gym", "<answer>a</answer> <answer>b", "a"),
        ("reasoning_gym", "<answer>a <answer>b</answer>", "a <answer>b"),
        ("reasoning_gym", " plain\n", "plain"),
        ("reasoning_gym", " ", None),
    ],
)
def test_answer_in(verifier, response, answer):
    assert verifiers.answer_in(verifier, response) == answer


def test_an_answer_is_found_in_a_response_that_repeats_a_tag():
    """In time that grows with the text's length, not with its square (hours, here)."""
    assert verifiers.answer_in("reasoning_gym", "<answer>7</answer>" + "<answer> " * 200_000) == "7"


@pytest.mark.parametrize(
    "answer", ["nan", "NaN", "\N{FULLWIDTH DIGIT ONE}", "5$ and $6", r"\text{}"]
)
def test_a_reference_that_cannot_be_read_is_an_error(answer):
    verify = verifiers.make("math_verify", "", {})
    with pytest.raises((ValueError, SympifyError)):
        verifiers.check_reference(verify, question(answer))
