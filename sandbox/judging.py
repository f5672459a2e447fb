"""From what a run left behind to a verdict. Pure: no process, no file."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass, replace
from typing import Any, Final

from sandbox.cell import RawRun, RunSpec
from sandbox.codec import MalformedValueError, compact_json, dumps, encode_value, loads
from sandbox.comparators import CheckerProgram, ExactValue
from sandbox.inside import wire
from sandbox.records import (
    BASE_OUTPUT_BYTES,
    CALL_OUTPUT_BYTES,
    AnyCase,
    AssertCase,
    CallCase,
    CaseResult,
    ExpressionCase,
    Limits,
    RunOutput,
    StdioCase,
    Submission,
    output_bytes,
    source_bytes,
)
from sandbox.verdicts import Verdict

log = logging.getLogger("sandbox")

STDOUT_HEAD_BYTES: Final = 2048
RETURNED_MAX_BYTES: Final = 65536
# A run that dies this close to its memory limit died of it.
MEMORY_DEATH_SHARE: Final = 0.95
STARVED: Final = 0.5
"""Share of the clock that a compiler stopped for its time must have worked for the program to be blamed."""
CPU_SLACK_S: Final = 0.05


@dataclass(frozen=True)
class Outcome:
    """How a run ended, before any comparison. `verdict` is accepted when there is an output to compare."""

    verdict: Verdict
    compiled: bool | None  # None when the run did not get far enough to tell
    detail: str | None
    value: Any = None


@dataclass(frozen=True)
class Answer:
    """What a program returned or printed, for a checker to look at."""

    value: Any


@dataclass(frozen=True)
class Judged:
    """A judged case, whether the source compiled, and an answer that still has to be checked by a program."""

    result: CaseResult
    compiled: bool
    unchecked: Answer | None = None


def spec_for_stdin(source_fd: int, stdin: str | bytes, limits: Limits, case: StdioCase | None) -> RunSpec:
    """A run of the whole program on `stdin`."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode("utf-8", "surrogatepass")
    floor = BASE_OUTPUT_BYTES if case is not None else CALL_OUTPUT_BYTES
    return _spec(wire.MODE_STDIO, source_fd, data, limits, output_bytes(limits, case, floor))


def spec_for_call(
    source_fd: int, entry_point: str, args: Any, kwargs: Any, limits: Limits, case: CallCase | None
) -> RunSpec:
    """A run that calls the entry point. Raises UnserializableError for arguments that cannot travel."""
    task = {"entry_point": entry_point, "args": encode_value(list(args)), "kwargs": encode_value(dict(kwargs))}
    if case is not None:
        task |= reading(case)
    size = output_bytes(limits, case, CALL_OUTPUT_BYTES)
    return _spec(wire.MODE_CALL, source_fd, compact_json(task), limits, size)


def reading(case: CallCase | ExpressionCase) -> dict[str, bool]:
    """How the run's process has to take what was returned: a rational as a number, anything by its truth."""
    exact = case.comparator if isinstance(case.comparator, ExactValue) else ExactValue()
    return {"rationals": exact.rationals, "truth": exact.truth}


def spec_for_expression(source_fd: int, case: ExpressionCase, limits: Limits) -> RunSpec:
    """A run that evaluates an expression in the solution's namespace."""
    task = {"setup": case.setup, "expression": case.expression, **reading(case)}
    size = output_bytes(limits, case, CALL_OUTPUT_BYTES)
    return _spec(wire.MODE_EXPRESSION, source_fd, compact_json(task), limits, size)


def spec_for_assert(source_fd: int, case: AssertCase, entry_point: str, limits: Limits) -> RunSpec:
    """Test code and solution: in two processes, or in one where the case trusts the solution."""
    size = output_bytes(limits, case, CALL_OUTPUT_BYTES)
    task = {"entry_point": case.entry_point or entry_point}
    if case.trust == "shared":
        return _spec(wire.MODE_SHARED, source_fd, compact_json({**task, "test": case.code}), limits, size)
    spec = _spec(wire.MODE_PAIR, source_fd, compact_json(task), limits, size)
    return replace(spec, test=source_bytes(case.code))


def spec_for_case(source_fd: int, case: AnyCase, submission: Submission) -> RunSpec:
    """The run of one case of a submission."""
    limits, entry_point = submission.limits, submission.entry_point or ""
    if isinstance(case, StdioCase):
        return spec_for_stdin(source_fd, case.stdin, limits, case)
    if isinstance(case, CallCase):
        return spec_for_call(source_fd, entry_point, case.args, case.kwargs, limits, case)
    if isinstance(case, AssertCase):
        return spec_for_assert(source_fd, case, entry_point, limits)
    return spec_for_expression(source_fd, case, limits)


