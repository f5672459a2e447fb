"""Verdicts that come from a server are those of a local pool."""

# ruff: noqa: E501 - tables and programs keep one entry per line

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fusion_bench import ROOT, TIGHT, simple
from sandbox_bench import Bench

from sandbox import (
    CallCase,
    ExactValue,
    ExpressionCase,
    Limits,
    SandboxBackend,
    SandboxFusionBackend,
    StdioCase,
    Submission,
    SuiteResult,
    Verdict,
)
from sandbox.fusion import KEPT_BYTES, Question, answer_from, question
from sandbox.fusion import judged as judged_answer
from sandbox.server import response_for

pytestmark = pytest.mark.slow  # starts processes all the time

SCRIPTS = {
    "accepted": "print('ok')",
    "wrong": "print('no')",
    "reads stdin": "print(input())",
    "reads past the end": "input(); input()",
    "crash": "print('ok')\n1 / 0",
    "crash in depth": "def f(n): return f(n - 1) if n else 1 / 0\nf(400)",
    "exit status 3": "import sys\nprint('ok')\nsys.exit(3)",
    "SystemExit": "print('ok')\nraise SystemExit",
    "exit before the answer": "raise SystemExit(0)",
    "os._exit": "import os\nos._exit(0)",
    "busy": "while True: pass",
    "sleeps": "import time\ntime.sleep(60)",
    "memory": "x = bytearray(10 ** 10)",
    "memory by itself": "raise MemoryError",
    "says that it was memory": "import sys\nprint('MemoryError', file=sys.stderr)\nprint('ok')",
    "syntax error": "def f(:",
    "indentation": "if 1:\nx",
    "NUL": "print('ok')\0",
    "surrogate": "x = '\ud800'",
    "brackets": "(" * 300 + ")" * 300,
    "long bad line": "x = '" + "y" * 5000,
    "syntax error while running": "exec('(')",
    "flood": "while True: print('x' * 1000)",
    "flood, caught": "try:\n  while True: print('x' * 1000, flush=True)\nexcept OSError: pass",
    "forbidden call": "import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "signal": "import os\nos.kill(os.getpid(), 9)",
    "main part": "if __name__ == '__main__': print('ok')",
    "future": "'doc'\nfrom __future__ import annotations\ndef f(x: nothing): pass\nprint('ok')",
    "forged answer": 'print(\'{"status": "Success", "run_result": {"status": "Finished", "return_code": 0}}\')',
}

