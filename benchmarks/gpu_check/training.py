"""The trainer on this one device: scoring, optimizer steps, export, against the formulas of
tests/trainer on transformers' model in float32 on the CPU."""

from __future__ import annotations

import importlib.metadata
import math
import os
import tempfile
import time
from pathlib import Path

import torch

from aent.algorithm.terms import MiniBatch
from aent.recipe.schema import Recipe
from aent.runtime import distributed
from aent.runtime.environment import attention_implementation
from aent.runtime.network import held_port
from aent.trainer.result import MinibatchResult
from aent.trainer.trainer import Trainer
from gpu_check.report import Row, bounded
from gpu_check.section import Section, of_command_line
from trainer import formulas, tiny

HAVE_TRANSFORMER_ENGINE = attention_implementation() == "transformer_engine"
STEPS = 4
COEFFICIENT = 0.05  # of the entropy bonus
# relative errors of the gradient norm, absolute ones of loss, log-probs and entropies (nats)
ALLOWED = {
    "float32": {"loss": 1e-3, "gradient norm": 1e-3, "log-probs": 1e-3, "entropy": 1e-3},
    "bfloat16": {"loss": 0.03, "gradient norm": 0.05, "log-probs": 0.3, "entropy": 0.03},
}


def main(section: Section) -> None:
    names = ("megatron-core", "mbridge", "transformers")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    engine = "Transformer Engine" if HAVE_TRANSFORMER_ENGINE else "no Transformer Engine"
    section.add(Row(section.name, "packages", note=", ".join([*versions, engine])))
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    port = held_port()
    os.environ["MASTER_PORT"] = str(port.getsockname()[1])
    distributed.initialize(tiny.recipe().trainer, seed=0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = tiny.write_model(Path(folder) / "model", tied=False)
            for dtype in ("bfloat16", "float32"):  # float32 by torch's attention: trainer.attention
                section.unless_late(dtype, 10.0, lambda: check(section, path, dtype))  # noqa: B023
    finally:
        distributed.shutdown()


def check(section: Section, path: Path, dtype: str) -> None:
    """Rows for one dtype: a forward alone, each optimizer step, the exported weights."""
    recipe = tiny.recipe(
        model={"path": "unused", "dtype": dtype},
        trainer={"optimizer": {"implementation": "auto", "lr": 1e-3}},
    )
    mini = tiny.mini_batch(tiny.RAGGED)
    reference = formulas.load(path)
    with torch.no_grad():
        for parameter in reference.parameters():  # as the trainer has them
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    trainer = Trainer(recipe, path)
    score = trainer.score(mini.batch)
    mini = tiny.with_terms(mini, old_logprobs=score)  # so that the loss moves with the policy
    section.add(first_step(section, trainer, reference, mini, recipe, dtype))
    results = [step(section, trainer, mini, dtype, n) for n in range(1, STEPS)]
    fell = results[-1].loss - results[0].loss
    what = f"{dtype}: loss from step 1 to the last"
    section.add(bounded(section.name, what, {"change": fell}, {"change": -1e-3}))
    wrong = float(wrong_weights(trainer, reference))
    what = f"{dtype}: exported weights"
    section.add(bounded(section.name, what, {"wrong": wrong}, {"wrong": 0.0}))


def wrong_weights(trainer: Trainer, reference: torch.nn.Module) -> int:
    """Number of exported weights with a wrong name or shape, not finite, or missing."""
    wanted = {name: value.shape for name, value in reference.named_parameters()}
    wrong = 0
    for name, value in trainer.export():  # each is valid until the next one
        wrong += wanted.pop(name, None) != value.shape or not bool(value.isfinite().all())
    return wrong + len(wanted)


def first_step(
    section: Section,
    trainer: Trainer,
    reference: torch.nn.Module,
    mini: MiniBatch,
    recipe: Recipe,
    dtype: str,
) -> Row:
    """The first optimizer step, and the scoring before it, against the formulas."""
    want = formulas.expected(reference, mini, recipe, COEFFICIENT)
    want.loss.backward()
    norm = math.sqrt(sum(float(g.square().sum()) for g in formulas.gradients(reference).values()))
    assert mini.terms.old_logprobs is not None
    score = mini.terms.old_logprobs[mini.batch.loss_mask]
    result = step(section, trainer, mini, dtype, 0)
    entropy = result.entropy / result.tokens - float(want.entropy.mean())
    clamped = result.clamped_entropy / result.tokens - float(want.clamped_entropy.mean())
    errors = {
        "loss": abs(result.loss - want.loss.item()),
        "gradient norm": abs(result.grad_norm / norm - 1),
        "log-probs": float((score - want.log_prob).abs().max()),
        "entropy": max(abs(entropy), abs(clamped)),
    }
    return bounded(section.name, f"{dtype}: step 0 against the formulas", errors, ALLOWED[dtype])


def step(
    section: Section, trainer: Trainer, mini: MiniBatch, dtype: str, number: int
) -> MinibatchResult:
    """One optimizer step, and a row with its result."""
    began = time.monotonic()
    result = trainer.train_minibatch(mini, COEFFICIENT)
    seconds = time.monotonic() - began
    measured = {
        "loss": result.loss,
        "gradient norm": result.grad_norm,
        "entropy": result.entropy / result.tokens,
        "clamped entropy": result.clamped_entropy / result.tokens,
        "ms": seconds * 1e3,
    }
    bad = result.invalid_rows + result.update_skipped
    bad += sum(not math.isfinite(value) for value in measured.values())
    measured["not finite"] = bad
    section.add(
        bounded(section.name, f"{dtype}: step {number}", measured, {"not finite": 0.0}),
    )
    return result


if __name__ == "__main__":
    section, _ = of_command_line()
    main(section)
