"""Test code in a process apart from the solution, and programs that check answers."""

# ruff: noqa: E501 - programs keep one entry per line

from __future__ import annotations

from typing import Any

import pytest
from sandbox_bench import QUICK, Bench, described_fds, more_fds, open_fds

from sandbox import (
    AssertCase,
    CallCase,
    CaseResult,
    CheckerProgram,
    ExpressionCase,
    Limits,
    StdioCase,
    Submission,
    Verdict,
)
from sandbox.bench import processes_below

TEST = """
def check(candidate):
    assert candidate(2) == 4
    items = [3, 1, 2]
    helper(items)
    assert items == [1, 2, 3], items
check(f)
"""
HELPER = "\ndef helper(x): x.sort()"

SOLUTIONS: dict[str, tuple[str, Verdict, str]] = {
    "right": ("def f(x): return 2 * x", Verdict.ACCEPTED, ""),
    "wrong": ("def f(x): return 3 * x", Verdict.WRONG_ANSWER, "AssertionError"),
    "raises": ("def f(x): return 1 / 0", Verdict.RUNTIME_ERROR, "ZeroDivisionError"),
    "its own exception": ("class E(Exception): pass\ndef f(x): raise E('why')", Verdict.RUNTIME_ERROR, "E: why"),
    "leaves with 0": ("import os\ndef f(x): os._exit(0)", Verdict.RUNTIME_ERROR, "ended"),
    "leaves with 97": ("import os\ndef f(x): os._exit(97)", Verdict.RUNTIME_ERROR, ""),
    "exits": ("import sys\ndef f(x): sys.exit(0)", Verdict.RUNTIME_ERROR, "SystemExit"),
    "fails at import": ("1 / 0", Verdict.RUNTIME_ERROR, "ZeroDivisionError"),
    "defines nothing": ("g = 1", Verdict.RUNTIME_ERROR, "NameError"),
    "does not compile": ("def f(x", Verdict.COMPILE_ERROR, "SyntaxError"),
    "busy": ("def f(x):\n  while True: pass", Verdict.TIME_LIMIT, "CPU"),
    "sleeps": ("import time\ndef f(x): time.sleep(99)", Verdict.TIME_LIMIT, "clock"),
    "memory": ("def f(x): return 'a' * (1 << 40)", Verdict.MEMORY_LIMIT, "MemoryError"),
    "forbidden call": ("import ctypes\ndef f(x): ctypes.CDLL(None).ptrace(0, 0, 0, 0)", Verdict.SECURITY_VIOLATION, ""),
    "flood": ("def f(x):\n  while True: print('x' * 999)", Verdict.OUTPUT_LIMIT, ""),
    "generator": ("def f(x): yield 4", Verdict.RUNTIME_ERROR, "generator"),
    "always equal": ("class E:\n  __eq__ = lambda s, o: True\ndef f(x): return E()", Verdict.RUNTIME_ERROR, "'E'"),
    "lying int": ("class I(int):\n  __eq__ = lambda s, o: True\ndef f(x): return I(7)", Verdict.WRONG_ANSWER, ""),
    "lying list": ("class L(list):\n  __eq__ = lambda s, o: True\ndef f(x): return L()", Verdict.WRONG_ANSWER, ""),
    "garbage in the channel": ("import os\ndef f(x): os.write(3, b'\\5\\0\\0\\0hello')", Verdict.RUNTIME_ERROR, "cannot be read"),
    "a length and no more": ("import os\ndef f(x):\n  os.write(3, b'\\0\\0\\0\\1')\n  os._exit(0)", Verdict.RUNTIME_ERROR, ""),
    "an endless frame": ("import os\ndef f(x): os.write(3, b'\\xff' * 4)", Verdict.RUNTIME_ERROR, "bytes"),
    "claims to have passed": (
        "import os, json, struct\ndef f(x):\n  for text in (b'{\"passed\":true}', b'{\"value\":{\"passed\":true}}'):\n"
        "    for fd in range(3, 64):\n      try: os.write(fd, struct.pack('<I', len(text)) + text)\n      except OSError: pass",
        Verdict.RUNTIME_ERROR, "",
    ),
    "more arguments than given": (
        "import os, struct\ndef f(x):\n  text = b'{\"value\":4,\"args\":[1,2,3]}'\n  os.write(3, struct.pack('<I', len(text)) + text)\n  return 4",
        Verdict.RUNTIME_ERROR, "cannot be read",
    ),
    "closes the channel": ("import os\nos.close(3)\ndef f(x): return 4", Verdict.RUNTIME_ERROR, ""),
    "patches everything": (
        "import builtins, json\nbuiltins.AssertionError = Exception\njson.dumps = lambda *a, **k: 'true'\ndef f(x): return 5",
        Verdict.RUNTIME_ERROR, "",
    ),
    "signals everybody": ("import os\ndef f(x):\n  os.kill(-1, 9)\n  return 4", Verdict.RUNTIME_ERROR, "PermissionError"),
}  # fmt: skip