def _spec(mode: int, source_fd: int, data: bytes, limits: Limits, size: int) -> RunSpec:
    memory = limits.memory_mb * 1024 * 1024
    return RunSpec(mode, source_fd, data, limits.cpu_s, limits.effective_wall_s, memory, size, limits.threads)


def infrastructure_failure(raw: RawRun) -> str | None:
    """Why the run does not count, or None. Only what trusted code and the kernel said is looked at."""
    if raw.test is not None and (failure := infrastructure_failure(raw.test)) is not None:
        return f"test process: {failure}"
    if raw.reply.killed_by == wire.KILLED_DONE:
        return None  # its test was over before it had begun, e.g. for a syntax error
    stages = raw.reply.stages
    if stages.startswith(wire.STAGE_ERROR):
        return f"boot failed: {stages[1:].decode('utf-8', 'replace')}"
    if not raw.reply.forked or not stages.startswith(wire.STAGE_BOOT):
        return "the run died before its boot was complete"
    compiling = not stages.startswith((wire.STAGE_BOOT + wire.STAGE_RUN, wire.STAGE_BOOT + wire.STAGE_TEST_FAILED))
    if compiling and raw.reply.killed_by == wire.KILLED_WALL and raw.reply.cpu_s < STARVED * raw.reply.wall_s:
        # Compiling waits for nothing: others had the processor.
        return f"the compiler got {raw.reply.cpu_s:.3f} s of CPU time in {raw.reply.wall_s:.3f} s"
    return None


def outcome(raw: RawRun, spec: RunSpec) -> Outcome:
    """The verdict on the run itself, by precedence; the caller has ruled infrastructure failures out."""
    reply = raw.reply
    status = reply.wait_status
    last_line = last_line_of(raw.stderr_tail)
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if reply.stages.startswith(wire.STAGE_BOOT + wire.STAGE_TEST_FAILED):
        reason = reply.stages[2:].decode("utf-8", "replace")
        return Outcome(Verdict.SANDBOX_ERROR, None, f"the test does not compile: {shown_text(reason.encode())}")
    if signal_number == signal.SIGSYS:
        # User code makes calls too, but only after compiling; a compiler makes none that is forbidden.
        return Outcome(Verdict.SECURITY_VIOLATION, _compiled(reply), "killed for a forbidden system call")
    if not reply.stages.startswith(wire.STAGE_BOOT + wire.STAGE_RUN):
        return Outcome(Verdict.COMPILE_ERROR, False, last_line or f"the compiler died: {_ending(reply)}")
    if reply.killed_by == wire.KILLED_CPU or signal_number == signal.SIGXCPU:
        return Outcome(Verdict.TIME_LIMIT, True, f"more than {spec.cpu_s:g} s of CPU time")
    if reply.killed_by == wire.KILLED_WALL:
        return Outcome(Verdict.TIME_LIMIT, True, f"more than {spec.wall_s:g} s on the clock")
    if reply.cpu_s > spec.cpu_s + CPU_SLACK_S:  # it ended between two looks, with more than it was given
        return Outcome(Verdict.TIME_LIMIT, True, f"more than {spec.cpu_s:g} s of CPU time")
    failed = status != 0
    own_kib = reply.peak_rss_kib - reply.zygote_rss_kib  # it began with the zygote's memory
    near_limit = own_kib * 1024 >= MEMORY_DEATH_SHARE * spec.memory_bytes
    if failed and (near_limit or is_memory_error(last_line)):
        return Outcome(Verdict.MEMORY_LIMIT, True, last_line or _ending(reply))
    sizes = (len(raw.stdout), raw.stderr_size, len(raw.result))
    if max(sizes) >= spec.output_bytes:
        return Outcome(Verdict.OUTPUT_LIMIT, True, f"{spec.output_bytes} bytes or more of output")
    if failed:
        return Outcome(Verdict.RUNTIME_ERROR, True, _failure(last_line, reply))
    if spec.mode == wire.MODE_STDIO:
        return Outcome(Verdict.ACCEPTED, True, None)
    if not raw.result:
        return Outcome(Verdict.RUNTIME_ERROR, True, "ended without returning a value")
    try:
        return Outcome(Verdict.ACCEPTED, True, None, loads(raw.result))
    except MalformedValueError as error:
        return Outcome(Verdict.RUNTIME_ERROR, True, f"the returned value is not typed JSON: {error}")


