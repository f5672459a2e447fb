"""Rows of the benchmark data beside the checkout, and one pool that judges many submissions."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasoning.problems import from_row
from reasoning.records import Problem
from sandbox import Limits, LocalPool, Submission, SuiteResult


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, packed or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def by_task(path: Path) -> dict[Any, dict[str, Any]]:
    """The rows of a JSONL file by their `task_id`."""
    return {row["task_id"]: row for row in json_lines(path)}


def submission(source: str, problem: Problem, limits: Limits, **fields: Any) -> Submission:
    """A program in front of all tests of a problem, as the loader made them."""
    cases = [test.case for test in problem.tests]
    return Submission(source=source, entry_point=problem.entry_point, cases=cases, limits=limits, **fields)


def canonical(row: Mapping[str, Any], limits: Limits) -> Submission:
    """A row's own solution in front of the row's own tests."""
    problem = from_row(row)
    return submission(problem.references[0], problem, limits)


def judge_all(submissions: Sequence[Submission], slots: int | None = None) -> list[SuiteResult]:
    """Everything judged at once on one pool; no run may be lost, and none repeated."""

    async def work() -> list[SuiteResult]:
        async with LocalPool(slots) as pool:
            results = await asyncio.gather(*(pool.judge(each) for each in submissions))
            assert pool.stats().sandbox_errors == pool.stats().retries == 0
            return results

    return asyncio.run(work())
