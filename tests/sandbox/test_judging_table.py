"""The judging table, row by row, by real runs; `test_comparators` has the rows that need none."""

# ruff: noqa: E501 - one row a line

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from sandbox_bench import Bench

from sandbox import (
    CallCase,
    CheckerProgram,
    CloseValue,
    ExactValue,
    ExpressionCase,
    FloatComparator,
    Limits,
    StdioCase,
    Submission,
    TokenComparator,
    UnorderedValue,
    Verdict,
)

AC, WA, RE = Verdict.ACCEPTED, Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR
TOKENS, FLOATS = TokenComparator(), FloatComparator()
ANY: Final = ExactValue(sequence_kind="any")

OUTPUT_ROWS: list[tuple[int, str, str, Any, Verdict]] = [
    (1, "a\\nb", "a\nb\n\n", TOKENS, AC),
    (2, "a \\nb\\t", "a\nb", TOKENS, AC),
    (3, "  a\\nb", "a\nb", TOKENS, AC),
    (4, "1  2\\t3", "1 2 3", TOKENS, AC),
    (5, "a\\r\\nb\\r\\n", "a\nb\n", TOKENS, AC),
    (6, "a\\n\\nb", "a\nb", TOKENS, AC),
    (7, "1 2", "1\n2", TOKENS, WA),
    (8, "b\\na", "a\nb", TOKENS, WA),
    (8, "b\\na", "a\nb", TokenComparator(unordered_lines=True), AC),
    (9, "2 1", "1 2", TOKENS, WA),
    (9, "2 1", "1 2", TokenComparator(unordered_lines=True), WA),
    (10, "YES NO", "YES NO YES NO", TOKENS, WA),
    (11, "yes", "YES", TOKENS, WA),
    (11, "yes", "YES", TokenComparator(ignore_case=True), AC),
    (12, "0.3333333", "0.3333334", TOKENS, WA),
    (12, "0.3333333", "0.3333334", FLOATS, AC),
    (13, "0.3333", "0.3334", FLOATS, WA),
    (14, "1.0 1e3 +5 007", "1 1000 5 7", TOKENS, WA),
    (14, "1.0 1e3 +5 007", "1 1000 5 7", FLOATS, AC),
    (14, "1.0 1e3 +5 007 -0 .5 5. 120e-1", "1 1000 5 7 0 0.50 5 12", TokenComparator(decimal=True), AC),
    (14, "1.0000001", "1", TokenComparator(decimal=True), WA),
    (14, "1_0 0x10 1e 1e999999", "10 16 1 inf", TokenComparator(decimal=True), WA),
    (15, "100000000000000001", "100000000000000000", FLOATS, WA),
    (15, "100000000000000001", "100000000000000000", TokenComparator(decimal=True), WA),
    (16, "nan inf", "nan inf", TOKENS, AC),
    (16, "nan", "nan", FLOATS, WA),
    (16, "inf", "inf", FLOATS, AC),
    (17, "-0.0", "0.0", TOKENS, WA),
    (17, "-0.0", "0.0", FLOATS, AC),
    (18, "", "\n", TOKENS, AC),
    (18, "", "1", TOKENS, WA),
    (19, "1\\u00a02", "1 2", TOKENS, WA),
    (20, "ans 0.3333333", "ans 0.3333334", TOKENS, WA),
    (20, "ans 0.3333333", "ans 0.3333334", FLOATS, AC),
]

