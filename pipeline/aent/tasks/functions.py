"""Custom functions as graders: found by name, and called as aent, verl or TRL call them.

Runs in the graders' processes; the imported functions are other people's code.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from aent.data.question import Question
from aent.data.response import Response
from aent.runtime.environment import data_path
from aent.runtime.texts import visible
from aent.tasks.files import as_answer

Call = Callable[[Sequence[Response], Question], Any]  # one value for each of a question's responses
# columns of a file of questions, which TRL's functions may take
OWN_COLUMNS = ("question", "answer")


def source_of(function: str) -> Path | None:
    """The file with a recipe's ``function``, found without importing anything; None if it does not
    exist or is not in a file."""
    place = function.rpartition(":")[0]
    if place.endswith(".py"):
        path = data_path(place)
        return path if path.is_file() else None
    top, *below = place.split(".")
    for root in _packages(top) if below else [Path.cwd(), *map(Path, sys.path)]:
        inner = root.joinpath(*below) if below else root / top
        for path in (inner.with_name(f"{inner.name}.py"), inner / "__init__.py"):
            if path.is_file():
                return path
    return None


def _packages(name: str) -> list[Path]:
    """The folder of the package ``name``: in the working folder, or where it is installed."""
    here = Path.cwd() / name
    spec = None if here.is_dir() else importlib.util.find_spec(name)
    found = spec.submodule_search_locations if spec else None
    return [here, *map(Path, found or ())]


def load(function: str) -> Callable[..., Any]:
    """Import the function that a recipe names: ``path/to/file.py:name`` or ``package.module:name``.

    The file can import modules beside it. Raises ValueError with one sentence.
    """
    place, _, name = function.rpartition(":")
    try:
        module = _module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, FileNotFoundError) and str(error).startswith("there is no file"):
            raise ValueError(str(error)) from None
        raise ValueError(
            f"{place} cannot be imported: {told(error, source_of(function))}"
        ) from None
    found = getattr(module, name, None)
    if found is None:
        names = [n for n, value in vars(module).items() if callable(value)]
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"{place} has no function {name}{hint}")
    if not callable(found):
        raise ValueError(f"{function} is not a function but a {type(found).__name__}")
    return found


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = data_path(place).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end, so that it cannot hide a library
    name = f"aent_grader_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses require it
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def told(error: BaseException, source: Path | None) -> str:
    """The error as text, with its line number if it was raised in (or called from) ``source``."""
    words = visible(" ".join(f"{type(error).__name__}: {error}".split()))
    if source is None:
        return words
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == source.name
    ]
    return f"{words} ({source.name}, line {lines[-1]})" if lines else words


def adapted(spec: dict[str, Any], dataset: str) -> tuple[Call, bool]:
    """(the recipe's function in the form that ``judge`` calls, whether it is asynchronous).

    spec: the grader's section as a mapping. dataset: the value of the column ``data_source`` for
    generated questions.

    Raises ValueError if the function cannot be imported, or does not accept its arguments.
    """
    function = load(spec["function"])
    call = _STYLES[spec["style"]](function, spec, dataset)
    asynchronous = (function, getattr(function, "__call__", None))  # noqa: B004 - an object's own
    return call, any(map(inspect.iscoroutinefunction, asynchronous))


def columns(spec: dict[str, Any]) -> list[str]:
    """The columns that the function requires, according to its signature."""
    if spec["style"] == "verl":
        return ["data_source"]
    if spec["style"] == "aent":
        return []
    given = {"prompts", "completions", *spec["arguments"], *OWN_COLUMNS}
    return [
        name
        for name, parameter in _parameters(load(spec["function"])).items()
        if name not in given
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # for some builtins
        return {}


def _check(function: Callable[..., Any], spec: dict[str, Any], *given: str, **named: Any) -> None:
    """Raise ValueError if the function cannot be called with these arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(*given, **named, **spec["arguments"])
    except TypeError as error:
        takes = ", ".join(_parameters(function))
        gets = ", ".join([*given, *named, *spec["arguments"]])
        raise ValueError(f"{spec['function']} takes ({takes}) and gets ({gets}): {error}") from None


def _own(function: Callable[..., Any], spec: dict[str, Any], dataset: str) -> Call:
    call = functools.partial(function, **spec["arguments"])
    _check(function, spec, "responses" if spec["group"] else "response", "question")
    if spec["group"]:
        return call
    return lambda responses, question: call(responses[0], question)


def _verl(function: Callable[..., Any], spec: dict[str, Any], dataset: str) -> Call:
    """verl's compute_score(data_source, solution_str, ground_truth, extra_info), as its naive
    reward manager calls it: with keyword arguments."""
    named = dict.fromkeys(("data_source", "solution_str", "ground_truth", "extra_info"))
    _check(function, spec, **named)

    def call(responses: Sequence[Response], question: Question) -> Any:
        columns = question.metadata
        extra = columns.get("extra_info")
        return function(
            data_source=columns.get("data_source", dataset),
            solution_str=responses[0].text,
            ground_truth=_ground_truth(question),
            extra_info=dict(extra if isinstance(extra, dict) else columns),
            **spec["arguments"],
        )

    return call


def _ground_truth(question: Question) -> Any:
    """The value in verl's column ``reward_model`` itself, if that is the question's answer: it may
    be a list, a mapping or a number, and the answer is its text."""
    column = question.metadata.get("reward_model")
    found = column.get("ground_truth") if isinstance(column, dict) else None
    return found if found is not None and as_answer(found) == question.answer else question.answer


def _trl(function: Callable[..., Any], spec: dict[str, Any], dataset: str) -> Call:
    """TRL's reward_func(prompts, completions, **columns): lists, with one value for each
    completion.

    A function without ``**kwargs`` gets only the columns that it names.
    """
    takes = _parameters(function)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    needed = dict.fromkeys(columns(spec))
    own = {name: None for name in OWN_COLUMNS if name in takes}
    _check(function, spec, prompts=None, completions=None, **needed, **own)
    messages = spec["style"] == "trl_chat"

    def call(responses: Sequence[Response], question: Question) -> Any:
        n = len(responses)
        row = {"question": question.prompt, "answer": question.answer, **question.metadata}
        texts = [response.text for response in responses]
        turns = [*question.earlier, ("user", question.prompt)]
        if question.system is not None:
            turns = [("system", question.system), *turns]
        asked = [{"role": role, "content": text} for role, text in turns]
        return function(
            prompts=[asked if messages else question.prompt] * n,
            completions=[[{"role": "assistant", "content": t}] for t in texts]
            if messages
            else texts,
            **{k: [v] * n for k, v in row.items() if takes_all or k in takes},
            **spec["arguments"],
        )

    return call


_STYLES = {"aent": _own, "verl": _verl, "trl": _trl, "trl_chat": _trl}
