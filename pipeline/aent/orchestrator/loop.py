"""The training loop: sample, verify, score, advantages, update, control, sync, record, save.

Every rank runs it. What rank 0 does alone (engines, judges, MLflow) goes through
``run.control.alone``, in which the other ranks wait for it.
"""

from __future__ import annotations

from aent.algorithm import entropy_controls, terms
from aent.data.batch import Batch
from aent.entropy import controllers
from aent.orchestrator.run import Run
from aent.runtime import distributed
from aent.trainer.trainer import MinibatchResult


def train(run: Run) -> bool:
    """Train to ``recipe.steps`` and save the policy to ``run_dir/policy``.

    Returns False where the run was asked to stop: it has a checkpoint to go on from.
    """
    recipe, settings = run.recipe, run.controller
    state, memory = run.start()
    run.sync(version=run.first_step)
    if not run.resumed:  # else it was done before the first checkpoint
        run.evaluate(step=0)
        run.checkpoint(0, state, memory, gap=None)
    for step in range(run.first_step, recipe.steps):
        batch = run.next_batch(step, entropy_controls.plan(recipe, memory))
        with run.phases("score"):
            score(run, batch, step)
        with run.phases("train"):
            terms.set_advantages(batch, recipe)
            vocab_size = run.trainer.vocab_size
            memory = entropy_controls.apply(batch, recipe, step, vocab_size, memory)
            mini_batches = terms.split_mini_batches(batch, recipe)
            coefficient = state.coefficient  # fixed within the step
            results = [run.trainer.train_minibatch(mini, coefficient) for mini in mini_batches]
        state, report = controllers.update(settings, state, measured_entropy(run, results))
        if batch.old_logprobs is None:  # one mini-batch, whose forward came before its update
            batch.old_logprobs = results[0].logprobs
            run.check_gap(step, batch.logprob_gap)
        run.sync(version=step + 1)
        run.record(step, batch, results, report, memory)
        run.evaluate(step=step + 1)
        if run.checkpoint(step + 1, state, memory, batch.logprob_gap):
            return False
    peaks = distributed.peak_memory()  # before rank 0 gathers the whole policy to save it
    with run.phases("save"):
        run.trainer.save_pretrained(run.run_dir / "policy")
    run.finish(peaks)
    return True


def score(run: Run, batch: Batch, step: int) -> None:
    """What the policy before the step's first update says of the batch, and the reference, where
    somebody needs them.

    The first step after a start is always scored: engine and trainer must agree before anything is
    learnt.
    """
    recipe = run.recipe
    needed = terms.needs_old_logprobs(recipe)
    if needed or step == run.first_step:
        scores = run.trainer.score_tokens(batch)
        batch.old_logprobs, batch.old_entropies = scores.logprobs, scores.entropies
        batch.old_nucleus_entropies = scores.nucleus_entropies
        run.check_gap(step, batch.logprob_gap)
    if not needed:  # a repeated step must be the same step, by those of its own forward
        batch.old_logprobs = batch.old_entropies = None
    if recipe.algorithm.kl_coefficient > 0:
        batch.reference_logprobs = run.trainer.score_reference(batch)


def measured_entropy(run: Run, results: list[MinibatchResult]) -> float:
    """H_t, of the controller's measure: the mean over every response token of the step, as computed
    in the forward passes."""
    return sum(getattr(r, run.recipe.measured) for r in results) / sum(r.tokens for r in results)
