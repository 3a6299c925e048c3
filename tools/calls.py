"""Calls, by this project and by Megatron for it, of packages that cannot run without a GPU, and
requests to vLLM's server: read from the callers' source, which is not run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = ("amp_C", "fused_weight_gradient_mlp_cuda")  # apex's, of C++
PACKAGES = ("vllm", "transformer_engine", "apex", *EXTENSIONS)
# parts of Megatron that a run on GPUs uses (of its layers, the spec that the bridge makes)
MEGATRON = {
    "optimizer/__init__.py": None,
    "optimizer/clip_grads.py": None,
    "optimizer/optimizer.py": None,
    "tensor_parallel/layers.py": None,
    "extensions/transformer_engine.py": (
        *("TENorm", "TELinear", "TELayerNormColumnParallelLinear", "TEColumnParallelLinear"),
        *("TERowParallelLinear", "TEDotProductAttention"),
    ),
}
# calls that the source does not show: the object is made elsewhere, or arguments go by HTTP
TRANSFER = "vllm.distributed.weight_transfer.nccl_common.NCCLWeightTransferInitInfo"
COMMUNICATOR = "vllm.distributed.device_communicators.pynccl.PyNcclCommunicator"
OWN = ("broadcast",)  # methods of our subclasses that their bases do not have


@dataclass(frozen=True)
class Call:
    """A call, or a use of a name that must exist."""

    target: str  # dotted, MODULE.NAME or MODULE.CLASS.METHOD
    where: str  # file and line
    positional: int | None = None  # number of arguments; None: only named
    keywords: tuple[str, ...] = ()
    more: bool = False  # * or ** arguments, which the source does not show

    def fault(self, signature: str) -> str | None:
        """Why a function with this signature cannot be called like this."""
        if self.positional is None:
            return None
        try:
            bind = parsed(signature).bind_partial if self.more else parsed(signature).bind
            bind(*[None] * self.positional, **dict.fromkeys(self.keywords))
        except TypeError as error:
            return f"{self.where}: {self.target}{signature}: {error}"
        return None


def parsed(signature: str) -> inspect.Signature:
    """``(a, b=..., *, c)`` as a Python signature."""
    names: dict[str, object] = {}
    exec(f"def function{signature}: pass", names)  # text of the manifest, which is the project's
    return inspect.signature(names["function"])  # type: ignore[arg-type]


def callers() -> Iterator[tuple[Path, tuple[str, ...] | None]]:
    """Files, and the classes in them that matter (None: the whole file)."""
    for path in sorted((ROOT / "pipeline" / "aent").rglob("*.py")):
        yield path, None
    spec = importlib.util.find_spec("megatron")
    for folder in (spec and spec.submodule_search_locations) or ():
        for name, classes in MEGATRON.items():
            yield Path(folder) / "core" / name, classes


@cache
def all_calls() -> list[Call]:
    joined = ("nccl_unique_id_b64", "rank_offset", "world_size")
    return [
        *(call for path, classes in callers() for call in calls(path, classes)),
        Call(TRANSFER, "weights/transport.py", 0, joined),
        Call(f"{COMMUNICATOR}.broadcast", "weights/worker_extension.py", 1, ("src", "stream")),
    ]


def calls(path: Path, classes: tuple[str, ...] | None = None) -> list[Call]:
    """The names from ``PACKAGES`` that a file calls or uses."""
    tree = ast.parse(path.read_text())
    names = imported(tree)
    found = []
    parts = tree.body if classes is None else _classes(tree, classes)
    for part in parts:
        bases = _bases(part, names)
        for node in ast.walk(part):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom | ast.Import):
                targets = [
                    t for alias in node.names for t in names.get(alias.asname or alias.name, ())
                ]
                found += [Call(target, where) for target in targets]
            elif isinstance(node, ast.Call):
                for target in _targets(node.func, names, bases):
                    found.append(_call(target, where, node))
            elif isinstance(node, ast.Attribute):  # a function of an extension that is passed on
                passed_on = _targets(node, names, set())
                found += [Call(t, where) for t in passed_on if t.split(".")[0] in EXTENSIONS]
        if isinstance(part, ast.ClassDef):
            found += _overrides(part, bases, path)
    return [*found, *_adam(tree, names, path)]


def imported(tree: ast.Module) -> dict[str, set[str]]:
    """Local name -> names from ``PACKAGES`` that it may mean (several if an import may fail)."""
    names: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PACKAGES:
                    names[alias.asname or alias.name.split(".")[0]].add(
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for alias in node.names if node.level == 0 else ():
                names[alias.asname or alias.name].add(f"{node.module}.{alias.name}")
    return names


def _classes(tree: ast.Module, wanted: tuple[str, ...]) -> list[ast.stmt]:
    found: list[ast.stmt] = [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in wanted
    ]
    assert len(found) == len(wanted), f"of {wanted} some are not there"
    return found


def _bases(node: ast.stmt, names: dict[str, set[str]]) -> set[str]:
    if not isinstance(node, ast.ClassDef):
        return set()
    plain = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return {target for base in plain for target in _targets(base, names, set())}


def _targets(node: ast.expr, names: dict[str, set[str]], bases: set[str]) -> set[str]:
    """What a called expression may refer to; ``super()`` refers to each of the bases."""
    if isinstance(node, ast.Name):
        return names.get(node.id, set())
    if isinstance(node, ast.Call):  # a method of a new object
        is_super = isinstance(node.func, ast.Name) and node.func.id == "super"
        return bases if is_super else _targets(node.func, names, bases)
    if isinstance(node, ast.Attribute):
        owners = _targets(node.value, names, bases)
        return owners if node.attr == "__init__" else {f"{owner}.{node.attr}" for owner in owners}
    return set()


def _call(target: str, where: str, node: ast.Call) -> Call:
    plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    keywords = tuple(sorted(k.arg for k in node.keywords if k.arg is not None))
    more = len(plain) < len(node.args) or len(keywords) < len(node.keywords)
    return Call(target, where, len(plain), keywords, more)


def _overrides(node: ast.ClassDef, bases: set[str], path: Path) -> Iterator[Call]:
    """Methods that a base calls, with the number of arguments that it declares."""
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
            continue
        if method.name not in OWN and "megatron" not in path.parts:
            for base in bases:
                where = f"{path.name}:{method.lineno}"
                yield Call(f"{base}.{method.name}", where, len(method.args.args) - 1)


def _adam(tree: ast.Module, names: dict[str, set[str]], path: Path) -> Iterator[Call]:
    """Megatron's optimizer collects Adam's arguments in a dict called kwargs: those that it passes
    for this project's settings."""
    if "Adam" not in names or path.parent.name != "optimizer":
        return
    keywords: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if (
            isinstance(target, ast.Name)
            and target.id == "kwargs"
            and isinstance(node.value, ast.Dict)
        ):
            keys = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
            keywords |= {str(key) for key in keys} if "betas" in keys else set()
        elif isinstance(target, ast.Subscript) and getattr(target.value, "id", "") == "kwargs":
            keywords.add(ast.literal_eval(target.slice))
    assert "adam_w_mode" in keywords, f"{path}: Adam is called otherwise than it was"
    for adam in names["Adam"]:
        yield Call(adam, path.name, 0, tuple(sorted(keywords)))


def routes() -> dict[str, set[str]]:
    """``METHOD PATH`` of vLLM's server -> names of the arguments sent with it."""
    found: dict[str, set[str]] = defaultdict(set)
    for folder in ("inference", "weights", "evaluation", "orchestrator"):
        for path in sorted((ROOT / "pipeline" / "aent" / folder).glob("*.py")):
            tree = ast.parse(path.read_text())
            constants = {
                node.targets[0].id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and (route := _route(node, constants)):
                    found[route] |= _sent(node)
    return dict(found)


def _route(node: ast.Call, constants: Mapping[str, object]) -> str | None:
    words = [
        constants.get(a.id) if isinstance(a, ast.Name) else getattr(a, "value", None)
        for a in node.args
    ]
    for method, path in pairwise(words):
        if method in ("GET", "POST") and isinstance(path, str) and path.startswith("/"):
            return f"{method} {path}"
    return None


def _sent(node: ast.Call) -> set[str]:
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    dicts = (value for value in values if isinstance(value, ast.Dict))
    return {str(key.value) for d in dicts for key in d.keys if isinstance(key, ast.Constant)}
