"""The commands that the docs show can be given: options, fields, targets and files exist."""

import ast
import re
import shlex
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.core import TyperGroup

from aent.cli.main import app
from aent.evaluation.suites import CHANGEABLE
from aent.recipe.reference import parts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [ROOT / "slurm/README.md", ROOT / "containers/README.md"]
SHELL = ("", "bash", "console", "sh")
FIELDS = {f"{part.path}.{entry.name}".lstrip(".") for part in parts() for entry in part.entries}
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))


@dataclass(frozen=True)
class Command:
    """One command of a page: ``aent``, ``make`` or ``sbatch``, and its words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def shown(page: Path) -> Iterator[str]:
    """The page's shell blocks, and its inline code, each as lines."""
    text = page.read_text()
    fence = r"^ *```(\w*)\n(.*?)^ *```"
    for language, block in re.findall(fence, text, re.M | re.S):
        if language in SHELL:
            yield block.replace("\\\n", " ")
    for span in re.findall(r"`([^`]+)`", re.sub(fence, "", text, flags=re.M | re.S)):
        yield " ".join(span.split())


def commands(page: Path) -> Iterator[Command]:
    for block in shown(page):
        variables: dict[str, str] = {}
        for line in block.splitlines():
            for words in _simple(line):
                while words and re.fullmatch(r"(\w+)=(\S*)|do|\$", words[0]):
                    name, _, value = words.pop(0).partition("=")
                    variables[name] = value
                words = [string.Template(word).safe_substitute(variables) for word in words]
                program = words[0].removeprefix(".venv/bin/") if words else ""
                if program in ("aent", "make", "sbatch") and len(words) > 1:
                    yield Command(page.name, (program, *words[1:]))


