"""The host's waits for a GPU, counted on a CPU; and the cost of a step by its size.

    PYTHONPATH=benchmarks:tests .venv/bin/python benchmarks/syncs.py [TOKENS ...]

One rank, a tiny model, steps of several sizes in one run. The waits should depend on neither the
micro-batches nor the layers, and the time should be linear in the tokens. ``Syncs`` says what is
counted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ASK = {
    "item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "unique", "_unique2", "bincount",
    "unique_consecutive", "masked_select", "equal", "allclose", "__bool__", "__int__", "__float__",
    "__index__", "__contains__",
}  # fmt: skip


class Syncs(TorchFunctionMode):
    """Counts, by file, function and operation, what makes the host wait for a GPU.

    It distinguishes tensors that would be on the host from those on the device. On the host are
    those of ``host``, those created without a ``device`` (code for GPUs must name one), and results
    of such tensors alone; ``to`` moves them to the device. It counts operations of ``ASK`` on a
    device's tensor, copies of it to the CPU, and indexing by a mask. Waits inside torch's C++
    operations are not seen.
    """

    def __init__(self, host: Iterable[Any] = ()) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        for tensor in _tensors(host):
            tensor._on_host = True  # type: ignore[attr-defined]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors([args, kwargs]))
        name = getattr(func, "__name__", str(func))
        device = [x for x in given if not getattr(x, "_on_host", False)]
        if device and self._waits(name, args, kwargs):
            self.counts[*_caller(), name] += 1
        result = func(*args, **kwargs)
        if name == "__iter__":
            result = list(result)
        on_host = not device and (bool(given) or kwargs.get("device") is None)
        if name in ("to", "cuda", "cpu") and isinstance(result, Tensor):
            on_host = name == "cpu"
            if any(result is x for x in given):  # as a copy would be another
                result = result.view_as(result)
        for tensor in _tensors([result]):
            if not any(tensor is x for x in given):
                tensor._on_host = on_host
        return iter(result) if name == "__iter__" else result

    def _waits(self, name: str, args: tuple, kwargs: dict) -> bool:
        if name == "__setitem__" and not isinstance(args[2], Tensor):
            return False  # a number where a mask is: masked_fill
        if name in ("__getitem__", "__setitem__"):
            return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors([args[1]]))
        if name == "repeat_interleave":
            counted = isinstance(args[-1], Tensor) or isinstance(kwargs.get("repeats"), Tensor)
            return counted and kwargs.get("output_size") is None
        if name == "where":
            return len(args) == 1
        if name == "to":
            return any(x == "cpu" for x in [*args[1:], kwargs.get("device")] if isinstance(x, str))
        return name in ASK


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _caller() -> tuple[str, str]:
    """File and function of the code that called torch."""
    frame = sys._getframe(2)
    ours = ("/torch/", "megatron_cpu.py")  # modes and wrappers on the way here
    while any(part in frame.f_code.co_filename for part in ours) and frame.f_back is not None:
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_code.co_name


def host_tensors(mini_batch: Any) -> list[Tensor]:
    """The tensors of a mini-batch, all of which are on the host."""
    found, left = [], [mini_batch]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif hasattr(value, "__dataclass_fields__"):
            left += vars(value).values()
    return found


def main() -> None:
    from aent.runtime import distributed
    from aent.runtime.network import held_port
    from aent.trainer.trainer import Trainer
    from trainer import tiny

    torch.set_num_threads(1)
    sizes = [int(size) for size in sys.argv[1:]] or [2_000, 8_000, 32_000]
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    port = held_port()
    os.environ |= one | {"MASTER_PORT": str(port.getsockname()[1])}
    recipe = tiny.recipe(micro_batch_tokens=1_000, trainer={"share_prompts": True})
    distributed.initialize(recipe.trainer, seed=0)
    print("tokens     micro-batches  waits  s/1000 tokens")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, tiny.write_model(Path(folder) / "model", tied=True))
        trainer.train_minibatch(tiny.mini_batch(tiny.RAGGED), 0.1)  # libraries
        for size in sizes:
            mini = tiny.mini_batch([(20, 80)] * (size // 100))
            micro_batches = len(trainer._micro_batches(mini.batch))
            syncs = Syncs(host_tensors(mini))
            with syncs:
                trainer.train_minibatch(mini, 0.1)
            begin = time.perf_counter()
            trainer.train_minibatch(mini, 0.1)
            seconds = time.perf_counter() - begin
            waits = sum(syncs.counts.values())
            print(f"{size:<10} {micro_batches:<14} {waits:<6} {seconds / size * 1000:.3f}")
    for where, count in sorted(syncs.counts.items()):
        print(f"  {count} {' '.join(where)}")
    distributed.shutdown()


if __name__ == "__main__":
    main()
