"""Suites: which questions, how answers are sampled, who judges them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from aent import tasks
from aent.data.question import Question
from aent.recipe.faults import sentence
from aent.recipe.graders import Code, Grader, MathVerify, ReasoningGym
from aent.recipe.schema import Recipe, TaskSection
from aent.recipe.section import Section
from aent.recipe.yaml_text import RecipeError, parse_value
from aent.tasks import files, sources
from aent.tasks.mixture import appointed

DATA_FOLDER = Path("data")  # where ``aent data`` writes
HELDOUT = "heldout"  # the suite of a recipe's own held-out questions
# Qwen2.5-Math's and DeepSeek-R1's model cards ask for this sentence
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CODE_INSTRUCTION = "Write the whole program, imports included, in one Python code block."


class Suite(Section):
    """Questions from DATA_FOLDER/NAME.jsonl (or .parquet), or made by reasoning-gym.

    What stands below ``size`` may be changed for one evaluation (``samples=8``).
    """

    name: str
    graders: tuple[Grader, ...] = (MathVerify(kind="math_verify"),)
    dataset: str | None = None  # reasoning-gym's; None: a file
    config: dict[str, Any] = Field(default_factory=dict)
    size: int = 0  # of a reasoning-gym suite
    samples: int = Field(4, ge=1)  # per question
    temperature: float = Field(0.6, ge=0)  # the paper's, and of DeepSeek-R1's model card
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: off
    max_tokens: int = Field(3072, ge=1)  # of a response
    system_prompt: str | None = None
    instruction: str | None = INSTRUCTION
    limit: int | None = Field(None, ge=1)  # the first so many questions only

    @property
    def task(self) -> TaskSection:
        """What a judge must know of it."""
        return TaskSection.model_validate(
            {"graders": self.graders, "name": self.dataset or self.name, "config": self.config}
        )


_FIELDS = list(Suite.model_fields)
CHANGEABLE = tuple(_FIELDS[_FIELDS.index("samples") :])


def _gym(name: str, dataset: str, **changes: Any) -> Suite:
    graders = (ReasoningGym(kind="reasoning_gym"),)
    return Suite(name=name, graders=graders, dataset=dataset, size=100, max_tokens=1024, **changes)


def _programs(name: str) -> Suite:
    return Suite(name=name, graders=(Code(kind="code"),), instruction=CODE_INSTRUCTION)


_TAGS = "Give the final answer between <answer> and </answer>."
SUITES = {
    suite.name: suite
    for suite in (
        Suite(name="math-500"),
        Suite(name="math-hard"),
        Suite(name="minerva"),
        Suite(name="olympiadbench"),
        Suite(name="gsm8k"),
        Suite(name="aime24", samples=32),  # few questions: more samples
        Suite(name="amc", samples=16),
        _programs("humaneval"),
        _programs("humaneval-plus"),
        _programs("mbpp"),
        _programs("mbpp-plus"),
        _gym("gym-arithmetic", "basic_arithmetic", instruction=_TAGS),
        _gym("gym-countdown", "countdown", instruction=_TAGS),
        _gym("gym-equations", "simple_equations", instruction=_TAGS),
        _gym("gym-logic", "knights_knaves", instruction=_TAGS),
    )
}


def find(name: str, changes: Sequence[str] = ()) -> Suite:
    """The suite of this name with ``key=value`` changes (CHANGEABLE); ValueError otherwise."""
    if name not in SUITES:
        nearest = difflib.get_close_matches(name, SUITES, n=1)
        hint = f", did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"there is no suite {name!r}{hint} (known: {', '.join(sorted(SUITES))})")
    return changed(SUITES[name], changes)


def of_recipe(recipe: Recipe, changes: Sequence[str] = ()) -> Suite:
    """The recipe's held-out questions, as its run scores them; ValueError if it has none."""
    if not recipe.task.holds_out:
        raise ValueError("the recipe holds no questions out (task.heldout=0): name a --suite")
    suite = Suite(
        name=HELDOUT,
        graders=tuple(judge.grader for judge in appointed(recipe.task)),
        samples=recipe.evaluation.samples,
        temperature=recipe.evaluation.temperature,
        top_p=recipe.evaluation.top_p,
        top_k=recipe.evaluation.top_k,
        max_tokens=recipe.rollout.max_response_tokens,
        system_prompt=recipe.task.system_prompt,
        instruction=recipe.task.instruction,
    )
    return changed(suite, changes)


def changed(suite: Suite, changes: Sequence[str]) -> Suite:
    """The suite with ``key=value`` changes (CHANGEABLE); ValueError for a value that cannot be."""
    data = suite.model_dump()
    try:
        for change in changes:
            key, _, text = change.partition("=")
            data[key] = parse_value(text, f"override {change}")
        suite = Suite.model_validate_json(json.dumps(data), strict=True)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        faults = [sentence(dict(fault))[1] for fault in error.errors(include_url=False)]
        raise ValueError(f"suite {suite.name}: {'; '.join(faults)}") from None
    if suite.samples > 1 and suite.temperature == 0:
        raise ValueError(
            f"suite {suite.name}: samples={suite.samples} with temperature=0 (greedy) would score "
            "the same answer again and again"
        )
    return suite


def questions(suite: Suite, folder: Path = DATA_FOLDER) -> list[Question]:
    """The suite's questions, the same at every call.

    Raises FileNotFoundError saying where to get the file, ValueError for one that is not as it
    must be (``tasks.files``).
    """
    if suite.dataset is not None:
        section = suite.task.model_copy(
            update={"size": 1, "heldout": suite.size, "instruction": suite.instruction}
        )
        found = tasks.load(section, seed=0).heldout
    else:
        found = files.questions(file(suite.name, folder), suite.instruction)
    return found[: suite.limit]


def file(name: str, folder: Path = DATA_FOLDER) -> Path:
    """Where the questions of the suite ``name`` lie; FileNotFoundError if they do not."""
    for path in (folder / f"{name}.jsonl", folder / f"{name}.parquet"):
        if path.is_file():
            return path
    path = folder / f"{name}.jsonl"
    raise FileNotFoundError(f"suite {name}: there is no file {path}{sources.hint(path)}")