def judge(bench: Bench, source: str, code: str, **fields: Any) -> CaseResult:
    limits = Limits(cpu_s=0.2, wall_s=0.7, memory_mb=256)
    return bench.judge(source, AssertCase(code=code), entry_point="f", limits=limits, **fields).cases[0]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_in_front_of_its_test(bench: Bench, name: str) -> None:
    source, verdict, says = SOLUTIONS[name]
    result = judge(bench, source + HELPER if verdict is not Verdict.COMPILE_ERROR else source, TEST)
    assert result.verdict is verdict, result
    assert says in (result.detail or "")


def test_a_wrong_helper_is_the_solution_s_fault(bench: Bench) -> None:
    result = judge(bench, "def f(x): return 2 * x\ndef helper(x): x.reverse()", TEST)
    assert result.verdict is Verdict.WRONG_ANSWER


TESTS = {
    "loop and own function": "def double(x): return x + x\nfor n in range(20): assert f(n) == double(n)",
    "imports": "import math, random\nrandom.seed(1)\nn = random.randrange(9)\nassert math.isclose(candidate(n), 2 * n)",
    "expected exception": "try: f('a', 'b')\nexcept TypeError as e: assert 'argument' in str(e)\nelse: assert False",
    "keywords": "assert f(x=3) == 6",
    "text": "assert f('ab') == 'abab'",
    "tuples, sets and bytes": "assert f((1,)) == (1, 1) and f(b'x') == b'xx'",
    "big numbers": "assert f(10 ** 5000) == 2 * 10 ** 5000",
    "floats": "import math\nassert math.isinf(f(math.inf)) and math.isnan(f(math.nan))",
    "prints": "print('noise')\nassert f(1) == 2",
}


@pytest.mark.parametrize("name", TESTS)
def test_what_test_code_can_do(bench: Bench, name: str) -> None:
    result = judge(bench, "def f(x): return 2 * x", TESTS[name])
    assert result.verdict is Verdict.ACCEPTED, result


FAILING_TESTS = {
    "swallows everything": ("try: assert f(1) == 2\nexcept Exception: pass\nassert f(1) == 2", Verdict.WRONG_ANSWER),
    "ends early": ("f(1)\nraise SystemExit(0)", Verdict.WRONG_ANSWER),
    "leaves": ("import os\nf(1)\nos._exit(0)", Verdict.WRONG_ANSWER),
    "type error on the value": ("assert f(1)[0] == 1", Verdict.WRONG_ANSWER),
    "sends a function": ("assert f(lambda: 1) == 2", Verdict.WRONG_ANSWER),
}


@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_no_exception_of_a_solution_ends_a_loop_of_its_test(bench: Bench, kind: str) -> None:
    code = "for g, w in zip(map(candidate, [1, 2]), [2, 4]): assert g == w\nassert all(map(candidate, [1, 2]))"
    assert judge(bench, f"def f(x): raise {kind}", code).verdict is Verdict.RUNTIME_ERROR


@pytest.mark.parametrize("name", FAILING_TESTS)
def test_a_test_that_does_not_reach_its_end_accepts_nothing(best: Bench, name: str) -> None:
    code, verdict = FAILING_TESTS[name]
    result = judge(best, "def f(x): return 3 * x", code)
    assert result.verdict is verdict, result


def test_code_that_does_not_compile_is_the_test_s_fault(best: Bench) -> None:
    before = best.pool.stats()
    result = judge(best, "def f(x): return x", "assert f(")
    assert result.verdict is Verdict.SANDBOX_ERROR and "does not compile" in (result.detail or "")
    assert best.pool.stats().retries == before.retries


def test_the_solution_sees_nothing_of_its_test(bench: Bench) -> None:
    """The test's text is in no object, no descriptor and no file that the solution can read."""
    spy = (
        "import gc, os, sys\ndef f(x):\n  found, word = [], ''.join(('mark', 'er-4711'))\n  mine = sys._getframe()\n"
        "  for o in gc.get_objects():\n    if type(o) in (str, bytes) and word in str(o): found.append('object')\n"
        "  for fd in range(64):\n    try: found += ['fd'] * (word.encode() in os.pread(fd, 10 ** 6, 0))\n    except OSError: pass\n"
        "  frame = mine.f_back\n  while frame:\n"
        "    found += ['frame'] * (word in str({k: v for k, v in frame.f_locals.items()}))\n    frame = frame.f_back\n"
        "  return found"
    )
    code = "secret = 'marker-4711'\nfound = f(1)\nassert found == [], found"
    assert judge(bench, spy, code).verdict is Verdict.ACCEPTED


