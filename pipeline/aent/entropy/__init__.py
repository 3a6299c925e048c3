"""Token statistics of a sharded vocabulary and entropy controllers; depends on torch alone.

torch is imported when a statistic is first used: the controllers do not need it, nor do commands
that check a recipe or replay a run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aent.entropy.head import linear_token_statistics
    from aent.entropy.min_p import min_p_divergence
    from aent.entropy.nucleus import nucleus_entropy
    from aent.entropy.shard import VocabShard
    from aent.entropy.statistics import TokenStatistics, token_statistics

__all__ = [
    "TokenStatistics",
    "VocabShard",
    "linear_token_statistics",
    "min_p_divergence",
    "nucleus_entropy",
    "token_statistics",
]
_MODULES = {
    "VocabShard": "shard",
    "linear_token_statistics": "head",
    "min_p_divergence": "min_p",
    "nucleus_entropy": "nucleus",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name, "statistics")
    return getattr(import_module(f"aent.entropy.{module}"), name)
