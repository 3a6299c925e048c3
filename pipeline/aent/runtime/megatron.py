"""Which Megatron-core is here, and what differs between the two that aent runs on.

Nothing else asks for the version. It is read from the installed distribution: nothing of Megatron
is imported.

================================  ==========================  ==================================
what                              0.16.1                      0.19.2
================================  ==========================  ==================================
Python                            3.10 and newer              3.12 and newer
a checkpoint's plain values       common.pt                   an object among the tensors' files
base class of a way to save       AsyncSaveShardedStrategy    TorchDistSaveShardedStrategy
optimizer groups told apart by    multipliers                 max_lr and min_lr too
buffers ask torch.cuda for        the device                  the device and its stream
norms of queries and keys         if the spec has them        if qk_layernorm is set as well
================================  ==========================  ==================================

All but the second are written once, in a form that both take: the base class is 0.19's, which is a
subclass of 0.16's there (``trainer.state``; another class is replaced by Megatron's own without a
word); the recipe's rates hold (``trainer.state``); a CPU answers for a stream
(``runtime.megatron_cpu``); ``qk_layernorm`` is set while a model is built
(``trainer.model``). 0.19 reads what 0.16 wrote, not the other way round: ``reading_fault``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aent.runtime.environment import installed_version

DISTRIBUTION = "megatron-core"
SERIES = ("0.16", "0.19")
# of a checkpoint: what format it has, both versions; its plain values, up to 0.16
FORMAT_FILE, COMMON_FILE = "metadata.json", "common.pt"


def series() -> str | None:
    """The first two numbers of the installed version; None where none is installed."""
    version = installed_version(DISTRIBUTION)
    return version and ".".join(version.split(".")[:2])


def fault() -> str | None:
    """Why the trainer cannot run on the installed Megatron-core, if so: parts of it that aent uses
    are not promised to stay."""
    if series() in (None, *SERIES):
        return None
    version = installed_version(DISTRIBUTION)
    return f"{DISTRIBUTION} {version} is installed, aent runs on {' and '.join(SERIES)}"


def reading_fault(folder: Path) -> str | None:
    """Why the installed Megatron-core cannot read the checkpoint in ``folder``, if so."""
    newer = (folder / FORMAT_FILE).is_file() and not (folder / COMMON_FILE).is_file()
    if series() != "0.16" or not newer:
        return None
    return (
        f"{folder} was written with {DISTRIBUTION} 0.19, and 0.16, which is installed here, does "
        "not read it"
    )


def source(file: str) -> Path:
    """A file of the installed package, such as ``core/model_parallel_config.py``.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    spec = importlib.util.find_spec("megatron")  # a namespace package: nothing of it runs
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        if (path := Path(folder) / file).is_file():
            return path
    raise FileNotFoundError(f"the installed {DISTRIBUTION} has no {file}")
