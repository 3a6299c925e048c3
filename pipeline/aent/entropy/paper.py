"""The clamped set of the paper (AEnt, arXiv 2509.03493)."""

from typing import Final

# The default argument of the statistics is this very object, so that a call with only top_k differs
# from one with both.
PAPER_DROP_FRACTION: Final = float("0.33")
