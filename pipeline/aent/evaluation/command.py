"""``aent eval``: a policy's score on a suite, or on a recipe's held-out questions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aent import tasks
from aent.checkpoint.resume import started
from aent.data.question import Question
from aent.evaluation import mlflow_run, suite, suites
from aent.evaluation.answers import Answers
from aent.evaluation.suite import Summary
from aent.evaluation.suites import Suite
from aent.inference import engine
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError
from aent.inference.registry import make_token, read_token
from aent.models import model_source
from aent.models.facts import max_positions
from aent.recipe.redact import redacted
from aent.recipe.schema import ModelSection, Recipe, TaskSection
from aent.tasks import trial
from aent.tasks.asking import Asker
from aent.tasks.judge import JudgePool
from aent.tasks.mixture import appointed

SHOWN = 10  # answers printed
HASH = 10  # characters of the settings' hash in a folder's name


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the suite, the policy, the engine settings and the answers' folder."""

    model: str  # a Hugging Face folder, a run folder, or the URL of a running engine
    suite: Suite
    recipe: Recipe  # settings of engine and graders; the questions of ``heldout``
    out: Path | None = None  # default: see ``_out``
    data: Path = suites.DATA_FOLDER
    # tokenizer of a URL's model; default: the folder that the engine names
    tokenizer: Path | None = None
    token_file: Path | None = None  # file with the token that a URL asks for


def run(evaluation: Evaluation) -> int:
    """Evaluate and print; return the exit code: 0, 1 (engine or MLflow failed), 2 (bad input)."""
    try:
        summary, answers = evaluate(evaluation)
    except (EngineError, RuntimeError, TimeoutError) as error:
        print(redacted(str(error)), file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(redacted(f"aent eval: {error}"), file=sys.stderr)
        return 2
    print(describe(summary, answers))
    if not is_url(evaluation.model) and mlflow_run.is_run(Path(evaluation.model)):
        return mlflow_run.log(Path(evaluation.model), summary, answers.folder)
    return 0


def evaluate(evaluation: Evaluation) -> tuple[Summary, Answers]:
    """Sample and grade every missing answer, and summarize all of them.

    Raises FileNotFoundError, PermissionError or ValueError if the policy or suite cannot be
    evaluated, EngineError as the engine does, RuntimeError if its weights change meanwhile.
    """
    target = _remote(evaluation) if is_url(evaluation.model) else _local(evaluation)
    recipe, asked = evaluation.recipe, _here(evaluation.suite, evaluation.recipe)
    if asked.name == suites.HELDOUT:
        # both may have been changed for this evaluation, and sources inherit them
        own = {"instruction": asked.instruction, "system_prompt": asked.system_prompt}
        task = recipe.task.model_copy(update=own)
        questions = tasks.load(task, recipe.seed).heldout
    else:
        task, questions = asked.task, suites.questions(asked, evaluation.data)
    questions = questions[: asked.limit]
    _check_graders(task, asked, questions)
    settings = suite.settings_of(asked, questions, recipe.seed, target.weights)
    if files := trial.fingerprints(task):
        settings["graders_sha256"] = files
    answers = Answers.open(evaluation.out or _out(evaluation.model, asked, settings), settings)
    if suite.missing(answers, asked, questions):
        keep = {
            k: getattr(recipe.task, k)
            for k in ("judge_processes", "judge_timeout_s", "judge_memory_gib")
        }
        with JudgePool(task.model_copy(update=keep)) as judge:
            _ask(target, evaluation, judge, questions, answers)
    summary = suite.summarize(asked, answers)
    suite.write_summary(summary, answers.folder)
    return summary, answers


def _here(asked: Suite, recipe: Recipe) -> Suite:
    """The suite. If one of the recipe's graders runs programs, the recipe also sets where and with
    which limits the suite's programs run."""
    graders = (each.grader for each in appointed(recipe.task))
    own = next((grader for grader in graders if grader.kind == "code"), None)
    if own is None or asked.name == suites.HELDOUT or asked.graders[0].kind != "code":
        return asked
    here = own.model_copy(update={"weight": 1.0, "data_sources": ()})
    return asked.model_copy(update={"graders": (here,)})


def _check_graders(task: TaskSection, asked: Suite, questions: list[Question]) -> None:
    """Raise ValueError for functions that cannot grade here."""
    for grader in (judge.grader for judge in appointed(task)):
        if grader.kind == "python" and grader.group:
            raise ValueError(
                f"suite {asked.name}: {grader.name} (task.graders) scores whole groups, but here "
                "answers are scored as they come"
            )
    faults = list(trial.faults(task, questions, 1))
    if faults:
        raise ValueError("\n".join(faults))


@dataclass(frozen=True)
class _Target:
    """The policy: its folder (for a URL, the tokenizer's) and an identification of its weights."""

    section: ModelSection
    folder: Path
    weights: str
    positions: int  # prompt and response together
    client: EngineClient | None = None  # of a running engine


def _ask(
    target: _Target,
    evaluation: Evaluation,
    judge: JudgePool,
    questions: list[Question],
    answers: Answers,
) -> None:
    from aent.models import tokenizer  # late: imports NeMo

    asked, recipe = evaluation.suite, evaluation.recipe
    # a trained policy gets the prompts' date of its training
    now = started(Path(evaluation.model))
    words = tokenizer.load(target.section, target.folder, recipe.task.template, now)
    prompts = [words.chat_prompt(*q.turns(asked.system_prompt)) for q in questions]
    longest = max(map(len, prompts))
    if longest + asked.max_tokens > target.positions:
        room = target.positions - longest
        hint = f": give max_tokens={room} or less" if room > 0 else ""
        raise ValueError(
            f"suite {asked.name}: its longest prompt ({longest} tokens) and max_tokens="
            f"{asked.max_tokens} are more than the model's {target.positions} positions{hint}"
        )
    with contextlib.ExitStack() as stack:
        client = target.client or stack.enter_context(
            _started(recipe, target, longest, asked.max_tokens)
        )
        client.progress_timeout_s = recipe.rollout.progress_timeout_s
        client.concurrency = recipe.rollout.concurrency
        asker = Asker(Fleet([client]), words, judge)
        suite.ask(asker, asked, questions, prompts, answers, recipe.seed)


@contextlib.contextmanager
def _started(recipe: Recipe, target: _Target, prompt: int, response: int) -> Iterator[EngineClient]:
    """A client of an engine that is started here; the recipe's engines and URLs are not used."""
    lengths = {"max_prompt_tokens": prompt, "max_response_tokens": response}
    rollout = recipe.rollout.model_copy(update=lengths)
    recipe = recipe.model_copy(update={"model": target.section, "rollout": rollout})
    with tempfile.TemporaryDirectory(prefix="aent-eval-") as logs:
        make_token(Path(logs))
        settings = engine.settings_of(recipe, target.folder, Path(logs), 0, first_gpu=0)
        # any free port, because the recipe's run may still use its own
        started = engine.start(dataclasses.replace(settings, port=0))
        try:
            started.wait_ready(recipe.rollout.engine.start_timeout_s)
            yield started.client()
        finally:
            started.stop()


def _local(evaluation: Evaluation) -> _Target:
    """Raises FileNotFoundError if ``model`` is not a folder of the right kind."""
    given = Path(evaluation.model)
    folder = given / "policy" if (given / "policy").is_dir() else given
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{given} is neither a Hugging Face folder (config.json) nor a run folder with a "
            "trained policy (policy/config.json)"
        )
    given_section = evaluation.recipe.model
    section = given_section.model_copy(update={"path": str(folder), "bundled": None})
    folder = model_source.resolve(section)
    # reading the contents would take minutes; names, sizes and times identify a policy
    files = sorted(folder.glob("*.safetensors"))
    marks = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    weights = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
    return _Target(section, folder, f"{folder} {weights}", max_positions(section))


