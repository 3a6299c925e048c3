"""Calls that cannot run without a GPU, against the committed signatures of the sources (``make
contracts`` writes them), and the images, against the versions that those pin."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from aent.runtime.environment import installed_version
from wording import assert_names

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import calls  # noqa: E402
import contracts  # noqa: E402
from signatures import Sources, of_extension  # noqa: E402

MANIFEST = json.loads(contracts.MANIFEST.read_text())
NAMES = {**MANIFEST["apex"]["names"], **MANIFEST["transformer_engine"]["names"]}
NAMES |= MANIFEST["vllm"]["names"]
DOCKERFILES = {
    name: (ROOT / "containers" / f"{name}.Dockerfile").read_text()
    for name in ("trainer", "rollout")
}


def argument(dockerfile: str, name: str) -> str:
    (value,) = re.findall(rf"^ARG {name}=(\S+)$", DOCKERFILES[dockerfile], re.MULTILINE)
    return value


def test_what_we_call_is_there_and_takes_our_arguments() -> None:
    made = calls.all_calls()
    assert {"vllm", "transformer_engine", *calls.EXTENSIONS} <= {
        c.target.split(".")[0] for c in made
    }
    missing = [f"{call.where}: {call.target}" for call in made if call.target not in NAMES]
    assert not missing, "run make contracts"
    assert not [fault for call in made if (fault := call.fault(NAMES[call.target]))]


def test_nothing_stands_there_that_nobody_calls() -> None:
    assert NAMES.keys() == {call.target for call in calls.all_calls()}


def test_routes_options_and_variables_of_the_engines_are_vllms() -> None:
    engine, routes = MANIFEST["vllm"], calls.routes()
    routes["POST /inference/v1/generate"] |= contracts.request_body().keys()
    assert routes.keys() == engine["routes"].keys()
    for route, sent in routes.items():
        assert sent <= set(engine["routes"][route]), route
    assert contracts.given_options() == set(engine["options"])
    assert contracts.given_variables() == set(engine["environment"])
    assert contracts.given_sampling() == set(engine["sampling_params"])


def test_the_manifest_is_of_the_vllm_that_is_installed() -> None:
    assert contracts.of_vllm(contracts.installed_vllm()) == MANIFEST["vllm"]


def test_the_images_have_the_versions_that_the_sources_pin() -> None:
    pins = MANIFEST["pins"]
    assert argument("rollout", "BASE_IMAGE").endswith(f":v{MANIFEST['vllm']['version']}")
    assert argument("trainer", "NCCL") == pins["nccl"]
    assert argument("trainer", "APEX_COMMIT") == MANIFEST["apex"]["commit"]
    assert MANIFEST["transformer_engine"]["version"] == contracts.TRANSFORMER_ENGINE
    assert contracts.TRANSFORMER_ENGINE in SpecifierSet(pins["transformer-engine"])
    assert pins["megatron-core"] == installed_version("megatron-core")
    lock = (ROOT / "containers" / "locks" / "cpu.lock.txt").read_text()
    assert f"\ntorch=={pins['torch']}" in lock  # what the tests run with is what the engines have


SOURCE = """
from elsewhere import Foreign
from .base import Base

class Made(Base):
    def __init__(self, a, *, b=1): ...
    def own(self, x, y=0): ...

applier = Made(1)
"""
BASE = """
from dataclasses import dataclass

class Base:
    def __call__(self, op, *rest, **more): ...
    def inherited(self, z): ...

@dataclass
class Facts:
    first: int
    second: int = 0

@dataclass(kw_only=True)
class Named:
    first: int = 0
    second: int
"""


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    (tmp_path / "te" / "part").mkdir(parents=True)
    (tmp_path / "te" / "__init__.py").write_text("from te.part.made import Made, Foreign as Other")
    (tmp_path / "te" / "part" / "made.py").write_text(SOURCE)
    (tmp_path / "te" / "part" / "base.py").write_text(BASE)
    return Sources(tmp_path, "te")


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("te.Made", "(a, *, b=...)"),
        ("te.Made.own", "(x, y=...)"),
        ("te.Made.inherited", "(z)"),
        ("te.part.made.applier", "(op, *rest, **more)"),
        ("te.part.base.Facts", "(first, second=...)"),
        ("te.part.base.Named", "(*, first=..., second)"),
        ("te.Other", "of elsewhere"),
        ("te.part", None),
        ("te.Gone", None),
        ("te.Made.gone", None),
    ],
)
def test_signatures_are_read_from_text(sources: Sources, name: str, signature: str | None) -> None:
    if signature is None:
        with pytest.raises(LookupError):
            sources.signature(name)
    else:
        assert sources.signature(name) == signature


def test_functions_of_an_extension_are_read_from_text(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(
        'void add(at::Tensor& x, float scale);\nPYBIND11_MODULE(e, m) { m.def("add_", &add, ""); }'
    )
    assert of_extension(tmp_path, "add_") == "(x, scale)"
    with pytest.raises(LookupError):
        of_extension(tmp_path, "add")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("made(1)", None),
        ("made(1, b=2)", None),
        ("made(1, 2)", "positional"),
        ("made(1, c=2)", "c"),
        ("made()", "a"),
        ("made(*given)", None),  # the text does not tell
        ("made(c=1, **given)", "c"),
    ],
)
def test_a_call_that_a_signature_does_not_take_is_found(
    tmp_path: Path, call: str, named: str | None
) -> None:
    (tmp_path / "a.py").write_text(f"from apex.x import Made as made\n{call}\n")
    (named_only, found) = calls.calls(tmp_path / "a.py")
    assert (named_only.target, named_only.positional) == ("apex.x.Made", None)
    assert found.target == "apex.x.Made"
    fault = found.fault("(a, *, b=...)")
    assert (fault is None) == (named is None)
    if named is not None:
        assert_names(fault or "", "a.py:2", named)
