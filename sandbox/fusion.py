"""The SandboxFusion protocol as this project speaks it: what is asked of a server, and what its answer proves.

Pure: no network, no process. A server says how a program ended and what it printed; whether that is right is decided
here. Return codes alone never make an answer right.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
import secrets
import signal
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sandbox import codec
from sandbox.codec import MalformedValueError, dumps, encode_value, loads
from sandbox.inside import remote
from sandbox.judging import (
    RETURNED_MAX_BYTES,
    STDOUT_HEAD_BYTES,
    Judged,
    checker_of,
    difference,
    is_memory_error,
    last_line_of,
    reading,
    right,
    shown_text,
)
from sandbox.records import (
    BASE_OUTPUT_BYTES,
    CALL_OUTPUT_BYTES,
    AnyCase,
    CallCase,
    CaseResult,
    ExpressionCase,
    Limits,
    StdioCase,
    Submission,
    output_bytes,
    source_bytes,
)
from sandbox.verdicts import Verdict

RUN_PATH: Final = "/run_code"
PING_PATH: Final = "/v1/ping"
ISOLATION_PATH: Final = "/v1/isolation"

COMPILE_TIMEOUT_S: Final = 10.0
STDERR_TAIL_CHARS: Final = 2048
# What a server keeps of stdout: some deliver no more than a pipe holds, the others a MiB.
PIPE_BYTES: Final = 64 * 1024
KEPT_BYTES: Final = 1024 * 1024
# An output a few times as long as the expected one is not it; a shorter one may have been cut off.
LENGTH_SHARE: Final = 4
OUTPUT_MAX_BYTES: Final = 256 * 1024 * 1024
_LINES_BYTES: Final = 4096  # room for the lines that the sent program prints about itself
_SYNTAX_ERRORS: Final = ("SyntaxError:", "IndentationError:", "TabError:")

RemoteCase = StdioCase | CallCase | ExpressionCase
"""What can be judged by what a program returns or prints, without a second program."""


class MalformedAnswerError(ValueError):
    """The server's answer is not one of the protocol."""


class _Answered(BaseModel):
    # Servers differ in what else they say.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class CommandResult(_Answered):
    """One command of a server: seconds on the clock, exit status (negative for a signal), whole texts."""

    status: Literal["Finished", "Error", "TimeLimitExceeded"]
    execution_time: float | None = None
    return_code: int | None = None
    stdout: str | None = None
    stderr: str | None = None


class Answer(_Answered):
    """The answer to one run_code request."""

    status: Literal["Success", "Failed", "SandboxError"]
    message: str | None = None
    compile_result: CommandResult | None = None
    run_result: CommandResult | None = None