def test_expected_arguments_do_reach_the_spy(bench: Bench) -> None:
    """The spy of the test above works: an argument is found."""
    spy = "import sys\nneedle = 'marker-' + '4711'\ndef f(x): return needle in str(sys._getframe().f_locals)"
    assert judge(bench, spy, "assert f('marker-4711')").verdict is Verdict.ACCEPTED


def test_state_lives_for_one_case(best: Bench) -> None:
    source = "n = 0\ndef f():\n  global n\n  n += 1\n  return n"
    case = AssertCase(code="assert f() == 1 and f() == 2")
    assert best.judge(source, case, case, entry_point="f").passed == 2


def test_no_process_and_no_descriptor_is_left(bench: Bench) -> None:
    cell = bench.pool._slots[0].cell
    assert cell is not None

    def count() -> tuple[int, int]:
        below = processes_below(cell.zygote_pid)
        return len(below), sum(map(open_fds, {*below, cell.zygote_pid}))

    judge(bench, "def f(x): return 2 * x", "assert f(1) == 2")
    before, ours = count(), described_fds()
    for name in ("right", "leaves with 0", "closes the channel", "busy"):
        judge(bench, SOLUTIONS[name][0] + HELPER, TEST)
    assert count() == before and bench.pool._slots[0].cell is cell
    assert not more_fds(ours)


SHARED = AssertCase(code="def check(c):\n  add = c(1)\n  assert add(2) == 3\ncheck(candidate)", trust="shared")


def test_shared_trust_has_to_be_allowed_and_is_counted(best: Bench) -> None:
    closure = "def f(x):\n  def add(y): return x + y\n  return add"
    with pytest.raises(ValueError, match=r"cases\.0 has trust='shared'"):
        Submission(source=closure, entry_point="f", cases=[SHARED])
    result = best.judge(closure, SHARED, entry_point="f", allow_shared=True)
    assert (result.verdict, result.shared_trust) == (Verdict.ACCEPTED, 1)
    wrong = best.judge(closure.replace("x + y", "x - y"), SHARED, entry_point="f", allow_shared=True)
    assert wrong.verdict is Verdict.WRONG_ANSWER and "AssertionError" in (wrong.cases[0].detail or "")
    apart = best.judge(closure, AssertCase(code=SHARED.code), entry_point="f")
    assert apart.verdict is Verdict.RUNTIME_ERROR and apart.shared_trust == 0


def test_an_assert_case_needs_a_name_to_call() -> None:
    with pytest.raises(ValueError, match="entry_point"):
        Submission(source="", cases=[AssertCase(code="pass")])
    assert Submission(source="", cases=[AssertCase(code="pass", entry_point="f")])


def test_methods_of_a_class_solution(best: Bench) -> None:
    source = "class Solution:\n  def f(self, x): return 2 * x"
    for entry_point in ("f", "Solution.f"):
        case = AssertCase(code="assert candidate(2) == 4", entry_point=entry_point)
        assert best.judge(source, case).verdict is Verdict.ACCEPTED


# --- checker programs ---

FACTORS = CheckerProgram(
    source="def check(given, answer, expected):\n  a, b = map(int, answer.split())\n  return a > 1 and b > 1 and a * b == int(given)"
)


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("print(3, 4)", Verdict.ACCEPTED),
        ("print(2, 6)", Verdict.ACCEPTED),
        ("print(1, 12)", Verdict.WRONG_ANSWER),
        ("print('x')", Verdict.WRONG_ANSWER),
        ("pass", Verdict.WRONG_ANSWER),
        ("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", Verdict.WRONG_ANSWER),
        ("print(3, 4)\n1/0", Verdict.RUNTIME_ERROR),
        ("print('9' * 5000 + ' 1')", Verdict.WRONG_ANSWER),
    ],
)
def test_a_checker_decides_on_output(best: Bench, printed: str, verdict: Verdict) -> None:
    case = StdioCase(stdin="12", expected="", comparator=FACTORS)
    result = best.judge(printed, case).cases[0]
    assert result.verdict is verdict, result


def test_a_checker_decides_on_values(best: Bench) -> None:
    check = CheckerProgram(
        source="def ok(args, value, expected):\n  return type(value) is tuple and sum(value) == args[0] == expected",
        entry_point="ok",
    )
    for value, verdict in (
        ("(1, 4)", Verdict.ACCEPTED),
        ("(2, 3)", Verdict.ACCEPTED),
        ("[2, 3]", Verdict.WRONG_ANSWER),
    ):
        case = CallCase(args=[5], expected=5, comparator=check)
        assert best.judge(f"def f(n): return {value}", case, entry_point="f").verdict is verdict
        asked = ExpressionCase(
            expression="f(5)",
            expected=(1, 4),
            comparator=CheckerProgram(source="def check(g, v, e): return g is None and sorted(v) == sorted(e)"),
        )
        assert best.judge(f"def f(n): return {value}", asked).verdict is (
            Verdict.ACCEPTED if "4" in value else Verdict.WRONG_ANSWER
        )


