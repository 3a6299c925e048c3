"""Programs in responses, and their tests: the answers of questions for a ``code`` grader.

An answer is Python code: asserts, or anything that raises if the program is wrong. It runs after
the program in the same module, so it can call the program's functions by name.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path

from aent.tasks.code.runner import DIGITS

# whole lines: what begins and what ends a fenced block
_BEGINS = re.compile(r"([ \t]*+)```[ \t]*+([\w+-]*+)[^`<]*+")
_ENDS = re.compile(r"[ \t]*+```\s*+")
RUNNER = Path(__file__).with_name("runner.py").read_text(encoding="utf-8")


def program_in(response: str) -> str:
    """The program in a response: its last fenced block marked as Python, else its last one without
    a language, else the whole text."""
    blocks = list(_blocks(response))
    for languages in (("python", "py", "python3"), ("",)):
        marked = [text for language, text in blocks if language.lower() in languages]
        if marked:
            return marked[-1]
    return response


def _blocks(response: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block that ends, without its fence's indentation: Markdown
    indents a block that belongs to an item of a list."""
    begun: re.Match[str] | None = None
    lines: list[str] = []
    for line in response.split("\n"):
        if begun is None:
            begun, lines = _BEGINS.fullmatch(line), []
        elif _ENDS.fullmatch(line):
            yield begun[2], "".join(lines)
            begun = None
        else:
            lines.append(line.removeprefix(begun[1]) + "\n")


def check_tests(tests: str) -> None:
    """Raise ValueError if the answer is not Python, or if every program would pass it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about backslashes in strings
            tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is not Python ({error}): {tests[:100]!r}") from None
    if not any(isinstance(node, ast.Assert | ast.Call | ast.Raise) for node in ast.walk(tree)):
        raise ValueError(f"has no assert and no call, so that any program passes: {tests[:100]!r}")


def runner_input(response: str, tests: str, processes: int) -> tuple[bytes, bytes]:
    """(the runner's input, its output if the tests pass).

    processes: how many the program may have; 0: the runner sets no limit.
    """
    mark = secrets.token_hex(16)
    first = {"program": program_in(response), "processes": processes}
    blocks = [json.dumps(block).encode() for block in (first, {"tests": tests, "mark": mark})]
    return b"".join(f"{len(b):0{DIGITS}}".encode() + b for b in blocks), mark.encode()
