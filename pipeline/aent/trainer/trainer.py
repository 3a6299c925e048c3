"""The trainer: the policy on Megatron, its scoring, its optimizer steps, its export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from aent.algorithm import entropy_controls
from aent.algorithm.terms import MiniBatch
from aent.data.batch import Batch
from aent.data.scores import Scores
from aent.entropy import VocabShard
from aent.layout.parallel import ParallelLayout
from aent.models.attention import attention_faults
from aent.models.facts import folder_facts
from aent.models.flops import TRAINING, ForwardFlops
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.runtime.megatron_cpu import on_device
from aent.trainer import export, loss, optimizer, saved_policy, totals
from aent.trainer.context import Part
from aent.trainer.gradient_share import Neutral
from aent.trainer.model import build_model, open_bridge
from aent.trainer.overlap import data_parallel
from aent.trainer.packing import MicroBatch, Packing
from aent.trainer.partition import make_units, partition
from aent.trainer.pipeline_wait import PipelineWaits
from aent.trainer.result import PER_TOKEN, SUMMED, MinibatchResult

MAX_SKIPPED = 3  # this many updates in a row without a finite gradient end a run


class Trainer:
    """One rank's part of the policy in training. All methods are collective over all ranks."""

    @on_device
    def __init__(self, recipe: Recipe, model_path: Path) -> None:
        """Build the model's shard and read its weights, after ``distributed.initialize``.

        Raises:
            ValueError: if no record of ``aent.models.families`` covers the model, or if
                ``trainer.attention`` cannot compute it here.
        """
        facts = folder_facts(model_path)
        if fault := next(attention_faults(recipe, facts), None):
            raise ValueError(fault)
        self.recipe, self.model_path = recipe, model_path
        self.device = distributed.device()
        self.layout = ParallelLayout.of(recipe.trainer)
        self.pairs_per_token = facts.pairs_per_token
        self.forward_flops = ForwardFlops.of(facts)
        self.bridge = open_bridge(recipe, facts)
        policy = build_model(self.bridge, self.layout, model_path)
        self.shard: VocabShard | None = None  # of the vocabulary, on the last stage
        if policy.post_process:
            group = parallel_state.get_tensor_model_parallel_group()
            columns = self.bridge.padded_vocab_size // self.layout.tensor
            self.shard = VocabShard.locate(
                columns, self.vocab_size, group if group.size() > 1 else None, self.device
            )
        self.config = policy.config
        self.policy = policy
        self.model = data_parallel(policy, recipe.trainer)
        self.optimizer = optimizer.build_optimizer(
            recipe.trainer.optimizer, self.model, self.bridge.dtype
        )
        self.learning_rate = optimizer.LearningRate(recipe, self.optimizer)
        self.config.finalize_model_grads_func = _sum_gradients
        self.waits = PipelineWaits()
        if self.layout.pipeline > 1:
            self.config.timers = self.waits
        self.exporter = export.Exporter(self.bridge, policy, self.layout)
        self.reference: list[Tensor] | None = None  # the first weights, if a KL to them is needed
        if recipe.algorithm.kl_coefficient > 0:
            self.reference = [p.detach().cpu().clone() for p in policy.parameters()]
        self.skipped_updates = self.skipped_in_a_row = 0
        self.neutral = Neutral()

    @property
    def norm_ratio(self) -> float:
        """||dL|| / ||dH|| over the updates so far (``gradient_share``), the same on every rank."""
        return self.neutral.norm_ratio

    @property
    def vocab_size(self) -> int:
        """The true V, without the padding of Megatron's embedding."""
        return self.bridge.vocab_size

    @on_device
    @torch.no_grad()
    def score_tokens(self, batch: Batch) -> Scores:
        """Log-probs and entropies of the tempered policy at the response tokens, from a forward
        pass."""
        micro_batches = self._micro_batches(batch)
        nuclei = self.recipe.control("nucleus_anchor") is not None
        slopes = entropy_controls.need_covariances(self.recipe)
        policy = self._policy(batch)
        names = ["logprobs", "entropies", *["nucleus_entropies"] * nuclei]
        names += ["covariances", "entropy_slopes"] * slopes

        def scores(micro_batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
            if not len(micro_batch.predicts):  # a rank without work
                return _nothing(hidden), _one_token(), None
            stats = loss.statistics(
                policy, hidden, micro_batch, self.recipe, clamped=False, slopes=slopes
            )
            values = [stats.log_prob, stats.entropy]
            if nuclei:
                places = micro_batch.predicts
                values.append(loss.nucleus_entropies(policy, hidden, places, self.recipe))
            values += [v for v in (stats.covariance, stats.entropy_slope) if v is not None]
            return _nothing(hidden), _one_token(), torch.stack(values)

        self.model.eval()
        parts = self._run(micro_batches, scores, forward_only=True)
        self.model.train()
        flat = totals.gather_tokens(micro_batches, parts, len(names))
        return Scores(**dict(zip(names, flat)))

    def score(self, batch: Batch) -> Tensor:
        """The log-probs of ``score_tokens``, [T]."""
        return self.score_tokens(batch).logprobs

    @on_device
    @torch.no_grad()
    def score_reference(self, batch: Batch) -> Tensor:
        """``score`` by the first weights, which replace the policy's meanwhile."""
        assert self.reference is not None, "algorithm.kl_coefficient is 0: no reference is kept"
        self.gather_parameters()
        parameters = list(self.policy.parameters())
        current = [p.detach().clone() for p in parameters]
        try:
            torch._foreach_copy_(parameters, self.reference)
            return self.score(batch)
        finally:
            torch._foreach_copy_(parameters, current)

    @on_device
    def train_minibatch(self, mini_batch: MiniBatch, coefficient: float) -> MinibatchResult:
        """Forward and backward over micro-batches, clip, one optimizer step, one schedule move.

        Args:
            mini_batch: all of it, the same on every rank.
            coefficient: of the entropy bonus (lambda).

        Raises RuntimeError if this is the ``MAX_SKIPPED``th update in a row whose gradient is not
        finite.
        """
        batch = mini_batch.batch
        micro_batches, policy = self._micro_batches(batch), self._policy(batch)
        recipe, update = self.recipe, self.learning_rate.moves

        def step_loss(micro_batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
            if not len(micro_batch.predicts):
                none = loss.loss_without_tokens(policy, hidden, micro_batch, mini_batch, recipe)
                return none, _one_token(), None
            part = loss.micro_batch_loss(
                policy, hidden, micro_batch, mini_batch, recipe, coefficient, update
            )
            return part.loss, _one_token(), (part.sums, part.tokens)

        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.waits.begin()
        parts = self._run(micro_batches, step_loss, forward_only=False)
        applied = optimizer.apply_gradients(self.optimizer, recipe.trainer.optimizer.clip_grad)
        self._count_skipped(applied)
        lr = self.learning_rate.value
        self.learning_rate.move()
        return self._result(micro_batches, parts, applied, lr)

    def gather_parameters(self) -> None:
        """Update all of this rank's parameters, before they are read without a forward: with
        ``ddp.overlap_param_gather`` only the next forward would gather them."""
        if self.model.ddp_config.overlap_param_gather:
            self.model.start_param_sync(force_sync=True)

    def _count_skipped(self, update: optimizer.Update) -> None:
        self.skipped_updates += update.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if update.skipped else 0
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise RuntimeError(
                f"the gradient norm of {MAX_SKIPPED} updates in a row was not finite (the last: "
                f"{update.grad_norm}), and they were skipped: the policy no longer learns"
            )

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) on rank 0; every rank iterates, in lockstep, to the end
        (other ranks get empty tensors). No lm_head.weight if embeddings are tied."""
        self.gather_parameters()
        return iter(self.exporter)

    def export_stage(self, copies: bool = False) -> Iterator[tuple[str, Tensor]]:
        """``export`` of this rank's pipeline stage only, on the stage's first rank or, with
        ``copies``, on every one (without tensor parallelism); every rank iterates to the end."""
        self.gather_parameters()
        return self.exporter.stage(copies)

    def save_pretrained(self, path: Path) -> None:
        """Write the policy as a Hugging Face folder, which appears when it is complete: each
        pipeline stage writes its own files. Raises as ``saved_policy.save_pretrained``."""
        self.gather_parameters()
        saved_policy.save_pretrained(self.exporter, self.model_path, path)

    def _micro_batches(self, batch: Batch) -> Packing:
        """This data-parallel rank's share, of which each of its context-parallel ranks has a part.

        Raises:
            ValueError: if a token has no row in the model's embedding: with tensor parallelism it
                would silently become a vector of zeros. Also as ``make_units``.
        """
        largest = int(batch.tokens.max())
        if largest >= self.vocab_size:
            raise ValueError(
                f"a token has the id {largest}, and the model's embedding has {self.vocab_size} "
                "rows: the tokenizer is not the model's"
            )
        settings = self.recipe.trainer
        limit = settings.micro_batch_tokens
        units = make_units(batch, settings.share_prompts, limit)
        work = [unit.work(self.pairs_per_token) for unit in units]
        shares = partition([unit.tokens for unit in units], self.layout.data, limit, work)
        place = self.layout.coordinates(dist.get_rank())
        part = Part(self.layout.context, place.context)
        multiple = part.multiple * (self.layout.tensor if self.config.sequence_parallel else 1)
        chosen = [[units[u] for u in micro_batch] for micro_batch in shares[place.data]]
        flops = sum(unit.flops(self.forward_flops) for unit in units)
        return Packing(batch, chosen, multiple, self.device, part, flops)

    def _policy(self, batch: Batch) -> loss.Policy:
        return loss.Policy(self.policy, self.shard, batch.temperature)

    def _run(
        self,
        micro_batches: Packing,
        loss_function: Callable[[MicroBatch, Tensor], tuple[Tensor, Tensor, Any]],
        forward_only: bool,
    ) -> list[Any]:
        """Run Megatron's pipeline schedule; returns the loss function's third value for each
        micro-batch, on the last stage ([] elsewhere)."""

        def forward_step(batches: Iterator[MicroBatch], model: DistributedDataParallel) -> tuple:
            micro_batch = next(batches)
            return model.module.run(micro_batch), partial(loss_function, micro_batch)

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=self.model,
            num_microbatches=len(micro_batches),
            seq_length=self.recipe.trainer.micro_batch_tokens,  # tensors carry their real lengths
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _result(
        self, micro_batches: Packing, parts: list[Any], update: optimizer.Update, lr: float
    ) -> MinibatchResult:
        added = totals.sum_parts([p and p[0] for p in parts], len(SUMMED))
        sums: dict[str, Any] = dict(zip(SUMMED, added))
        tokens = totals.gather_tokens(micro_batches, [p and p[1] for p in parts], len(PER_TOKEN))
        return MinibatchResult(
            **sums | {"tokens": round(sums["tokens"])},
            neutral_coefficient=self.neutral.add(
                sums["gradient_product"],
                sums["entropy_gradient_square"],
                sums["policy_gradient_square"],
            ),
            grad_norm=update.grad_norm,
            lr=lr,
            update_skipped=update.skipped,
            flops=TRAINING * micro_batches.flops,
            bubble=self.waits.mean_share() if self.layout.pipeline > 1 else None,
            **dict(zip(PER_TOKEN, tokens)),
        )


def _sum_gradients(model: list[DistributedDataParallel], _tokens: Any, **kwargs: Any) -> None:
    """Megatron's gradient reductions, without its division by a token count: the weights of the
    loss already contain every denominator, so gradients are sums over micro-batches and ranks."""
    finalize_model_grads(model, None, **kwargs)


def _nothing(hidden: Tensor) -> Tensor:
    """A loss of 0 that still has the graph of ``hidden``."""
    return (hidden * 0).sum()


def _one_token() -> Tensor:
    """Megatron expects a token count with each loss; nothing is divided by it."""
    return torch.ones((), dtype=torch.int)