FUNCTIONS = {
    "accepted": "def f(x): return 'ok'",
    "wrong": "def f(x): return 'no'",
    "crash": "def f(x): return x[7]",
    "no such function": "def g(x): return 'ok'",
    "crash before": "1 / 0\ndef f(x): return 'ok'",
    "method": "class Solution:\n  def f(self, x): return 'ok'",
    "busy": "def f(x):\n  while True: pass",
    "memory": "def f(x): return bytearray(10 ** 10)",
    "syntax error": "def f(x) return 'ok'",
    "NUL": "def f(x): return 'ok'\0",
    "surrogate": "def f(x): return '\ud800'",
    "latin-1 by cookie": "# coding: latin-1\ndef f(x): return 'ok' if len('\udce4') == 1 else 'no'",
    "SystemExit": "def f(x): raise SystemExit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "prints": "def f(x):\n  print('noise', end='')\n  return 'ok'",
    "prints much": "def f(x):\n  print('x' * 200_000)\n  return 'ok'",
    "flood": "def f(x):\n  while True: print('x' * 1000)",
    "flood, caught": "def f(x):\n  try:\n    while True: print('x' * 1000, flush=True)\n  except OSError: return 'ok'",
    "long output, then the answer": "def f(x):\n  print('x' * 1_500_000)\n  return 'ok'",
    "always equal": "class E:\n  def __eq__(self, other): return True\ndef f(x): return E()",
    "lying subclass": "class S(str):\n  def __eq__(self, other): return True\n  __hash__ = str.__hash__\ndef f(x): return S('no')",
    "honest subclass": "class S(str): pass\ndef f(x): return S('ok')",
    "generator": "def f(x): yield 'ok'",
    "recursion": "def f(x):\n  def g(n): return 0 if n == 0 else 1 + g(n - 1)\n  return 'ok' if g(985) == 985 else 'no'",
    "endless recursion": "def f(x): return f(x)",
    "huge int": "def f(x): return 'ok' if len(str(10 ** 9999)) == 10000 else 'no'",
    "main part": "if __name__ == '__main__': input()\ndef f(x): return 'ok'",
    "future": "from __future__ import annotations\ndef f(x: nothing): return 'ok'",
    "no future": "def f(x):\n  try: exec('def g(x: nothing): pass')\n  except NameError: return 'ok'",
    "reads stdin": "import sys\ndef f(x): return 'ok' if 'ok' not in sys.stdin.read() else 'no'",
    "own random state": "import random\ndef f(x): return 'ok' if random.random() == 0.8444218515250481 else 'no'",
    "patches json": "import json\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: '\"ok\"'\ndef f(x): return 'no'",
    "patches os.write": "import os\nos.write = lambda fd, data: len(data)\ndef f(x): return 'no'",
    "prints a forged value": "def f(x):\n  print('\\n' + '0' * 32 + ' value \"ok\"')\n  return 'no'",
    "closes stdout": "import os\ndef f(x):\n  os.close(1)\n  print('x' * 10)\n  return 'ok'",
    "thread goes on": "import threading, time\ndef f(x):\n  threading.Thread(target=time.sleep, args=(60,)).start()\n  return 'ok'",
    "not printable": "def f(x):\n  print('\\ud800')\n  return 'ok'",
    "unicode": "def f(x):\n  print('größe')\n  return 'ok'",
}

# Programs that look for the marker of their run, and know how values are written.
FORGERS = {
    "a value and an end": "print('\\n' + m + ' value \"ok\"', flush=True); os._exit(0)",
    "a value, another returned": "print('\\n' + m + ' value \"ok\"', flush=True)",
    "no typed JSON": "print('\\n' + m + ' value {\"$x\": 1}', flush=True); os._exit(0)",
    "half a line": "sys.stdout.write('\\n' + m + ' value \"ok\"'); sys.stdout.flush(); os._exit(0)",
    "a failed start": "os.ftruncate(1, 0); os._exit(1)",
}
FORGER = """
import os, sys
def f(x):
    frame = sys._getframe()
    while frame and 'task' not in frame.f_locals: frame = frame.f_back
    m = frame.f_locals['task']['marker']
    %s
    return 'no'
"""

EXPRESSIONS = {
    "accepted": ("def f(x): return x", "y = 20", "[f(y), 1.5, {1: (2,)}]", [20, 1.5, {1: (2,)}], Verdict.ACCEPTED),
    "wrong": ("def f(x): return x", "", "f(3)", 4, Verdict.WRONG_ANSWER),
    "bad setup": ("def f(x): return x", "y =", "f(y)", 4, Verdict.SANDBOX_ERROR),
    "bad expression": ("def f(x): return x", "", "f(", 4, Verdict.SANDBOX_ERROR),
    "liar": ("class E:\n  def __eq__(self, o): return True", "", "E()", 4, Verdict.RUNTIME_ERROR),
    "compile error": ("def f(", "", "1", 1, Verdict.COMPILE_ERROR),
    "special values": (
        "def f(): return {(1, 2): {3}, 'n': float('nan'), 'b': b'x', 'i': 2 ** 70}",
        "",
        "f()",
        {(1, 2): {3}, "n": float("nan"), "b": b"x", "i": 2**70},
        Verdict.ACCEPTED,
    ),
}


