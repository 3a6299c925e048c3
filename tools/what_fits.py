"""Write the tables of docs/scaling.md: what fits on how many GPUs, and the effect of each setting.

    .venv/bin/python tools/what_fits.py [--write]

All numbers are estimates (``aent.estimate``); nothing runs. ``tests/estimate/test_scaling.py``
compares the page with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

from aent.estimate import card
from aent.estimate.memory import GIB, estimate
from aent.layout.parallel import ParallelLayout
from aent.models.facts import model_facts
from aent.recipe.load import load
from aent.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CARD = 79 * GIB
MODELS = {"1.5B": "Qwen2.5-1.5B", "7B": "Qwen2.5-7B", "32B": "Qwen2.5-32B", "72B": "Qwen2.5-72B"}
LENGTHS = {"4k": 4096, "16k": 16384, "32k": 32768, "128k": 131072}
CARDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NODE = 8  # GPUs; tensor parallelism stays within a node
EXAMPLE = ROOT / "recipes" / "scale" / "7b-16k.yaml"
FULL = "{recompute_granularity: full, recompute_method: uniform, recompute_num_layers: 1}"
# text of the setting; overrides of EXAMPLE without it, and with it; the line that it reduces
KNOBS: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = [
    ("`trainer.megatron: {recompute_granularity: full, ...}`",
     ("trainer.megatron={}",), (f"trainer.megatron={FULL}",), "activations"),
    ("`trainer.megatron: {recompute_granularity: selective}`", ("trainer.megatron={}",),
     ("trainer.megatron={recompute_granularity: selective}",), "activations"),
    ("`trainer.megatron: {bias_activation_fusion: true}`", ("trainer.megatron={}",),
     ("trainer.megatron={bias_activation_fusion: true}",), "activations"),
    ("`trainer.sequence_parallel: true`",
     ("trainer.sequence_parallel=false", "trainer.megatron={}"),
     ("trainer.sequence_parallel=true", "trainer.megatron={}"), "activations"),
    ("`trainer.context_parallel: 4`", ("trainer.megatron={}",),
     ("trainer.megatron={}", "trainer.context_parallel=4"), "activations"),
    ("`trainer.fused_head: true`", ("trainer.fused_head=false",), (), "logits"),
    ("`trainer.optimizer.distributed: true`",
     ("trainer.optimizer.distributed=false", "trainer.ddp={}"), ("trainer.ddp={}",), "optimizer"),
    ("`trainer.data_parallel: 4` (with it)", (), ("trainer.data_parallel=4",), "optimizer"),
    ("`trainer.optimizer.megatron: {use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16, "
     "exp_avg_sq_dtype: bfloat16}`", (),
     ("trainer.optimizer.megatron={use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16, "
      "exp_avg_sq_dtype: bfloat16}",), "optimizer"),
    ("`trainer.optimizer.megatron: {use_precision_aware_optimizer: true, "
     "optimizer_cpu_offload: true, optimizer_offload_fraction: 1.0}`", (),
     ("trainer.optimizer.megatron={use_precision_aware_optimizer: true, "
      "optimizer_cpu_offload: true, optimizer_offload_fraction: 1.0}",), "optimizer"),
    ("`trainer.tensor_parallel: 4`", (), ("trainer.tensor_parallel=4",), "gradients"),
    ("`trainer.pipeline_parallel: 2`", (), ("trainer.pipeline_parallel=2",), "gradients"),
    ("`checkpoint.memory_efficient: true`",
     ("checkpoint.memory_efficient=false", "trainer.ddp={}"), ("trainer.ddp={}",), "gathering"),
    ("`trainer.ddp: {overlap_grad_reduce: true}`",
     ("checkpoint.memory_efficient=false", "trainer.ddp={}"),
     ("checkpoint.memory_efficient=false", "trainer.ddp={overlap_grad_reduce: true}"), "gathering"),
]  # fmt: skip


def recipe_of(model: str, tokens: int) -> Recipe:
    """The example, with another model and length."""
    found = load(EXAMPLE, [f"model.path=models/{MODELS[model]}-Instruct"])
    rollout = found.rollout.model_copy(update={"max_response_tokens": tokens - 1024})
    trainer = found.trainer.model_copy(update={"micro_batch_tokens": tokens})
    return found.model_copy(update={"rollout": rollout, "trainer": trainer})


def layouts(model: str, cards: int) -> Iterator[ParallelLayout]:
    """Layouts with this many GPUs, best first: data parallelism needs least communication, then
    tensor, then context parallelism."""
    facts = model_facts(recipe_of(model, 4096).model)
    sizes = [size for size in CARDS if size <= cards]
    found = []
    for tensor, context, pipeline in product(sizes, sizes, sizes):
        data, rest = divmod(cards, tensor * context * pipeline)
        divides = facts.kv_groups % tensor == facts.layers % pipeline == 0
        if data and not rest and divides and tensor <= NODE:
            layout = ParallelLayout(tensor=tensor, context=context, data=data, pipeline=pipeline)
            found.append(layout)
    yield from sorted(found, key=lambda each: (-each.data, each.pipeline, each.context))


def filled(recipe: Recipe, layout: ParallelLayout) -> int:
    """Bytes on the fullest card."""
    update = {
        "tensor_parallel": layout.tensor,
        "context_parallel": layout.context,
        "pipeline_parallel": layout.pipeline,
        "data_parallel": layout.data,
        "sequence_parallel": layout.tensor > 1,
    }
    trainer = recipe.trainer.model_copy(update=update)
    memory = estimate(recipe.model_copy(update={"trainer": trainer}))
    return card.card(memory.per_rank[memory.fullest], layout).total


@cache
def smallest(model: str, length: str) -> tuple[ParallelLayout, int]:
    """The first layout that fits, on as few GPUs as possible, and the bytes on its fullest card."""
    recipe = recipe_of(model, LENGTHS[length])
    for cards in CARDS:
        for layout in layouts(model, cards):
            if (need := filled(recipe, layout)) <= CARD:
                return layout, need
    raise LookupError(f"{model} at {length} does not fit {CARDS[-1]} GPUs")


def by_cards() -> Iterator[str]:
    """Rows: for each number of GPUs, the longest text that fits."""
    yield f"| GPUs | {' | '.join(MODELS)} |"
    yield f"|---|{'---|' * len(MODELS)}"
    most = max(smallest(m, n)[0].num_ranks for m in MODELS for n in LENGTHS)
    for cards in (c for c in CARDS if c <= most):
        cells = []
        for model in MODELS:
            fit = [n for n in LENGTHS if smallest(model, n)[0].num_ranks <= cards]
            cells.append(fit[-1] if fit else "-")
        yield f"| {cards} | {' | '.join(cells)} |"


def by_length() -> Iterator[str]:
    """Rows: for each model and length, the fewest GPUs, their layout and the GiB on the fullest."""
    yield f"| model | {' | '.join(LENGTHS)} |"
    yield f"|---|{'---|' * len(LENGTHS)}"
    for model in MODELS:
        cells = []
        for length in LENGTHS:
            layout, need = smallest(model, length)
            names = {"TP": "tensor", "CP": "context", "PP": "pipeline", "DP": "data"}
            sizes = {short: getattr(layout, name) for short, name in names.items()}
            said = ", ".join(f"{short} {size}" for short, size in sizes.items() if size > 1)
            cells.append(f"{layout.num_ranks}{said and f' ({said})'}: {need / GIB:.0f}")
        yield f"| {model} | {' | '.join(cells)} |"


def by_knob() -> Iterator[str]:
    """Rows: the line that a setting reduces, and the fullest card, without it and with it."""
    yield "| setting | line | without | with | card without | card with |"
    yield "|---|---|---|---|---|---|"
    for knob, without, with_it, line in KNOBS:
        cells = [f"| {knob} | {line} "]
        lines, cards = [], []
        for overrides in (without, with_it):
            recipe = load(EXAMPLE, overrides)
            memory = estimate(recipe)
            rank = memory.per_rank[memory.fullest]
            need = card.card(rank, ParallelLayout.of(recipe.trainer)).total
            lines.append(max(getattr(each, line) for each in memory.per_rank))
            cards.append(need)
        yield cells[0] + "| " + " | ".join(f"{v / GIB:.1f}" for v in lines + cards) + " |"


TABLES = {"cards": by_cards, "lengths": by_length, "knobs": by_knob}


def filled_page(text: str) -> str:
    """The page with its present tables; each is between two comments."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(rows()) + "\n" + end + after
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write them into docs/scaling.md")
    if parser.parse_args().write:
        PAGE.write_text(filled_page(PAGE.read_text()))
        return
    for rows in TABLES.values():
        print("\n".join(rows()), end="\n\n")


if __name__ == "__main__":
    main()
