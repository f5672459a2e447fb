"""What the tables of attacks cannot say: several runs, several cases, the judge's own time; and honest programs."""

# ruff: noqa: E501 - programs are easier to read on one line

from __future__ import annotations

import os
import threading
import time

import pytest
from attacks import covers
from sandbox_bench import QUICK, Bench

from sandbox import AssertCase, CallCase, Limits, SandboxUnavailableError, StdioCase, Verdict


@covers(22)
def test_sys_modules_poison_does_not_reach_the_next_run(bench: Bench) -> None:
    poison = "import math, sys, builtins\nmath.floor = lambda x: 99\nsys.modules['json'] = None\nbuiltins.sum = None\nprint('ok')"
    assert bench.script(poison).verdict is Verdict.ACCEPTED
    clean = (
        "import json, math\nprint('ok' if math.floor(1.5) == 1 and sum([1]) == 1 and json.dumps([]) == '[]' else 'no')"
    )
    assert bench.script(clean).verdict is Verdict.ACCEPTED


@covers(23)
def test_every_test_gets_a_fresh_process(bench: Bench) -> None:
    source = "n = 0\ndef f():\n  global n\n  n += 1\n  return n"
    assert bench.judge(source, *[CallCase(expected=1)] * 3, entry_point="f").passed == 3


@covers(31, 42)
def test_only_our_environment_and_streams(bench: Bench) -> None:
    source = (
        "import os\nprint(sorted(os.environ))\nopen_fds = []\nfor fd in range(4096):\n"
        "  try: os.fstat(fd); open_fds.append(fd)\n  except OSError: pass\nprint(open_fds)"
    )
    names, fds = bench.stdout(source).stdout.splitlines()
    allowed = {"LANG", "LC_CTYPE", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TZ"}
    assert set(eval(names)) <= allowed | {"LD_LIBRARY_PATH"}
    assert fds == "[0, 1, 2]"


@covers(24)
def test_echo_of_the_visible_sample(bench: Bench) -> None:
    sample, hidden = StdioCase(stdin="1", expected="one"), StdioCase(stdin="2", expected="two")
    result = bench.judge("print({'1': 'one'}.get(input()))", sample, hidden)
    assert [case.verdict for case in result.cases] == [Verdict.ACCEPTED, Verdict.WRONG_ANSWER]
    assert result.verdict is Verdict.WRONG_ANSWER


@covers(72)
def test_unknown_call_is_not_implemented(bench: Bench) -> None:
    source = "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall({})\nprint(errno.errorcode[ctypes.get_errno()])"
    for number in (1000, 435):  # an unknown one, and clone3
        assert bench.stdout(source.format(number)).stdout == "ENOSYS\n"


HONEST = {
    "threads": "import threading\nts = [threading.Thread(target=print, args=('ok',)) for _ in range(1)]\n[t.start() for t in ts]\n[t.join() for t in ts]",
    "asyncio": "import asyncio\nasync def main():\n  await asyncio.sleep(0)\n  print('ok')\nasyncio.run(main())",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor as P\nwith P(4) as p: print(list(p.map(str, ['ok']))[0])",
    "queue": "import queue\nq = queue.Queue()\nq.put('ok')\nprint(q.get())",
    "stack size": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(64 << 20)\n"
        "def f(n): return n and f(n - 1)\nt = threading.Thread(target=lambda: print('ok' if f(50000) == 0 else 'no'))\nt.start()"
    ),
    "alarm": "import signal\ntry:\n  signal.signal(14, lambda *a: 1 / 0)\n  signal.setitimer(0, .05)\n  signal.pause()\nexcept ZeroDivisionError: print('ok')",
    "lower a limit": "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 25, resource.RLIM_INFINITY))\nprint('ok')",
    "usual imports": (
        "import bisect, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, json, math, operator, os, "
        "random, re, string, sys, time, typing, statistics\nprint('ok')"
    ),
}


@covers(52)
@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_work(bench: Bench, name: str) -> None:
    result = bench.script(HONEST[name])
    assert result.verdict is Verdict.ACCEPTED, result


def test_imports_from_the_library(bench: Bench) -> None:
    if bench.pool.isolation.level == 1:
        pytest.skip("no file system at this level")
    source = "import difflib, sqlite3, xml.etree.ElementTree, zoneinfo, lzma, os\nopen(os.devnull, 'w').write('x')\nprint('ok')"
    assert bench.script(source).verdict is Verdict.ACCEPTED


@covers(59)
def test_thread_bomb_stays_inside(bench: Bench) -> None:
    source = (
        "import threading, time\nn = 0\ntry:\n  while n < 2000:\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n    n += 1\nexcept RuntimeError: pass\nprint(n)"
    )
    output = bench.stdout(source, limits=Limits(cpu_s=2, wall_s=6, memory_mb=256))
    assert output.ok and int(output.stdout) < 2000
    if bench.pool.isolation.layers["threads"] == "enforced":
        assert int(output.stdout) <= 16


