"""Every verdict, its precedence, and the way a program ends."""

# ruff: noqa: E501 - tables and programs keep one entry per line

from __future__ import annotations

from itertools import pairwise

import pytest
from sandbox_bench import QUICK, Bench

from sandbox import CallCase, ExpressionCase, Limits, StdioCase, Verdict, suite_verdict

SHORT = Limits(cpu_s=0.2, wall_s=0.6, memory_mb=256)
SCRIPTS = {
    "accepted": ("print('ok')", Verdict.ACCEPTED),
    "wrong": ("print('no')", Verdict.WRONG_ANSWER),
    "exit 0 early": ("import sys\nsys.exit(0)", Verdict.WRONG_ANSWER),
    "exit None": ("import sys\nprint('ok')\nsys.exit()", Verdict.ACCEPTED),
    "exit()": ("print('ok')\nexit()\nprint('no')", Verdict.ACCEPTED),
    "quit()": ("print('ok')\nquit()\nprint('no')", Verdict.ACCEPTED),
    "exit 3 after the answer": ("import sys\nprint('ok')\nsys.exit(3)", Verdict.RUNTIME_ERROR),
    "exit text after the answer": ("import sys\nprint('ok')\nsys.exit('x')", Verdict.RUNTIME_ERROR),
    "os._exit(0)": ("import os\nos._exit(0)", Verdict.WRONG_ANSWER),
    "raises after the answer": ("print('ok')\n1/0", Verdict.RUNTIME_ERROR),
    "noise on stderr": ("import sys\nprint('x', file=sys.stderr)\nprint('ok')", Verdict.ACCEPTED),
    "atexit": ("import atexit\natexit.register(print, 'k')\nprint('o', end='')", Verdict.ACCEPTED),
    "finaliser": ("class A:\n  def __del__(self): print('k')\na = A()\nprint('o', end='')", Verdict.ACCEPTED),
    "thread is waited for": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('ok'))).start()",
        Verdict.ACCEPTED,
    ),
    "main guard": ("if __name__ == '__main__':\n  print('ok')", Verdict.ACCEPTED),
    "globals in functions": ("n = 0\ndef f():\n  global n\n  n += 1\nf()\nprint('ok' * n)", Verdict.ACCEPTED),
    "syntax error": ("def f(:", Verdict.COMPILE_ERROR),
    "NUL in the source": ("print('ok')\0", Verdict.COMPILE_ERROR),
    "lone surrogate in the source": ("x = '\ud800'", Verdict.COMPILE_ERROR),
    "deep source": ("(" * 5000 + ")" * 5000, Verdict.COMPILE_ERROR),
    "unicode names": ("größe = 'ok'\nprint(größe)", Verdict.ACCEPTED),
    "lone surrogate on output": ("print('\\ud800')", Verdict.RUNTIME_ERROR),
    "busy": ("while True: pass", Verdict.TIME_LIMIT),
    "busy in C": ("10 ** 10 ** 8", Verdict.TIME_LIMIT),
    "catches everything": (
        "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\n"
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        Verdict.TIME_LIMIT,
    ),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", Verdict.TIME_LIMIT),
    "memory bomb": ("x = bytearray(10 ** 10)", Verdict.MEMORY_LIMIT),
    "list bomb": ("x = []\nwhile True: x.append(bytes(10 ** 7))", Verdict.MEMORY_LIMIT),
    "bomb after the answer": ("print('ok', flush=True)\nx = bytearray(10 ** 10)", Verdict.MEMORY_LIMIT),
    "survives MemoryError": (
        "try:\n  bytearray(10 ** 10)\nexcept MemoryError:\n  print('ok')",
        Verdict.ACCEPTED,
    ),
    "flood": ("while True: print('x' * 1000)", Verdict.OUTPUT_LIMIT),
    "flood on stderr": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", Verdict.OUTPUT_LIMIT),
    "sparse output": ("import os\nos.ftruncate(1, 1 << 40)", Verdict.RUNTIME_ERROR),
    "closes its streams": ("import os\nfor fd in range(3): os.close(fd)\nprint('ok')", Verdict.RUNTIME_ERROR),
    "terminates itself": ("import os\nos.kill(os.getpid(), 15)", Verdict.RUNTIME_ERROR),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", Verdict.RUNTIME_ERROR),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", Verdict.RUNTIME_ERROR),
    "abort": ("import os\nos.abort()", Verdict.RUNTIME_ERROR),
    "runaway recursion": ("def f(): f()\nf()", Verdict.RUNTIME_ERROR),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(200000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(100000)\nprint('ok')",
        Verdict.ACCEPTED,
    ),
    "all of the default recursion": (
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(990)\nprint('ok')",
        Verdict.ACCEPTED,
    ),
    "huge ints print": ("print(len(str(10 ** 9999)) == 10000 and 'ok')", Verdict.ACCEPTED),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(bench: Bench, name: str) -> None:
    source, verdict = SCRIPTS[name]
    result = bench.script(source, limits=SHORT if verdict is Verdict.TIME_LIMIT else QUICK)
    assert result.verdict is verdict, result


