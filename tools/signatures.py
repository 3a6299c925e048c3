"""Signatures of functions, read from the source of a package, which is not run."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """A class or a function, and the file that defines it."""

    node: Definition
    path: Path


@dataclass(frozen=True)
class Sources:
    """A package in the folder ``root``."""

    root: Path
    package: str

    def signature(self, dotted: str) -> str:
        """``(a, b=..., *, c)`` of a function, of a class's constructor, or of a method, without
        self; for a module, or a name from another package, a word that says so.

        Raises LookupError if there is none.
        """
        if self.module(dotted) is not None:
            return "module"
        found = self.find(dotted)
        if isinstance(found, str):
            return found
        if not isinstance(found.node, ast.ClassDef):
            return _of_function(found.node, skip=_is_method(found, dotted))
        made = self.method(found, "__init__")
        return _of_function(made.node, skip=1) if made is not None else _of_fields(found.node)

    def find(self, dotted: str) -> Found | str:
        """Its definition, or a sentence that says where it comes from. Raises LookupError."""
        parts = dotted.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            path = self.module(".".join(parts[:cut]))
            if path is not None:
                return self._inside(path, parts[cut:])
        raise LookupError(f"{dotted}: no module of that name in {self.root}")

    def module(self, dotted: str) -> Path | None:
        parts = dotted.split(".")
        path = self.root.joinpath(*parts)
        files = (path.with_suffix(".py"), path / "__init__.py")
        return next((f for f in files if f.is_file() and parts[0] == self.package), None)

    def _inside(self, path: Path, names: list[str]) -> Found | str:
        """What a module means by ``names[0]``, or by the method ``names[1]`` of that class."""
        name, *rest = names
        for node in ast.walk(_tree(path)):
            if isinstance(node, Definition) and node.name == name and node.col_offset in (0, 4):
                found = Found(node, path)
                return found if not rest else self._method_of(found, rest[0])
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._from(path, node, [alias.name, *rest])
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target, maker = node.targets[0], node.value.func
                if getattr(target, "id", "") == name and isinstance(maker, ast.Name):
                    return self._inside(path, [maker.id, "__call__"])  # an object, which is called
        raise LookupError(f"{path} has no {name}")

    def _from(self, path: Path, node: ast.ImportFrom, names: list[str]) -> Found | str:
        module = node.module or ""
        if node.level:  # relative
            folder = path.parent
            for _ in range(node.level - 1):
                folder = folder.parent
            module = ".".join([*folder.relative_to(self.root).parts, *filter(None, [module])])
        if self.module(module) is None:
            return f"of {module}"
        return self.find(".".join([module, *names]))

    def _method_of(self, owner: Found, name: str) -> Found:
        found = self.method(owner, name)
        if found is None:
            raise LookupError(f"{owner.path}: {owner.node.name} has no {name}")
        return found

    def method(self, owner: Found, name: str) -> Found | None:
        """A method of the class, or of a base class in this package."""
        assert isinstance(owner.node, ast.ClassDef)
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return Found(node, owner.path)
        for base in owner.node.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(plain, ast.Name):
                try:
                    above = self._inside(owner.path, [plain.id])
                except LookupError:
                    continue
                if isinstance(above, str) or not isinstance(above.node, ast.ClassDef):
                    continue
                if (found := self.method(above, name)) is not None:
                    return found
        return None

    def fields(self, dotted: str) -> list[str]:
        """Annotated fields of a class and its bases in this package. Raises LookupError."""
        found = self.find(dotted)
        if isinstance(found, str) or not isinstance(found.node, ast.ClassDef):
            raise LookupError(f"{dotted} is no class here")
        names = [n.target.id for n in found.node.body if _is_field(n)]  # type: ignore[attr-defined]
        for base in found.node.bases:
            if isinstance(base, ast.Name):
                above = self._inside(found.path, [base.id])
                if isinstance(above, Found):  # else another package's
                    module = ".".join(above.path.relative_to(self.root).with_suffix("").parts)
                    names += self.fields(f"{module.removesuffix('.__init__')}.{above.node.name}")
        return names


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _is_method(found: Found, dotted: str) -> int:
    """1 if there is self or cls, which a caller does not pass."""
    node = found.node
    assert not isinstance(node, ast.ClassDef)
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    return int(bool(node.args.args) and node.args.args[0].arg in ("self", "cls") and not static)


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _of_function(node: Definition, skip: int) -> str:
    assert not isinstance(node, ast.ClassDef)
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    first_default = len(plain) - len(given.defaults)
    words = [a.arg + "=..." * (place >= first_default) for place, a in enumerate(plain)][skip:]
    if given.vararg:
        words.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        words.append("*")
    for argument, default in zip(given.kwonlyargs, given.kw_defaults):
        words.append(argument.arg + "=..." * (default is not None))
    if given.kwarg:
        words.append(f"**{given.kwarg.arg}")
    return f"({', '.join(words)})"


def _of_fields(node: ast.ClassDef) -> str:
    """The signature of a dataclass, or of a class without arguments."""
    words = [
        f"{n.target.id}{'=...' * (n.value is not None)}"  # type: ignore[attr-defined]
        for n in node.body
        if _is_field(n)
    ]
    keywords = [k for d in node.decorator_list if isinstance(d, ast.Call) for k in d.keywords]
    if any(k.arg == "kw_only" for k in keywords):
        words.insert(0, "*")
    return f"({', '.join(words)})"


def of_extension(folder: Path, name: str) -> str:
    """The signature of a function that a C++ extension defines by ``m.def``. Raises LookupError."""
    for path in sorted(folder.rglob("*.cpp")):
        text = path.read_text(errors="replace")
        if defined := re.search(rf'm\.def\("{name}",\s*&(\w+)', text):
            declared = re.search(rf"{defined[1]}\s*\(([^)]*)\)", text)
            arguments = (declared[1] if declared else "").split(",")
            words = [re.findall(r"\w+", argument)[-1] for argument in arguments if argument.strip()]
            return f"({', '.join(words)})"
    raise LookupError(f"{folder}: no extension defines {name}")
