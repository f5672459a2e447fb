"""What programs answer and which tests they pass, asked of a sandbox (method section 2).

Knows the sandbox by its protocol alone. What the sandbox itself failed on is unknown, never a failure of the program.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reasoning.branches import instrumented, share, taken
from reasoning.constraints import envelope, limits_of, numbers_in, parameters, violated
from reasoning.execution_matrix import Matrix, Row
from reasoning.records import Origin, Problem, ProblemTest
from reasoning.suites import split_given
from reasoning.test_cases import ParsedCase, accepts, case_of, input_text, make_test, output_text, renderable
from sandbox import CallCase, Limits, RunOutput, StdioCase, Submission, SuiteResult, Verdict

MAX_OUTPUT_CHARACTERS = 4_000
"""Of an expected output: longer ones make suites slow and say nothing that a short one does not."""
REFERENCE_SHARE = 0.5
"""Of the CPU limit, that a reference may take on an input: a right but slower program must not run out of time."""
OTHERS_CPU = 10.0
"""How many times the CPU seconds of the reference another program gets: one with an endless loop is stopped early."""
LEAST_CPU_S = 0.2
_limits_of = functools.lru_cache(maxsize=1024)(limits_of)
UNKNOWN = (Verdict.SANDBOX_ERROR, Verdict.NOT_RUN)


class Pool(Protocol):
    """What is asked of a sandbox."""

    async def judge(self, submission: Submission) -> SuiteResult: ...

    async def run_calls(self, source: str, entry_point: str, inputs: Any, limits: Limits) -> list[RunOutput]: ...

    async def run_stdin(self, source: str, stdins: Sequence[str], limits: Limits) -> list[RunOutput]: ...


@dataclass(frozen=True, slots=True)
class Executed:
    """What the references made of proposed cases.

    `tests`: where all of them agreed. `known`: cases that the sandbox could run; `right`: those whose proposed output
    is the references'. `cpu_s`: the longest run of a reference.
    """

    tests: list[ProblemTest]
    known: int = 0
    right: int = 0
    cpu_s: float = 0.0


class Executions:
    """Runs the programs of problems; many calls run at once on one event loop."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.busy_s = 0.0
        """Seconds on the clock that programs ran, all together."""

    async def by_references(self, problem: Problem, cases: Sequence[ParsedCase]) -> Executed:
        """Tests from cases: their inputs, and the outputs that all references agree on (the first is asked twice).

        Left out are inputs that break a limit which the question states (without being run), on which a reference
        fails, takes long or prints much, and cases that the sandbox itself failed on, which are not `known` either.
        """
        callable_ = problem.entry_point is None or any(isinstance(t.case, CallCase) for t in problem.tests)
        if not problem.references or not callable_:
            return Executed([])  # nobody to ask, or no test that can be called
        every, cases = len(cases), legal(problem, cases)
        if not cases:
            return Executed([], every)
        asked = [*problem.references, problem.references[0]]
        outputs = await asyncio.gather(*[self.outputs(problem, reference, cases) for reference in asked])
        tests: list[ProblemTest] = []
        known, right = every - len(cases), 0
        longest = 0.0
        for case, results in zip(cases, zip(*outputs, strict=True), strict=True):
            if any(r.verdict is Verdict.SANDBOX_ERROR for r in results):
                continue
            known += 1
            cpu_s = max(r.cpu_s for r in results)
            if not all(r.ok for r in results) or cpu_s > REFERENCE_SHARE * self.limits.cpu_s:
                continue
            values = [r.stdout if problem.entry_point is None else r.value for r in results]
            if not _is_short(values[0]):
                continue
            test = make_test(problem, case, values[0], Origin.REFERENCE)
            if all(accepts(test, value) for value in values):
                tests.append(test)
                right += case.output_ok and accepts(test, case.output)
                longest = max(longest, cpu_s)
        return Executed(tests, known, right, longest)

    async def outputs(
        self, problem: Problem, program: str, cases: Sequence[ParsedCase], cpu_s: float | None = None
    ) -> list[RunOutput]:
        """What a program answers; `cpu_s`: of its reference, for one that may never end."""
        limits = self.limits if cpu_s is None else self._limits_of_others(cpu_s)
        if problem.entry_point is None:
            found = await self.pool.run_stdin(program, [case.stdin for case in cases], limits)
        else:
            inputs = [(list(case.args or ()), {}) for case in cases]
            found = await self.pool.run_calls(program, problem.entry_point, inputs, limits)
        self.busy_s += sum(run.wall_s for run in found)
        return found

    async def wrong_outputs(
        self, problem: Problem, program: str, tests: Sequence[ProblemTest], cpu_s: float
    ) -> dict[str, str]:
        """By the text of the input, what a program answers that is wrong and can be written down."""
        cases = [case_of(test) for test in tests]
        found: dict[str, str] = {}
        try:
            answers = await self.outputs(problem, program, cases, cpu_s)
        except ValueError:  # a program that is too long
            return found
        for test, result in zip(tests, answers, strict=True):
            value = result.stdout if problem.entry_point is None else result.value
            if result.ok and not accepts(test, value):
                wrong = make_test(problem, case_of(test), value, Origin.GENERATED)
                if renderable(wrong):
                    found[input_text(test)] = output_text(wrong)
        return found

    async def seconds(self, problem: Problem, program: str, tests: Sequence[ProblemTest]) -> float:
        """The most CPU seconds that a program takes on one of the tests: given ones may take it far longer than those
        that were made."""
        result = await self._judged(problem, program, tests, self.limits)
        return max((case.cpu_s for case in result.cases), default=0.0)

    async def matrix(
        self,
        problem: Problem,
        programs: Sequence[str],
        tests: Sequence[ProblemTest],
        cpu_s: float,
        patient: bool = False,
    ) -> Matrix:
        """A row per program: which tests it passes, None where that is not known. `cpu_s`: of a right program, on the
        test that takes it longest.

        Of a program that runs out of time on one test nothing is known on later ones, unless `patient`.
        """
        if not tests:
            return [[] for _ in programs]
        limits, stop = self._limits_of_others(cpu_s), "never" if patient else "first_timeout"
        return await asyncio.gather(*[self._row(problem, program, tests, limits, stop) for program in programs])

    async def branches(self, problem: Problem, program: str, tests: Sequence[ProblemTest]) -> tuple[int, int]:
        """How many branches of a program the tests reach, and how many there are; (0, 0) where that cannot be told."""
        noted = instrumented(program, problem.entry_point)
        cases = [test.case for test in tests]
        if noted is None or not cases:
            return 0, 0
        if noted.entry_point is None:
            found = await self.pool.run_stdin(
                noted.source, [c.stdin for c in cases if isinstance(c, StdioCase)], self.limits
            )
            runs = [taken(run.stdout) for run in found]
        else:
            calls = [(c.args, c.kwargs) for c in cases if isinstance(c, CallCase)]
            if not calls:
                return 0, 0
            found = await self.pool.run_calls(noted.source, noted.entry_point, calls, self.limits)
            runs = [taken(run.value) for run in found if run.ok]
        return round(share(runs, noted.branches) * noted.branches), noted.branches

    async def _row(
        self, problem: Problem, program: str, tests: Sequence[ProblemTest], limits: Limits, stop: str
    ) -> Row:
        try:
            result = await self._judged(problem, program, tests, limits, stop)
        except ValueError:  # a program that is too long
            return [None] * len(tests)
        return [None if r.verdict in UNKNOWN else r.verdict is Verdict.ACCEPTED for r in result.cases]

    async def _judged(
        self, problem: Problem, program: str, tests: Sequence[ProblemTest], limits: Limits, stop: Any = "never"
    ) -> SuiteResult:
        cases = [test.case for test in tests]
        submission = Submission(source=program, entry_point=problem.entry_point, cases=cases, limits=limits, stop=stop)
        result = await self.pool.judge(submission)
        self.busy_s += sum(case.wall_s for case in result.cases)
        return result

    def _limits_of_others(self, cpu_s: float) -> Limits:
        # A reference that was not timed says nothing of how long others may take.
        seconds = min(self.limits.cpu_s, max(LEAST_CPU_S, OTHERS_CPU * cpu_s)) if cpu_s > 0 else self.limits.cpu_s
        return self.limits.model_copy(update={"cpu_s": seconds})


