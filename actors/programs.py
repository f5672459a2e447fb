"""What a program of the policy is worth: one call of the sandbox, as a judgement."""

from __future__ import annotations

from actors.sampling import Judge
from reasoning.nodes import Judgement
from reasoning.records import Problem, Suite
from sandbox import Limits, Submission, Verdict
from sandbox.cache import submission_key


def suite_identity(problem: Problem, suite: Suite, limits: Limits) -> str:
    """What stands for the tests and limits that judge the programs of a search; the same for the same."""
    cases = [test.case for test in suite.tests]
    return submission_key(Submission(source="", entry_point=problem.entry_point, cases=cases, limits=limits)).hex()


class ProgramJudge:
    """Judges programs on a problem's suite."""

    def __init__(self, judge: Judge, limits: Limits) -> None:
        self._judge, self._limits = judge, limits

    def identity(self, problem: Problem, suite: Suite) -> str:
        """See `suite_identity`."""
        return suite_identity(problem, suite, self._limits)

    async def judge(self, program: str, problem: Problem, suite: Suite) -> Judgement | None:
        """What the sandbox says of a program on a suite; None for a failure of the infrastructure."""
        cases = [test.case for test in suite.tests]
        submission = Submission(
            source=program, entry_point=problem.entry_point, cases=cases, limits=self._limits, stop="first_timeout"
        )
        result = await self._judge(submission)
        if result.verdict is Verdict.SANDBOX_ERROR:
            return None
        return Judgement(result.verdict, result.compiles, result.passed, result.total)
