"""What can be said about a run, and which statement wins."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """The outcome of one case or of a suite, strongest statement first.

    `sandbox_error` is a failure of the infrastructure, never of the program: no program can cause it, and it must
    never be turned into a reward.
    """

    SANDBOX_ERROR = "sandbox_error"
    SECURITY_VIOLATION = "security_violation"
    COMPILE_ERROR = "compile_error"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    RUNTIME_ERROR = "runtime_error"
    WRONG_ANSWER = "wrong_answer"
    ACCEPTED = "accepted"
    NOT_RUN = "not_run"


PRECEDENCE: Final = tuple(Verdict)
_RANK: Final = {verdict: rank for rank, verdict in enumerate(PRECEDENCE)}


def suite_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """`accepted` when every case is accepted; else the strongest statement about any case.

    Cases that were not run count only when nothing else failed. Raises ValueError for no cases:
    zero tests prove nothing.
    """
    seen = set(verdicts)
    if not seen:
        raise ValueError("a suite without cases has no verdict")
    failed = seen - {Verdict.ACCEPTED, Verdict.NOT_RUN}
    if failed:
        return min(failed, key=_RANK.__getitem__)
    return Verdict.NOT_RUN if Verdict.NOT_RUN in seen else Verdict.ACCEPTED
