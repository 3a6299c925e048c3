"""Which Megatron-core is installed, and the differences between the two that aent supports.

Nothing else asks for the version. It is read from the installed distribution, without importing
Megatron.

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

Except for the second, the code has one form that works with both. The base class is 0.19's, which
is a subclass of 0.16's there (``trainer.state``; Megatron silently replaces any other class by its
own). The recipe's learning rates are used (``trainer.state``). A CPU provides a stream
(``runtime.megatron_cpu``). ``qk_layernorm`` is set while a model is built (``trainer.model``). 0.19
reads checkpoints of 0.16, but not vice versa: ``reading_fault``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aent.runtime.environment import installed_version

DISTRIBUTION = "megatron-core"
SERIES = ("0.16", "0.19")
# files of a checkpoint: its format (both versions), and its plain values (up to 0.16)
FORMAT_FILE, COMMON_FILE = "metadata.json", "common.pt"


def series() -> str | None:
    """The first two numbers of the installed version; None if it is not installed."""
    version = installed_version(DISTRIBUTION)
    return version and ".".join(version.split(".")[:2])


def fault() -> str | None:
    """Why the trainer cannot run on the installed Megatron-core, if so: aent uses parts of it that
    may change between versions."""
    if series() in (None, *SERIES):
        return None
    version = installed_version(DISTRIBUTION)
    return f"{DISTRIBUTION} {version} is installed, but aent needs {' or '.join(SERIES)}"


def reading_fault(folder: Path) -> str | None:
    """Why the installed Megatron-core cannot read the checkpoint in ``folder``, if so."""
    newer = (folder / FORMAT_FILE).is_file() and not (folder / COMMON_FILE).is_file()
    if series() != "0.16" or not newer:
        return None
    return (
        f"{folder} was written with {DISTRIBUTION} 0.19, but 0.16 is installed here and cannot "
        "read it"
    )


def source(file: str) -> Path:
    """A file of the installed package, such as ``core/model_parallel_config.py``.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    # a namespace package: finding it runs none of its code
    spec = importlib.util.find_spec("megatron")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        if (path := Path(folder) / file).is_file():
            return path
    raise FileNotFoundError(f"the installed {DISTRIBUTION} has no {file}")
