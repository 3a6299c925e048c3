"""Cancels tasks in another thread's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Interrupt:
    """A call cancels the tasks that are inside ``possible``, and later ones as they enter it."""

    _called: bool = False
    _inside: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = field(default_factory=list)

    def __call__(self) -> None:
        self._called = True
        for loop, task in list(self._inside):
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)

    @contextmanager
    def possible(self) -> Iterator[None]:
        """Let a call cancel the task that runs this block. Raises asyncio.CancelledError."""
        task = asyncio.current_task()
        assert task is not None
        mine = (asyncio.get_running_loop(), task)
        self._inside.append(mine)
        try:
            if self._called:
                raise asyncio.CancelledError
            yield
        finally:
            self._inside.remove(mine)
