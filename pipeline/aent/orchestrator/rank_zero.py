"""What rank 0 has besides its part of the policy: engines, judges, MLflow, the display."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from aent import tasks
from aent.algorithm.entropy_controls import Memory, Plan
from aent.checkpoint import resume, rollout_files
from aent.checkpoint.folders import LoopState
from aent.data.batch import Batch
from aent.data.question import Question
from aent.data.rollout import Rollout
from aent.data.sample import Sample
from aent.entropy.controllers import ControllerReport
from aent.estimate.memory import GIB, estimate
from aent.evaluation import suites
from aent.evaluation.heldout import EvaluationResult, evaluate
from aent.inference import registry
from aent.inference.client import EngineClient
from aent.inference.fleet import Fleet
from aent.inference.http import EngineError, TransientError
from aent.models import tokenizer
from aent.orchestrator.records import (
    control_metrics,
    evaluation_metrics,
    heldout_rows,
    response_entropies,
    sample_rows,
    step_metrics,
    suite_metrics,
    time_metrics,
)
from aent.orchestrator.sampling import RolloutSource
from aent.recipe.schema import Recipe
from aent.runtime.environment import device_kind
from aent.runtime.network import LOOPBACK, is_local, own_address
from aent.tasks.judge import JudgePool
from aent.tasks.verifiers import as_number
from aent.tracking import journal
from aent.tracking.display import Display, StepLine, summary
from aent.tracking.journal import JOURNAL_FILE
from aent.tracking.tracker import Tracker
from aent.trainer.trainer import MinibatchResult
from aent.weights import probe
from aent.weights.manifest import Manifest, expected_manifest
from aent.weights.probe import Probe, Seen
from aent.weights.weight_transfer import TransferSettings, WeightSender, WeightSyncError


@dataclass
class RankZero:
    """Made by ``open``; ``close`` ends what it started, whatever happened."""

    recipe: Recipe
    run_dir: Path
    fleet: Fleet
    sender: WeightSender
    manifest: Manifest  # what every weight update must carry
    probe: Probe
    source: RolloutSource
    tracker: Tracker
    display: Display
    suites: dict[str, list[Question]]  # by name
    progress: Callable[[], None]
    sent_again: int | None = None  # the last weight version that was, to healthy engines
    rollout: Rollout | None = None  # of the step under way
    seen: list[Seen] = field(default_factory=list)  # by each engine, of the newest weights
    rewards: list[float] = field(default_factory=list)  # mean of each step
    evaluations: dict[int, float] = field(default_factory=dict)  # accuracy by steps trained
    seconds: dict[str, float] = field(default_factory=dict)  # per phase, over the run

    @staticmethod
    def open(
        recipe: Recipe, run_dir: Path, model_path: Path, progress: Callable[[], None]
    ) -> RankZero:
        """Start judges and tracking, load the task, and wait for the engines."""
        judge = JudgePool(recipe.task)
        try:
            folder = resume.chosen(run_dir)
            run_id = None if folder is None else LoopState.read(folder).mlflow_run_id
            tracker = Tracker(run_dir, recipe, run_id or "")
            words = tokenizer.load(
                recipe.model, model_path, recipe.task.template, resume.started(run_dir)
            )
            task = _load_task(recipe, words, progress)
            task = _without_unreadable(task, recipe, judge, progress)
            suite_questions = {s: _suite(s, recipe, words) for s in recipe.evaluation.suites}
            found = asyncio.run(find_engines(recipe, run_dir, progress))
            fleet = Fleet(
                found,
                recipe.rollout.min_engines,
                on_loss=lambda client: registry.give_up(run_dir, client.url),
            )
            sender = WeightSender(fleet.clients, transfer_settings(recipe, fleet))
            asyncio.run(sender.connect())
            block = asyncio.run(fleet.clients[0].block_size())
            text = probe_text(recipe, task, words, block)
        except BaseException:
            judge.close()
            raise
        source = RolloutSource(recipe, task, words, fleet, judge, progress)
        return RankZero(
            recipe=recipe,
            run_dir=run_dir,
            fleet=fleet,
            sender=sender,
            manifest=expected_manifest(model_path, recipe.model.dtype),
            probe=Probe(text, block, recipe.rollout.probe_tolerance),
            source=source,
            tracker=tracker,
            display=Display(recipe.steps),
            suites=suite_questions,
            progress=progress,
        )

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> bool:
        """Send the weights to every engine, verified tensor by tensor; to those too that are back.

        Returns False where they are to be sent again: an engine was lost meanwhile, or the
        connection to a healthy one broke, once.
        """
        try:
            asyncio.run(self._readmit())
            asyncio.run(self.sender.push(weights, version, self.manifest))
        except EngineError as error:
            if not asyncio.run(self.fleet.drop_lost(error)):
                if not isinstance(error, TransientError) or self.sent_again == version:
                    raise
                self.sent_again = version
                words = str(error).partition("\n")[0]
                self.display.message(f"aent: weight version {version} is sent again: {words}")
            return False
        return True

    async def _readmit(self) -> None:
        """Have engines that were lost, and serve again, take part from here on."""
        if len(self.fleet.clients) == self.recipe.rollout.num_engines:
            return
        there = {client.url for client in self.fleet.clients}
        for client in known_engines(self.recipe, self.run_dir):
            if client.url not in there and await client.is_healthy():
                self.fleet.clients.append(client)
                self.display.message(f"aent: engine {client.url} takes part from here on")

    def ask_probe(self) -> Sample:
        """Have every engine say the log-probs of the probe's text; the text, as a sample."""

        async def ask(clients: Sequence[EngineClient]) -> list[Seen | BaseException]:
            asked = (probe.ask(client, self.probe.text, self.probe.block) for client in clients)
            return await asyncio.gather(*asked, return_exceptions=True)

        clients = list(self.fleet.clients)
        answers = dict(zip((c.url for c in clients), asyncio.run(ask(clients))))
        errors = [answer for answer in answers.values() if isinstance(answer, EngineError)]
        if errors:
            asyncio.run(self.fleet.drop_lost(errors[0]))
        self.seen = []
        for client in self.fleet.clients:
            answer = answers[client.url]
            if isinstance(answer, BaseException):
                raise answer
            self.seen.append(answer)
        first, *others = self.probe.text
        nothing = [0.0] * len(others)
        return Sample([first], others, nothing, [0] * len(others), "length", 0, 0)

    def check_probe(self, batch: Batch, log_probs: Tensor, version: int) -> None:
        """Compare what the engines said of the probe's text with what the trainer says of it
        (``log_probs`` of ``batch``). Raises WeightSyncError naming engine and cause."""
        ours = log_probs[batch.loss_mask].float().cpu()
        faults = self.probe.judge(self.seen, ours, version)
        told = [f"{c.url} {fault}" for c, fault in zip(self.fleet.clients, faults) if fault]
        if told:
            raise WeightSyncError(f"weight version {version}: {'; '.join(told)}")

    def restore(self, step: int, same_layout: bool) -> int:
        """Take up what earlier starts left of the run's first ``step`` steps; return the first
        step whose rollouts are not on disk."""
        path = self.run_dir / JOURNAL_FILE
        rewards = {}
        for point in journal.read(path) if path.exists() else ():
            if point.key == "reward/mean" and point.step < step:
                rewards[point.step] = point.value
            elif point.key == "evaluation/accuracy" and point.step <= step:
                self.evaluations[point.step] = point.value
        self.rewards = [rewards[s] for s in sorted(rewards)]
        if not same_layout:
            self.display.message(
                "the layout is not that of the checkpoint: random streams begin anew"
            )
        fresh_from = rollout_files.recorded_until(self.run_dir, step)
        rollout_files.forget(self.run_dir, from_step=fresh_from)  # behind a gap: not this policy's
        return fresh_from

    def sample(self, step: int, plan: Plan) -> list[Sample]:
        """This step's samples, rewarded: those on disk where the step was begun before, else new
        ones, which are on disk before anything is learnt from them."""
        self.rollout = rollout_files.read(self.run_dir, step)
        if self.rollout is None:
            self.rollout = self.source.next(step, plan)
            if self.recipe.checkpoint.every:
                rollout_files.write(self.run_dir, step, self.rollout)
        return self.rollout.samples

    def evaluate(self, step: int) -> None:
        """Score the held-out questions and the suites with the weights after ``step`` steps."""
        for name, questions in self.suites.items():
            result = self._score(questions, step)
            self.tracker.log(step, suite_metrics(name, result))
            self.display.message(
                f"{name} after {step} steps: {result.accuracy:.3f} +- {result.standard_error:.3f} "
                f"({len(questions)} questions x {self.recipe.evaluation.samples})"
            )
        if self.source.task.heldout:
            self._evaluate_heldout(step)

    def _score(self, questions: Sequence[Question], step: int) -> EvaluationResult:
        source, recipe = self.source, self.recipe
        return evaluate(
            self.fleet,
            source.tokenizer,
            source.judge,
            questions,
            recipe.evaluation,
            system_prompt=recipe.task.system_prompt,
            max_response_tokens=recipe.rollout.max_response_tokens,
            version=step,
            seed=recipe.seed,
            on_progress=self.progress,
        )

    def _evaluate_heldout(self, step: int) -> None:
        result = self._score(self.source.task.heldout, step)
        self.evaluations[step] = result.accuracy
        self.tracker.log(step, evaluation_metrics(result))
        self.tracker.log_samples(step, heldout_rows(result), "heldout")
        self.display.message(
            f"held-out accuracy after {step} steps: {result.accuracy:.3f} "
            f"+- {result.standard_error:.3f} ({len(self.source.task.heldout)} questions)"
        )

    def record(
        self,
        step: int,
        batch: Batch,
        results: Sequence[MinibatchResult],
        report: ControllerReport,
        memory: Memory,
        seconds: Mapping[str, float],
    ) -> None:
        """Log the step, keep its samples, draw the figure, show a line."""
        assert self.rollout is not None
        metrics = step_metrics(batch, results, report, self.rollout)
        metrics |= control_metrics(memory)
        metrics["policy/probe_gap"] = self.probe.gap
        metrics |= time_metrics(batch, seconds, self._engine_busy_s())
        self.tracker.log(step, metrics)
        every = self.recipe.tracking.samples_every
        if every and step % every == 0:
            self.tracker.log_samples(
                step, sample_rows(self.rollout, response_entropies(batch, results))
            )
        self.tracker.refresh_figure()
        self.rewards.append(metrics["reward/mean"])
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value
        self.display.step(
            StepLine(
                step,
                metrics["reward/mean"],
                metrics[f"policy/{self.recipe.measured}"],
                report.coefficient,
                batch.tokens.numel(),
                dict(seconds),
                sum(r.update_skipped for r in results),
            )
        )

    def _engine_busy_s(self) -> float:
        """Seconds since the last call in which an engine had requests to answer: the mean."""
        busy_s, self.fleet.busy_s = self.fleet.busy_s, 0.0
        return busy_s / len(self.fleet.clients)

    def finish(self, peaks: Sequence[int]) -> None:
        """The last words of a run that went well; MLflow's run is FINISHED.

        peaks: bytes of memory that each rank has held at most.
        """
        self.display.__exit__(None, None, None)
        gib = {f"memory/rank_{rank}_peak_gib": peak / GIB for rank, peak in enumerate(peaks)}
        self.tracker.log(self.recipe.steps - 1, gib)
        self.tracker.finish("FINISHED")
        estimated = [f"{rank.total / GIB:.2f}" for rank in estimate(self.recipe).per_rank]
        places = {
            "policy": str(self.run_dir / "policy"),
            "figure": str(self.run_dir / "figure.png"),
            "look": self.tracker.look,
            "memory": f"{', '.join(f'{peak:.2f}' for peak in gib.values())} GiB at most, by rank "
            f"(estimated {', '.join(estimated)})",
        }
        print(summary(self.rewards, self.evaluations, self.seconds, places), flush=True)

    def suspend(self) -> None:
        """Send what MLflow has not yet; its run stays open for the start that goes on."""
        self.display.__exit__(None, None, None)
        self.tracker.finish(None)

    def close(self) -> None:
        """End the judges and give the terminal back."""
        self.display.__exit__(None, None, None)
        self.source.judge.close()


