"""How many tokens' logits are held at once, for whoever estimates memory without torch."""

from typing import Final

# Enough rows for the weight's gradient, which every chunk reads and writes, to cost less than the
# matrix product that makes it.
CHUNK_TOKENS: Final = 1024
