"""``aent eval``: a policy's score on a recipe's held-out questions, on an engine of its own."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from aent import model_source, tasks
from aent.evaluation.heldout import EvaluationResult, evaluate
from aent.recipe.schema import ModelSection, Recipe
from aent.rollout import engine
from aent.rollout.client import INITIAL_VERSION, EngineError
from aent.rollout.registry import make_token
from aent.tasks.judge import JudgePool

SHOWN = 10  # answers printed


def run(model: Path, recipe: Recipe) -> int:
    """Evaluate, print the result; return the exit code: 0, 1 (engine failed), 2 (bad input).

    ``model`` is a Hugging Face folder, or a run folder, whose policy/ is one.
    """
    try:
        result = evaluate_folder(model, recipe)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        print(f"aent eval: {error}", file=sys.stderr)
        return 2
    print(describe(result))
    return 0


def evaluate_folder(model: Path, recipe: Recipe) -> EvaluationResult:
    """Start one engine on ``model``, evaluate the recipe's held-out questions, stop the engine.

    The recipe's own engines and URLs are left alone. Raises FileNotFoundError or ValueError for a
    folder or a recipe that cannot be evaluated, EngineError as the engine does.
    """
    section = _model_section(model, recipe)
    folder = model_source.resolve(section)
    task = tasks.load(recipe.task, recipe.seed)
    recipe = recipe.model_copy(update={"model": section})
    with tempfile.TemporaryDirectory(prefix="aent-eval-") as logs:
        make_token(Path(logs))
        settings = engine.settings_of(recipe, folder, Path(logs), 0, first_gpu=0)
        started = engine.start(dataclasses.replace(settings, port=0))
        try:
            from aent import tokenizer  # NeMo is imported while the engine starts

            loaded = tokenizer.load(section, folder)
            with JudgePool(recipe.task) as judge:
                started.wait_ready(recipe.rollout.engine.start_timeout_s)
                patience = recipe.rollout.progress_timeout_s
                return evaluate(
                    dataclasses.replace(started.client(), progress_timeout_s=patience),
                    loaded,
                    judge,
                    task.heldout,
                    recipe.evaluation,
                    system_prompt=recipe.task.system_prompt,
                    max_response_tokens=recipe.rollout.max_response_tokens,
                    version=INITIAL_VERSION,
                    seed=recipe.seed,
                )
        finally:
            started.stop()


def describe(result: EvaluationResult) -> str:
    """The result as lines of text, and the first answers."""
    rows = [
        ("accuracy (mean reward)", f"{result.accuracy:.3f}"),
        ("its standard error", f"{result.standard_error:.3f}"),
        ("mean length, tokens", f"{result.mean_length:.1f}"),
        ("truncated share", f"{result.truncated_share:.3f}"),
        ("judge errors", str(result.judge_errors)),
        ("responses", str(len(result.answers))),
    ]
    lines = [f"{name:<24}{value:>8}" for name, value in rows]
    lines += ["", "reward  expected  response (the first)"]
    for answer in result.answers[:SHOWN]:
        expected, response = answer.question.answer[:8], " ".join(answer.response.split())[:70]
        lines.append(f"{answer.reward:6.2f}  {expected:>8}  {response} {answer.error}".rstrip())
    return "\n".join(lines)


def _model_section(model: Path, recipe: Recipe) -> ModelSection:
    policy = model / "policy"
    folder = policy if policy.is_dir() else model
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{model} is neither a Hugging Face folder (config.json) nor a run folder with a "
            "trained policy (policy/config.json)"
        )
    return recipe.model.model_copy(update={"path": str(folder), "bundled": None})