def _is_short(value: Any) -> bool:
    try:
        return len(str(value)) <= MAX_OUTPUT_CHARACTERS
    except ValueError:  # a whole number of thousands of digits
        return False


def legal(problem: Problem, cases: Sequence[ParsedCase]) -> list[ParsedCase]:
    """The cases that break no limit which the question states of a function's parameters, or of all numbers that a
    program reads."""
    if problem.entry_point is None:
        low, high = envelope(_limits_of(problem.question), stdins(split_given(problem)[0]))
        return [case for case in cases if all(low <= number <= high for number in numbers_in(case.stdin))]
    if not problem.references:
        return list(cases)
    names = parameters(problem.references[0], problem.entry_point)
    given = arguments(split_given(problem)[0])
    # A limit that the given tests break was read wrongly.
    limits = [limit for limit in _limits_of(problem.question) if not any(violated(g, names, [limit]) for g in given)]
    return [case for case in cases if case.args is None or violated(case.args, names, limits) is None]


def arguments(tests: Iterable[ProblemTest]) -> list[tuple[Any, ...]]:
    """What tests call the function with, where they name no argument."""
    return [tuple(t.case.args) for t in tests if isinstance(t.case, CallCase) and not t.case.kwargs]


def stdins(tests: Iterable[ProblemTest]) -> list[str]:
    """What tests have a program read."""
    return [t.case.stdin for t in tests if isinstance(t.case, StdioCase)]
