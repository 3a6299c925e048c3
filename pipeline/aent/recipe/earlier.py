"""Translates recipes that earlier versions wrote to run folders and checkpoints.

Recipes that people write are not translated: an old field is refused with its new name
(``RENAMED``).
"""

from __future__ import annotations

from typing import Any

# dotted field of earlier versions -> its replacement
RENAMED = {"task.verifier": "task.graders now, a list: task.graders=[{kind: math_verify}]"}


def translated(data: dict[str, Any]) -> dict[str, Any]:
    """The values of a recorded recipe under this version's names."""
    task = data.get("task")
    if not isinstance(task, dict) or "verifier" not in task:
        return data
    task = {**task, "graders": [{"kind": task["verifier"]}]}
    del task["verifier"]
    return {**data, "task": task}
