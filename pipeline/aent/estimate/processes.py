"""The processes that a recipe starts, and the place of each."""

from __future__ import annotations

from aent.layout.parallel import ParallelLayout
from aent.models.facts import model_facts
from aent.recipe.folder import run_folder
from aent.recipe.schema import Recipe


def describe(recipe: Recipe) -> str:
    """The processes of a checked recipe: each trainer rank's place, the engines, the folder."""
    trainer, rollout = recipe.trainer, recipe.rollout
    facts = model_facts(recipe.model)
    layout = ParallelLayout.of(trainer)
    name = recipe.model.bundled or recipe.model.path
    lines = [
        f"model: {name}, {facts.parameters / 1e6:.4g} M parameters in {facts.layers} layers, "
        f"vocabulary {facts.vocab}, {recipe.model.dtype}",
        f"trainer: {layout.num_ranks} ranks = {layout}",
    ]
    stages = layout.stage_layers(facts.layers, facts.head_layers)
    for rank in range(layout.num_ranks):
        place = layout.coordinates(rank)
        stage, own = place.pipeline, stages[place.pipeline]
        layers = f"layers {own[0]}-{own[-1]}"
        extra = (", embedding" if layout.has_embedding(stage) else "") + (
            ", output layer and loss" if layout.has_head(stage) else ""
        )
        role = "; engines, judges, tracking" if rank == 0 else ""
        context = f" context {place.context}," if layout.context > 1 else ""
        lines.append(
            f"  rank {rank}: tensor {place.tensor},{context} data {place.data}, pipeline {stage}: "
            f"{layers}{extra}{role}"
        )
    if rollout.urls:
        lines += [f"engine: {url} (started by somebody else)" for url in rollout.urls]
    for index in range(rollout.engines):
        port = rollout.engine.port + index if rollout.engine.port else "a free one"
        lines.append(
            f"engine {index}: one vLLM server here, tensor {rollout.engine.tensor_parallel}, "
            f"port: {port}"
        )
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    reroll = recipe.control("reroll")
    more = f" and at most {reroll.limit} re-rolled" if reroll is not None else ""
    lines.append(
        f"step: {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples = "
        f"{samples}{more}, in {trainer.mini_batches} mini-batches; {recipe.steps} steps"
    )
    lines.append(f"judges: {recipe.task.judge_processes} processes")
    lines.append(f"run folder: {run_folder(recipe)}")
    return "\n".join(lines)
