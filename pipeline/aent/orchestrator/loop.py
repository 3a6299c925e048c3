"""The training loop: sample, verify, score, advantages, update, control, sync, record, save.

Every rank runs it. What rank 0 does alone (engines, graders, MLflow) goes through ``run.zero``,
while the other ranks wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aent.algorithm import actuators, entropy_controls, mini_batches
from aent.algorithm.terms import LossTerms
from aent.data.batch import Batch
from aent.data.scores import Scores
from aent.entropy import controllers
from aent.entropy.controllers import ControllerSettings
from aent.orchestrator.checkpoints import Start
from aent.orchestrator.gap import Gaps, check_gap
from aent.orchestrator.records import StepDone
from aent.orchestrator.run import Run
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.trainer.result import MinibatchResult


def train(run: Run) -> bool:
    """Train to ``recipe.steps`` and save the policy to ``run_dir/policy``.

    Returns False if the run was asked to stop: it has a checkpoint to continue from.
    """
    recipe = run.recipe
    settings = ControllerSettings(**recipe.controller.model_dump())
    start = run.checkpoints.restore(settings)
    state, memory, run.phases.step = start.controller, start.controls, start.step
    run.weights.sync(version=start.step)
    if not start.resumed:  # else it was done before the first checkpoint
        evaluate(run, step=0)
        run.checkpoints.save(0, state, memory, gap=None)
    for step in range(start.step, recipe.steps):
        run.phases.step = step
        run.profiler.at(step)
        batch = run.sampler.next(step, entropy_controls.plan(recipe, memory))
        with run.phases("score"):
            run.turns.to_trainer()
            scores, reference = score(run, batch, step, start)
        with run.phases("train"):
            terms = mini_batches.loss_terms(batch, scores, reference, recipe)
            context = entropy_controls.Context(recipe, step, run.trainer.vocab_size, batch, scores)
            terms, memory = entropy_controls.apply(terms, context, memory)
            driven = drive(recipe, state.coefficient, batch, terms, run.trainer.norm_ratio)
            results = [  # the coefficient is fixed within the step
                run.trainer.train_minibatch(mini_batch, driven.bonus)
                for mini_batch in mini_batches.split(batch, driven.terms, recipe)
            ]
        state, report = controllers.update(settings, state, measured_entropy(recipe, results))
        # without scores there is one mini-batch, whose forward came before its update
        logprobs = results[0].logprobs if scores is None else scores.logprobs
        gaps = Gaps.of(batch, logprobs, step)
        if scores is None:
            check_gap(step, gaps.same, recipe.rollout.max_logprob_gap, start.gap_before(step))
        run.weights.sync(version=step + 1)
        record(run, StepDone(step, batch, driven, gaps, results, report, memory, run.peak_flops))
        evaluate(run, step + 1)
        if run.checkpoints.save(step + 1, state, memory, gaps.same):
            run.zero.alone("sending the last records", lambda zero: zero.report.suspend())
            return False
    run.profiler.end()
    peaks = distributed.peak_memory()  # of the steps: not of saving the policy
    with run.phases("save"):
        run.trainer.save_pretrained(run.run_dir / "policy")
    run.zero.alone("the summary", lambda zero: zero.report.finish(peaks))
    return True


def score(run: Run, batch: Batch, step: int, start: Start) -> tuple[Scores | None, Tensor | None]:
    """The batch's scores under the policy before the step's first update, and the reference
    policy's log-probs [T], each if something needs it.

    The first step after a start is always scored: engine and trainer must agree before the policy
    learns.
    """
    recipe = run.recipe
    scores = reference = None
    needed = mini_batches.needs_scores(recipe)
    if needed or step == start.step:
        scores = run.trainer.score_tokens(batch)
        gap = Gaps.of(batch, scores.logprobs, step).same
        check_gap(step, gap, recipe.rollout.max_logprob_gap, start.gap_before(step))
    if recipe.algorithm.kl_coefficient > 0:
        reference = run.trainer.score_reference(batch)
    # a repeated step must be the same step: it gets its own forward pass if it had one before
    return (scores if needed else None), reference


def drive(
    recipe: Recipe, coefficient: float, batch: Batch, terms: LossTerms, norm_ratio: float
) -> actuators.Driven:
    """Let the step's coefficient act on what the controller drives."""
    step = actuators.Step(terms, batch.loss_mask, recipe.algorithm, norm_ratio)
    return actuators.ACTUATORS[recipe.controller.drives](coefficient, step)


def measured_entropy(recipe: Recipe, results: Sequence[MinibatchResult]) -> float:
    """H_t by the controller's measure: the mean over all response tokens of the step, as computed
    in the forward passes."""
    return sum(getattr(r, recipe.measured) for r in results) / sum(r.tokens for r in results)


def record(run: Run, done: StepDone) -> None:
    """Log and show the step; nobody waits for it."""
    seconds = run.phases.take()
    with run.phases("record"):
        run.zero.meanwhile(lambda zero: zero.record(done, seconds))


def evaluate(run: Run, step: int) -> None:
    """Score the held-out questions and the suites on the engines, with the weights after ``step``
    steps, if it is due: before the first step, after the last, and at the recipe's intervals."""
    recipe, every = run.recipe, run.recipe.evaluation.every
    asked = recipe.task.holds_out or recipe.evaluation.suites
    if asked and (step in (0, recipe.steps) or (every and step % every == 0)):
        with run.phases("evaluate"):
            run.zero.alone(
                f"evaluation after {step} steps", lambda zero: zero.evaluator.evaluate(step)
            )
