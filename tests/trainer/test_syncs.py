"""How often the host would wait for a GPU in an optimizer step: by the step, not by its
micro-batches, its layers or its rows."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from aent.entropy import sharded
from distributed.ranks import run_ranks
from syncs import Syncs, host_tensors
from trainer import tiny

CPU_ALONE = (
    ("sharded.py", "_trimmed", "__int__"),  # only on a CPU: see its docstring
    ("random.py", "fork", "item"),  # Megatron compares two states of the CPU's generator
)
LENGTHS = [(3, 9), (11, 2), (5, 17), (8, 8), (2, 21), (6, 5)]  # 97 tokens


def test_what_is_counted() -> None:
    device, host = torch.ones(3), torch.ones(3)
    with Syncs([host]) as syncs:
        host.tolist(), torch.arange(3).nonzero(), (host > 0).any().item()
        device[host.long()], device.index_fill_(0, torch.tensor([1]), 0.0)
        device[device > 5] = 0.0
        assert not syncs.counts
        device.tolist(), host.to(device.device).tolist(), device[device > 0]
        if (device + host).sum() > 0:
            torch.zeros(2, device="cpu").nonzero()
    where = Path(__file__).name, "test_what_is_counted"
    assert syncs.counts == {
        (*where, "tolist"): 2, (*where, "__getitem__"): 1, (*where, "__bool__"): 1,
        (*where, "nonzero"): 1,
    }  # fmt: skip


# tensor, context, pipeline parallel sizes, and further settings of the trainer
LAYOUTS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "one": ((1, 1, 1), {}),
    "tensor 2": ((2, 1, 1), {}),
    "tensor 2, chunked head": ((2, 1, 1), {"fused_head": True, "sequence_parallel": True}),
    "context 2": ((1, 2, 1), {}),
    "pipeline 2": ((1, 1, 2), {}),
}


def counted(rank: int, _world: int, folder: str) -> dict[str, dict[int, Counter]]:
    """By layout and number of micro-batches: the waits in scoring and in an update."""
    from aent.trainer import loss
    from aent.trainer.trainer import Trainer

    sharded.CANDIDATE_BYTES = 8 * 1024 * 10  # ten rows a block
    loss.linear_token_statistics = partial(loss.linear_token_statistics, chunk_tokens=10)
    found: dict[str, dict[int, Counter]] = {}
    for name, ((tensor, context, pipeline), more) in LAYOUTS.items():
        for tokens in (1000, 24):
            settings = {"share_prompts": True, "context_parallel": context, **more}
            recipe = tiny.recipe(tensor, pipeline, 1, tokens, trainer=settings)
            with tiny.world(recipe.trainer, rank, folder, f"{name}-{tokens}") as mine:
                if not mine:
                    continue
                trainer = Trainer(recipe, Path(folder) / "model")
                mini = tiny.mini_batch(LENGTHS)
                number = len(trainer._micro_batches(mini.batch))
                with Syncs(host_tensors(mini)) as syncs:
                    trainer.score(mini.batch)
                    trainer.train_minibatch(mini, 0.5)
                found.setdefault(name, {})[number] = syncs.counts
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    tiny.write_model(folder / "model", tied=True)
    return run_ranks(counted, 2, str(folder))


# the waits of one more micro-batch, on each rank: for the rows that are left for the search, once
# in each call with several tensor-parallel ranks (for its tokens, and for those whose gradient is
# measured); for the shapes that Megatron's stages send one another, in scoring and in training
SEARCH, CHUNKED = ("sharded.py", "forward", "nonzero"), ("head.py", "forward", "tolist")
SHAPES = ("p2p_communication.py", "_communicate_shapes", "tolist")
EACH: dict[str, list[dict[tuple[str, str, str], int]]] = {
    "one": [{}],
    "tensor 2": [{SEARCH: 2}] * 2,
    "tensor 2, chunked head": [{CHUNKED: 1, SEARCH: 1}] * 2,
    "context 2": [{}] * 2,
    "pipeline 2": [{SHAPES: 1}, {SHAPES: 2}],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_waits_of_a_step(ranks: list[dict[str, Any]], layout: str) -> None:
    counted = [counts[layout] for counts in ranks if layout in counts]
    for counts, each in zip(counted, EACH[layout], strict=True):
        one, many = sorted(counts.items())
        assert (one[0], many[0]) == (1, 5)
        more = many[1] - one[1]
        for where in CPU_ALONE:
            del more[where]
        assert more == {where: 4 * times for where, times in each.items()}