def _remote(evaluation: Evaluation) -> _Target:
    """Raises EngineError if no engine answers, FileNotFoundError without a tokenizer, ValueError
    for an address with a password."""
    url = evaluation.model.rstrip("/")
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            f"{redacted(url)} contains a user or a password, which the answers' folder would show: "
            "use --token-file for secrets"
        )
    token = read_token(evaluation.token_file) if evaluation.token_file else None
    client = EngineClient(url, token=token)
    try:
        served = asyncio.run(client.call("GET", "/v1/models"))["data"][0]
        name, root, positions = served["id"], served["root"], served["max_model_len"]
    except (KeyError, IndexError, TypeError) as error:
        raise client.error(f"/v1/models: {error!r}: is it a vLLM server?") from None
    folder = evaluation.tokenizer or Path(root)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{url} serves the model {folder}, and there is no such Hugging Face folder here: give "
            "one with its tokenizer (--tokenizer FOLDER)"
        )
    section = evaluation.recipe.model.model_copy(update={"path": str(folder), "bundled": None})
    version = asyncio.run(client.weight_version())
    weights = f"{url} {name} version {version}"
    return _Target(section, folder, weights, positions, client)


def _out(model: str, asked: Suite, settings: dict) -> Path:
    """evaluation/SUITE-HASH in a run's folder, else evaluations/MODEL/SUITE-HASH. So the same
    evaluation continues, and a different one gets another folder."""
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:HASH]
    if is_url(model):
        place = Path("evaluations") / model.partition("://")[2].rstrip("/").replace("/", "-")
    elif mlflow_run.is_run(Path(model)):
        place = Path(model) / "evaluation"
    else:
        place = Path("evaluations") / Path(model).resolve().name
    return place / f"{asked.name}-{mark}"


def is_url(model: str) -> bool:
    """Whether ``aent eval``'s MODEL is a running engine's address."""
    return model.startswith(("http://", "https://"))


def describe(summary: Summary, answers: Answers) -> str:
    """The result as lines of text, and the first answers."""
    lines = [str(summary), "", "reward  expected  response (the first)"]
    for row in sorted(answers.rows.values(), key=lambda r: (r.question, r.sample))[:SHOWN]:
        response = " ".join(row.response.split())[-70:]  # its end, which has the answer
        lines.append(f"{row.reward:6.2f}  {row.expected[:8]:>8}  {response} {row.error}".rstrip())
    return "\n".join([*lines, "", f"every answer: {answers.path}"])
