"""From proposed inputs to a measured suite of tests (method section 2).

The references are run on every input; there is a test only where all of them end well, agree, and say the same again.
Faults are planted in the reference; what the candidates tell from it decides which of them make the suite, and whether
it may decide rewards. Without references, programs and tests that confirm each other stand in for them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from actors.executions import Executed, Executions, Pool, arguments, legal, stdins
from reasoning.execution_matrix import Matrix, consensus, rates, redundancy, self_play_rewards
from reasoning.inputs import new_arguments, new_texts
from reasoning.mutants import constant_programs, mutants, shape
from reasoning.properties import Property, broken, counts_of, miscounted, properties_of
from reasoning.records import Origin, Problem, ProblemTest, Suite, SuiteQuality, TextPair
from reasoning.self_play import text_reward
from reasoning.suites import (
    assemble,
    candidates,
    choose,
    expected_values,
    has_input,
    input_key,
    judge_quality,
    split_given,
)
from reasoning.test_cases import (
    CASES_PER_PROMPT,
    ParsedCase,
    accepts,
    case_of,
    corrected_pair,
    make_test,
    ranked_pairs,
    renderable,
    training_tests,
)
from sandbox import Limits

LEAST_AGREEING = 2
"""Programs that have to agree before they confirm a test: one alone confirms whatever it does."""
STAND_INS = 3
"""Programs of the best agreeing set that answer for further inputs, as references would."""

NOTHING = Executed([])
NOT_MEASURED = SuiteQuality(mutants=0, screened=0, killed=0, killed_by_given=0, redundancy=0)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """`size`: tests of a suite, at most; `fill`: up to it, beyond those that are needed. `inputs`: made from known ones
    by mutation, to choose from. `screening`: further ones, never in a suite, that tell which programs differ from the
    reference. `mutants`: faulty programs to measure with. `bar`: the kill rate below which a suite decides nothing."""

    size: int = 8
    inputs: int = 24
    screening: int = 16
    mutants: int = 12
    bar: float = 0.5
    seed: int = 0
    fill: bool = True


@dataclass(frozen=True, slots=True)
class Material:
    """What a generator learns one problem from. `programs`: faulty ones, by a planted fault or of the policy; `wrong`:
    of each, its wrong outputs by input text."""

    tests: list[ProblemTest]
    programs: list[str]
    wrong: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """Preference pairs from texts of the generator. `ranked`: those with more right outputs against those with fewer;
    `corrected`: what the references say against what was written instead."""

    ranked: list[TextPair]
    corrected: list[TextPair]


@dataclass(frozen=True, slots=True)
class _Told:
    """Programs that the known tests tell from the reference, each with its row over all of them: with a planted fault,
    and of the policy. `planted`: mutants in all; `constants`: rows of programs that always give the same answer;
    `right`: programs of the policy that pass every known test. `programs`: those of `mutants` and `samples`; `cpu_s`:
    what the reference takes on a known test."""

    planted: int
    mutants: Matrix
    samples: Matrix
    constants: Matrix
    right: list[str]
    programs: list[str]
    cpu_s: float

    @property
    def wrong(self) -> Matrix:
        return [*self.mutants, *self.samples]


class SuiteBuilder:
    """Makes suites; many calls run at once on one event loop."""

    def __init__(self, pool: Pool, limits: Limits, settings: BuildSettings) -> None:
        self.executions, self.settings = Executions(pool, limits), settings

    async def build(
        self, problem: Problem, written: Executed = NOTHING, programs: Sequence[str] = (), asked: int = 0
    ) -> Suite:
        """The suite of a problem, from its given tests, tests that a generator wrote (`Executions.by_references`), and
        inputs made from both; with its quality, and refused where that is below the bar.

        `programs`: of the policy, right or wrong. `asked`: cases that the generator was asked for.
        """
        usable, _ = split_given(problem)
        s = self.settings
        stated = properties_of(problem.question, arguments(usable))
        counts = counts_of(stdins(usable))
        of_model = [
            test
            for test in written.tests
            if not any(broken(args, stated) for args in arguments([test]))
            and not any(miscounted(text, counts) for text in stdins([test]))
        ]
        own = self._proposed(problem, [*usable, *of_model], stated, s.inputs + s.screening, s.seed)
        cut = len(own) * s.inputs // max(1, s.inputs + s.screening)
        made, screening = [await self.executions.by_references(problem, part) for part in (own[:cut], own[cut:])]
        tests = candidates(problem, [*of_model, *made.tests])
        suite = await self._measured(problem, tests, screening.tests, programs)
        assert suite.quality is not None
        quality = suite.quality.model_copy(
            update={
                "asked": asked,
                "cases": written.known,
                "cases_valid": len(written.tests),
                "cases_right": written.right,
                "inputs": len(own),
                "inputs_legal": len(made.tests) + len(screening.tests),
            }
        )
        return suite.model_copy(update={"quality": quality})

    async def build_agreed(
        self, problem: Problem, cases: Sequence[ParsedCase], programs: Sequence[str], asked: int = 0
    ) -> Suite:
        """The suite of a problem whose references, if it has any, are not looked at: tests with outputs that the
        generator wrote, confirmed by programs of the policy and the other way round (`consensus`), and further inputs
        on which those programs agree.

        Refused where fewer than `LEAST_AGREEING` programs do. Faults are planted in one of them. Where there are
        references, `cases_valid`, `cases_right` and the error rates say how far the agreement is from the truth.
        """
        agreed, agreeing = await self.agreed(problem, cases, programs)
        if not agreeing:
            reason = f"no {LEAST_AGREEING} of {len(programs)} programs agree on a test that was written"
            shown = assemble(problem, problem.shown_tests, range(len(problem.shown_tests)))
            quality = await self._against_truth(problem, shown, cases, programs, asked, NOT_MEASURED)
            return shown.model_copy(update={"accepted": False, "reason": reason, "quality": quality})
        s = self.settings
        stand_in = problem.model_copy(update={"references": tuple(agreeing[:STAND_INS])})
        stated = properties_of(problem.question, arguments(problem.shown_tests))
        own = self._proposed(problem, [*problem.shown_tests, *agreed], stated, s.inputs, s.seed)
        made = await self.executions.by_references(stand_in, own)
        further = [test.model_copy(update={"origin": Origin.CONSENSUS}) for test in made.tests]
        tests = candidates(problem, [*agreed, *further], others=False)
        suite = await self._measured(stand_in, tests, [], ())
        assert suite.quality is not None
        quality = suite.quality.model_copy(update={"inputs": len(own), "inputs_legal": len(made.tests)})
        quality = await self._against_truth(problem, suite, cases, programs, asked, quality)
        if suite.accepted and not quality.screened:
            # With references this says nothing against a suite; here nothing else speaks for it.
            reason = "no fault that was planted in the programs which agree can be told"
            suite = suite.model_copy(update={"accepted": False, "reason": reason})
        return suite.model_copy(update={"quality": quality})

    async def _against_truth(
        self,
        problem: Problem,
        suite: Suite,
        cases: Sequence[ParsedCase],
        programs: Sequence[str],
        asked: int,
        quality: SuiteQuality,
    ) -> SuiteQuality:
        """The quality of a suite that was made without references, with what they say where there are any."""
        truth: dict[str, float | int | None] = {"false_accept": None, "false_reject": None}
        if problem.references:
            truth = await self._compared(problem, suite, cases, programs) | {"asked": asked}
        return quality.model_copy(update=truth)

    async def agreed(
        self, problem: Problem, cases: Sequence[ParsedCase], programs: Sequence[str]
    ) -> tuple[list[ProblemTest], list[str]]:
        """Of the cases with an output, those of the best set that programs agree on, as tests, and those programs; none
        where fewer than `LEAST_AGREEING` do.

        Programs that fail a shown test do not count. Nothing says that the tests are true.
        """
        tests = [make_test(problem, case, case.output, Origin.CONSENSUS) for case in cases if case.output_ok]
        if not tests or len(programs) < LEAST_AGREEING:
            return [], []
        shown = problem.shown_tests
        rows = await self.executions.matrix(problem, programs, [*shown, *tests], 0.0, patient=True)
        # A copy under other names confirms nothing.
        able = list({shape(programs[i]): i for i, row in enumerate(rows) if False not in row[: len(shown)]}.values())
        best = consensus([rows[i][len(shown) :] for i in able])
        if best is None or len(best.programs) < LEAST_AGREEING:
            return [], []
        return [tests[j] for j in best.tests], [programs[able[i]] for i in best.programs]

    async def material(self, problem: Problem, programs: Sequence[str] = ()) -> Material:
        """What a generator learns from: tests by the references, on other inputs than those of the suites, and what
        faulty programs, planted or of the policy, answer instead."""
        usable, _ = split_given(problem)
        s, runs = self.settings, self.executions
        stated = properties_of(problem.question, arguments(usable))
        executed = await runs.by_references(problem, self._proposed(problem, usable, stated, s.inputs, s.seed + 1))
        tests = training_tests(problem, executed.tests)
        faulty = [*programs, *(m.source for m in mutants(problem.references[0], s.mutants, s.seed + 1))]
        found = await asyncio.gather(*[runs.wrong_outputs(problem, p, tests, executed.cpu_s) for p in faulty])
        kept = [(program, wrong) for program, wrong in zip(faulty, found, strict=True) if wrong]
        return Material(tests, [program for program, _ in kept], [wrong for _, wrong in kept])

    async def own_pairs(self, problem: Problem, texts: Sequence[Sequence[ParsedCase]]) -> OwnPairs:
        """Pairs from texts of the generator. Given tests that are held out are in none."""
        distinct = {case.key: case for case in itertools.chain(*texts)}
        tests = (await self.executions.by_references(problem, list(distinct.values()))).tests
        kept_apart = {input_key(test) for test in split_given(problem)[1]}
        true = {case_of(test).key: test for test in tests if input_key(test) not in kept_apart}
        corrected = [corrected_pair(problem, cases, true) for cases in texts]
        return OwnPairs(ranked_pairs(problem, texts, true), [pair for pair in corrected if pair is not None])

    async def rewards(
        self, problem: Problem, texts: Sequence[Sequence[ParsedCase]], wrong: Sequence[str]
    ) -> list[float | None]:
        """The self-play reward of each text of the generator, by what its tests, with the outputs that it wrote, say of
        the references and of programs that are known to be `wrong` (`self_play_rewards`, `text_reward`)."""
        distinct: dict[tuple[str, str], ProblemTest] = {}
        texts = [[case for case in legal(problem, cases) if case.output_ok] for cases in texts]
        for case in itertools.chain(*texts):
            test = make_test(problem, case, case.output, Origin.GENERATED)
            if renderable(test):
                distinct.setdefault(_asks(case), test)
        tests = list(distinct.values())
        rewards: dict[tuple[str, str], float | None] = {}
        if tests:
            cpu_s = await self.executions.seconds(problem, problem.references[0], tests)
            right = await self.executions.matrix(problem, problem.references, tests, 0.0, patient=True)
            failing = await self.executions.matrix(problem, wrong, tests, cpu_s, patient=True)
            rewards = dict(zip(distinct, self_play_rewards(right, failing, len(tests)), strict=True))
        return [
            text_reward([rewards[_asks(case)] for case in cases if _asks(case) in rewards], CASES_PER_PROMPT)
            for cases in texts
        ]

    # --- parts ---

    async def _measured(
        self, problem: Problem, tests: Sequence[ProblemTest], screening: Sequence[ProblemTest], programs: Sequence[str]
    ) -> Suite:
        """The suite of some candidates, with its quality. `screening`: further known tests."""
        s = self.settings
        told = await self._told_apart(problem, [*tests, *screening], programs)
        count = len(tests)
        chosen = choose(tests, [row[:count] for row in (*told.wrong, *told.constants)], s.size, s.fill)
        suite = assemble(problem, tests, chosen)
        picked, constants = ([[row[j] for j in chosen] for row in rows] for rows in (told.wrong, told.constants))
        by_mutant, by_sample = picked[: len(told.mutants)], picked[len(told.mutants) :]
        # Apart from the others: among them a program that runs out of time is not asked again, and a given test may
        # have made room for a made one that asks the same.
        usable, _ = split_given(problem)
        by_given = await self.executions.matrix(problem, told.programs, usable, told.cpu_s)
        right = await self.executions.matrix(problem, [*problem.references, *told.right], suite.tests, 0.0)
        found = rates(right, picked)
        covered, branches = await self.executions.branches(problem, problem.references[0], suite.tests)
        quality = SuiteQuality(
            mutants=told.planted,
            screened=len(told.mutants),
            killed=_killed(by_mutant),
            killed_by_given=_killed(by_given[: len(told.mutants)]),
            samples=len(programs),
            samples_wrong=len(told.samples),
            samples_killed=_killed(by_sample),
            samples_killed_by_given=_killed(by_given[len(told.mutants) :]),
            false_accept=found.false_accept,
            false_reject=found.false_reject,
            branches=branches,
            branches_covered=covered,
            redundancy=redundancy(picked),
        )
        rate = quality.killed / quality.screened if quality.screened else None
        blind = any(map(has_input, suite.tests)) and (
            any(row and all(row) for row in constants) or _expects_one_value(suite.tests)
        )
        return judge_quality(suite, rate, s.bar, blind).model_copy(update={"quality": quality})

    async def _told_apart(self, problem: Problem, known: Sequence[ProblemTest], programs: Sequence[str]) -> _Told:
        """Planted faults, programs of the policy and constant answers, by what the known tests say of them.

        A mutant that nothing tells from the reference is taken for its equal.
        """
        reference, s = problem.references[0], self.settings
        cpu_s = await self.executions.seconds(problem, reference, known)
        planted = [m.source for m in mutants(reference, s.mutants, s.seed)]
        constants = constant_programs(problem.entry_point, [v for test in known for v in expected_values(test)])
        rows = await self.executions.matrix(problem, [*planted, *programs, *constants], known, cpu_s)
        samples, answers = len(planted), len(planted) + len(programs)
        return _Told(
            planted=len(planted),
            mutants=[row for row in rows[:samples] if False in row],
            samples=[row for row in rows[samples:answers] if False in row],
            programs=[p for p, row in zip([*planted, *programs], rows, strict=False) if False in row],
            cpu_s=cpu_s,
            constants=rows[answers:],
            right=[p for p, row in zip(programs, rows[samples:answers], strict=True) if all(row)],
        )

    async def _compared(
        self, problem: Problem, suite: Suite, cases: Sequence[ParsedCase], programs: Sequence[str]
    ) -> dict[str, float | int | None]:
        """What the references say of a suite that was made without them: how many of the written cases are true, and
        how often the suite is wrong on programs that tests by the references know."""
        runs, s = self.executions, self.settings
        usable, _ = split_given(problem)
        written = await runs.by_references(problem, cases)
        stated = properties_of(problem.question, arguments(usable))
        own = self._proposed(problem, usable, stated, s.inputs + s.screening, s.seed + 2)
        made = await runs.by_references(problem, own)
        known = [*usable, *made.tests]
        cpu_s = await runs.seconds(problem, problem.references[0], known)
        others = [*programs, *(m.source for m in mutants(problem.references[0], s.mutants, s.seed + 2))]
        rows = await runs.matrix(problem, others, known, cpu_s)
        wrong = [p for p, row in zip(others, rows, strict=True) if False in row]
        right = [*problem.references, *(p for p, row in zip(programs, rows, strict=False) if all(row))]
        found = rates(*[await runs.matrix(problem, some, suite.tests, 0.0) for some in (right, wrong)])
        return {
            "cases": written.known,
            "cases_valid": len(written.tests),
            "cases_right": written.right,
            "false_accept": found.false_accept,
            "false_reject": found.false_reject,
        }

    def _proposed(
        self, problem: Problem, tests: Sequence[ProblemTest], stated: Sequence[Property], count: int, seed: int
    ) -> list[ParsedCase]:
        """New inputs from those of the tests, with the properties that are `stated` of all inputs."""
        if problem.entry_point is None:
            texts, counts = stdins(tests), counts_of(stdins(tests))
            made = [text for text in new_texts(texts, count, seed) if not miscounted(text, counts)]
            return [ParsedCase(None, text, None, output_ok=False) for text in made]
        found = new_arguments(arguments(tests), count, seed, stated)
        return [ParsedCase(args, "", None, output_ok=False) for args in found]


def _expects_one_value(tests: Sequence[ProblemTest]) -> bool:
    """Whether some value that one of the tests expects would pass all of them."""
    values = [expected_values(test) for test in tests]
    if not all(values):
        return False  # code decides
    return any(all(accepts(test, value) for test in tests) for (value,) in values)


def _asks(case: ParsedCase) -> tuple[str, str]:
    """The same for cases that ask the same and expect the same."""
    return case.key, repr(case.output)


def _killed(rows: Matrix) -> int:
    return sum(False in row for row in rows)