def pair_outcome(raw: RawRun, test: RawRun, spec: RunSpec) -> Outcome:
    """The verdict on a solution whose test ran in another process. Only that other process can say "accepted"."""
    reply = raw.reply
    if reply.killed_by == wire.KILLED_DONE:  # because the test was over: the signal says nothing about the solution
        reply = reply._replace(killed_by=wire.KILLED_NO, wait_status=0, stages=wire.STAGE_BOOT + wire.STAGE_RUN)
    solution = outcome(replace(raw, reply=reply, result=b"null"), spec)
    if solution.verdict not in (Verdict.ACCEPTED, Verdict.RUNTIME_ERROR):
        return solution
    if not test.reply.stages.startswith(wire.STAGE_BOOT + wire.STAGE_RUN):
        return Outcome(Verdict.SANDBOX_ERROR, True, f"the test code does not compile: {last_line_of(test.stderr_tail)}")
    end, said = outcome(test, spec), _said(test.result)
    if end.verdict is Verdict.ACCEPTED and said.get("passed") is True:
        return Outcome(Verdict.ACCEPTED, True, None)
    detail = shown_text(str(said.get("detail", end.detail)).encode("utf-8", "backslashreplace"))
    if said.get("by") == "gone":
        return solution if solution.verdict is not Verdict.ACCEPTED else Outcome(Verdict.RUNTIME_ERROR, True, detail)
    if said.get("by") == "solution":
        memory = is_memory_error(detail)
        return Outcome(Verdict.MEMORY_LIMIT if memory else Verdict.RUNTIME_ERROR, True, detail)
    if end.verdict not in (Verdict.ACCEPTED, Verdict.RUNTIME_ERROR):
        return replace(end, detail=f"in the test: {end.detail}")
    return Outcome(Verdict.WRONG_ANSWER, True, detail)


def _said(result: bytes) -> dict[str, Any]:
    """What the test wrote before it failed."""
    try:
        said = loads(result)
    except MalformedValueError:
        return {}
    return said if isinstance(said, dict) else {}


def case_result(raw: RawRun, spec: RunSpec, case: AnyCase) -> Judged:
    """The judged run. An answer that a program has to check is passed on as if it were accepted."""
    end = outcome(raw, spec) if raw.test is None else pair_outcome(raw, raw.test, spec)
    verdict, detail = end.verdict, end.detail
    returned, unchecked = None, None
    if (
        spec.mode == wire.MODE_SHARED
        and verdict is Verdict.RUNTIME_ERROR
        and (detail or "").startswith("AssertionError")
    ):
        verdict = Verdict.WRONG_ANSWER  # the same word as where the test runs apart
    if verdict is Verdict.ACCEPTED and isinstance(case, CallCase | ExpressionCase):
        returned = dumps(end.value) if len(raw.result) <= RETURNED_MAX_BYTES else None
    if verdict is Verdict.ACCEPTED and checker_of(case) is not None:
        answer = raw.stdout.decode("utf-8", "surrogateescape") if isinstance(case, StdioCase) else end.value
        unchecked = Answer(answer)
    elif verdict is Verdict.ACCEPTED and raw.test is None and not right(raw.stdout, end.value, case):
        verdict, detail = Verdict.WRONG_ANSWER, difference(returned, case)
    both = [raw.reply] if raw.test is None else [raw.reply, raw.test.reply]
    # Not validated: all of it is made here, from checked parts, and once for every run.
    result = CaseResult.model_construct(
        verdict=verdict,
        cpu_s=sum(reply.cpu_s for reply in both),
        wall_s=max(reply.wall_s for reply in both),
        peak_rss_mb=max(reply.peak_rss_kib for reply in both) / 1024,
        stdout_head=shown_text(raw.stdout[:STDOUT_HEAD_BYTES]),
        stderr_tail=shown_text(raw.stderr_tail),
        detail=detail,
        returned=returned,
    )
    return Judged(result, end.compiled is True, unchecked)


def checker_of(case: AnyCase) -> CheckerProgram | None:
    """The program that has to look at an answer to this case, if that is how it is judged."""
    comparator = None if isinstance(case, AssertCase) else case.comparator
    return comparator if isinstance(comparator, CheckerProgram) else None