def answer_from(data: bytes) -> Answer:
    """The answer in a response's body. Raises MalformedAnswerError."""
    try:
        answer = Answer.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MalformedAnswerError(f"the answer is not one of the protocol: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"the answer is not JSON: {type(error).__name__}: {str(error)[:200]}") from None
    if answer.status != "SandboxError":
        _check_consistent(answer)
    return answer


def _check_consistent(answer: Answer) -> None:
    run = answer.run_result
    if run is None:
        if answer.compile_result is None or answer.status == "Success":
            raise MalformedAnswerError("the answer says nothing about the run")
        return
    if run.status == "Finished" and run.return_code is None:
        raise MalformedAnswerError("the answer has no return code")
    ended_well = run.status == "Finished" and run.return_code == 0
    if (answer.status == "Success") != ended_well:
        raise MalformedAnswerError(f"the answer contradicts itself: {answer.status}, but the run {run.status}")


@dataclass(frozen=True)
class Question:
    """One run to ask for.

    `fields` are those of the request; `marker` begins the lines that a sent program prints about itself and is empty
    for scripts, which are sent as they are.
    """

    case: RemoteCase
    limits: Limits
    fields: dict[str, Any]
    marker: str

    def body(self) -> bytes:
        """The request as JSON. Its last field is ours alone: other servers keep what they keep."""
        return json.dumps(self.fields | {"output_limit_bytes": self.output_room}).encode()

    @cached_property
    def output_limit(self) -> int:
        """Bytes of stdout from which on a run is over its limit."""
        return output_bytes(self.limits, self.case, CALL_OUTPUT_BYTES if self.marker else BASE_OUTPUT_BYTES)

    @cached_property
    def output_room(self) -> int:
        """Bytes of stdout that the server has to keep: a value comes after as much as a program may print."""
        return 2 * self.output_limit + _LINES_BYTES if self.marker else self.output_limit

    @cached_property
    def expected_bytes(self) -> int:
        """The length of what is expected on stdout."""
        case = self.case
        expected = case.expected if isinstance(case, StdioCase) else dumps(case.expected)
        return len(expected.encode("utf-8", "surrogatepass"))


def question(submission: Submission, case: RemoteCase) -> Question | CaseResult:
    """What to ask for one case; a result where nothing needs to be asked."""
    source, limits = submission.source, submission.limits
    if not isinstance(case, StdioCase):
        marker = secrets.token_hex(16)
        task = {"marker": marker, "source": base64.b64encode(source_bytes(source)).decode()}
        return Question(
            case, limits, _fields(_sent_program(), json.dumps(task | _target(submission, case)), limits), marker
        )
    if not _is_unicode(source):
        # JSON cannot carry it, and hardly a compiler would take it.
        return CaseResult(verdict=Verdict.COMPILE_ERROR, detail="the source is not Unicode text")
    return Question(case, limits, _fields(source, case.stdin, limits), "")


def unsupported(case: AnyCase, limits: Limits) -> str | None:
    """Why a case cannot be judged by a remote server, or None."""
    if not isinstance(case, RemoteCase):
        return f"a case of kind {case.kind!r} cannot be judged by a remote sandbox"
    if checker_of(case) is not None:
        return "a case with a checker program cannot be judged by a remote sandbox"
    if isinstance(case, StdioCase) and not _is_unicode(case.stdin):
        return "the stdin of a case is not Unicode text and cannot be sent"
    made = Question(case, limits, {}, "" if isinstance(case, StdioCase) else "marker")
    if made.output_room > OUTPUT_MAX_BYTES:
        return f"a case may print {made.output_room} bytes; a remote sandbox delivers at most {OUTPUT_MAX_BYTES}"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _target(submission: Submission, case: CallCase | ExpressionCase) -> dict[str, Any]:
    if isinstance(case, CallCase):
        arguments = {"args": encode_value(case.args), "kwargs": encode_value(case.kwargs)}
        return {"mode": "call", "entry_point": submission.entry_point, **arguments, **reading(case)}
    return {
        "mode": "expression",
        "setup": case.setup,
        "expression": case.expression,
        "args": [],
        "kwargs": {},
        **reading(case),
    }


@cache
def _sent_program() -> str:
    return f"{inspect.getsource(remote)}\n\nmain({inspect.getsource(codec)!r})\n"


def _fields(code: str, stdin: str, limits: Limits) -> dict[str, Any]:
    fields: dict[str, Any] = {"code": code, "language": "python", "stdin": stdin}
    fields |= {"compile_timeout": COMPILE_TIMEOUT_S, "run_timeout": limits.effective_wall_s}
    fields |= {"memory_limit_MB": limits.memory_mb, "files": {}, "fetch_files": []}
    # Ours alone; other servers ignore it, and then the clock is the only limit.
    return fields | {"cpu_limit_s": limits.cpu_s}


def judged(made: Question, answer: Answer, intact_bytes: int) -> Judged:
    """The judged run, and whether the source compiled. `answer` is not a SandboxError.

    intact_bytes: how much of stdout this server is known to deliver whole.
    """
    run = answer.run_result
    if run is None:
        failed = answer.compile_result
        stderr = (failed and failed.stderr) or ""
        detail = last_line_of(stderr[-STDERR_TAIL_CHARS:].encode("utf-8", "replace"))
        tail = shown_text(_bytes(stderr[-STDERR_TAIL_CHARS:]))
        return Judged(CaseResult(verdict=Verdict.COMPILE_ERROR, stderr_tail=tail, detail=detail), False)
    end = _ended(made, run, intact_bytes)
    if end.verdict is Verdict.ACCEPTED:
        end = _compared(made, end, intact_bytes)
    seconds = run.execution_time
    result = CaseResult(
        verdict=end.verdict,
        wall_s=seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else 0.0,
        stdout_head=shown_text(end.printed[:STDOUT_HEAD_BYTES]),
        stderr_tail=shown_text(_bytes((run.stderr or "")[-STDERR_TAIL_CHARS:])),
        detail=end.detail,
        returned=end.returned,
    )
    return Judged(result, end.compiled)


@dataclass(frozen=True)
class _End:
    """How a run ended. `accepted` means that there is an output to compare."""

    verdict: Verdict
    detail: str | None
    printed: bytes
    compiled: bool = True
    value: Any = None
    returned: str | None = None


@dataclass(frozen=True)
class _Printed:
    """The stdout of a run: what the program printed, whether its own code started, the text of its value."""

    program: bytes
    size: int
    started: bool
    value: bytes | None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _printed(stdout: bytes, marker: str) -> _Printed:
    if not marker:
        return _Printed(stdout, len(stdout), True, None)
    run_line, value_line = f"\n{marker} run\n".encode(), f"\n{marker} value ".encode()
    started = run_line in stdout
    program, found, rest = stdout.replace(run_line, b"", 1).rpartition(value_line)
    if not found:
        return _Printed(rest, len(rest), started, None)
    value, complete, after = rest.partition(b"\n")
    return _Printed(program + after, len(program + after), started, value if complete else None)


def _ended(made: Question, run: CommandResult, intact_bytes: int) -> _End:
    """The verdict on the run itself, by the same precedence as for runs at home."""
    stdout = _bytes(run.stdout or "")
    printed = _printed(stdout, made.marker)
    last_line = last_line_of(_bytes((run.stderr or "")[-STDERR_TAIL_CHARS:]))
    sizes = (printed.size, len(printed.value or b""), len(_bytes(run.stderr or "")))
    flooded = max(sizes) >= made.output_limit
    many = f"{made.output_limit} bytes or more of output"

    def end(verdict: Verdict, detail: str | None, compiled: bool = True) -> _End:
        return _End(verdict, detail, printed.program, compiled)

    if run.status == "TimeLimitExceeded":
        if flooded:
            return end(Verdict.OUTPUT_LIMIT, many)
        if len(stdout) >= PIPE_BYTES and intact_bytes <= PIPE_BYTES:
            return end(Verdict.SANDBOX_ERROR, "the server stops programs that print more than a pipe holds", False)
        return end(Verdict.TIME_LIMIT, f"more than {made.limits.effective_wall_s:g} s on the server's clock")
    if run.return_code == -signal.SIGSYS:
        return end(Verdict.SECURITY_VIOLATION, "killed for a forbidden system call", printed.started)
    if not printed.started and made.marker and f"\n{made.marker} test ".encode() in stdout:
        # Said before the first line of the program, which therefore cannot have said it.
        return end(Verdict.SANDBOX_ERROR, "the test does not compile", False)
    if not printed.started or (not made.marker and _never_ran(run, last_line)):
        return end(Verdict.COMPILE_ERROR, last_line or f"exit status {run.return_code}", False)
    if run.return_code != 0 and is_memory_error(last_line):
        return end(Verdict.MEMORY_LIMIT, last_line)
    if flooded:
        return end(Verdict.OUTPUT_LIMIT, many)
    if run.return_code != 0:
        return end(Verdict.RUNTIME_ERROR, _failure(run.return_code or 0, last_line))
    if not made.marker:
        return end(Verdict.ACCEPTED, None)
    if printed.value is None:
        return _without_value(made, printed, len(stdout), intact_bytes)
    return _decoded(printed, printed.value)


def _never_ran(run: CommandResult, last_line: str) -> bool:
    """Whether a plain script failed to compile: a syntax error of code that runs has a traceback above it."""
    stderr = run.stderr or ""
    return run.return_code == 1 and last_line.startswith(_SYNTAX_ERRORS) and "Traceback (most recent" not in stderr


def _failure(return_code: int, last_line: str) -> str:
    if return_code < 0:
        try:
            return f"signal {signal.Signals(-return_code).name}"
        except ValueError:
            return f"signal {-return_code}"
    return last_line or f"exit status {return_code}"


def _without_value(made: Question, printed: _Printed, size: int, intact_bytes: int) -> _End:
    """A call that ended well, but its value is not there: never returned, or cut off behind a long output."""
    if size < intact_bytes:
        return _End(Verdict.RUNTIME_ERROR, "ended without returning a value", printed.program)
    if intact_bytes > PIPE_BYTES and LENGTH_SHARE * made.expected_bytes < intact_bytes:
        return _End(Verdict.OUTPUT_LIMIT, f"{intact_bytes} bytes or more of output", printed.program)
    return _End(Verdict.SANDBOX_ERROR, _cut(intact_bytes), printed.program, False)


def _decoded(printed: _Printed, text: bytes) -> _End:
    try:
        value = loads(text)
    except MalformedValueError as error:
        detail = f"the returned value is not typed JSON: {error}"
        return _End(Verdict.RUNTIME_ERROR, detail, printed.program)
    returned = dumps(value) if len(text) <= RETURNED_MAX_BYTES else None
    return _End(Verdict.ACCEPTED, None, printed.program, value=value, returned=returned)


def _cut(intact_bytes: int) -> str:
    return f"the server delivers {intact_bytes} bytes of output; this one may have been cut off"


def _compared(made: Question, end: _End, intact_bytes: int) -> _End:
    if right(end.printed, end.value, made.case):
        return end
    # A server that keeps a part only, or that cannot decode a character cut in two, says nothing about it.
    undecoded = end.printed.startswith(b"[DecodeError]") and not str(made.case.expected).isascii()
    lossy = len(end.printed) >= intact_bytes or undecoded
    if not made.marker and lossy and LENGTH_SHARE * made.expected_bytes >= intact_bytes:
        return _End(Verdict.SANDBOX_ERROR, _cut(intact_bytes), end.printed, False)
    detail = difference(end.returned, made.case)
    return _End(Verdict.WRONG_ANSWER, detail, end.printed, value=end.value, returned=end.returned)
