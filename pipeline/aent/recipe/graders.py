"""The sections of a recipe's graders: what each can be told. What they do: docs/rewards.md."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from aent.recipe.section import Resume, Section

NAME = r"^[A-Za-z0-9_-]+$"  # a part of a metric's name
SANDBOX_S, SERVICE_S = 30.0, 60.0  # beside a program's own time


class GraderSection(Section):
    """Base of the graders. An answer's reward is the sum of weight times reward over its graders;
    the first grader of the list says whether it is right (a reward of 1 or more)."""

    RESUME: ClassVar[Resume] = "warn"

    weight: float = 1.0
    # only of questions with one of these in their column data_source; none: of all
    data_sources: tuple[str, ...] = ()

    def limit_s(self, judge_timeout_s: float) -> float:
        """Seconds that an answer may take with this grader."""
        return judge_timeout_s

    @property
    def at_once(self) -> int:
        """Answers that a judge process works on at once."""
        return 1


class LastNumber(GraderSection):
    """1 if the response's last number equals the answer, else 0."""

    kind: Literal["last_number"]
    name: str = Field("last_number", pattern=NAME)


class MathVerify(GraderSection):
    """1 if the response is mathematically equal to the answer, else 0."""

    kind: Literal["math_verify"]
    name: str = Field("math_verify", pattern=NAME)


class ReasoningGym(GraderSection):
    """The scorer of reasoning-gym's data set ``task.name``."""

    kind: Literal["reasoning_gym"]
    name: str = Field("reasoning_gym", pattern=NAME)


class PythonFunction(GraderSection):
    """A function of one's own: ``function(response, question)``."""

    kind: Literal["python"]
    name: str = Field("python", pattern=NAME)
    # path/to/file.py:name, or package.module:name
    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    # whose signature it has: aent's own; verl's compute_score; TRL's reward function, which gets
    # completions as texts (trl) or as lists of messages (trl_chat)
    style: Literal["aent", "verl", "trl", "trl_chat"] = "aent"
    group: bool = False  # it gets all responses to a question at once
    arguments: dict[str, Any] = Field({})  # further keyword arguments


class ServiceSection(GraderSection):
    """Base of the graders behind an address."""

    url: str = Field(pattern=r"^https?://[^@\s]+$")  # without a password: recipes are shown
    token_file: str | None = None  # of a bearer token (mode 600)
    timeout_s: float = Field(60.0, gt=0)  # of an answer, requests that are repeated included
    concurrency: int = Field(64, ge=1)  # requests that a judge process has on their way

    def limit_s(self, judge_timeout_s: float) -> float:
        return self.timeout_s

    @property
    def at_once(self) -> int:
        return self.concurrency


class HttpService(ServiceSection):
    """A service of one's own: the responses to a question in, a reward for each out."""

    kind: Literal["http"]
    name: str = Field("http", pattern=NAME)


class LanguageModelJudge(ServiceSection):
    """A language model behind an OpenAI-compatible endpoint (``url`` ends with /v1)."""

    kind: Literal["judge"]
    name: str = Field("judge", pattern=NAME)
    model: str
    rubric: str  # a file: the judge's prompt with {prompt}, {answer} and {response} in it
    parse: str = r"SCORE:\s*(-?\d+(?:\.\d+)?)"  # the last match's first group is the score
    scale: float = Field(1.0, gt=0)  # the reward is score / scale
    max_tokens: int = Field(1024, ge=1)  # that the judge may write


class RewardModel(ServiceSection):
    """A reward model that vLLM serves (``url``: of the server), by its route ``/pooling``."""

    kind: Literal["reward_model"]
    name: str = Field("reward_model", pattern=NAME)
    model: str  # as the server names it


class Code(GraderSection):
    """1 if the program in the response passes the tests that the question's answer is, else 0."""

    kind: Literal["code"]
    name: str = Field("code", pattern=NAME)
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    # of a service of SandboxFusion's kind, which runs the programs instead of this machine
    url: str | None = Field(None, pattern=r"^https?://[^@\s]+$")
    token_file: str | None = None  # of the service's bearer token (mode 600)
    concurrency: int = Field(64, ge=1)  # requests to it that a judge process has on their way
    timeout_s: float = Field(10.0, gt=0)  # of a program with its tests, which fails them then
    memory_gib: float = Field(1.0, gt=0)  # address space of each of its processes
    processes: int = Field(16, ge=1)  # that it has at once, threads included

    def limit_s(self, judge_timeout_s: float) -> float:
        # a sandbox is made and cleared away; a service has others' programs before ours
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
