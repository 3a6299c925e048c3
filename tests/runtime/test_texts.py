"""Texts of others that not every file, terminal or tracker takes as they are."""

import subprocess
import sys

import pytest

from aent.runtime.texts import encodable, visible, whole

HIGH, LOW = "\ud83d", "\ude00"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain \0 \u20ac \U0001f600", "plain \0 \u20ac \U0001f600"),
        (HIGH + LOW, "\U0001f600"),
        (LOW + HIGH, "\ufffd\ufffd"),
        (f"a{HIGH}b{LOW}", "a\ufffdb\ufffd"),
        (HIGH + HIGH + LOW, "\ufffd\U0001f600"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_half_a_character_is_replaced(text, expected):
    assert whole(text) == expected


def test_what_a_terminal_would_obey_is_written_out():
    assert visible("caf\u00e9 \U0001f600 'x'") == "caf\u00e9 \U0001f600 'x'"
    assert visible("\0\x1b[2J\n\x7f\u202e\ud800") == r"\x00\x1b[2J\n\x7f\u202e\ud800"


def test_characters_that_an_encoding_lacks_are_written_out():
    assert encodable("caf\u00e9 \u2192 \ud800", "latin-1") == r"café \u2192 \ud800"
    assert encodable("\u2192 \ud800", None) == r"→ \ud800"


@pytest.mark.parametrize(
    "code",
    [
        "from aent.runtime.log import log\nlog.info(TEXT); log.error(TEXT)\n"
        "sys.stdout = None; log.info(TEXT)  # as Python has it where none is open",
        "from aent.cli import main\n"
        "main.app = lambda: [print(TEXT, file=stream) for stream in (sys.stdout, sys.stderr)]\n"
        "main.main()",
    ],
)
def test_neither_the_log_nor_a_command_loses_a_line_to_a_terminal_without_its_characters(code):
    begin = "import sys\nTEXT = 'caf\\xe9 \\u2192 \\ud800'\n"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", begin + code],
        capture_output=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "latin-1:strict"},
        timeout=300,
    )
    expected = b"caf\xe9 \\u2192 \\ud800\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, expected)
