"""From given and generated tests to the suite that decides a reward (method section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from reasoning.execution_matrix import Matrix, kills, smallest
from reasoning.input_kinds import kinds
from reasoning.literals import literal
from reasoning.records import Origin, Problem, ProblemTest, Suite
from sandbox import AssertCase, CallCase, CheckerProgram, ExpressionCase, StdioCase


def split_given(problem: Problem) -> tuple[tuple[ProblemTest, ...], tuple[ProblemTest, ...]]:
    """The given tests that may decide a reward, shown ones first, and those that never do: half of the hidden ones,
    rounded down. Nothing is made from the latter either; they say how far the reward is from the truth."""
    hidden = problem.hidden_tests
    kept = len(hidden) - len(hidden) // 2
    return (*problem.shown_tests, *hidden[:kept]), hidden[kept:]


def candidates(problem: Problem, generated: Sequence[ProblemTest], others: bool = True) -> list[ProblemTest]:
    """Tests to choose from, none twice: the shown ones, then generated ones, then (with `others`) given ones that are
    not shown."""
    usable, _ = split_given(problem)
    shown = problem.shown_tests
    found: dict[str, ProblemTest] = {}
    for test in (*shown, *generated, *(usable[len(shown) :] if others else ())):
        found.setdefault(input_key(test), test)
    return list(found.values())


def choose(tests: Sequence[ProblemTest], wrong: Matrix, size: int, fill: bool = True) -> list[int]:
    """Which of the candidates make the suite, at most `size`: the shown ones, those that together kill all of the wrong
    programs that the candidates kill (as few as can be found), and then (with `fill`) others, for programs that are
    wrong in other ways: each time the one that asks with most kinds of input that the suite has not (`kinds`), of
    equals the one that kills most, of those the earlier one.

    `wrong`: what wrong programs did on the candidates; nothing is known where there are none.
    """
    shown = min(size, sum(test.shown for test in tests))
    chosen = smallest(wrong, shown, size) if wrong else list(range(shown))
    found = kills(wrong) if wrong else [frozenset[int]()] * len(tests)
    asked = [kinds(test) for test in tests]
    seen = frozenset[str]().union(*(asked[j] for j in chosen))
    left = [j for j in range(len(tests)) if j not in set(chosen)] if fill else []
    while left and len(chosen) < size:
        best = max(left, key=lambda j: (len(asked[j] - seen), len(found[j]), -j))
        left.remove(best)
        chosen.append(best)
        seen |= asked[best]
    return chosen[:size]


def assemble(problem: Problem, tests: Sequence[ProblemTest], chosen: Iterable[int]) -> Suite:
    """The suite of some candidates. A given test that is held out is in no suite, nor its like."""
    _, holdout = split_given(problem)
    mine = [tests[j] for j in chosen]
    inputs = {input_key(test) for test in mine}
    kept = tuple(t for t in holdout if input_key(t) not in inputs)
    return Suite(problem_id=problem.id, tests=tuple(mine), holdout=kept, difficulty=problem.difficulty)


def judge_quality(suite: Suite, kill_rate: float | None, bar: float, blind: bool = False) -> Suite:
    """The suite with its kill rate and the decision: refused where it has no test, where the rate is below `bar`, or
    where it is `blind`: a program that always gives the same answer passes it.

    A reference without any screened mutant (nothing to kill) leaves the suite accepted, with kill rate None.
    """
    reason = ""
    if not suite.tests:
        reason = "it has no test"
    elif kill_rate is not None and kill_rate < bar:
        reason = f"kill rate {kill_rate:.2f} is below the bar of {bar:.2f}"
    elif blind:
        reason = "a program that always gives the same answer passes it"
    return suite.model_copy(update={"kill_rate": kill_rate, "accepted": not reason, "reason": reason})


def tests_by_origin(suites: Iterable[Suite]) -> dict[str, int]:
    """How many tests of the accepted suites come from where; every origin is named."""
    counts = Counter(test.origin for suite in suites if suite.accepted for test in suite.tests)
    return {origin.value: counts.get(origin, 0) for origin in Origin}


def input_key(test: ProblemTest) -> str:
    """The same text for tests that ask the same, whatever they expect."""
    case = test.case
    match case:
        case StdioCase():
            return case.stdin.rstrip()
        case CallCase():
            return literal((case.args, case.kwargs))
        case ExpressionCase():
            return f"{case.setup}\n{case.expression}"
        case AssertCase():
            return case.code


def expected_values(test: ProblemTest) -> list[Any]:
    """What the test expects, as a value (for a program that prints: its output); none where code decides."""
    case = test.case
    if isinstance(case, AssertCase) or isinstance(case.comparator, CheckerProgram):
        return []
    return [case.expected]


def has_input(test: ProblemTest) -> bool:
    """Whether the test gives a program anything on which its answer could depend."""
    case = test.case
    match case:
        case StdioCase():
            return bool(case.stdin.strip())
        case CallCase():
            return bool(case.args or case.kwargs)
    return True
