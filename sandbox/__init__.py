"""The sandbox: runs untrusted programs, isolated and limited, and says whether their answers are right.

The ground floor of the project, useful alone on any Linux machine. It owns what a test case, a comparator and a
verdict are, and the only place where code that a model wrote is executed: one forked process per test, inside a cell,
with expected outputs kept outside. It imports no other room, no Ray and no torch; only the standard library and
pydantic, and `sandbox.inside` not even that. The two modules that speak HTTP (`fusion_client`, `server`) import
aiohttp; nothing else imports them until they are asked for.

    async with LocalPool() as pool:
        result = await pool.judge(Submission(source=..., entry_point="f", cases=[CallCase(args=[2], expected=4)]))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.backend import RemoteSandboxError, SandboxBackend, UnsupportedCaseError
from sandbox.cache import CachedBackend
from sandbox.case_files import BadCaseError, read_cases
from sandbox.comparators import CheckerProgram, CloseValue, ExactValue, FloatComparator, TokenComparator, UnorderedValue
from sandbox.isolation import IsolationReport, PackageError, SandboxUnavailableError
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

if TYPE_CHECKING:
    from sandbox.fusion_client import SandboxFusionBackend as SandboxFusionBackend

# Without SandboxFusionBackend: `from sandbox import *` would load aiohttp.
__all__ = [
    "TYPED_JSON",
    "AssertCase",
    "BadCaseError",
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
    "PackageError",
    "PoolClosedError",
    "PoolStats",
    "RemoteSandboxError",
    "RunOutput",
    "SandboxBackend",
    "SandboxUnavailableError",
    "StdioCase",
    "Submission",
    "SuiteResult",
    "TokenComparator",
    "UnorderedValue",
    "UnserializableError",
    "UnsupportedCaseError",
    "Value",
    "Verdict",
    "decode_value",
    "detect",
    "detect_async",
    "encode_value",
    "read_cases",
    "suite_verdict",
]


def __getattr__(name: str) -> Any:
    """The client, when it is first asked for: it loads aiohttp, which few users of this package need."""
    if name == "SandboxFusionBackend":
        from sandbox.fusion_client import SandboxFusionBackend

        return SandboxFusionBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
