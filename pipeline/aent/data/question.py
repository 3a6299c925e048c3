"""A question with a verifiable answer. Imports nothing heavy: the judges' processes read it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One prompt with its reference answer."""

    index: int  # within the task; train and held-out questions share one numbering
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)  # what the data set's scorer wants
    row: int | None = None  # of a file, from 1
    system: str | None = None  # a system turn of its own

    def turns(self, system_prompt: str | None) -> tuple[str, str | None]:
        """(the user's turn, the system's), the latter its own before the recipe's."""
        return self.prompt, system_prompt if self.system is None else self.system