BROKEN_CHECKERS = {
    "raises": ("def check(*a): return 1 / 0", Verdict.WRONG_ANSWER),
    "returns 1": ("def check(*a): return 1", Verdict.WRONG_ANSWER),
    "returns text": ("def check(*a): return 'True'", Verdict.WRONG_ANSWER),
    "hangs": ("def check(*a):\n  while True: pass", Verdict.WRONG_ANSWER),
    "does not compile": ("def check(", Verdict.SANDBOX_ERROR),
    "fails to load": ("import no_such_module\ndef check(*a): return True", Verdict.SANDBOX_ERROR),
    "has another name": ("def chek(*a): return True", Verdict.SANDBOX_ERROR),
    "takes two arguments": ("def check(a, b): return True", Verdict.SANDBOX_ERROR),
}


@pytest.mark.parametrize("name", BROKEN_CHECKERS)
def test_only_true_accepts(best: Bench, name: str) -> None:
    source, verdict = BROKEN_CHECKERS[name]
    case = StdioCase(stdin="", expected="", comparator=CheckerProgram(source=source))
    result = best.judge("print(1)", case, limits=Limits(cpu_s=0.3)).cases[0]
    assert result.verdict is verdict and "checker" in (result.detail or "")


def test_a_checker_sees_keywords(best: Bench) -> None:
    check = CheckerProgram(source="def check(g, v, e): return g == {'args': [1], 'kwargs': {'n': 2}}")
    case = CallCase(args=[1], kwargs={"n": 2}, expected=None, comparator=check)
    assert best.judge("def f(a, n): return a", case, entry_point="f").verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "case",
    [
        ExpressionCase(expression="1 +", expected=1),
        ExpressionCase(setup="x =", expression="1", expected=1),
        AssertCase(code="assert f(", trust="shared"),
        AssertCase(code="assert f("),
    ],
)
def test_a_test_that_does_not_compile_is_never_the_solution_s_fault(bench: Bench, case: Any) -> None:
    before = bench.pool.stats().retries
    result = bench.judge("def f(x): return x", case, entry_point="f", allow_shared=True)
    assert result.verdict is Verdict.SANDBOX_ERROR and "does not compile" in (result.cases[0].detail or "")
    assert "Error" not in result.cases[0].stderr_tail and bench.pool.stats().retries == before
    broken = bench.judge("def f(x", case, entry_point="f", allow_shared=True)
    assert broken.verdict in (Verdict.COMPILE_ERROR, Verdict.SANDBOX_ERROR)


def test_a_sandbox_error_of_a_test_can_not_be_had_by_a_solution(bench: Bench) -> None:
    """What compiles is settled before the solution's first line."""
    hostile = "import builtins, ast\nbuiltins.compile = builtins.eval = builtins.exec = None\ndef f(x): return x"
    case = ExpressionCase(setup="y = 1", expression="f(y)", expected=1)
    assert bench.judge(hostile, case).verdict is not Verdict.SANDBOX_ERROR


def test_no_frame_of_ours_is_shown(best: Bench) -> None:
    result = best.value("def f(): return object()")
    assert result.stderr_tail.startswith("UnserializableError: ") and "/sandbox/" not in result.stderr_tail
    assert (result.detail or "").startswith("UnserializableError: ")


def test_a_checker_sees_hostile_answers_as_data(best: Bench) -> None:
    """An answer nested as deeply as values may be cannot become one level deeper: refused, not an error."""
    case = CallCase(args=[], expected=1, comparator=CheckerProgram(source="def check(*a): return True"))
    deep = "def f():\n  x = 1\n  for _ in range(100): x = [x]\n  return x"
    assert best.judge(deep, case, entry_point="f").verdict is Verdict.WRONG_ANSWER
    assert best.judge("def f(): return [1]", case, entry_point="f", limits=QUICK).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("text", ["\ud800", "\x1b[2J", "x" * 10**5])
def test_what_a_test_says_can_be_shown(best: Bench, text: str) -> None:
    """Results are written to files and sent to other machines; the solution chooses the text of its exceptions."""
    source = f"def f(x):\n  if x: raise ValueError({text!r})\n  return {text!r}"
    for code in ("f(1)", "assert f(0) == 1, f(0)"):
        result = best.judge(source, AssertCase(code=code), entry_point="f")
        assert result.verdict in (Verdict.RUNTIME_ERROR, Verdict.WRONG_ANSWER)
        detail = result.cases[0].detail
        assert detail is not None and len(detail) < 2000 and all(c.isprintable() for c in detail)
        assert result.model_validate_json(result.model_dump_json()) == result
