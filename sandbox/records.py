"""What goes into the sandbox and what comes out: limits, cases, submissions, results."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sandbox.codec import dumps
from sandbox.comparators import ExactValue, StdioComparator, TokenComparator, ValueComparator
from sandbox.isolation import IsolationReport
from sandbox.values import Value
from sandbox.verdicts import Verdict

MAX_SOURCE_BYTES: Final = 256 * 1024
BASE_OUTPUT_BYTES: Final = 64 * 1024
# Prints of a called function are ignored, so they are not bounded by what is expected of it.
CALL_OUTPUT_BYTES: Final = 1024 * 1024


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Record):
    """Limits of one run.

    cpu_s: seconds of CPU time. wall_s: seconds on the clock, against sleepers; 3 * cpu_s + 2 when None.
    memory_mb: MiB of address space. output_bytes: for each of stdout and stderr; when None, 64 KiB + 4 x the
    expected output for stdin cases and 1 MiB + 4 x the expected value for the others. threads: at most, at once.
    """

    cpu_s: float = Field(default=4.0, gt=0, le=3600, allow_inf_nan=False)
    wall_s: float | None = Field(default=None, gt=0, le=36000, allow_inf_nan=False)
    memory_mb: int = Field(default=1024, ge=16, le=1024 * 1024)
    output_bytes: int | None = Field(default=None, ge=1, le=1 << 32)
    threads: int = Field(default=16, ge=1, le=4096)

    @property
    def effective_wall_s(self) -> float:
        """The wall limit in force, in seconds."""
        return self.wall_s if self.wall_s is not None else 3 * self.cpu_s + 2


class StdioCase(_Record):
    """The whole program reads `stdin` and prints; its output is compared with `expected`."""

    kind: Literal["stdio"] = "stdio"
    stdin: str
    expected: str
    comparator: StdioComparator = TokenComparator()


class CallCase(_Record):
    """The submission's entry point is called with arguments; the returned value is compared with `expected`."""

    kind: Literal["call"] = "call"
    args: list[Value] = []
    kwargs: dict[str, Value] = {}
    expected: Value
    comparator: ValueComparator = ExactValue()


class ExpressionCase(_Record):
    """`expression` is evaluated in the solution's namespace, after `setup`; its value is compared outside.

    The solution can redefine every name that the expression uses. Ask for the value itself (`f(3)`) and leave the
    comparison to `expected`: an expression that compares (`f(3) == 9`) asks the solution for its own verdict.
    """

    kind: Literal["expression"] = "expression"
    setup: str = Field(default="", max_length=MAX_SOURCE_BYTES)
    expression: str = Field(min_length=1, max_length=MAX_SOURCE_BYTES)
    expected: Value
    comparator: ValueComparator = ExactValue()


class AssertCase(_Record):
    """Test code: statements that call the solution by `entry_point` (or `candidate`) and assert what they expect.

    trust "checker": the code runs in a process of its own and the solution in another; calls go from one to the other
    as typed JSON, so the solution never sees the test and cannot forge its outcome. Arguments and returned values have
    to be plain values. Every other name that the code does not define is looked up in the solution, as a function.
    trust "shared": both run in one process, for tests that need live objects (closures, instances). The solution can
    forge the outcome; a submission has to allow it, and its result counts such cases.
    """

    kind: Literal["assert"] = "assert"
    code: str = Field(min_length=1, max_length=MAX_SOURCE_BYTES)
    entry_point: str | None = None
    trust: Literal["checker", "shared"] = "checker"


AnyCase = StdioCase | CallCase | ExpressionCase | AssertCase
Case = Annotated[AnyCase, Field(discriminator="kind")]


def source_bytes(source: str) -> bytes:
    """The bytes of a source text. What is not Unicode goes through as it is; the compiler says what it is worth."""
    for errors in ("strict", "surrogateescape"):
        try:
            return source.encode("utf-8", errors)
        except UnicodeEncodeError:
            continue
    return source.encode("utf-8", "surrogatepass")


def checked_source(source: str) -> str:
    """The source as it is. Raises ValueError when it is too long."""
    size = len(source_bytes(source))
    if size > MAX_SOURCE_BYTES:
        raise ValueError(f"the source has {size} bytes; at most {MAX_SOURCE_BYTES} are allowed")
    return source


class Submission(_Record):
    """A program and the cases to judge it by. `entry_point` names a function, or `Class.method`.

    `stop`: when to leave the remaining cases out (`not_run`, never passed). An endless loop is endless on most cases:
    `first_timeout` pays for it once and still counts every other failure. `allow_shared`: take test code that runs in
    the solution's own process (`AssertCase.trust`), whose outcome the solution can forge: never for a reward.
    """

    source: str
    entry_point: str | None = None
    cases: list[Case] = Field(min_length=1)
    limits: Limits = Limits()
    stop: Literal["first_failure", "first_timeout", "never"] = "never"
    allow_shared: bool = False

    _source_size = field_validator("source")(checked_source)

    @model_validator(mode="after")
    def _cases_can_be_run(self) -> Submission:
        for number, case in enumerate(self.cases):
            named = self.entry_point is not None or (isinstance(case, AssertCase) and case.entry_point is not None)
            if isinstance(case, CallCase | AssertCase) and not named:
                raise ValueError(f"cases.{number} of kind {case.kind!r} needs an entry_point, e.g. entry_point='solve'")
            if isinstance(case, AssertCase) and case.trust == "shared" and not self.allow_shared:
                raise ValueError(
                    f"cases.{number} has trust='shared': the solution could forge its outcome; use trust='checker', or "
                    "allow_shared=True where the result is no reward"
                )
        return self


class CaseResult(_Record):
    """One run: CPU and wall seconds, peak resident MiB, and what may help to understand it.

    `stdout_head` and `stderr_tail` hold 2 KiB each. `returned` is the returned value as typed JSON text, None when
    there is none or it is long. `detail` is for people, never for a reward.
    """

    verdict: Verdict
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_rss_mb: float = 0.0
    stdout_head: str = ""
    stderr_tail: str = ""
    detail: str | None = None
    returned: str | None = None


class SuiteResult(_Record):
    """A judged submission.

    `verdict` is accepted when every case is, else the strongest failure (see `suite_verdict`). `compiles` says
    whether the source alone compiles, whatever the cases are. `shared_trust` counts the cases that the solution could
    have forged; `cached` results were not run again. `backend` names the kind of place that ran it: "local", or
    "fusion" for a SandboxFusion server.
    """

    verdict: Verdict
    compiles: bool
    passed: int
    total: int
    cases: tuple[CaseResult, ...]
    isolation: IsolationReport
    shared_trust: int = 0
    cached: bool = False
    backend: str = "local"


class RunOutput(_Record):
    """What a program did on one input. `value` (calls) or `stdout` (stdin runs) is meaningful when `ok`.

    `exit_status` is the program's own, negative for the signal that ended it, None where it did not run.
    """

    verdict: Verdict
    exit_status: int | None = None
    value: Value = None
    stdout: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_rss_mb: float = 0.0
    stderr_tail: str = ""
    detail: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the run ended well within its limits; there was nothing to compare with."""
        return self.verdict is Verdict.ACCEPTED


def output_bytes(limits: Limits, case: AnyCase | None, floor: int) -> int:
    """The output limit of one run in bytes."""
    if limits.output_bytes is not None:
        return limits.output_bytes
    if case is None or isinstance(case, AssertCase):
        return floor
    if isinstance(case, StdioCase):
        return floor + 4 * len(case.expected.encode("utf-8", "surrogatepass"))
    return floor + 4 * len(dumps(case.expected))
