"""What kinds of input a test asks with, so that a suite can ask with many (method section 2; category partitions).

Faults that people and models make sit where inputs change their kind: nothing in a list, a repeated item, a number
below zero. Planted faults hardly ever stand for those.
"""

from __future__ import annotations

from typing import Any

from reasoning.properties import in_order
from reasoning.records import ProblemTest
from sandbox import AssertCase, CallCase, CheckerProgram, StdioCase


def kinds(test: ProblemTest) -> frozenset[str]:
    """Names of the kinds of a test's arguments and of its output; of what a program reads, those of its words.

    Two tests that differ in no kind are alike. None where code is the test.
    """
    case = test.case
    if isinstance(case, AssertCase):
        return frozenset()
    found: set[str] = set()
    if isinstance(case, CallCase):
        for place, value in [*enumerate(case.args), *case.kwargs.items()]:
            found |= {f"{place}:{kind}" for kind in _of(value)}
    elif isinstance(case, StdioCase):
        lines = [line.split() for line in case.stdin.splitlines()]
        found |= {f"lines:{min(len(lines), 2)}", *(f"words:{min(len(line), 2)}" for line in lines)}
        found |= {kind for line in lines for word in line for kind in _of(_number(word))}
    if not isinstance(case.comparator, CheckerProgram):
        expected = case.expected
        found |= {f"output:{kind}" for kind in _of(_number(expected) if isinstance(case, StdioCase) else expected)}
    return frozenset(found)


def _of(value: Any) -> set[str]:
    name = type(value).__name__
    match value:
        case bool() | None:
            return {repr(value)}
        case int() | float():
            return {f"{name} {_sign(value)}"}
        case str():
            return {f"{name} {_count(len(value))}", *(["blank"] if value.isspace() else [])}
        case list() | tuple():
            return {f"{name} {_count(len(value))}", *_of_items(value)}
        case set() | frozenset() | dict():
            return {f"{name} {_count(len(value))}"}
    return {name}


def _of_items(items: list[Any] | tuple[Any, ...]) -> set[str]:
    """Order and repetition, where there are several; and the kinds of items that stand out."""
    found: set[str] = set()
    for item in items:
        if isinstance(item, list | tuple | str | dict) and not item:
            found.add("has empty")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found.add(f"has {_sign(item)}")
    if len(items) > 1:
        texts = [repr(item) for item in items]
        found.add("repeats" if len(set(texts)) < len(texts) else "distinct")
        found.add("ordered" if in_order(items) else "unordered")
    return found


def _sign(number: float) -> str:
    if number == 0:
        return "zero"
    return "positive" if number > 0 else "negative"


def _count(length: int) -> str:
    return ("empty", "one")[length] if length < 2 else "many"


def _number(word: str) -> Any:
    """A word as a number where it is one."""
    try:
        return float(word) if "." in word else int(word)
    except ValueError:
        return word