# The body of a function f(a), called with a = [1, 2].
VALUE_ROWS: list[tuple[int, str, Any, Any, Verdict]] = [
    (21, "return (1, 2)", [1, 2], ExactValue(), WA),
    (21, "return (1, 2)", [1, 2], ANY, AC),
    (22, "return [(1, 2)]", [[1, 2]], ExactValue(), WA),
    (22, "return [(1, 2)]", [[1, 2]], ANY, AC),
    (23, "return [1, 2]", [[1, 2]], ExactValue(), WA),
    (23, "return [1, 2]", [[1, 2]], ExactValue(wrapped=True), AC),
    (23, "return [[1, 2]]", [[1, 2]], ExactValue(wrapped=True), AC),
    (23, "return 1", [[1, 2]], ExactValue(wrapped=True), WA),
    (24, "return 1", [1, 2], ExactValue(wrapped=True), WA),
    (25, "return {1, 2}", [1, 2], ExactValue(), WA),
    (25, "return {1, 2}", [2, 1], UnorderedValue(), AC),
    (25, "return [2, 1]", [1, 2], ExactValue(), WA),
    (25, "return [2, 1, 1]", {1, 2}, UnorderedValue(ignore_repeats=True), AC),
    (26, "return (x for x in a)", [1, 2], ANY, RE),
    (26, "return range(1, 3)", [1, 2], ANY, RE),
    (26, "return map(int, a)", [1, 2], ANY, RE),
    (27, "return {1: 2}", {"1": 2}, ExactValue(), WA),
    (27, "return {1: 2}", {1: 2}, ExactValue(), AC),
    (28, "return None", None, ExactValue(), AC),
    (28, "return None", [], ExactValue(), WA),
    (28, "return None", 0, ExactValue(bool_is_int=True), WA),
    (29, "return False", 0, ExactValue(), WA),
    (29, "return True", 1, ExactValue(bool_is_int=True), AC),
    (29, "return 1.0", 1, ExactValue(), AC),
    (30, "return 0.1 + 0.2", 0.3, ExactValue(), AC),
    (30, "return [0.1 + 0.2]", [0.3], ExactValue(rel_tol=0, abs_tol=0), WA),
    (31, "return [[1 + 1e-9]]", [[1.0]], ExactValue(), AC),
    (31, "return [[1 + 1e-9]]", [[1]], CloseValue(rel_tol=1e-6), AC),
    (32, "return float('nan')", float("nan"), ExactValue(), AC),
    (32, "return float('nan')", 1.0, ExactValue(), WA),
    (32, "return float('inf')", float("inf"), ExactValue(), AC),
    (34, "class I(int): pass\n  return I(7)", 7, ExactValue(), AC),
    (34, "from collections import Counter\n  return Counter(a)", {1: 1, 2: 1}, ExactValue(), AC),
    (34, "from collections import namedtuple\n  return namedtuple('P', 'x y')(1, 2)", (1, 2), ExactValue(), AC),
    (34, "from fractions import Fraction\n  return Fraction(4, 2)", 2, ExactValue(), RE),
    (
        34,
        "from fractions import Fraction\n  return [Fraction(4, 2), Fraction(1, 2)]",
        [2, 0.5],
        ExactValue(rationals=True),
        AC,
    ),
    (34, "from fractions import Fraction\n  return Fraction(1, 3)", 0.25, ExactValue(rationals=True), WA),
    (34, "from decimal import Decimal\n  return Decimal('1.5')", 1.5, ExactValue(rationals=True), AC),
    (34, "from decimal import Decimal\n  return Decimal('nan')", float("nan"), ExactValue(rationals=True), AC),
    (34, "from decimal import Decimal\n  return Decimal('1e400')", 10**400, ExactValue(rationals=True), AC),
    (35, "class E:\n    __eq__ = lambda s, o: True\n  return E()", 7, ExactValue(), RE),
    (36, "raise ValueError", 7, ExactValue(), RE),
    (36, "raise SystemExit", 7, ExactValue(), RE),
    (37, "print('noise')\n  return 7", 7, ExactValue(), AC),
    (38, "a.append(3)\n  return a", [1, 2, 3], ExactValue(), AC),
]

SCRIPT_ROWS: list[tuple[int, str, str, str, Verdict]] = [
    (39, "import sys\nprint(repr(sys.stdin.read()))", "", "''", AC),
    (39, "print(input())", "last line", "last line", AC),
    (39, "input()", "", "", RE),
    (40, "import os, sys\na = input()\nb = sys.stdin.readline()\nc = next(sys.stdin)\nprint(a, b, c, sys.stdin.read(), os.read(0, 9), sys.stdin.fileno())", "a\nb\nc\nd\n", "a b\nc\nd\nb'' 0", AC),
    (43, "if __name__ == '__main__': print('ok')", "", "ok", AC),
    (44, "total = 0\ndef f():\n  def g():\n    global total\n    total += 1\n  g()\nexec('f()')\nprint(total)", "", "1", AC),
    (45, "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(256 << 20)\ndef f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(100000)))\nt.start()\nt.join()", "", "100000", AC),
    (46, "\ufeffprint('ok')", "", "ok", AC),
    (46, "# coding: latin-1\nprint(len('\u00e9'))", "", "2", AC),
    (46, "größe = 'ñ'\nprint(größe)", "", "ñ", AC),
    (47, "print('\\ud800')", "", "", RE),
    (49, "print('ok', flush=True)\nx = bytearray(10 ** 10)", "", "ok", Verdict.MEMORY_LIMIT),
    (50, "print('ok')\nraise ValueError", "", "ok", RE),
    (51, "import sys\nprint('ok')\nsys.exit(3)", "", "ok", RE),
    (51, "import sys\nprint('ok')\nsys.exit(0)", "", "ok", AC),
    (51, "print('ok')\nexit()", "", "ok", AC),
    (52, "import sys\nprint('noise', file=sys.stderr)\nprint('ok')", "", "ok", AC),
    (55, "import time, datetime\nprint(time.tzname[0], datetime.datetime.fromtimestamp(0).hour)", "", "UTC 0", AC),
    (56, "print(len(str(10 ** 49999)))", "", "50000", AC),
    (60, "n = input('How many? ')\nprint(n)", "3", "3", WA),
]  # fmt: skip

OTHER_TESTS: Final = {
    33: "test_packages", 41: "test_sizes", 42: "test_sizes", 48: "test_time_is_the_program_s_own",
    53: "test_the_same_every_time", 54: "test_the_same_every_time", 57: "test_several_right_answers",
    58: "test_bad_rows_are_refused", 59: "test_solution_classes", 61: "test_early_stop", 62: "test_no_test_proves_nothing",
}  # fmt: skip