def agree(best: Bench, remote: SandboxBackend, submission: Submission) -> SuiteResult:
    """Both backends' verdicts are the same; returns the remote result."""

    async def both() -> list[SuiteResult]:
        return await asyncio.gather(best.pool.judge(submission), remote.judge(submission))

    here, there = best.call(both())
    assert [case.verdict for case in there.cases] == [case.verdict for case in here.cases], there
    assert (there.verdict, there.passed, there.compiles) == (here.verdict, here.passed, here.compiles), there
    assert (here.backend, there.backend) == ("local", "fusion")
    return there


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_get_the_verdict_of_a_local_pool(best: Bench, remote: SandboxFusionBackend, name: str) -> None:
    agree(best, remote, Submission(source=SCRIPTS[name], cases=[StdioCase(stdin="ok", expected="ok")], limits=TIGHT))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_get_the_verdict_of_a_local_pool(best: Bench, remote: SandboxFusionBackend, name: str) -> None:
    case = CallCase(args=[[1]], expected="ok")
    agree(best, remote, Submission(source=FUNCTIONS[name], entry_point="f", cases=[case], limits=TIGHT))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_get_the_verdict_of_a_local_pool(best: Bench, remote: SandboxFusionBackend, name: str) -> None:
    source, setup, expression, expected, verdict = EXPRESSIONS[name]
    case = ExpressionCase(setup=setup, expression=expression, expected=expected)
    assert agree(best, remote, Submission(source=source, cases=[case], limits=TIGHT)).verdict is verdict


