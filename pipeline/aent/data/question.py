"""A question with a verifiable answer. Imports nothing heavy: the judges' processes read it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Turn = tuple[str, str]  # who speaks ("user" or "assistant"), and the text


@dataclass(frozen=True)
class Question:
    """One prompt with its reference answer."""

    index: int  # within the task; train and held-out questions share one numbering
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)  # what the data set's scorer wants
    row: int | None = None  # of a file, from 1
    system: str | None = None  # a system turn of its own
    earlier: tuple[Turn, ...] = ()  # turns before the prompt, which is the user's last one
    source: str = ""  # of a mixture: its source's name

    def turns(self, system_prompt: str | None) -> tuple[str, str | None, tuple[Turn, ...]]:
        """(the user's last turn, the system's, those between), the system's its own before the
        recipe's."""
        return self.prompt, system_prompt if self.system is None else self.system, self.earlier

    @property
    def text(self) -> tuple[str | None, tuple[Turn, ...], str]:
        """What tells it from other questions."""
        return self.system, self.earlier, self.prompt
