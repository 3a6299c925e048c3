"""A checkpoint that a rank cannot write: every rank gets the reason, and it is never renamed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from distributed.ranks import run_ranks
from wording import assert_names


class NotToBePickled(RuntimeError):
    """Like an error that holds a handle of the failed object."""

    def __reduce__(self) -> None:  # type: ignore[override]
        raise TypeError("cannot pickle it")


def torch_on_a_full_disk() -> None:
    """torch's own error of a write that the disk does not take."""
    import torch

    torch.save(torch.zeros(1 << 20), "/dev/full")


def not_to_be_pickled() -> None:
    raise NotToBePickled("no space left")


FAULTS = {"full disk": torch_on_a_full_disk, "not to be pickled": not_to_be_pickled}


def save(rank: int, world: int, fault: str, folder: str) -> str:
    from aent.checkpoint.saving import Saving, Writer
    from aent.recipe.schema import Recipe
    from aent.runtime import distributed
    from aent.runtime.phases import Phases

    distributed._control_group = dist.new_group(backend="gloo")
    recipe = Recipe.model_validate(
        {"name": "x", "model": {"bundled": "tiny-qwen2"}, "controller": {"initial": 0.0}}
    )
    writer = Writer(recipe, Path(folder), None, Phases.of(Path(folder), rank, 60.0), None)  # type: ignore[arg-type]
    request = SimpleNamespace(async_fn=FAULTS[fault] if rank == 1 else lambda: None)
    saving = Saving(writer, Path(folder) / "step_000001.partial", request)  # type: ignore[arg-type]
    saving.start()
    try:
        saving.finish()
    except RuntimeError as error:
        return str(error)
    return "went well"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_rank_hears_why_one_could_not_write(tmp_path: Path, fault: str) -> None:
    zero, one = run_ranks(save, 2, fault, str(tmp_path))
    assert zero == one
    assert_names(one, "rank 1", tmp_path / "step_000001.partial")
    wanted = {"full disk": "RuntimeError", "not to be pickled": "no space left"}
    assert_names(one, wanted[fault])
    assert not (tmp_path / "step_000001").exists()
