"""All canonical MBPP solutions pass their own tests; skipped where the data set is not beside the project."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sandbox import (
    CallCase,
    ExactValue,
    ExpressionCase,
    Limits,
    LocalPool,
    Submission,
    SuiteResult,
    Verdict,
    encode_value,
)

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mbpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there"),
]


# These tests were written with ==, for which True is 1 (task 414 returns 0 for False).
PYTHON_EQ = ExactValue(bool_is_int=True)


def literal(node: ast.expr) -> Any:
    value = ast.literal_eval(node)
    encode_value(value)
    return value


def case_of(assertion: str, setup: str) -> CallCase | ExpressionCase:
    """The strictest case that says the same as an assert statement."""
    (statement,) = ast.parse(assertion.strip()).body
    assert isinstance(statement, ast.Assert)
    test = statement.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            expected = literal(test.comparators[0])
        except (ValueError, TypeError):
            pass
        else:
            return ExpressionCase(
                setup=setup, expression=ast.unparse(test.left), expected=expected, comparator=PYTHON_EQ
            )
    return ExpressionCase(setup=setup, expression=f"bool({ast.unparse(test)})", expected=True)


def judge_all(rows: list[dict[str, Any]]) -> dict[int, SuiteResult]:
    async def work() -> dict[int, SuiteResult]:
        async with LocalPool() as pool:

            async def one(row: dict[str, Any]) -> SuiteResult:
                setup = "\n".join([row.get("test_setup_code", ""), *row.get("test_imports", [])])
                cases = [case_of(test, setup) for test in row["test_list"]]
                return await pool.judge(
                    Submission(source=row["code"], cases=cases, limits=Limits(cpu_s=10, memory_mb=2048))
                )

            results = await asyncio.gather(*(one(row) for row in rows))
            return {row["task_id"]: result for row, result in zip(rows, results, strict=True)}

    return asyncio.run(work())


@pytest.mark.parametrize("name", ["sanitized-mbpp.json", "mbpp.jsonl"])
def test_canonical_solutions_are_accepted(name: str) -> None:
    text = (DATA / name).read_text()
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    results = judge_all(rows)
    wrong = {
        task: next((case.verdict.value, case.detail) for case in result.cases if case.verdict is not Verdict.ACCEPTED)
        for task, result in results.items()
        if result.verdict is not Verdict.ACCEPTED
    }
    assert not wrong, f"{len(wrong)} of {len(rows)}: {wrong}"
