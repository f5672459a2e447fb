"""Files of cases: what is read, and what is said of the lines that are none."""

# ruff: noqa: E501 - one line a row

from __future__ import annotations

import json

import pytest

from sandbox import AssertCase, BadCaseError, CallCase, CheckerProgram, ExpressionCase, StdioCase, read_cases

GOOD = [
    StdioCase(stdin="a\u2028b\u0085", expected="1"),
    CallCase(args=[(1, {2}), b"x"], kwargs={"n": float("inf")}, expected={1: [2.5]}),
    ExpressionCase(setup="import math", expression="f(1)", expected=None),
    AssertCase(code="assert f(1) == 2", entry_point="f"),
    StdioCase(stdin="", expected="", comparator=CheckerProgram(source="def check(*a): return True")),
]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_kind_comes_back_as_it_was(ascii_only: bool) -> None:
    lines = [json.dumps(json.loads(case.model_dump_json()), ensure_ascii=ascii_only) for case in GOOD]
    read = read_cases("\ufeff" + "\n\n".join(lines) + "\n")
    assert [case for _, case in read] == GOOD
    assert [number for number, _ in read] == [1, 3, 5, 7, 9]


BAD = [
    ('{"kind": "stdio", "stdin": "a"}', "expected: Field required"),
    ('{"kind": "call", "arg": [2], "expected": 1}', "arg: unknown field; a case of kind call has kind, args, kwargs, expected"),
    ('{"stdin": "a", "expected": "a"}', "kind: None is none; use one of stdio, call, expression, assert"),
    ('{"kind": "stdin", "expected": "a"}', "kind: 'stdin' is none; use one of stdio"),
    ('{"kind": "call", "args": 1, "expected": 1}', "args: "),
    ('{"kind": "call", "expected": NaN}', '{"$float": "nan"}'),
    ('{"kind": "call", "expected": {"$tuple": 1}}', "expected: a container tag needs a list"),
    ('{"kind": "call", "expected": 1, "comparator": {"kind": "similar"}}', "no such comparator"),
    ("[", "not JSON"),
    ('[{"kind": "stdio"},', "one JSON object a line is needed, not an array"),
    ("", "holds no case; one JSON object a line is needed"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_line_that_is_no_case_says_why(line: str, says: str) -> None:
    good = GOOD[0].model_dump_json() + "\n" if line else ""
    with pytest.raises(BadCaseError) as caught:
        read_cases(good + line, "my.jsonl")
    message = str(caught.value)
    assert says in message and message.startswith("my.jsonl, line 2: " if line else "my.jsonl")
    assert "\n" not in message and "Value error" not in message