def test_cpu_limit_is_close_and_measured(best: Bench) -> None:
    result = best.script("while True: pass", limits=Limits(cpu_s=0.5))
    assert result.verdict is Verdict.TIME_LIMIT
    assert 0.5 <= result.cpu_s < 0.6


def test_sleeper_meets_the_wall_limit(best: Bench) -> None:
    result = best.script("import time\ntime.sleep(1e9)", limits=Limits(cpu_s=1, wall_s=0.3))
    assert result.verdict is Verdict.TIME_LIMIT
    assert 0.3 <= result.wall_s < 1.0 and result.cpu_s < 0.2


@pytest.mark.parametrize(
    ("reader", "stdin"),
    [
        ("input()", "ok\n"),
        ("input()", "ok"),
        ("sys.stdin.read().strip()", "ok\n"),
        ("sys.stdin.readline().strip()", "ok\n"),
        ("sys.stdin.buffer.readline().decode().strip()", "ok\n"),
        ("[line.strip() for line in sys.stdin][0]", "ok\n"),
        ("open(sys.stdin.fileno()).read().strip()", "ok"),
        ("os.read(0, 100).decode().strip()", "ok"),
        ("'ok' if sys.stdin.read() == '' else 'no'", ""),
        ("sys.stdin.read()[-2:]", "x" * 5_000_000 + "ok"),
    ],
)
def test_stdin_in_every_way(bench: Bench, reader: str, stdin: str) -> None:
    assert bench.script(f"import os, sys\nprint({reader})", stdin).verdict is Verdict.ACCEPTED


@pytest.mark.slow
def test_large_output(best: Bench) -> None:
    text = "\n".join(map(str, range(400_000)))
    result = best.judge("for i in range(400000): print(i)", StdioCase(stdin="", expected=text), limits=Limits())
    assert result.verdict is Verdict.ACCEPTED


def test_calls(bench: Bench) -> None:
    source = "def f(a, b=1, *, c=0):\n  print('noise')\n  a.append(b + c)\n  return {'a': a, 't': (1, {2})}"
    expected = {"a": [1, 5], "t": (1, {2})}
    result = bench.judge(
        source,
        CallCase(args=[[1]], kwargs={"b": 2, "c": 3}, expected=expected),
        CallCase(args=[[1], 5], expected=expected),
        entry_point="f",
    )
    assert result.verdict is Verdict.ACCEPTED
    assert result.cases[0].stdout_head == "noise\n"
    assert result.cases[0].returned == '{"a":[1,5],"t":{"$tuple":[1,{"$set":[2]}]}}'


CALLS = {
    "raises": ("def f(): raise ValueError('x')", Verdict.RUNTIME_ERROR),
    "exits": ("import sys\ndef f(): sys.exit(0)", Verdict.RUNTIME_ERROR),
    "leaves": ("import os\ndef f(): os._exit(0)", Verdict.RUNTIME_ERROR),
    "generator": ("def f(): yield 'ok'", Verdict.RUNTIME_ERROR),
    "range": ("def f(): return range(3)", Verdict.RUNTIME_ERROR),
    "coroutine": ("async def f(): return 'ok'", Verdict.RUNTIME_ERROR),
    "recursive": ("def f():\n  x = []\n  x.append(x)\n  return x", Verdict.RUNTIME_ERROR),
    "too deep": ("def f():\n  x = []\n  for _ in range(5000): x = [x]\n  return x", Verdict.RUNTIME_ERROR),
    "no such function": ("def g(): return 'ok'", Verdict.RUNTIME_ERROR),
    "wrong arguments": ("def f(x): return 'ok'", Verdict.RUNTIME_ERROR),
    "main guard is not run": ("def f(): return 'ok'\nif __name__ == '__main__': input()", Verdict.ACCEPTED),
    "class Solution": ("class Solution:\n  def f(self): return 'ok'", Verdict.ACCEPTED),
    "dataclasses": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n  x: str\ndef f(): return A('ok').x",
        Verdict.ACCEPTED,
    ),
    "str subclass": ("class S(str):\n  pass\ndef f(): return S('ok')", Verdict.ACCEPTED),
    "floods while returning": ("def f(): return 'x' * 10 ** 7", Verdict.OUTPUT_LIMIT),
    "large value": ("def f():\n  list(range(10 ** 5))\n  return 'ok'", Verdict.ACCEPTED),
}


@pytest.mark.parametrize("name", CALLS)
def test_call(bench: Bench, name: str) -> None:
    source, verdict = CALLS[name]
    result = bench.value(source)
    assert result.verdict is verdict, result