def _load_task(
    recipe: Recipe, words: tokenizer.Tokenizer, progress: Callable[[], None]
) -> tasks.Task:
    """The recipe's task, without the questions whose prompts are too long."""
    task = tasks.load(recipe.task, recipe.seed)
    progress()

    def length(prompt: str) -> int:
        progress()
        return len(words.chat_prompt(prompt, recipe.task.system_prompt))

    kept = tasks.without_long_prompts(task, length, recipe.rollout.max_prompt_tokens)
    dropped = len(task.train) + len(task.heldout) - len(kept.train) - len(kept.heldout)
    if dropped:
        print(
            f"aent: {dropped} questions of {task.name} have more than rollout.max_prompt_tokens="
            f"{recipe.rollout.max_prompt_tokens} tokens and are left out",
            flush=True,
        )
    return kept


def _without_unreadable(
    task: tasks.Task, recipe: Recipe, judge: JudgePool, progress: Callable[[], None]
) -> tasks.Task:
    """The task of a file without the questions whose reference math-verify cannot read. (For
    last_number, ``tasks.load`` has refused them.)

    Raises ValueError if no training question is left.
    """
    if recipe.task.kind != "file" or recipe.task.verifier != "math_verify":
        return task
    everyone = [*task.heldout, *task.train]
    questions = [q for q in everyone if as_number(q.answer) is None]  # a number can be read
    bad: list[Question] = []
    for first in range(0, len(questions), 100):
        bad += judge.unreadable(questions[first : first + 100])
        progress()
    if not bad:
        return task
    rows = ", ".join(str(q.row) for q in bad[:5]) + (", ..." if len(bad) > 5 else "")
    print(
        f"aent: {len(bad)} questions of {task.name} have an answer that task.verifier=math_verify "
        f"cannot read (row {rows}) and are left out",
        flush=True,
    )
    left_out = {q.index for q in bad}
    return tasks.without(task, left_out, "task.verifier=math_verify reads no answer")


