"""The ``code`` grader on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aent.data.question import Question
from aent.data.response import Response
from aent.tasks.code import sandbox
from aent.tasks.code.programs import RUNNER, runner_input
from aent.tasks.code.runner import BEGUN
from aent.tasks.code.sandbox import Limits, Sandbox


def call_of(
    spec: Mapping[str, Any],
) -> tuple[Callable[[Sequence[Response], Question], float], list[str]]:
    """(the call of a ``code`` grader on this machine, sentences about what its sandbox lacks).

    Raises ValueError with one sentence if the sandbox does not hold a program.
    """
    memory = int(spec["memory_gib"] * 2**30)
    limits = Limits(spec["timeout_s"], memory, spec["processes"])
    box = Sandbox(limits, protected=spec["sandbox"] == "bubblewrap")
    sandbox.adopt_orphans()
    lacks = sandbox.probe(box)

    def call(responses: Sequence[Response], question: Question) -> float:
        given, mark = runner_input(responses[0].text, question.answer, box.max_processes)
        ran = box.run(RUNNER, given)
        if not ran.output.startswith(BEGUN):
            raise RuntimeError(f"the sandbox ran no program: {ran.ended or ran.errors[-200:]}")
        return float(not ran.ended and ran.output == BEGUN + mark)

    return call, lacks