def _simple(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        tokens = list(lexer)
    except ValueError:  # not shell: an apostrophe in a sentence
        return
    words: list[str] = []
    for token in [*tokens, ";"]:
        if set(token) <= set(";|&>"):
            yield words
            words = []
        else:
            words.append(token)


def leaves(group: TyperGroup, path: str = "aent") -> Iterator[tuple[str, str]]:
    """(command, its help) of every command, those of groups too."""
    for name, found in group.commands.items():
        if isinstance(found, TyperGroup):
            yield from leaves(found, f"{path} {name}")
        else:
            yield f"{path} {name}", found.help or ""


ALL = sorted({command for page in PAGES for command in commands(page)}, key=str)


def plain(words: tuple[str, ...]) -> list[str]:
    """Without "..." for further overrides, and without the brackets of optional parts."""
    pairs = zip(("", *words), words)
    left = [word for before, word in pairs if word.strip("]") != "..." or "=" not in before]
    return [word if "{" in word else word.strip("[]") for word in left]


def check_field(name: str, command: Command) -> None:
    extra: tuple[str, ...] = ("section.field", "key")
    extra += tuple(CHANGEABLE) if command.words[1] == "eval" else ()
    assert name in FIELDS or name in extra, f"{command}: a recipe has no field {name}"


def check_files(words: list[str], command: Command) -> None:
    for word in words:
        own = "mine" in word or "$" in word  # the reader's
        if word.startswith(("recipes/", "slurm/")) and not own:
            assert list(ROOT.glob(word)), f"{command}: there is no {word}"


def check_aent(command: Command) -> None:
    words = plain(command.words[1:])
    found = typer.main.get_command(app)
    context = found.make_context("aent", [], resilient_parsing=True)
    while isinstance(found, TyperGroup):
        name = words.pop(0) if words else ""
        if name == "...":  # any of its commands
            return
        assert name in found.commands, f"{command}: there is no command {name}"
        found = found.commands[name]
        context = found.make_context(name, [], parent=context, resilient_parsing=True)
    if not words:  # a command's name alone: it is spoken of
        return
    context.resilient_parsing = False
    try:
        found.parse_args(context, words)
    except Exception as error:  # typer's, which has click's under another name in newer versions
        raise AssertionError(f"{command}: {error}") from None


def check_make(command: Command) -> None:
    for target in (word for word in plain(command.words[1:]) if "=" not in word and word[0] != "-"):
        assert target in TARGETS, f"{command}: the Makefile has no target {target}"


def check(command: Command) -> None:
    """Raises AssertionError if the command cannot be given."""
    words = plain(command.words[1:])
    check_files(words, command)
    if command.words[0] == "make":
        return check_make(command)
    if command.words[0] == "aent":
        check_aent(command)
    before = "controller." if command.words[1:3] == ("lab", "control") else ""
    for word in words:
        if (name := re.match(r"([a-z][\w.]*)=", word)) is not None:
            check_field(before + name[1], command)


@pytest.mark.parametrize("program", ["aent", "make", "sbatch"])
def test_the_commands_of_the_docs_can_be_given(program: str) -> None:
    chosen = [command for command in ALL if command.words[0] == program]
    assert len(chosen) >= 3
    for command in chosen:
        check(command)


def test_every_command_says_in_one_line_what_it_does_and_has_an_example() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    found = dict(leaves(group))
    assert {"aent train", "aent slurm submit", "aent lab control"} <= found.keys()
    for name, text in found.items():
        first, *_, last = text.split("\n\n")
        assert re.fullmatch(r"[A-Z].*\.", first), f"{name}: {first}"  # one line
        assert re.fullmatch(rf"Example: {name} .*", last), f"{name}: {last}"
        example = last.removeprefix("Example: ")
        check(Command(f"{name} --help", tuple(shlex.split(example))))


@pytest.mark.parametrize(
    "line",
    [
        "aent train recipes/cpu/tiny.yaml --no-such-option",
        "aent train recipes/cpu/no-such.yaml",
        "aent train recipes/cpu/tiny.yaml rollout.no_such=1",
        "aent no-such-command recipes/cpu/tiny.yaml",
        "aent lab control log_pi no_such=1",
        "make no-such-target",
        "sbatch slurm/no-such.sbatch",
    ],
)
def test_a_command_that_cannot_be_given_is_found(line: str) -> None:
    with pytest.raises(AssertionError, match=r"no[-_]such"):
        check(Command("a page", tuple(line.split())))


def test_the_pages_link_files_that_exist_and_drawings_are_xml() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    drawings = sorted(ROOT.glob("docs/images/*.svg"))
    assert drawings
    for drawing in drawings:
        assert ElementTree.parse(drawing).getroot().tag.endswith("svg")


# messages of other programs, and of the shell
NOT_OURS = ("srun: error", "apptainer: not found", "Watchdog caught", "CUDA out of memory",
            "No available memory", "No space left")  # fmt: skip


def said_by_the_code() -> str:
    """Every text of the package and of the Slurm scripts, what is filled in as a line break."""
    texts = [path.read_text() for path in sorted(ROOT.glob("slurm/*.s*"))]
    for path in (ROOT / "pipeline/aent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                values = [v.value if isinstance(v, ast.Constant) else "\n" for v in node.values]
                texts.append("".join(map(str, values)))
    return "\n".join(texts)


def test_the_messages_of_troubleshooting_are_the_codes() -> None:
    """The code contains each quoted message, cut at the parts that differ from run to run."""
    rows = (ROOT / "docs/troubleshooting.md").read_text().splitlines()
    first = [row.split("|")[1] for row in rows if row.startswith("| `")]
    quoted = [quote for cell in first for quote in re.findall("`([^`]+)`", cell)]
    assert len(quoted) > 40
    said = said_by_the_code()
    varies = (
        r"^alert |\bengines\b|\bnan\b|\.\.\.|\b[NM]\b|\bNODE\b|\bnode7\b|\b\d[\d.]*\b|=\S+|[()]"
    )
    for quote in quoted:
        if not quote.startswith(NOT_OURS):
            for piece in re.split(varies, quote):
                assert piece.strip(" :,;") in said, f"troubleshooting.md: {quote!r}: {piece!r}"