def _suite(name: str, recipe: Recipe, words: tokenizer.Tokenizer) -> list[Question]:
    """The suite's questions, in the form of the prompts that are trained on.

    Raises ValueError if one is longer than the engines have room for.
    """
    suite = suites.find(name).model_copy(update={"instruction": recipe.task.instruction})
    questions = suites.questions(suite)
    longest = max(len(words.chat_prompt(q.prompt, recipe.task.system_prompt)) for q in questions)
    if longest > recipe.rollout.max_prompt_tokens:
        raise ValueError(
            f"evaluation.suites: {name} has a question of {longest} tokens, more than "
            f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
        )
    return questions


async def find_engines(
    recipe: Recipe, run_dir: Path, progress: Callable[[], None]
) -> list[EngineClient]:
    """A client per engine, each ready: somebody else's first, then those started for this run.

    Raises EngineError after ``start_timeout_s``.
    """
    rollout = recipe.rollout
    patience_s = rollout.engine.start_timeout_s
    await registry.wait(run_dir, rollout.engines, patience_s, progress)
    clients = known_engines(recipe, run_dir)
    for client in clients:
        await client.wait_ready(patience_s, progress)
    return clients


def known_engines(recipe: Recipe, run_dir: Path) -> list[EngineClient]:
    """A client per engine that has an address now."""
    rollout = recipe.rollout
    token = None
    if rollout.token_file is not None:
        token = registry.read_token(Path(rollout.token_file).expanduser())
    clients = [EngineClient(url.rstrip("/"), token=token) for url in rollout.urls]
    clients += registry.published(run_dir, rollout.engines)
    for client in clients:
        client.progress_timeout_s = rollout.progress_timeout_s
        client.concurrency = rollout.concurrency
    return clients


def transfer_settings(recipe: Recipe, fleet: Fleet) -> TransferSettings:
    """How weights travel to these engines, as the recipe says."""
    rollout = recipe.rollout
    backend = rollout.transfer_backend
    if backend == "auto":
        backend = "nccl" if device_kind() == "cuda" else "gloo"
    together = all(is_local(client.url) for client in fleet.clients)
    return TransferSettings(
        backend=backend,
        bucket_bytes=rollout.transfer_bucket_mib * 2**20,
        timeout_s=rollout.transfer_timeout_s,
        master_address=LOOPBACK if together else own_address(),
    )


def probe_text(
    recipe: Recipe, task: tasks.Task, words: tokenizer.Tokenizer, block: int
) -> list[int]:
    """Token ids of the probe: the first chat prompts of the task."""
    rollout = recipe.rollout
    room = rollout.max_prompt_tokens + rollout.max_response_tokens
    length = probe.length_of(block, room)
    prompts = (words.chat_prompt(q.prompt, recipe.task.system_prompt) for q in task.train)
    return probe.text_of(prompts, length)
