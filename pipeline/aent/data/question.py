"""A question with a verifiable answer. Imports little: the graders' processes read it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Turn = tuple[str, str]  # the speaker ("user" or "assistant"), and the text


@dataclass(frozen=True)
class Question:
    """One prompt with its reference answer."""

    index: int  # within the task; training and held-out questions share one numbering
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)  # used by the data set's scorer
    row: int | None = None  # of its file, from 1
    system: str | None = None  # its own system turn
    earlier: tuple[Turn, ...] = ()  # turns before the prompt; the prompt is the user's last turn
    source: str = ""  # name of its source in a mixture

    def turns(self, system_prompt: str | None) -> tuple[str, str | None, tuple[Turn, ...]]:
        """(the user's last turn, the system turn, the turns between); a system turn of the
        question replaces the recipe's."""
        return self.prompt, system_prompt if self.system is None else self.system, self.earlier

    @property
    def text(self) -> tuple[str | None, tuple[Turn, ...], str]:
        """What distinguishes it from other questions."""
        return self.system, self.earlier, self.prompt
