"""Rows in TACO's layout (Li et al. 2023), which APPS has too: `question`, `solutions`, `input_output`, `difficulty`.

A row with `fn_name` asks for a function, the others for a program that reads and prints.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from reasoning.errors import RowError
from reasoning.records import Problem, ProblemTest
from sandbox import CallCase, ExactValue, StdioCase

MAX_REFERENCES = 3
"""Of sometimes hundreds: all of them have to agree on every input, so each costs a run."""
MAX_TESTS = 64
SHOWN = 1
"""Tests that stand in the prompt."""


def from_taco(row: Mapping[str, Any]) -> Problem:
    """One problem: its first `MAX_REFERENCES` solutions, the first `MAX_TESTS` of its tests, and the first of these
    shown. A row without solutions is a problem without references. Raises RowError."""
    question = str(row.get("question") or "").strip()
    if not question:
        raise RowError("field question: is empty")
    found, solutions = _decoded(row, "input_output", dict), _decoded(row, "solutions", list)
    inputs, outputs = found.get("inputs"), found.get("outputs")
    if not (isinstance(inputs, list) and isinstance(outputs, list) and inputs and len(inputs) == len(outputs)):
        raise RowError("field input_output: needs inputs and outputs, at least one and as many of the one as the other")
    entry_point = found.get("fn_name")
    if entry_point is not None:
        question = f"{question}\n\nThe function is `{entry_point}`."
    # Most of the data set wraps the returned value in a list of one.
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    try:
        tests = [
            ProblemTest(case=_call(i, o[0] if wrapped else o) if entry_point else _printed(i, o), shown=n < SHOWN)
            for n, (i, o) in enumerate(zip(inputs[:MAX_TESTS], outputs, strict=False))
        ]
        return Problem(
            id=row_id(row),
            question=question,
            entry_point=entry_point,
            references=tuple(solutions[:MAX_REFERENCES]),
            tests=tuple(tests),
            difficulty=str(row.get("difficulty") or "unknown").lower(),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise RowError(f"field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def row_id(row: Mapping[str, Any]) -> str:
    """`taco/` and the last part of the problem's address, or a hash of its text where it has none."""
    url = str(row.get("url") or "")
    digest = hashlib.sha256(str(row.get("question")).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    # Numbers of problems repeat between contests.
    name = "-".join(url.rstrip("/").split("/")[-2:]) if url.startswith("http") else ""
    return f"taco/{name or 'problem'}-{digest}"


def _decoded(row: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field that holds a value as JSON or as a Python literal, or the value itself."""
    value = row.get(name, kind())
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                raise RowError(f"field {name}: is neither JSON nor a Python literal") from None
    if not isinstance(value, kind):
        raise RowError(f"field {name}: needs a {kind.__name__}, not {type(value).__name__}")
    return value


def _call(given: Any, output: Any) -> CallCase:
    if not isinstance(given, list):
        raise RowError("field input_output: the input of a function is a list of its arguments")
    # JSON has no tuples.
    return CallCase(args=given, expected=output, comparator=ExactValue(sequence_kind="any"))


def _printed(given: Any, output: Any) -> StdioCase:
    return StdioCase(stdin=_text(given), expected=_text(output))


def _text(value: Any) -> str:
    """Some rows hold the lines of a text as a list."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
