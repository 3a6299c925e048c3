"""The part of a response that is the program, and the kinds of tests."""

from __future__ import annotations

import pytest

from aent.tasks.code.programs import check_tests, program_in
from wording import naming


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("def f(): return 1", "def f(): return 1"),
        ("First\n```python\na = 1\n```\nbetter:\n```py\nb = 2\n```\n", "b = 2\n"),
        ("```python\nb = 2\n```\nwhich prints\n```\n3\n```", "b = 2\n"),
        ("```\nb = 2\n```\nand\n```bash\nls\n```", "b = 2\n"),
        ("<think>```python\nno\n```</think>\n\n```Python\n\ns = '```'\n```", "\ns = '```'\n"),
        ("1. So:\n   ```python\n   if 1:\n       x\n\n   y\n   ```", "if 1:\n    x\n\ny\n"),
        ("```python\n  if 1:\n    x\n  ```", "  if 1:\n    x\n"),
        # one pass over the text, however often it begins a block (before: hours)
        ("```py\na\n```\n" + "```python\n" * 100_000, "a\n"),
        ("```python\nnever ended", "```python\nnever ended"),
    ],
)
def test_the_last_block_of_python_is_the_program(response: str, program: str) -> None:
    assert program_in(response) == program


@pytest.mark.parametrize("tests", ["assert f(1) == 2", "check(f)", "if f(1) != 2:\n    raise E"])
def test_what_can_fail_is_a_test(tests: str) -> None:
    check_tests(tests)


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        ("7", "assert any 7"),
        ("x = 3", "assert any"),
        ("assert f(1) =", "Python assert"),
        ("the answer", "Python answer"),
        ("a\0b", "Python"),
    ],
)
def test_what_cannot_fail_is_none(tests: str, names: str) -> None:
    with pytest.raises(ValueError, match=naming(*names.split())):
        check_tests(tests)
