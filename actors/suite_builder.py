"""From proposed inputs to a measured suite of tests (method section 2).

The references are run on every input; there is a test only where all of them end well, agree, and say the same again.
Faults are planted in the reference; what the candidates tell from it decides which of them make the suite, and whether
it may decide rewards. Knows the sandbox by its protocol alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reasoning.constraints import limits_of, parameters, violated
from reasoning.execution_matrix import Row, consensus, redundancy
from reasoning.inputs import new_arguments, new_texts
from reasoning.mutants import mutants
from reasoning.records import Origin, Problem, ProblemTest, Suite, SuiteQuality
from reasoning.suites import assemble, candidates, choose, judge_quality, split_given
from reasoning.test_cases import ParsedCase, input_text, make_test, output_text, renderable, training_tests
from sandbox import (
    CallCase,
    CheckerProgram,
    ExactValue,
    Limits,
    RunOutput,
    StdioCase,
    Submission,
    SuiteResult,
    TokenComparator,
    Verdict,
)

MAX_OUTPUT_CHARACTERS = 4_000
"""Of an expected output: longer ones make suites slow and say nothing that a short one does not."""
REFERENCE_SHARE = 0.5
"""Of the CPU limit, that a reference may take on an input: a right but slower program must not run out of time."""
MUTANT_CPU = 10.0
"""How many times the CPU seconds of its reference a mutant gets: one with an endless loop is stopped early."""
LEAST_CPU_S = 0.2


class Pool(Protocol):
    """What is asked of a sandbox."""

    async def judge(self, submission: Submission) -> SuiteResult: ...

    async def run_calls(self, source: str, entry_point: str, inputs: Any, limits: Limits) -> list[RunOutput]: ...

    async def run_stdin(self, source: str, stdins: Sequence[str], limits: Limits) -> list[RunOutput]: ...


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """`size`: tests of a suite. `inputs`: made from known ones by mutation, to choose from. `screening`: further ones,
    never in a suite, that tell which mutants differ from their reference. `mutants`: faulty programs to measure with.
    `bar`: the kill rate below which a suite decides nothing."""

    size: int = 8
    inputs: int = 24
    screening: int = 16
    mutants: int = 12
    bar: float = 0.5
    seed: int = 0


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


@dataclass(frozen=True, slots=True)
class Material:
    """What a generator learns one problem from. `wrong`: of each faulty program, its wrong outputs by input text."""

    tests: list[ProblemTest]
    wrong: list[dict[str, str]]


class SuiteBuilder:
    """Makes suites; many calls run at once on one event loop."""

    def __init__(self, pool: Pool, limits: Limits, settings: BuildSettings) -> None:
        self.pool, self.limits, self.settings = pool, limits, settings

    async def build(self, problem: Problem, generated: Sequence[ProblemTest] = ()) -> Suite:
        """The suite of a problem, from its given tests, tests that were generated (see `execute`), and inputs made from
        both; with its quality, and refused where that is below the bar."""
        usable, _ = split_given(problem)
        s = self.settings
        own = self._proposed(problem, [*usable, *generated], s.inputs + s.screening, s.seed)
        cut = len(own) * s.inputs // max(1, s.inputs + s.screening)
        executed, screening = [await self.execute(problem, part) for part in (own[:cut], own[cut:])]
        tests = candidates(problem, [*generated, *executed.tests])
        every = [*tests, *screening.tests]
        cpu_s = await self._cpu_s(problem, every)
        planted = mutants(problem.references[0], s.mutants, s.seed)
        rows = await asyncio.gather(*[self._row(problem, m.source, every, cpu_s) for m in planted])
        # A mutant that nothing tells from the reference is taken for its equal.
        wrong = [row for row in rows if False in row]
        chosen = choose(tests, [row[: len(tests)] for row in wrong], s.size)
        suite = assemble(problem, tests, chosen)
        given = [j for j, test in enumerate(tests) if test.origin is Origin.GIVEN]
        picked = [[row[j] for j in chosen] for row in wrong]
        quality = SuiteQuality(
            inputs=len(own),
            inputs_legal=len(executed.tests) + len(screening.tests),
            mutants=len(planted),
            screened=len(wrong),
            killed=sum(False in row for row in picked),
            killed_by_given=sum(False in [row[j] for j in given] for row in wrong),
            redundancy=redundancy(picked),
        )
        rate = quality.killed / quality.screened if wrong else None
        return judge_quality(suite, rate, s.bar).model_copy(update={"quality": quality})

    async def execute(self, problem: Problem, cases: Sequence[ParsedCase]) -> Executed:
        """Tests from cases: their inputs, and the outputs that all references agree on (the first is asked twice).

        Left out are inputs that break a limit which the question states, on which a reference fails, takes long or
        prints much, and cases that the sandbox itself failed on, which are not `known` either.
        """
        cases = _legal(problem, cases)
        if not cases or not (problem.entry_point is None or any(isinstance(t.case, CallCase) for t in problem.tests)):
            return Executed([])  # no test that can be called: nothing is run
        asked = [*problem.references, problem.references[0]]
        outputs = await asyncio.gather(*[self._outputs(problem, reference, cases) for reference in asked])
        tests: list[ProblemTest] = []
        known = right = 0
        longest = 0.0
        for case, results in zip(cases, zip(*outputs, strict=True), strict=True):
            if any(r.verdict is Verdict.SANDBOX_ERROR for r in results):
                continue
            known += 1
            cpu_s = max(r.cpu_s for r in results)
            if not all(r.ok for r in results) or cpu_s > REFERENCE_SHARE * self.limits.cpu_s:
                continue
            values = [r.stdout if problem.entry_point is None else r.value for r in results]
            if len(str(values[0])) > MAX_OUTPUT_CHARACTERS:
                continue
            test = make_test(problem, case, values[0], Origin.REFERENCE)
            if all(accepts(test, value) for value in values):
                tests.append(test)
                right += case.output_ok and accepts(test, case.output)
                longest = max(longest, cpu_s)
        return Executed(tests, known, right, longest)

    async def agreed(
        self, problem: Problem, cases: Sequence[ParsedCase], programs: Sequence[str], least: int = 2
    ) -> list[ProblemTest]:
        """Tests of a problem without references: of the cases with an output, those of the best set that programs agree
        on (`consensus`), where at least `least` programs do. Nothing says that they are true; they score no rewards."""
        tests = [make_test(problem, case, case.output, Origin.CONSENSUS) for case in cases if case.output_ok]
        if not tests or len(programs) < least:
            return []
        rows = await asyncio.gather(*[self._row(problem, program, tests, self.limits.cpu_s) for program in programs])
        best = consensus(rows)
        return [tests[j] for j in best.tests] if best is not None and len(best.programs) >= least else []

    async def material(self, problem: Problem) -> Material:
        """What a generator learns from: tests by the references, on other inputs than those of the suites, and what
        faulty programs answer instead."""
        usable, _ = split_given(problem)
        s = self.settings
        executed = await self.execute(problem, self._proposed(problem, usable, s.inputs, s.seed + 1))
        tests = training_tests(problem, executed.tests)
        planted = mutants(problem.references[0], s.mutants, s.seed + 1)
        found = await asyncio.gather(*[self._wrong_outputs(problem, m.source, tests, executed.cpu_s) for m in planted])
        return Material(tests, [wrong for wrong in found if wrong])

    async def _wrong_outputs(
        self, problem: Problem, program: str, tests: Sequence[ProblemTest], cpu_s: float
    ) -> dict[str, str]:
        """By the text of the input, what a program answers that is wrong and can be written down."""
        cases = [_case_of(test) for test in tests]
        found = {}
        for test, result in zip(tests, await self._outputs(problem, program, cases, cpu_s), strict=True):
            value = result.stdout if problem.entry_point is None else result.value
            if result.ok and not accepts(test, value):
                wrong = make_test(problem, _case_of(test), value, Origin.GENERATED)
                if renderable(wrong):
                    found[input_text(test)] = output_text(wrong)
        return found

    def _proposed(self, problem: Problem, tests: Sequence[ProblemTest], count: int, seed: int) -> list[ParsedCase]:
        if problem.entry_point is None:
            texts = [t.case.stdin for t in tests if isinstance(t.case, StdioCase)]
            return [ParsedCase(None, text, None, output_ok=False) for text in new_texts(texts, count, seed)]
        known = [tuple(t.case.args) for t in tests if isinstance(t.case, CallCase) and not t.case.kwargs]
        return [ParsedCase(args, "", None, output_ok=False) for args in new_arguments(known, count, seed)]

    async def _outputs(
        self, problem: Problem, program: str, cases: Sequence[ParsedCase], cpu_s: float | None = None
    ) -> list[RunOutput]:
        """What a program answers; `cpu_s`: of its reference, for one that may never end."""
        limits = self.limits if cpu_s is None else self._limits_of_a_mutant(cpu_s)
        if problem.entry_point is None:
            return await self.pool.run_stdin(program, [case.stdin for case in cases], limits)
        inputs = [(list(case.args or ()), {}) for case in cases]
        return await self.pool.run_calls(program, problem.entry_point, inputs, limits)

    def _limits_of_a_mutant(self, cpu_s: float) -> Limits:
        # A reference that was not timed says nothing of how long its mutants may take.
        seconds = min(self.limits.cpu_s, max(LEAST_CPU_S, MUTANT_CPU * cpu_s)) if cpu_s > 0 else self.limits.cpu_s
        return self.limits.model_copy(update={"cpu_s": seconds})

    async def _cpu_s(self, problem: Problem, tests: Sequence[ProblemTest]) -> float:
        """The longest that the reference takes on a test: given ones may take it far longer than those made here."""
        cases = [test.case for test in tests]
        result = await self.pool.judge(
            Submission(source=problem.references[0], entry_point=problem.entry_point, cases=cases, limits=self.limits)
        )
        return max(case.cpu_s for case in result.cases)

    async def _row(self, problem: Problem, source: str, tests: Sequence[ProblemTest], cpu_s: float) -> Row:
        """What a program does on the tests; None where that is not known."""
        result = await self.pool.judge(
            Submission(
                source=source,
                entry_point=problem.entry_point,
                cases=[test.case for test in tests],
                limits=self._limits_of_a_mutant(cpu_s),
                stop="first_timeout",
            )
        )
        unknown = (Verdict.SANDBOX_ERROR, Verdict.NOT_RUN)
        return [None if r.verdict in unknown else r.verdict is Verdict.ACCEPTED for r in result.cases]


def _case_of(test: ProblemTest) -> ParsedCase:
    case = test.case
    if isinstance(case, StdioCase):
        return ParsedCase(None, case.stdin, None, output_ok=False)
    assert isinstance(case, CallCase)
    return ParsedCase(tuple(case.args), "", None, output_ok=False)


def _legal(problem: Problem, cases: Sequence[ParsedCase]) -> list[ParsedCase]:
    """The cases that break no limit which the question states of a function's parameters."""
    if problem.entry_point is None:
        return list(cases)
    names = parameters(problem.references[0], problem.entry_point)
    given = [t.case.args for t in problem.tests if isinstance(t.case, CallCase)]
    # A limit that the given tests break was read wrongly.
    limits = [limit for limit in limits_of(problem.question) if not any(violated(g, names, [limit]) for g in given)]
    return [case for case in cases if case.args is None or violated(case.args, names, limits) is None]


def accepts(test: ProblemTest, value: Any) -> bool:
    """Whether a test takes a value (for a program that prints: its output)."""
    case = test.case
    # Where a checker program decides, several answers are right; references still have to agree on one.
    programmed = isinstance(case.comparator, CheckerProgram)
    if isinstance(case, StdioCase):
        comparator = TokenComparator() if programmed else case.comparator
        return isinstance(value, str) and comparator.accepts(value.encode("utf-8", "surrogatepass"), case.expected)
    return (ExactValue() if programmed else case.comparator).accepts(value, case.expected)
