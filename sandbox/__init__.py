"""The sandbox: runs untrusted programs, isolated and limited, and says whether their answers are right.

The ground floor of the project, useful alone on any Linux machine. It owns what a test case, a comparator and a
verdict are, and the only place where code that a model wrote is executed: one forked process per test, inside a cell,
with expected outputs kept outside. It imports no other room, no Ray and no torch; only the standard library and
pydantic, and `sandbox.inside` not even that.

    async with LocalPool() as pool:
        result = await pool.judge(Submission(source=..., entry_point="f", cases=[CallCase(args=[2], expected=4)]))
"""

from sandbox.cache import CachedBackend
from sandbox.comparators import CheckerProgram, CloseValue, ExactValue, FloatComparator, TokenComparator, UnorderedValue
from sandbox.isolation import IsolationReport, SandboxUnavailableError
from sandbox.pool import LocalPool, PoolClosedError, PoolStats, detect, detect_async
from sandbox.records import (
    AssertCase,
    CallCase,
    Case,
    CaseResult,
    ExpressionCase,
    Limits,
    RunOutput,
    StdioCase,
    Submission,
    SuiteResult,
)
from sandbox.values import (
    TYPED_JSON,
    MalformedValueError,
    UnserializableError,
    Value,
    decode_value,
    encode_value,
)
from sandbox.verdicts import Verdict, suite_verdict

__all__ = [
    "TYPED_JSON",
    "AssertCase",
    "CachedBackend",
    "CallCase",
    "Case",
    "CaseResult",
    "CheckerProgram",
    "CloseValue",
    "ExactValue",
    "ExpressionCase",
    "FloatComparator",
    "IsolationReport",
    "Limits",
    "LocalPool",
    "MalformedValueError",
    "PoolClosedError",
    "PoolStats",
    "RunOutput",
    "SandboxUnavailableError",
    "StdioCase",
    "Submission",
    "SuiteResult",
    "TokenComparator",
    "UnorderedValue",
    "UnserializableError",
    "Value",
    "Verdict",
    "decode_value",
    "detect",
    "detect_async",
    "encode_value",
    "suite_verdict",
]
