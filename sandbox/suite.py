"""A submission, case by case: which cases are run, and what the whole comes to. The same for every backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from sandbox.isolation import IsolationReport
from sandbox.judging import Judged
from sandbox.records import AnyCase, AssertCase, CaseResult, Submission, SuiteResult
from sandbox.verdicts import Verdict, suite_verdict

_Made = TypeVar("_Made")

_ENDS: Final = {
    "never": frozenset[Verdict](),
    "first_timeout": frozenset({Verdict.TIME_LIMIT}),
    "first_failure": frozenset(Verdict) - {Verdict.ACCEPTED},
}
"""After which verdicts of a case the rest of a submission is not run."""


async def judge_cases(
    submission: Submission, judge_case: Callable[[AnyCase], Coroutine[Any, Any, Judged]]
) -> list[Judged]:
    """Judge the first case, then the others at once, or one by one where one of them may end the submission.

    A source that does not compile is not tried again. Raises what `judge_case` raises.
    """
    first, *rest = submission.cases
    results = [await judge_case(first)]
    ends = _ENDS[submission.stop]
    skipped = "an earlier case failed" if submission.stop == "first_failure" else "an earlier case ran out of time"
    if results[0].result.verdict is Verdict.COMPILE_ERROR:
        skipped = "the source does not compile"
    elif submission.stop == "never":
        results += await together([judge_case(case) for case in rest])
    else:
        for case in rest:
            if results[-1].result.verdict in ends:
                break
            results.append(await judge_case(case))
    missing = len(submission.cases) - len(results)
    return results + [Judged(CaseResult(verdict=Verdict.NOT_RUN, detail=skipped), False)] * missing


def suite_result(
    submission: Submission, judged: Sequence[Judged], isolation: IsolationReport, backend: str
) -> SuiteResult:
    """What the judged cases come to."""
    cases = tuple(one.result for one in judged)
    return SuiteResult(
        verdict=suite_verdict(case.verdict for case in cases),
        compiles=any(one.compiled for one in judged),
        passed=sum(case.verdict is Verdict.ACCEPTED for case in cases),
        total=len(cases),
        cases=cases,
        isolation=isolation,
        shared_trust=sum(isinstance(case, AssertCase) and case.trust == "shared" for case in submission.cases),
        backend=backend,
    )


async def together(work: Sequence[Coroutine[Any, Any, _Made]]) -> list[_Made]:
    """All results in order; the first exception cancels the rest and is raised as it is."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