def test_dotted_entry_point(best: Bench) -> None:
    source = "class A:\n  def m(self, x): return x + 1"
    assert best.judge(source, CallCase(args=[1], expected=2), entry_point="A.m").verdict is Verdict.ACCEPTED


def test_expressions(bench: Bench) -> None:
    source = "class P:\n  def __init__(self, n): self.n = n\ndef f(p): return p.n"
    result = bench.judge(
        source,
        ExpressionCase(expression="f(P(3))", expected=3),
        ExpressionCase(setup="import math\np = P(math.floor(4.5))", expression="f(p)", expected=4),
        ExpressionCase(expression="f(", expected=3),
        ExpressionCase(expression="f(P(3))", expected=True),
    )
    assert [case.verdict for case in result.cases] == [
        Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.SANDBOX_ERROR, Verdict.WRONG_ANSWER,
    ]  # fmt: skip
    assert result.compiles


def test_suite_verdict_and_stop(best: Bench) -> None:
    source = "def f(x):\n  if x == 1: raise ValueError\n  return x"
    cases = [CallCase(args=[n], expected=n % 3) for n in range(4)]
    every = best.judge(source, *cases, entry_point="f")
    assert [case.verdict.value for case in every.cases] == ["accepted", "runtime_error", "accepted", "wrong_answer"]
    assert (every.verdict, every.passed, every.total) == (Verdict.RUNTIME_ERROR, 2, 4)
    early = best.judge(source, *cases, entry_point="f", stop="first_failure")
    assert [case.verdict.value for case in early.cases] == ["accepted", "runtime_error", "not_run", "not_run"]
    assert early.verdict is Verdict.RUNTIME_ERROR and early.passed == 1


def test_a_timeout_may_end_a_submission_and_other_failures_do_not(best: Bench) -> None:
    source = "def f(x):\n  while x == 2: pass\n  return x"
    cases = [CallCase(args=[n], expected=e) for n, e in ((1, 1), (1, 0), (2, 2), (1, 1))]
    result = best.judge(source, *cases, entry_point="f", stop="first_timeout", limits=SHORT)
    assert [case.verdict.value for case in result.cases] == ["accepted", "wrong_answer", "time_limit", "not_run"]
    assert (result.passed, result.total) == (1, 4)


def test_compiles_says_nothing_about_tests(best: Bench) -> None:
    assert best.judge("1/0", StdioCase(stdin="", expected="")).compiles
    assert best.judge("while True: pass", StdioCase(stdin="", expected=""), limits=SHORT).compiles
    broken = best.judge("x =", *[StdioCase(stdin="", expected="")] * 3)
    assert not broken.compiles and broken.verdict is Verdict.COMPILE_ERROR
    assert [case.verdict.value for case in broken.cases] == ["compile_error", "not_run", "not_run"]


def test_precedence() -> None:
    order = list(Verdict)
    for stronger, weaker in pairwise(order[:9]):
        assert suite_verdict([Verdict.NOT_RUN, Verdict.ACCEPTED, weaker, stronger]) is stronger
    assert suite_verdict([Verdict.ACCEPTED]) is Verdict.ACCEPTED
    with pytest.raises(ValueError):
        suite_verdict([])


def test_security_violation_beats_a_right_answer(best: Bench) -> None:
    source = "import ctypes, os\nprint('ok', flush=True)\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)"
    assert best.script(source).verdict is Verdict.SECURITY_VIOLATION


def test_same_result_every_time(best: Bench) -> None:
    source = "import random\nprint(random.random(), {'a', 'b', 'c'}, hash('x'))"
    outputs = {best.stdout(source).stdout for _ in range(3)}
    assert len(outputs) == 1


def test_run_calls_gives_values_and_errors(best: Bench) -> None:
    source = "def f(x, y=0):\n  return (x, 1 / y)"
    good, bad = best.call(best.pool.run_calls(source, "f", [((1,), {"y": 2}), ((1,), {})], QUICK))
    assert good.ok and good.value == (1, 0.5)
    assert not bad.ok and bad.verdict is Verdict.RUNTIME_ERROR and "ZeroDivisionError" in (bad.detail or "")
    outputs = best.call(best.pool.run_stdin("print(input()[::-1])", ["ab", ""], QUICK))
    assert [output.verdict.value for output in outputs] == ["accepted", "runtime_error"]
    assert outputs[0].stdout == "ba\n"


@pytest.mark.parametrize(
    ("source", "status"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("1/0", 1), ("import os\nos.kill(os.getpid(), 9)", -9), ("x = (", 1)],
)
def test_exit_status_is_the_kernel_s(best: Bench, source: str, status: int) -> None:
    assert best.stdout(source).exit_status == status
