"""From given and generated tests to the suite that decides a reward (method section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from reasoning.records import Origin, Problem, ProblemTest, Suite
from sandbox import AssertCase, CallCase, ExpressionCase, StdioCase


def assemble(problem: Problem, generated: Sequence[ProblemTest], size: int) -> Suite:
    """A suite of up to `size` tests: the shown ones, then generated ones, then given ones to fill in.

    Half of the hidden given tests (rounded down) are held out: they never decide a reward. No test is in twice.
    """
    hidden = problem.hidden_tests
    kept = len(hidden) - len(hidden) // 2
    chosen: dict[str, ProblemTest] = {}
    for test in (*problem.shown_tests, *generated, *hidden[:kept]):
        if len(chosen) < size:
            chosen.setdefault(_input_of(test), test)
    holdout = tuple(t for t in hidden[kept:] if _input_of(t) not in chosen)
    return Suite(problem_id=problem.id, tests=tuple(chosen.values()), holdout=holdout)


def judge_quality(suite: Suite, kill_rate: float | None, bar: float) -> Suite:
    """The suite with its kill rate and the decision: refused where the rate is below `bar`.

    A reference without any screened mutant (nothing to kill) leaves the suite accepted, with kill rate None.
    """
    accepted = kill_rate is None or kill_rate >= bar
    reason = "" if accepted else f"kill rate {kill_rate:.2f} is below the bar of {bar:.2f}"
    return suite.model_copy(update={"kill_rate": kill_rate, "accepted": accepted, "reason": reason})


def tests_by_origin(suites: Iterable[Suite]) -> dict[str, int]:
    """How many tests of the accepted suites come from where; every origin is named."""
    counts = Counter(test.origin for suite in suites if suite.accepted for test in suite.tests)
    return {origin.value: counts.get(origin, 0) for origin in Origin}


def _input_of(test: ProblemTest) -> str:
    """The same text for tests that ask the same, whatever they expect."""
    case = test.case
    match case:
        case StdioCase():
            return case.stdin.rstrip()
        case CallCase():
            return repr((case.args, case.kwargs))
        case ExpressionCase():
            return f"{case.setup}\n{case.expression}"
        case AssertCase():
            return case.code