def test_every_row_is_covered() -> None:
    rows = {row[0] for table in (OUTPUT_ROWS, VALUE_ROWS, SCRIPT_ROWS) for row in table}
    assert rows | set(OTHER_TESTS) == set(range(1, 63))
    here = globals()
    assert all(name in here or name == "test_packages" for name in OTHER_TESTS.values())


@pytest.mark.parametrize("row", OUTPUT_ROWS, ids=lambda row: f"{row[0]}-{row[1]!r}")
def test_output(best: Bench, row: tuple[int, str, str, Any, Verdict]) -> None:
    _, text, expected, comparator, verdict = row
    case = StdioCase(stdin="", expected=expected, comparator=comparator)
    assert best.judge(f"print('{text}', end='')", case).verdict is verdict


@pytest.mark.parametrize("row", VALUE_ROWS, ids=lambda row: f"{row[0]}-{row[1]!r}")
def test_value(best: Bench, row: tuple[int, str, Any, Any, Verdict]) -> None:
    _, body, expected, comparator, verdict = row
    case = CallCase(args=[[1, 2]], expected=expected, comparator=comparator)
    result = best.judge(f"def f(a):\n  {body}", case, entry_point="f")
    assert result.verdict is verdict, result
    # The same by an expression, whose value takes the same way.
    asked = ExpressionCase(expression="f([1, 2])", expected=expected, comparator=comparator)
    assert best.judge(f"def f(a):\n  {body}", asked).verdict is verdict


@pytest.mark.parametrize("row", SCRIPT_ROWS, ids=lambda row: f"{row[0]}-{row[1][:30]!r}")
def test_script(best: Bench, row: tuple[int, str, str, str, Verdict]) -> None:
    _, source, stdin, expected, verdict = row
    limits = Limits(cpu_s=2, memory_mb=512)
    result = best.judge(source, StdioCase(stdin=stdin, expected=expected), limits=limits)
    assert result.verdict is verdict, result


@pytest.mark.slow
def test_sizes(best: Bench) -> None:
    lines = "\n".join(map(str, range(700_000)))
    source = "import sys\ndata = sys.stdin.read()\nsys.stdout.write(data[:5_000_000])"
    big = StdioCase(stdin=lines * 10, expected=(lines * 10)[:5_000_000])
    assert len(big.stdin) > 45_000_000
    assert best.judge(source, big, limits=Limits(cpu_s=4, memory_mb=1024)).verdict is AC


def test_time_is_the_program_s_own(best: Bench) -> None:
    """A sleeper is judged by the clock, a busy program by its CPU time."""
    limits = Limits(cpu_s=0.3, wall_s=2.0)
    assert best.script("import time\ntime.sleep(0.5)\nprint('ok')", limits=limits).verdict is AC
    busy = best.script("while True: pass", limits=limits)
    assert busy.verdict is Verdict.TIME_LIMIT and "CPU time" in str(busy.detail)
    assert best.script("import time\ntime.sleep(9)", limits=limits).verdict is Verdict.TIME_LIMIT


def test_the_same_every_time(best: Bench) -> None:
    source = "import random\nprint({'a', 'b', 'c', 'd'}, random.random(), random.sample(range(99), 5), hash('x'))"
    assert len({best.stdout(source).stdout for _ in range(4)}) == 1


def test_several_right_answers(best: Bench) -> None:
    check = CheckerProgram(
        source="def check(given, answer, expected):\n  return sorted(answer.split()) == sorted(given.split())"
    )
    case = StdioCase(stdin="b a", expected="", comparator=check)
    assert best.judge("print(*input().split()[::-1])", case).verdict is AC
    assert best.judge("print(input())", case).verdict is AC
    assert best.judge("print('a')", case).verdict is WA


@pytest.mark.parametrize(
    "row", [{"kind": "stdio", "stdin": ["a"], "expected": "a"}, {"kind": "stdio", "stdin": "a"}, {"kind": "call", "args": "a", "expected": 1}, {"kind": "other"}, {"kind": "call", "expected": {"$tuple": 1}}]
)  # fmt: skip
def test_bad_rows_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Submission.model_validate_json(json.dumps({"source": "", "entry_point": "f", "cases": [row]}))


def test_solution_classes(best: Bench) -> None:
    source = (
        "class Solution:\n  def __init__(self): self.n = 0\n  def add(self, x):\n    self.n += x\n    return self.n"
    )
    for entry_point in ("add", "Solution.add"):
        result = best.judge(source, *[CallCase(args=[2], expected=2)] * 2, entry_point=entry_point)
        assert result.passed == 2  # a new instance each time
    both = "def add(x): return 1\n" + source
    assert best.judge(both, CallCase(args=[2], expected=1), entry_point="add").verdict is AC


def test_early_stop(best: Bench) -> None:
    cases = [StdioCase(stdin="", expected=text) for text in ("ok", "no", "ok")]
    result = best.judge("print('ok')", *cases, stop="first_failure")
    assert [case.verdict for case in result.cases] == [AC, WA, Verdict.NOT_RUN]
    assert best.judge("print('ok')", *cases).passed == 2


def test_no_test_proves_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Submission(source="print('ok')", cases=[])
