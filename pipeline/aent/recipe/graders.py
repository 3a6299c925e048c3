"""The sections of a recipe's graders (docs/rewards.md)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from aent.recipe.section import Resume, Section

NAME = r"^[A-Za-z0-9_-]+$"  # the name becomes a part of metrics' names
SANDBOX_S, SERVICE_S = 30.0, 60.0  # in addition to a program's own time


class GraderSection(Section):
    """Base of the graders. An answer's reward is the sum of weight times reward over its graders.
    The first grader in the list decides if it is right (a reward of 1 or more)."""

    RESUME: ClassVar[Resume] = "warn"

    weight: float = 1.0
    """Weight of its score in the reward."""
    data_sources: tuple[str, ...] = ()
    """Only for questions with one of these in their column data_source; default: all."""

    def limit_s(self, judge_timeout_s: float) -> float:
        """Seconds that an answer may take with this grader."""
        return judge_timeout_s

    @property
    def at_once(self) -> int:
        """Answers that a grading process scores concurrently."""
        return 1


class LastNumber(GraderSection):
    """1 if the response's last number equals the answer, else 0."""

    kind: Literal["last_number"]
    """Selects this section."""
    name: str = Field("last_number", pattern=NAME)
    """Name in metrics."""


class MathVerify(GraderSection):
    """1 if the response is mathematically equal to the answer, else 0."""

    kind: Literal["math_verify"]
    """Selects this section."""
    name: str = Field("math_verify", pattern=NAME)
    """Name in metrics."""


class ReasoningGym(GraderSection):
    """The scorer of reasoning-gym's data set ``task.name``."""

    kind: Literal["reasoning_gym"]
    """Selects this section."""
    name: str = Field("reasoning_gym", pattern=NAME)
    """Name in metrics."""


class PythonFunction(GraderSection):
    """A custom function: ``function(response, question)``."""

    kind: Literal["python"]
    """Selects this section."""
    name: str = Field("python", pattern=NAME)
    """Name in metrics."""
    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """path/to/file.py:name or package.module:name."""
    style: Literal["aent", "verl", "trl", "trl_chat"] = "aent"
    """Signature of the function: aent's own; verl's compute_score; TRL's reward function, which
    gets completions as texts (trl) or as lists of messages (trl_chat)."""
    group: bool = False
    """Call it once with all responses to a question."""
    arguments: dict[str, Any] = Field({})
    """Further keyword arguments."""


class ServiceSection(GraderSection):
    """Base of the graders at an address."""

    url: str = Field(pattern=r"^https?://[^@\s]+$")
    """Address, without a password, because recipes are shown."""
    token_file: str | None = None
    """File (mode 600) with a bearer token."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds for one answer, repeated requests included."""
    concurrency: int = Field(64, ge=1)
    """Requests that one grading process has in flight."""

    def limit_s(self, judge_timeout_s: float) -> float:
        return self.timeout_s

    @property
    def at_once(self) -> int:
        return self.concurrency


class HttpService(ServiceSection):
    """A custom service: it gets the responses to a question and returns a reward for each."""

    kind: Literal["http"]
    """Selects this section."""
    name: str = Field("http", pattern=NAME)
    """Name in metrics."""


class LanguageModelJudge(ServiceSection):
    """A language model behind an OpenAI-compatible endpoint (``url`` ends with /v1)."""

    kind: Literal["judge"]
    """Selects this section."""
    name: str = Field("judge", pattern=NAME)
    """Name in metrics."""
    model: str
    """Name of the model at the endpoint."""
    rubric: str
    """File with the judge's prompt, which contains {prompt}, {answer} and {response}."""
    parse: str = r"SCORE:\s*(-?\d+(?:\.\d+)?)"
    """Regular expression; the first group of its last match is the score."""
    scale: float = Field(1.0, gt=0)
    """The reward is score / scale."""
    max_tokens: int = Field(1024, ge=1)
    """Tokens that the judge may write."""


class RewardModel(ServiceSection):
    """A reward model that vLLM serves (``url``: of the server), by its route ``/pooling``."""

    kind: Literal["reward_model"]
    """Selects this section."""
    name: str = Field("reward_model", pattern=NAME)
    """Name in metrics."""
    model: str
    """Name of the model at the server."""


class Code(GraderSection):
    """1 if the program in the response passes the tests in the question's answer, else 0."""

    kind: Literal["code"]
    """Selects this section."""
    name: str = Field("code", pattern=NAME)
    """Name in metrics."""
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    """Sandbox of the programs. none: no sandbox."""
    url: str | None = Field(None, pattern=r"^https?://[^@\s]+$")
    """Service with SandboxFusion's API that runs the programs instead of this machine."""
    token_file: str | None = None
    """File (mode 600) with the service's bearer token."""
    concurrency: int = Field(64, ge=1)
    """Requests to it that one grading process has in flight."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds for a program with its tests; a program that takes longer fails."""
    memory_gib: float = Field(1.0, gt=0)
    """Address space of each of the program's processes, GiB."""
    processes: int = Field(16, ge=1)
    """Processes and threads that the program may have at once."""

    def limit_s(self, judge_timeout_s: float) -> float:
        # for creating and removing a sandbox; a service may have other programs queued
        return self.timeout_s + (SANDBOX_S if self.url is None else SERVICE_S)

    @property
    def at_once(self) -> int:
        return 1 if self.url is None else self.concurrency


Grader = Annotated[
    LastNumber
    | MathVerify
    | ReasoningGym
    | PythonFunction
    | HttpService
    | LanguageModelJudge
    | RewardModel
    | Code,
    Field(discriminator="kind"),
]

KINDS: dict[str, type[GraderSection]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in get_args(get_args(Grader)[0])
}
