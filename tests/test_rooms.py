"""The table of docs/architecture.md against the imports: every file has a room, imports go down."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline" / "aent"
TABLE = (ROOT / "docs" / "architecture.md").read_text().partition("## The rooms")[2]
ROOMS = re.findall(r"^\| `(\w+)/` \|", TABLE, re.M)  # from the top floor down


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere: also in functions, and only for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        found |= {name for name in names if name in MODULES}
    return found


GRAPH = {name: imports(path) - {name} for name, path in MODULES.items()}


def room(module: str) -> str | None:
    """None for the package's own files, ``__init__`` and ``__main__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def test_every_file_has_a_room_and_every_room_files() -> None:
    assert {room(module) for module in MODULES} == {None, *ROOMS}
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("upper", ROOMS)
def test_imports_go_down(upper: str) -> None:
    above = ROOMS[: ROOMS.index(upper)]
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if room(module) == upper and room(other) in above
    ]
    assert not wrong


def test_there_is_no_circle() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_trainer_and_engines_do_not_know_each_other() -> None:
    for module, others in GRAPH.items():
        if room(module) == "trainer":
            assert not {room(other) for other in others} & {"inference", "weights"}, module
        if room(module) in ("inference", "weights"):
            assert "trainer" not in {room(other) for other in others}, module
    assert {room(o) for m, others in GRAPH.items() for o in others if room(m) == "recipe"} <= {
        "recipe"
    }
    assert {room(o) for m, others in GRAPH.items() for o in others if room(m) == "entropy"} <= {
        "entropy"
    }
