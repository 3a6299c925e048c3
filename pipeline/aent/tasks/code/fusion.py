"""The ``code`` grader with a service like SandboxFusion
(github.com/bytedance/SandboxFusion, sandbox/server/sandbox_api.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aent.data.question import Question
from aent.data.response import Response
from aent.recipe.graders import SERVICE_S
from aent.tasks.code.programs import RUNNER, runner_input
from aent.tasks.code.runner import BEGUN
from aent.tasks.services import Service, token_of


def call_of(
    spec: Mapping[str, Any],
) -> Callable[[Sequence[Response], Question], Awaitable[float]]:
    """The call of a ``code`` grader with a ``url``: ``/run_code`` gets the runner as its program,
    with the same input as on this machine."""
    service = Service(
        f"{spec['url'].rstrip('/')}/run_code", token_of(spec), spec["timeout_s"] + SERVICE_S
    )

    async def call(responses: Sequence[Response], question: Question) -> float:
        given, mark = runner_input(responses[0].text, question.answer, 0)
        answer = await service.post(
            {
                "language": "python",
                "code": RUNNER,
                "stdin": given.decode(),
                "run_timeout": spec["timeout_s"],
                "memory_limit_MB": int(spec["memory_gib"] * 1024),
            }
        )
        try:
            status, ran = answer["status"], answer.get("run_result") or {}
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{service.url}: not SandboxFusion's: {str(answer)[:100]}") from None
        if status not in ("Success", "Failed"):
            raise RuntimeError(f"{service.url}: {status} {str(answer.get('message'))[:200]}")
        said = (ran.get("stdout") or "").encode()
        late = ran.get("status") == "TimeLimitExceeded"
        if not late and not said.startswith(BEGUN):
            raise RuntimeError(f"{service.url} ran no program: {str(ran)[:200]}")
        return float(status == "Success" and said == BEGUN + mark)

    return call
