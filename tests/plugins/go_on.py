"""``--go-on``: leave out what has passed on this very tree before (``make test-all``)."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

_passed_file = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--go-on", action="store_true", help="leave out what has passed on this tree before"
    )


def tree(root: Path) -> str:
    """A name for the files as they are: the commit and what differs from it."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout

    digest = hashlib.sha256(git("rev-parse", "HEAD") + git("diff", "HEAD", "--binary"))
    for name in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        if name:
            digest.update(name + (root / name.decode()).read_bytes())
    return digest.hexdigest()[:16]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--go-on"):
        return
    assert config.cache is not None
    path = config.cache.mkdir("passed") / tree(config.rootpath)
    config.stash[_passed_file] = path
    passed = set(path.read_text().splitlines()) if path.exists() else set()
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid in passed])
    items[:] = [i for i in items if i.nodeid not in passed]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call" and report.passed and _passed_file in item.config.stash:
        with item.config.stash[_passed_file].open("a") as file:
            file.write(item.nodeid + "\n")
    return report
