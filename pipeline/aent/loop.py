"""The training loop: sample, verify, score, advantages, update, control, sync, record, save.

Every rank runs it. What rank 0 does alone (engines, judges, MLflow) goes through
``run.control.alone``, in which the other ranks wait for it.
"""

from __future__ import annotations

from aent.algorithm import entropy_controls, prepare
from aent.batch import Batch
from aent.entropy import controllers
from aent.run import Run
from aent.trainer.trainer import MinibatchResult


def train(run: Run) -> None:
    """Train from step 0 to ``recipe.steps`` and save the policy to ``run_dir/policy``."""
    recipe = run.recipe
    settings = run.controller
    state = controllers.initial_state(settings)
    run.sync(version=0)
    run.evaluate(step=0)
    for step in range(recipe.steps):
        batch = sample(run, step)
        with run.phases("score"):
            score(run, batch, step)
        with run.phases("train"):
            prepare.set_advantages(batch, recipe)
            entropy_controls.apply(batch, recipe.entropy_controls, recipe.seed, step)
            mini_batches = prepare.split_mini_batches(batch, recipe)
            coefficient = state.coefficient  # fixed within the step
            results = [run.trainer.train_minibatch(mini, coefficient) for mini in mini_batches]
        state, report = controllers.update(settings, state, measured_entropy(run, results))
        if batch.old_logprobs is None:  # one mini-batch, whose forward came before its update
            batch.old_logprobs = results[0].logprobs
            check_gap(run, batch, step)
        run.sync(version=step + 1)
        run.record(step, batch, results, report)
        if recipe.evaluation.every and (step + 1) % recipe.evaluation.every == 0:
            run.evaluate(step=step + 1)
    if not (recipe.evaluation.every and recipe.steps % recipe.evaluation.every == 0):
        run.evaluate(step=recipe.steps)
    with run.phases("save"):
        run.trainer.save_pretrained(run.run_dir / "policy")
    run.finish()


def sample(run: Run, step: int) -> Batch:
    """This step's rewarded batch, on every rank."""
    with run.phases("sample"):
        return run.next_batch(step)


def score(run: Run, batch: Batch, step: int) -> None:
    """What the policy before the step's first update says of the batch, and the reference, where
    somebody needs them.

    The first step always scores: engine and trainer must agree before anything is learnt.
    """
    recipe = run.recipe
    if step == 0 or prepare.needs_old_logprobs(recipe):
        scores = run.trainer.score_tokens(batch)
        batch.old_logprobs, batch.old_entropies = scores.logprobs, scores.entropies
        check_gap(run, batch, step)
    if recipe.algorithm.kl_coefficient > 0:
        batch.reference_logprobs = run.trainer.score_reference(batch)


def check_gap(run: Run, batch: Batch, step: int) -> None:
    """Stop the run when engine and trainer disagree about the same tokens and weights."""
    gap, bound = batch.logprob_gap, run.recipe.rollout.max_logprob_gap
    if not gap <= bound:  # NaN must stop it too
        raise RuntimeError(
            f"step {step}: engine and trainer log-probs differ by {gap:.4g} on average, more than "
            f"rollout.max_logprob_gap={bound:g}: the engine does not sample from the policy that "
            "is being trained"
        )


def measured_entropy(run: Run, results: list[MinibatchResult]) -> float:
    """H_t: the mean over every response token of the step, as computed in the forward passes."""
    name = "clamped_entropy" if run.recipe.entropy.measure == "clamped" else "entropy"
    return sum(getattr(r, name) for r in results) / sum(r.tokens for r in results)
