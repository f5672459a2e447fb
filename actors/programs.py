"""What a program of the policy is worth: one call of the sandbox, as a judgement."""

from __future__ import annotations

from actors.sampling import Judge
from reasoning.nodes import Judgement
from reasoning.records import Problem, Suite
from sandbox import Limits, Submission, Verdict


class ProgramJudge:
    """Judges programs on a problem's suite."""

    def __init__(self, judge: Judge, limits: Limits) -> None:
        self._judge, self._limits = judge, limits

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