def spec_for_checker(source_fd: int, case: AnyCase, answer: Answer, limits: Limits) -> RunSpec:
    """The run of a checker on an answer. Raises UnserializableError for an answer that is nested too deeply."""
    checker = checker_of(case)
    assert checker is not None and not isinstance(case, AssertCase)
    given: Any = case.stdin if isinstance(case, StdioCase) else None
    if isinstance(case, CallCase):
        given = {"args": case.args, "kwargs": case.kwargs} if case.kwargs else case.args
    arguments = [given, answer.value, case.expected]
    return replace(spec_for_call(source_fd, checker.entry_point, arguments, {}, limits, None), mode=wire.MODE_CHECKER)


def checked(raw: RawRun, spec: RunSpec) -> tuple[Verdict, str | None]:
    """What a checker's run says about the answer. Only True accepts it."""
    end = outcome(raw, spec)
    if end.verdict is not Verdict.ACCEPTED and not raw.result:
        # It had not looked at the answer yet: it does not compile, load, or take what a checker is given.
        return Verdict.SANDBOX_ERROR, f"the checker cannot be used: {end.detail}"
    if end.verdict is not Verdict.ACCEPTED:
        # An answer can be such that the checker stumbles over it, so this counts against the answer.
        return Verdict.WRONG_ANSWER, f"the checker ended with {end.verdict.value}: {end.detail}"
    if end.value is True:
        return Verdict.ACCEPTED, None
    return Verdict.WRONG_ANSWER, "the checker refused the answer"


def run_output(raw: RawRun, spec: RunSpec) -> RunOutput:
    """The run of a program without an expected output."""
    end = outcome(raw, spec)
    verdict, detail, stdout = end.verdict, end.detail, ""
    if spec.mode == wire.MODE_STDIO:
        try:
            stdout = raw.stdout.decode()
        except UnicodeDecodeError:
            stdout = shown_text(raw.stdout)
            if verdict is Verdict.ACCEPTED:
                verdict, detail = Verdict.RUNTIME_ERROR, "the output is not UTF-8"
    else:
        stdout = shown_text(raw.stdout[:STDOUT_HEAD_BYTES])
    # Not validated again: the value has just been decoded from typed JSON.
    return RunOutput.model_construct(
        verdict=verdict,
        exit_status=os.waitstatus_to_exitcode(raw.reply.wait_status),
        value=end.value,
        stdout=stdout,
        cpu_s=raw.reply.cpu_s,
        wall_s=raw.reply.wall_s,
        peak_rss_mb=raw.reply.peak_rss_kib / 1024,
        stderr_tail=shown_text(raw.stderr_tail),
        detail=detail,
    )


def _compiled(reply: wire.Reply) -> bool:
    return reply.stages.startswith(wire.STAGE_BOOT + wire.STAGE_RUN)


def shown_text(data: bytes) -> str:
    """Bytes for people to read: control characters of terminals are made visible."""
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def last_line_of(stderr_tail: bytes) -> str:
    lines = shown_text(stderr_tail).strip().splitlines()
    return lines[-1][:500] if lines else ""


def is_memory_error(last_line: str) -> bool:
    return last_line == "MemoryError" or last_line.startswith("MemoryError:")


def _ending(reply: wire.Reply) -> str:
    status = reply.wait_status
    if reply.killed_by != wire.KILLED_NO:
        return "killed at its time limit"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _failure(last_line: str, reply: wire.Reply) -> str:
    if os.WIFSIGNALED(reply.wait_status) or not last_line:
        return _ending(reply)
    return last_line


def right(printed: bytes, value: Any, case: AnyCase) -> bool:
    """Whether what a run printed or returned is what the case expects, where no other process has to say so."""
    try:
        if isinstance(case, AssertCase):
            return value is True  # it ran in the solution's process, to its end
        if isinstance(case.comparator, CheckerProgram):
            return False
        if isinstance(case, StdioCase):
            return case.comparator.accepts(printed, case.expected)
        return case.comparator.accepts(value, case.expected)
    except (ValueError, ArithmeticError, RecursionError):
        log.exception("a comparator failed; the answer counts as wrong")
        return False


def difference(returned: str | None, case: AnyCase) -> str:
    """In typed JSON: repr() refuses integers of thousands of digits."""
    if isinstance(case, StdioCase):
        return "the output differs from the expected one"
    if isinstance(case, AssertCase):
        return "the test did not come to its end"
    return f"returned {'a long value' if returned is None else returned[:200]}, expected {dumps(case.expected)[:200]}"
