"""reasoning-gym's data sets, one at a time.

Importing reasoning-gym imports all of its hundred data sets, with sympy, matplotlib and pandas for
some of them: more than a second of processor time in the launcher, in rank 0 and in every judge. A
run uses one or two data sets, which need none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aent.runtime.importing import bare

PACKAGE = "reasoning_gym"


@dataclass(frozen=True)
class Gym:
    """Functions of reasoning-gym, and the data sets that they know."""

    datasets: Mapping[str, tuple[type, type]]  # by name: the data set's class, its configuration's
    create: Callable[..., Any]  # of a name and the configuration
    extract_answer: Callable[[str], str | None]  # what stands in the last <answer> tags

    def keys(self, name: str) -> set[str]:
        """The keys that the configuration of a data set has."""
        return {field.name for field in dataclasses.fields(self.datasets[name][1])}


@cache
def gym(name: str) -> Gym:
    """reasoning-gym with the data set ``name``, and with all others if this one cannot be imported
    by itself, or does not exist. Raises ImportError if the package is not installed."""
    with warnings.catch_warnings():
        # a warning of a package that reasoning-gym imports
        warnings.simplefilter("ignore", SyntaxWarning)
        module = None if PACKAGE in sys.modules else _module_of(name)
        if module is not None:
            with _apart():
                try:
                    bare(PACKAGE)
                    bare(module.rpartition(".")[0])
                    importlib.import_module(module)
                    found = _imported()
                except (ImportError, AttributeError):  # it needs more of its package
                    pass
                else:
                    return found
        importlib.import_module(PACKAGE)
        return _imported()


def _module_of(name: str) -> str | None:
    """The module of this data set, if it has the same name, as most do."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(f"*/{name}.py") if name.isidentifier() else ():
            if f'DATASET_NAME = "{name}"' in path.read_text(encoding="utf-8"):
                return f"{PACKAGE}.{path.parent.name}.{name}"
    return None


@contextmanager
def _apart() -> Iterator[None]:
    """Forget the package afterwards: whoever imports it then gets all of it."""
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def _imported() -> Gym:
    from reasoning_gym.factory import DATASETS, create_dataset
    from reasoning_gym.utils import extract_answer

    return Gym(DATASETS, create_dataset, extract_answer)
