"""Token statistics of a sharded vocabulary and entropy controllers; depends on torch alone."""

from aent.entropy.statistics import TokenStatistics, token_statistics

__all__ = ["TokenStatistics", "token_statistics"]
