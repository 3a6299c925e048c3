"""Token statistics of a sharded vocabulary and entropy controllers; depends on torch alone."""

from aent.entropy.head import linear_token_statistics
from aent.entropy.statistics import TokenStatistics, token_statistics

__all__ = ["TokenStatistics", "linear_token_statistics", "token_statistics"]
