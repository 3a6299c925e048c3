"""Programs in responses, and their tests: the answers of questions for a ``code`` grader.

An answer is a Python text: asserts, or whatever raises where the program is wrong. It runs behind
the program in the same module, so that it calls the program's functions by their names.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import warnings
from pathlib import Path

from aent.tasks.code.runner import DIGITS

_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`<]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.M)
RUNNER = Path(__file__).with_name("runner.py").read_text(encoding="utf-8")


def program_in(response: str) -> str:
    """The program of a response: its last fenced block that is marked as Python, else its last one
    without a language, else the whole text."""
    blocks = _FENCED.findall(response)
    for languages in (("python", "py", "python3"), ("",)):
        marked = [text for language, text in blocks if language.lower() in languages]
        if marked:
            return marked[-1]
    return response


def check_tests(tests: str) -> None:
    """Raise ValueError for an answer that is no Python, or that no program could fail."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in texts
            tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no Python ({error}): {tests[:100]!r}") from None
    if not any(isinstance(node, ast.Assert | ast.Call | ast.Raise) for node in ast.walk(tree)):
        raise ValueError(f"has no assert and no call, so that any program passes: {tests[:100]!r}")


def runner_input(response: str, tests: str, processes: int) -> tuple[bytes, bytes]:
    """(what the runner reads, what it writes where the tests have passed).

    processes: that the program may have; 0: the runner sets no limit.
    """
    mark = secrets.token_hex(16)
    first = {"program": program_in(response), "processes": processes}
    blocks = [json.dumps(block).encode() for block in (first, {"tests": tests, "mark": mark})]
    return b"".join(f"{len(b):0{DIGITS}}".encode() + b for b in blocks), mark.encode()