@covers(92)
def test_hash_collisions_do_not_stall_the_judge(best: Bench) -> None:
    source = "def f():\n  m = (1 << 61) - 1\n  return set(range(0))"
    forged = (
        "import os\ndef f():\n  m = (1 << 61) - 1\n"
        "  text = '{\"$set\":[' + ','.join('{\"$int\":\"%s\"}' % hex(m * i << 3) for i in range(20000)) + ']}'\n"
        "  os.write(3, text.encode())\n  os._exit(0)"
    )
    assert best.value(source, expected=set()).verdict is Verdict.ACCEPTED
    result = best.value(forged, expected=set())
    assert result.verdict is Verdict.RUNTIME_ERROR and "equal hashes" in (result.detail or "")


def test_huge_integers_are_compared_and_shown(best: Bench) -> None:
    result = best.value("def f(): return 10 ** 20000", expected=10**20000 + 1)
    assert result.verdict is Verdict.WRONG_ANSWER
    assert best.value("def f(): return 10 ** 20000", expected=10**20000).verdict is Verdict.ACCEPTED
    assert best.value("def f(): return 10 ** 20000", expected=1.5).verdict is Verdict.WRONG_ANSWER


@pytest.mark.parametrize("memory_mb", [16, 64])
def test_small_memory_is_the_program_s_own_trouble(bench: Bench, memory_mb: int) -> None:
    limits = Limits(cpu_s=1, memory_mb=memory_mb)
    assert bench.script("print('ok')", limits=limits).verdict is Verdict.ACCEPTED
    assert bench.script("x = 'a' * (1 << 27)", limits=limits).verdict is Verdict.MEMORY_LIMIT
    assert bench.script("import math\n" + "x = 1\n" * 40000, "", "", limits=limits).verdict is not Verdict.SANDBOX_ERROR


@pytest.mark.parametrize("output_bytes", [1, 100])
def test_small_output_limit(bench: Bench, output_bytes: int) -> None:
    limits = Limits(cpu_s=1, output_bytes=output_bytes)
    assert bench.script("print('o' * 1000)", limits=limits).verdict is Verdict.OUTPUT_LIMIT
    assert bench.script("x = (", limits=limits).verdict is Verdict.COMPILE_ERROR
    assert bench.script("pass", "", "", limits=limits).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "text", ["[" * 50000, "9" * 10000, '{"$set":[[]]}', '{"$x":1}', "NaN", "1e999", '"\\ud800"', "\xff"]
)
def test_malformed_values(best: Bench, text: str) -> None:
    forged = f"import os\ndef f():\n  os.write(3, {text.encode('latin-1')!r})\n  os._exit(0)"
    assert best.value(forged).verdict in (Verdict.RUNTIME_ERROR, Verdict.WRONG_ANSWER)


def test_no_thread_of_ours_sees_a_signal(best: Bench) -> None:
    # The pool runs in a thread that is not the main one and installs no signal handler.
    assert threading.current_thread() is threading.main_thread()
    assert best.judge("print('ok')", StdioCase(stdin="", expected="ok"), limits=QUICK).verdict is Verdict.ACCEPTED


@pytest.mark.slow
@covers(91)
def test_fifty_megabytes_of_legal_output(best: Bench) -> None:
    """Judged in bounded time, and to the last byte."""
    limits = Limits(cpu_s=4, output_bytes=64 << 20)
    lines = 50 * 1000 * 1000 // 100
    source = f"for i in range({lines}): print('x' * 99)"
    expected = ("x" * 99 + "\n") * lines
    for wanted, verdict in ((expected, Verdict.ACCEPTED), (expected + "y", Verdict.WRONG_ANSWER)):
        started = time.monotonic()
        assert best.judge(source, StdioCase(stdin="", expected=wanted), limits=limits).verdict is verdict
        assert time.monotonic() - started < 30


FORGE = (
    "import os, struct\nfound = []\nfor fd in range(3, 4096):\n"
    "  try: os.fstat(fd)\n  except OSError: continue\n  found.append(fd)\n"
    "  for run_id in range(50):\n"
    "    try: os.write(fd, struct.pack('<QiBdddQBQH', run_id, 0, 0, .0, .0, .0, 0, 1, 0, 2) + b'BR')\n"
    "    except OSError: pass\n"
    "print(found)"
)


@covers(15, 42)
@pytest.mark.parametrize("level", [3, 2, 1])
def test_no_descriptor_of_a_caller_with_many_reaches_a_run(level: int) -> None:
    """The control socket gets a high number then; a run that held it could answer for the zygote."""
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(600)]
    try:
        bench = Bench(level=level)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    finally:
        for fd in many:
            os.close(fd)
    try:
        assert bench.stdout(FORGE).stdout == "[]\n"
        inside = (
            "import os\nfound = []\nfor fd in range(3, 4096):\n  try: os.fstat(fd); found.append(fd)\n  except OSError: pass\n"
            "def f(): return found"
        )
        pair = AssertCase(code="assert f() == [3]", entry_point="f")  # the channel to its test
        assert bench.judge(inside, pair).verdict is Verdict.ACCEPTED
        assert bench.script("print('ok')").verdict is Verdict.ACCEPTED and bench.pool.stats().retries == 0
    finally:
        bench.close()
