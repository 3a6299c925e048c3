"""The tokens whose logits are held at once; the memory estimate reads it without torch."""

from typing import Final

# Enough rows that reading and writing the weight's gradient for each chunk costs less than the
# matrix product that computes it.
CHUNK_TOKENS: Final = 1024