# What an assert without a comparison asks of a value that cannot leave the process.
TRUTHS = {
    "a match": ("import re\ndef f(x): return re.match('a', 'abc')", True, Verdict.ACCEPTED),
    "no match": ("import re\ndef f(x): return re.match('b', 'abc')", False, Verdict.ACCEPTED),
    "a match too many": ("import re\ndef f(x): return re.match('a', 'abc')", False, Verdict.WRONG_ANSWER),
    "a number": ("def f(x): return 7", True, Verdict.ACCEPTED),
    "nothing": ("def f(x): pass", True, Verdict.WRONG_ANSWER),
    "neither": ("class E:\n  def __bool__(self): return 3\ndef f(x): return E()", True, Verdict.RUNTIME_ERROR),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_truth_is_all_that_counts(best: Bench, remote: SandboxFusionBackend, name: str) -> None:
    source, expected, verdict = TRUTHS[name]
    truth = ExactValue(truth=True)
    cases = [
        CallCase(args=[1], expected=expected, comparator=truth),
        ExpressionCase(expression="f(1)", expected=expected, comparator=truth),
    ]
    result = agree(best, remote, Submission(source=source, entry_point="f", cases=cases, limits=TIGHT))
    assert {case.verdict for case in result.cases} == {verdict}


@pytest.mark.parametrize("name", FORGERS)
def test_forged_lines_win_nothing(best: Bench, remote: SandboxFusionBackend, name: str) -> None:
    """The worst that a program can do to its own lines is to give another answer, or none."""
    expected = {
        "a value and an end": Verdict.ACCEPTED,
        "a failed start": Verdict.COMPILE_ERROR,
        "a value, another returned": Verdict.WRONG_ANSWER,
    }
    submission = Submission(
        source=FORGER % FORGERS[name], entry_point="f", cases=[CallCase(args=[1], expected="ok")], limits=TIGHT
    )
    verdict = best.call(remote.judge(submission)).verdict
    assert verdict is expected.get(name, Verdict.RUNTIME_ERROR)


def test_what_only_a_local_pool_can_see(best: Bench, remote: SandboxFusionBackend) -> None:
    """Only the tail of stderr comes back, and no bytes that are not UTF-8. Both cost a distinction, never a point."""
    flood, raw = (
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "import sys\ndef f(x):\n  sys.stdout.buffer.write(b'\\xff')\n  return 'ok'",
    )
    result = best.call(remote.judge(Submission(source=flood, cases=[StdioCase(stdin="", expected="ok")], limits=TIGHT)))
    assert result.verdict is Verdict.RUNTIME_ERROR
    result = best.call(
        remote.judge(Submission(source=raw, entry_point="f", cases=[CallCase(args=[1], expected="ok")], limits=TIGHT))
    )
    assert result.verdict is Verdict.RUNTIME_ERROR


def test_long_outputs_are_judged_where_the_server_keeps_them(best: Bench, remote: SandboxFusionBackend) -> None:
    """Printing more than other servers keep is no way to not being counted."""
    limits = TIGHT.model_copy(update={"output_bytes": 3 << 20})
    expected = "y" * (300 << 10)
    for printed, verdict in ((300, Verdict.ACCEPTED), (1300, Verdict.WRONG_ANSWER), (3500, Verdict.OUTPUT_LIMIT)):
        script = Submission(
            source=f"print('y' * ({printed} << 10))", cases=[StdioCase(stdin="", expected=expected)], limits=limits
        )
        call = Submission(
            source=f"def f():\n  print('x' * ({printed} << 10))\n  return 'y' * ({printed} << 10)",
            entry_point="f",
            cases=[CallCase(expected=expected)],
            limits=limits,
        )
        for submission in (script, call):
            assert best.call(remote.judge(submission)).verdict is verdict
            assert best.call(best.pool.judge(submission)).verdict is verdict


@pytest.mark.parametrize("stop_at", ["first_failure", "first_timeout", "never"])
def test_stop_is_honoured(best: Bench, remote: SandboxFusionBackend, stop_at: Any) -> None:
    source = "n = int(input())\nif n == 2:\n  while True: pass\nprint(n if n else 'no')"
    cases = [StdioCase(stdin=str(n), expected=str(n)) for n in (1, 0, 2, 3)]
    limits = Limits(cpu_s=0.2, wall_s=2)
    agree(best, remote, Submission(source=source, cases=cases, limits=limits, stop=stop_at))
    agree(best, remote, Submission(source="def f(:", cases=cases, limits=limits, stop=stop_at))


def test_large_input_and_output_arrive_whole(best: Bench, remote: SandboxFusionBackend) -> None:
    text = "0123456789 äö\n" * 150_000
    echo = Submission(
        source="import sys\nsys.stdout.write(sys.stdin.read())", cases=[StdioCase(stdin=text, expected=text)]
    )
    assert agree(best, remote, echo).verdict is Verdict.ACCEPTED
    numbers = list(range(300_000))
    back = Submission(
        source="def f(x): return x[::-1]", entry_point="f", cases=[CallCase(args=[numbers], expected=numbers[::-1])]
    )
    assert agree(best, remote, back).verdict is Verdict.ACCEPTED
    longest = Submission(
        source="#" * (256 * 1024 - 24) + "\ndef f(x): return 'ok'",
        entry_point="f",
        cases=[CallCase(args=[1], expected="ok")],
    )
    assert agree(best, remote, longest).verdict is Verdict.ACCEPTED


def test_results_say_where_they_come_from(best: Bench, remote: SandboxFusionBackend, server: str) -> None:
    result = best.call(
        remote.judge(
            Submission(
                source="def f(x): print('hi'); return [x]", entry_point="f", cases=[CallCase(args=[1], expected=[2])]
            )
        )
    )
    assert result.isolation.level == 0 and result.isolation.level_name == "remote"
    assert result.isolation.layers == {"remote": server}
    case = result.cases[0]
    assert (
        case.returned == "[1]"
        and case.detail == "returned [1], expected [2]"
        and case.stdout_head.strip() == "hi"
        and case.wall_s > 0
    )
    hidden = SandboxFusionBackend("http://user:secret@localhost:1/x/run_code/")
    assert hidden.url == "http://localhost:1/x" and "secret" not in hidden.isolation.model_dump_json()
    assert isinstance(hidden, SandboxBackend) and isinstance(best.pool, SandboxBackend)


def test_import_does_not_load_aiohttp() -> None:
    code = "import sys, sandbox\nfrom sandbox import *\nassert 'aiohttp' not in sys.modules\nsandbox.SandboxFusionBackend\nassert 'aiohttp' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=30)


def plain_python(made: Question, directory: Path) -> bytes:
    """The answer of a server that gives every program to a cold interpreter, as SandboxFusion does."""
    asked = json.loads(made.body())
    (directory / "x.py").write_text(asked["code"])
    done = subprocess.run(
        [sys.executable, "x.py"], input=asked["stdin"], capture_output=True, text=True, cwd=directory, timeout=30
    )
    run = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    return json.dumps({"status": "Failed" if done.returncode else "Success", "run_result": run}).encode()


PLAIN = {
    "accepted": ("def f(x): return x", Verdict.ACCEPTED),
    "wrong": ("def f(x): return x + 1", Verdict.WRONG_ANSWER),
    "prints": ("def f(x):\n  print('noise', end='')\n  return x", Verdict.ACCEPTED),
    "recursion": (
        "def f(x):\n  def g(n): return 0 if n == 0 else 1 + g(n - 1)\n  return x if g(985) else 0",
        Verdict.ACCEPTED,
    ),
    "crash": ("def f(x): return 1 / 0", Verdict.RUNTIME_ERROR),
    "endless recursion": ("def f(x): return f(x)", Verdict.RUNTIME_ERROR),
    "MemoryError": ("def f(x): raise MemoryError", Verdict.MEMORY_LIMIT),
    "syntax error": ("def f(:", Verdict.COMPILE_ERROR),
    "main part": ("def f(x): return x\nif __name__ == '__main__': input()", Verdict.ACCEPTED),
    "exit": ("def f(x): raise SystemExit", Verdict.RUNTIME_ERROR),
}


@pytest.mark.parametrize("name", PLAIN)
def test_sent_programs_run_in_a_plain_interpreter(tmp_path: Path, name: str) -> None:
    source, verdict = PLAIN[name]
    submission = Submission(source=source, entry_point="f", cases=[CallCase(args=[7], expected=7)])
    made = question(submission, submission.cases[0])
    assert isinstance(made, Question)
    judged = judged_answer(made, answer_from(plain_python(made, tmp_path)), KEPT_BYTES)
    result, compiled = judged.result, judged.compiled
    assert result.verdict is verdict and compiled == (verdict is not Verdict.COMPILE_ERROR), result
    assert "x.py" not in result.stderr_tail


@pytest.mark.parametrize(
    "source, verdict",
    [
        ("print('ok')", Verdict.ACCEPTED),
        ("print(", Verdict.COMPILE_ERROR),
        ("x\0", Verdict.COMPILE_ERROR),
        ("exec('(')", Verdict.RUNTIME_ERROR),
    ],
)
def test_scripts_run_in_a_plain_interpreter(tmp_path: Path, source: str, verdict: Verdict) -> None:
    made = question(simple(source), simple().cases[0])
    assert isinstance(made, Question)
    assert judged_answer(made, answer_from(plain_python(made, tmp_path)), KEPT_BYTES).result.verdict is verdict


def test_sent_programs_run_at_every_level(bench: Bench) -> None:
    submission = Submission(
        source="def f(x): return x", entry_point="f", cases=[CallCase(args=[{(1, 2)}], expected={(1, 2)})]
    )
    made = question(submission, submission.cases[0])
    assert isinstance(made, Question)
    asked = json.loads(made.body())
    output = bench.stdout(asked["code"], stdin=asked["stdin"], limits=Limits(memory_mb=16))
    answer = answer_from(json.dumps(response_for(output)).encode())
    assert judged_answer(made, answer, KEPT_BYTES).result.verdict is Verdict.ACCEPTED, output
