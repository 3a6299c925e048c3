"""How often the host would wait for a GPU in an optimizer step: by the step, not by its
micro-batches, its layers or its rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from aent.entropy import sharded
from distributed.ranks import run_ranks
from syncs import Syncs, host_tensors
from trainer import tiny

CPU_ALONE = ("sharded.py", "_trimmed", "__int__")  # where tensors lie on a CPU, says its docstring
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


def counted(rank: int, world: int, folder: str) -> dict[int, Counter]:
    """By how many micro-batches a step has: what was waited for in scoring and in an update."""
    from aent.trainer.trainer import Trainer

    found = {}
    for tokens in (1000, 24):
        recipe = tiny.recipe(world, micro_batch_tokens=tokens, trainer={"share_prompts": True})
        with tiny.world(recipe.trainer, rank, folder, f"{world}-{tokens}"):
            trainer = Trainer(recipe, Path(folder) / "model")
            mini = tiny.mini_batch(LENGTHS)
            number = len(trainer._micro_batches(mini.batch))
            sharded.CANDIDATE_BYTES = 8 * 1024 * 10  # ten rows a block
            with Syncs(host_tensors(mini)) as syncs:
                trainer.score(mini.batch)
                trainer.train_minibatch(mini, 0.5)
            found[number] = syncs.counts
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_waits_of_a_step(tmp_path: Path, ranks: int) -> None:
    tiny.write_model(tmp_path / "model", tied=True)
    results: list[dict[int, Any]] = run_ranks(counted, ranks, str(tmp_path))
    for one, many in (tuple(sorted(result.items())) for result in results):
        assert (one[0], many[0]) == (1, 5)
        more = many[1] - one[1]
        del more[CPU_ALONE]
        # which rows are left for the search: once in each call, with several ranks alone; a
        # micro-batch has two calls, of its tokens and of those whose gradient is measured
        asked = {("sharded.py", "forward", "nonzero"): 2 * (5 - 1)}
        assert more == (asked if ranks > 1 else {})
