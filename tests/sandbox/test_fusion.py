"""The SandboxFusion protocol both ways: our server, our client, and servers that misbehave."""

# ruff: noqa: E501 - tables and programs keep one entry per line

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sandbox_bench import Bench
from test_pool import descendants, wait_gone

from sandbox import (
    CallCase,
    ExpressionCase,
    Limits,
    LocalPool,
    PoolClosedError,
    RemoteSandboxError,
    SandboxBackend,
    SandboxFusionBackend,
    StdioCase,
    Submission,
    SuiteResult,
    UnsupportedCaseError,
    Verdict,
)
from sandbox.__main__ import main
from sandbox.fusion import KEPT_BYTES, PIPE_BYTES, Question, answer_from, question
from sandbox.fusion import judged as judged_answer
from sandbox.server import response_for

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-tests"
TIGHT = Limits(cpu_s=0.5, wall_s=1.0, memory_mb=256)


def start(*arguments: str, token: str | None = None) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address."""
    environment = {name: value for name, value in os.environ.items() if name != "O1CODER_SANDBOX_TOKEN"}
    if token is not None:
        environment["O1CODER_SANDBOX_TOKEN"] = token
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "serving on http://" in line, line + process.stderr.read()
    return process, line.partition("serving on ")[2].partition(",")[0]


def stop(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> int:
    below = descendants(process.pid)
    process.send_signal(how)
    status = process.wait(10)
    assert not wait_gone(below, 1)
    assert process.stderr is not None
    process.stderr.close()
    return status


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process, url = start("--slots", "2")
    yield url
    assert stop(process) == 0


@pytest.fixture(scope="module")
def remote(server: str, best: Bench) -> Iterator[SandboxFusionBackend]:
    """A client on the event loop of `best`."""

    async def made() -> SandboxFusionBackend:
        backend = SandboxFusionBackend(server)
        await backend.start()
        return backend

    backend = best.call(made())
    yield backend
    best.call(backend.aclose())


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
    "bad setup": ("def f(x): return x", "y =", "f(y)", 4, Verdict.RUNTIME_ERROR),
    "bad expression": ("def f(x): return x", "", "f(", 4, Verdict.RUNTIME_ERROR),
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


# The server, spoken to without our client.


def post(url: str, body: Any, token: str | None = None, timeout: float = 20) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of the answer to a run_code request; `body` may be raw bytes."""

    async def asked() -> tuple[int, Any, dict[str, str]]:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session:
            async with session.post(f"{url}/run_code", data=data, headers=headers) as response:
                return response.status, await response.json(), dict(response.headers)

    return asyncio.run(asked())


def get(url: str, path: str) -> tuple[int, Any]:
    async def asked() -> tuple[int, Any]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            async with session.get(url + path) as response:
                return response.status, await response.json()

    return asyncio.run(asked())


def test_answers_have_the_shape_of_the_protocol(server: str) -> None:
    # As verl asks, with a field that only it knows.
    request = {
        "compile_timeout": 5,
        "run_timeout": 1,
        "code": "print(input())",
        "stdin": "hi",
        "language": "python",
        "memory_limit_MB": 256,
        "files": {},
        "fetch_files": [],
        "new": 1,
    }
    status, answer, _ = post(server, request)
    assert status == 200 and answer["run_result"].pop("execution_time") > 0
    assert answer == {
        "status": "Success", "message": "", "compile_result": None, "executor_pod_name": None, "files": {},
        "run_result": {"status": "Finished", "return_code": 0, "stdout": "hi\n", "stderr": ""},
    }  # fmt: skip
    rows = {
        "1 / 0": ("Finished", 1),
        "import sys; sys.exit(3)": ("Finished", 3),
        "def f(:": ("Finished", 1),
        "while True: pass": ("TimeLimitExceeded", None),
        "import time; time.sleep(60)": ("TimeLimitExceeded", None),
        "import os; os.kill(os.getpid(), 9)": ("Finished", -9),
        "try:\n  while True: print('x' * 9999)\nexcept OSError: pass": ("Finished", 1),
        "import sys; sys.stdout.buffer.write(b'\xff')": ("Finished", 1),
    }
    for code, (run_status, return_code) in rows.items():
        _, answer, _ = post(server, {"code": code, "language": "python", "run_timeout": 0.5})
        result = answer["run_result"]
        assert (answer["status"], result["status"]) == ("Failed", run_status), code
        assert result["return_code"] == return_code or (return_code == 1 and result["return_code"] > 0), code
        assert "sandbox/inside" not in result["stderr"], code


def test_isolation_and_ping(server: str, best: Bench) -> None:
    assert get(server, "/v1/ping") == (200, "pong")
    status, report = get(server, "/v1/isolation")
    assert status == 200 and report["level"] == best.pool.isolation.level and "enforced" in report["layers"]["seccomp"]
    assert get(server, "/nothing")[0] == 404 and get(server, "/run_code")[0] == 405


BAD_REQUESTS: list[tuple[Any, int, list[str]]] = [
    (b"{", 400, ["body", "JSON"]),
    (b"\xff", 400, ["body", "JSON"]),
    (b"[" * 100_000, 400, ["body", "JSON"]),
    ([], 422, ["body", "[]", "object"]),
    ({"language": "python"}, 422, ["code", "missing", "print"]),
    ({"code": 1, "language": "python"}, 422, ["code", "1", "print"]),
    ({"code": "#" * 300_000, "language": "python"}, 422, ["code", "300000", "262144"]),
    ({"code": ""}, 422, ["language", "missing", "python"]),
    ({"code": "", "language": "cpp"}, 422, ["language", "cpp", "python"]),
    ({"code": "", "language": "python", "stdin": 3}, 422, ["stdin", "3", '"1 2"']),
    ({"code": "", "language": "python", "run_timeout": -1}, 422, ["run_timeout", "-1", "10"]),
    ({"code": "", "language": "python", "run_timeout": 0}, 422, ["run_timeout", "0", "10"]),
    ({"code": "", "language": "python", "run_timeout": 1e9}, 422, ["run_timeout", "1000000000", "10"]),
    ({"code": "", "language": "python", "run_timeout": float("nan")}, 422, ["run_timeout", "NaN", "10"]),
    ({"code": "", "language": "python", "run_timeout": "10"}, 422, ["run_timeout", '"10"', "10"]),
    ({"code": "", "language": "python", "compile_timeout": -1}, 422, ["compile_timeout", "-1", "10"]),
    ({"code": "", "language": "python", "memory_limit_MB": 1}, 422, ["memory_limit_MB", "1", "1024"]),
    ({"code": "", "language": "python", "memory_limit_MB": -2}, 422, ["memory_limit_MB", "-2", "1024"]),
    ({"code": "", "language": "python", "memory_limit_MB": 1.5}, 422, ["memory_limit_MB", "1.5", "1024"]),
    ({"code": "", "language": "python", "files": {"a": "eA=="}}, 422, ["files", "eA==", "{}"]),
    ({"code": "", "language": "python", "files": []}, 422, ["files", "[]", "{}"]),
    ({"code": "", "language": "python", "fetch_files": ["a"]}, 422, ["fetch_files", '["a"]', "[]"]),
    ({"code": "", "language": "python", "cpu_limit_s": 0}, 422, ["cpu_limit_s", "0", "10"]),
    ({"code": "", "language": "python", "output_limit_bytes": 0}, 422, ["output_limit_bytes", "0", "1048576"]),
]


@pytest.mark.parametrize("row", BAD_REQUESTS, ids=lambda row: repr(row[0])[:60])
def test_bad_request(server: str, row: tuple[Any, int, list[str]]) -> None:
    body, status, named = row
    got, answer, _ = post(server, body)
    assert got == status and all(part in answer["detail"] for part in named), answer
    assert len(answer["detail"]) < 400 and "\n" not in answer["detail"]


def test_too_large_a_body(server: str) -> None:
    status, answer, _ = post(server, b" " * (64 * 1024 * 1024 + 1))
    assert status == 413 and answer["field"] == "body" and str(64 * 1024 * 1024) in answer["detail"]


def test_token(best: Bench, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    process, url = start("--slots", "1", "--host", "0.0.0.0", "--token-file", str(file))
    url = url.replace("0.0.0.0", "127.0.0.1")
    try:
        request = {"code": "", "language": "python"}
        for wrong in (None, "", TOKEN + "x", TOKEN[:-1], "tökén"):
            with contextlib.suppress(UnicodeEncodeError):
                assert post(url, request, wrong)[0] == 401
        assert get(url, "/v1/isolation")[0] == 401
        assert post(url, request, TOKEN)[0] == 200
        assert judged(url, token=TOKEN).verdict is Verdict.ACCEPTED
        for token in (None, "wrong"):
            with pytest.raises(RemoteSandboxError, match="401") as caught:
                judged(url, token=token)
            assert caught.value.status == 401 and url in str(caught.value) and TOKEN not in str(caught.value)
    finally:
        assert stop(process, signal.SIGINT) == 130


def judged(url: str, submission: Submission | None = None, **options: Any) -> SuiteResult:
    """One submission, by default one that is right, on a backend of its own."""
    options.setdefault("backoff_s", 0.01)

    async def work() -> SuiteResult:
        async with SandboxFusionBackend(url, **options) as backend:
            return await backend.judge(submission or simple())

    return asyncio.run(work())


def simple(source: str = "print('ok')", **fields: Any) -> Submission:
    return Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], limits=TIGHT, **fields)


def test_a_full_queue_is_refused_and_runs_of_lost_clients_end() -> None:
    process, url = start("--slots", "1", "--queue", "1")
    try:
        below = descendants(process.pid)
        sleeper = {"code": "import time\ntime.sleep(30)", "language": "python", "run_timeout": 40}

        async def scenario() -> None:
            async with aiohttp.ClientSession() as session:
                runs = [asyncio.ensure_future(session.post(f"{url}/run_code", json=sleeper)) for _ in range(2)]
                await until(lambda: descendants(process.pid) > below)
                await asyncio.sleep(0.2)
                async with session.post(f"{url}/run_code", json=sleeper) as refused:
                    assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1
                    assert "2 runs" in (await refused.json())["detail"]
                for run in runs:
                    run.cancel()
                await asyncio.gather(*runs, return_exceptions=True)
                started = time.monotonic()
                async with session.post(f"{url}/run_code", json={"code": "print(1)", "language": "python"}) as answer:
                    assert (await answer.json())["run_result"]["stdout"] == "1\n"
                assert time.monotonic() - started < 5

        asyncio.run(scenario())
        assert len(descendants(process.pid)) <= len(below)
    finally:
        assert stop(process) == 0


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_the_end_of_the_server_ends_everything(how: signal.Signals) -> None:
    process, url = start("--slots", "2")
    below = descendants(process.pid)

    async def scenario() -> tuple[Any, int, float]:
        limits = Limits(cpu_s=20, wall_s=30)
        async with SandboxFusionBackend(url, attempts=2, backoff_s=0.01) as backend:
            submission = simple("import time\ntime.sleep(30)").model_copy(update={"limits": limits})
            work = [asyncio.ensure_future(backend.judge(submission)) for _ in range(3)]
            await until(lambda: descendants(process.pid) > below)
            started = time.monotonic()
            status = await asyncio.to_thread(stop, process, how)
            return await asyncio.gather(*work), status, time.monotonic() - started

    results, status, seconds = asyncio.run(scenario())
    assert {result.verdict for result in results} == {Verdict.SANDBOX_ERROR}
    assert status == {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGKILL: -9}[how] and seconds < 5


def test_bad_options_of_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("O1CODER_SANDBOX_TOKEN", raising=False)
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = str(taken.getsockname()[1])
    (tmp_path / "empty").write_text("\n")
    rows = {
        ("--port", port): ["--port", port, "in use", "0"],
        ("--port", "65536"): ["--port", "65536", "8080"],
        ("--port", "-1"): ["--port", "-1", "8080"],
        ("--host", "no.such.host.invalid", "--port", "0"): ["--host", "no.such.host.invalid", "127.0.0.1"],
        ("--host", "", "--port", "0"): ["--host", "''", "127.0.0.1"],
        ("--host", "0.0.0.0", "--port", "0"): ["--host", "0.0.0.0", "O1CODER_SANDBOX_TOKEN", "--token-file"],
        ("--host", "::", "--port", "0"): ["--host", "::", "O1CODER_SANDBOX_TOKEN"],
        ("--host", "192.0.2.1", "--port", "0", "--token-file", str(Path(__file__).parent / "token")): [
            "--token-file",
            "No such file",
        ],
        ("--token-file", str(tmp_path / "empty"), "--port", "0"): ["--token-file", "no token"],
        ("--slots", "0"): ["--slots", "0", "1"],
        ("--queue", "-1"): ["--queue", "-1", "0"],
    }
    with taken:
        for arguments, named in rows.items():
            status = main(["serve", *arguments])
            said = capsys.readouterr()
            assert status == 2 and said.out == "" and said.err.count("\n") == 1, said
            assert all(part in said.err for part in named), said.err


# The client, with servers that misbehave.

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def finished(stdout: str = "ok\n", return_code: int = 0, **fields: Any) -> web.Response:
    result = {"status": "Finished", "execution_time": 0.1, "return_code": return_code, "stdout": stdout, "stderr": ""}
    status = "Success" if return_code == 0 and result | fields == result | fields | {"status": "Finished"} else "Failed"
    return web.json_response(
        {"status": status, "message": "", "compile_result": None, "run_result": result | fields, "files": {}}
    )


class Faulty:
    """A server that passes the start's questions on to a real one and answers the rest as a test wants."""

    def __init__(self, real: str, handler: Handler) -> None:
        self.real = real
        self.handler = handler
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    async def _run_code(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "value " in body["code"]:  # the probe of the start: a sent program
            async with aiohttp.ClientSession() as session:
                async with session.post(f"{self.real}/run_code", json=body) as answer:
                    return web.Response(body=await answer.read(), content_type="application/json")
        self.asked.append(body)
        return await self.handler(request)

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response("pong")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/run_code", self._run_code)
        application.router.add_get("/v1/ping", self._ping)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()


def against(
    real: str, handler: Handler, submission: Submission | None = None, **options: Any
) -> tuple[SuiteResult, list[dict[str, Any]]]:
    """The result of a submission on a faulty server, and the requests that it got."""
    options = {"attempts": 3, "backoff_s": 0.01, "queue_timeout_s": 30} | options

    async def work() -> tuple[SuiteResult, list[dict[str, Any]]]:
        faulty = Faulty(real, handler)
        async with faulty.serving(), SandboxFusionBackend(faulty.url, **options) as backend:
            return await backend.judge(submission or simple()), faulty.asked

    return asyncio.run(work())


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "4000"})
    await response.prepare(request)
    await response.write(b'{"status": "Success", "run_res')
    return await drop(request)


async def drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def always(response: Callable[[], web.StreamResponse]) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return response()

    return handler


USELESS = {
    "HTTP 500": always(lambda: web.Response(status=500, text="boom")),
    "HTTP 503": always(lambda: web.Response(status=503, headers={"Retry-After": "0"})),
    "HTTP 429": always(lambda: web.Response(status=429)),
    "garbage": always(lambda: web.Response(text="<html>")),
    "half an answer": always(lambda: web.Response(text='{"status": "Success", "run_res')),
    "empty": always(lambda: web.Response(text="")),
    "another object": always(lambda: web.json_response({"accepted": True})),
    "nested": always(lambda: web.Response(text="[" * 100_000)),
    "no run": always(lambda: web.json_response({"status": "Success", "message": "", "run_result": None})),
    "no return code": always(lambda: finished(return_code=None)),  # type: ignore[arg-type]
    "unknown status": always(lambda: web.json_response({"status": "Fine", "run_result": None})),
    "text for a number": always(lambda: finished(return_code="0")),  # type: ignore[arg-type]
    "success with a failure": always(
        lambda: web.json_response(
            {"status": "Success", "run_result": {"status": "Finished", "return_code": 1, "stdout": "ok"}}
        )
    ),
    "SandboxError": always(
        lambda: web.json_response({"status": "SandboxError", "message": "no room", "run_result": None})
    ),
    "Error": always(
        lambda: web.json_response({"status": "Failed", "run_result": {"status": "Error", "stderr": "no bash"}})
    ),
    "an endless answer": always(lambda: web.Response(body=b" " * 20_000_000)),
}


@pytest.mark.parametrize("name", USELESS)
def test_useless_answers_are_asked_again_and_never_a_verdict(server: str, name: str) -> None:
    result, asked = against(server, USELESS[name])
    assert result.verdict is Verdict.SANDBOX_ERROR and not result.compiles and len(asked) == 3
    assert "http://127.0.0.1:" in (result.cases[0].detail or "")


@pytest.mark.parametrize("handler", [cut_off, drop])
def test_connection_trouble(server: str, handler: Handler) -> None:
    result, asked = against(server, handler)
    assert result.verdict is Verdict.SANDBOX_ERROR and len(asked) == 3


def test_trouble_that_passes(server: str) -> None:
    answers = iter([USELESS["SandboxError"], USELESS["HTTP 500"], always(finished)])

    async def handler(request: web.Request) -> web.StreamResponse:
        return await next(answers)(request)

    result, asked = against(server, handler)
    assert result.verdict is Verdict.ACCEPTED and len(asked) == 3


def test_a_hanging_server_meets_the_deadline(server: str) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return finished()

    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandbox.fusion.COMPILE_TIMEOUT_S", 0.2)
        limits = Limits(cpu_s=0.1, wall_s=0.1)
        submission = simple().model_copy(update={"limits": limits})
        result, asked = against(server, hang, submission, queue_timeout_s=0.3, attempts=2)
    assert result.verdict is Verdict.SANDBOX_ERROR and len(asked) == 2 and "time-out" in (result.cases[0].detail or "")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 302, 204])
def test_refusals_are_configuration_mistakes(server: str, status: int) -> None:
    with pytest.raises(RemoteSandboxError, match=f"http://127.0.0.1:[0-9]+: HTTP {status}") as caught:
        against(server, always(lambda: web.Response(status=status, headers={"Location": "http://example.invalid/"})))
    assert caught.value.status == status


MAPPED: dict[str, tuple[Handler, Verdict]] = {
    "right": (always(finished), Verdict.ACCEPTED),
    "return code 0 is not enough": (always(lambda: finished("")), Verdict.WRONG_ANSWER),
    "time limit": (always(lambda: finished("ok", None, status="TimeLimitExceeded")), Verdict.TIME_LIMIT),  # type: ignore[arg-type]
    "time limit after a flood": (
        always(lambda: finished("x" * 70_000, None, status="TimeLimitExceeded")),
        Verdict.OUTPUT_LIMIT,
    ),  # type: ignore[arg-type]
    "memory": (always(lambda: finished("ok", 1, stderr="Traceback\nMemoryError\n")), Verdict.MEMORY_LIMIT),
    "crash": (always(lambda: finished("ok", 1, stderr="Traceback\nValueError\n")), Verdict.RUNTIME_ERROR),
    "killed": (always(lambda: finished("ok", -11)), Verdict.RUNTIME_ERROR),
    "compile step": (
        always(
            lambda: web.json_response(
                {
                    "status": "Failed",
                    "compile_result": {"status": "Finished", "return_code": 1, "stderr": "SyntaxError: x"},
                }
            )
        ),
        Verdict.COMPILE_ERROR,
    ),
    "null texts": (always(lambda: finished(None, stderr=None)), Verdict.WRONG_ANSWER),  # type: ignore[arg-type]
    "more than asked for": (always(lambda: finished(extra={"a": 1}, execution_time=None)), Verdict.ACCEPTED),
}


@pytest.mark.parametrize("name", MAPPED)
def test_answers_become_verdicts(server: str, name: str) -> None:
    handler, verdict = MAPPED[name]
    result, asked = against(server, handler)
    assert result.verdict is verdict and len(asked) == 1
    sent = asked[0]
    assert (sent["code"], sent["language"], sent["stdin"], sent["files"], sent["fetch_files"]) == (
        "print('ok')",
        "python",
        "",
        {},
        [],
    )
    assert sent["run_timeout"] == 1.0 and sent["memory_limit_MB"] == 256


class Lossy(Faulty):
    """A server that stops programs which print more than a pipe holds, as some versions do."""

    async def _run_code(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{self.real}/run_code", json=body) as response:
                answer = await response.json()
        run = answer["run_result"]
        if len(run["stdout"]) > PIPE_BYTES:
            answer["status"] = "Failed"
            run.update(status="TimeLimitExceeded", return_code=None, stdout=run["stdout"][:PIPE_BYTES])
        return web.json_response(answer)


def test_a_server_that_loses_output_is_found_out(server: str) -> None:
    long = "x" * 100_000
    rows = [
        (simple(), Verdict.ACCEPTED),
        (simple("while True: pass"), Verdict.TIME_LIMIT),
        (
            Submission(source=f"print('{long}')", cases=[StdioCase(stdin="", expected=long)], limits=TIGHT),
            Verdict.SANDBOX_ERROR,
        ),
        (
            Submission(
                source="def f(): print('x' * 100_000); return 1",
                entry_point="f",
                cases=[CallCase(expected=1)],
                limits=TIGHT,
            ),
            Verdict.SANDBOX_ERROR,
        ),
        (
            Submission(source="def f(): return 1", entry_point="f", cases=[CallCase(expected=1)], limits=TIGHT),
            Verdict.ACCEPTED,
        ),
    ]

    async def work() -> list[Verdict]:
        lossy = Lossy(server, always(finished))
        async with lossy.serving(), SandboxFusionBackend(lossy.url) as backend:
            return [(await backend.judge(submission)).verdict for submission, _ in rows]

    assert asyncio.run(work()) == [verdict for _, verdict in rows]


def test_output_that_a_server_cuts_off_is_no_wrong_answer(server: str) -> None:
    """Servers keep a MiB: a longer expected output cannot be judged by what comes back."""
    expected = "y" * (KEPT_BYTES + 1)
    cut = always(lambda: finished(expected[:KEPT_BYTES]))
    long = Submission(source="", cases=[StdioCase(stdin="", expected=expected)], limits=TIGHT)
    assert against(server, cut, long)[0].verdict is Verdict.SANDBOX_ERROR
    assert against(server, cut)[0].verdict is Verdict.OUTPUT_LIMIT
    assert against(server, always(lambda: finished("no")), long)[0].verdict is Verdict.WRONG_ANSWER


def test_a_server_that_is_not_there_or_not_one() -> None:
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(RemoteSandboxError, match=f"{url}: cannot be reached") as caught:
            judged(url, attempts=2)
        assert caught.value.status is None and caught.value.url == url
    with socket.socket() as silent:  # accepts, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(RemoteSandboxError, match="time-out"):
            judged(
                f"http://127.0.0.1:{silent.getsockname()[1]}", attempts=2, connect_timeout_s=0.2, queue_timeout_s=0.2
            )
    with pytest.raises(RemoteSandboxError, match="cannot be reached"):
        judged("http://no.such.host.invalid", attempts=1)

    class Broken(Faulty):
        async def _run_code(self, request: web.Request) -> web.StreamResponse:
            return finished("python: not found", 127)

    async def work() -> None:
        broken = Broken("", always(finished))
        async with broken.serving(), SandboxFusionBackend(broken.url):
            pass

    with pytest.raises(RemoteSandboxError, match="does not run a known program"):
        asyncio.run(work())


def test_unusable_arguments() -> None:
    for url in (
        "",
        "localhost:8080",
        "ftp://a",
        "http://",
        "http://a:99999",
        "http://a:0",
        "http://[",
        "http://a?b=1",
        "http://a#b",
        "http:///x",
    ):
        with pytest.raises(ValueError, match=r"url .*http://127.0.0.1:8080"):
            SandboxFusionBackend(url)
    with pytest.raises(ValueError, match="url") as caught:
        SandboxFusionBackend("ftp://user:secret@a")
    assert "secret" not in str(caught.value)
    for options in (
        {"attempts": 0},
        {"concurrency": 0},
        {"backoff_s": -1},
        {"connect_timeout_s": 0},
        {"queue_timeout_s": float("nan")},
        {"token": "a b"},
        {"token": ""},
        {"token": "a\r\nb"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            SandboxFusionBackend("http://a", **options)
    with pytest.raises(ValueError, match="either"):
        SandboxFusionBackend("http://u:p@a", token="t")


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
    result, compiled = judged_answer(made, answer_from(plain_python(made, tmp_path)), KEPT_BYTES)
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
    assert judged_answer(made, answer_from(plain_python(made, tmp_path)), KEPT_BYTES)[0].verdict is verdict


def test_sent_programs_run_at_every_level(bench: Bench) -> None:
    submission = Submission(
        source="def f(x): return x", entry_point="f", cases=[CallCase(args=[{(1, 2)}], expected={(1, 2)})]
    )
    made = question(submission, submission.cases[0])
    assert isinstance(made, Question)
    asked = json.loads(made.body())
    output = bench.stdout(asked["code"], stdin=asked["stdin"], limits=Limits(memory_mb=16))
    answer = answer_from(json.dumps(response_for(output)).encode())
    assert judged_answer(made, answer, KEPT_BYTES)[0].verdict is Verdict.ACCEPTED, output


class OtherCase(StdioCase):
    """A kind that this client does not know."""


def test_unsupported_cases_are_refused_before_anything_is_sent(server: str) -> None:
    rows = [
        (OtherCase(stdin="", expected="ok"), TIGHT),
        (StdioCase(stdin="\ud800", expected="ok"), TIGHT),
        (StdioCase(stdin="", expected=""), Limits(output_bytes=1 << 30)),
    ]
    for case, limits in rows:
        submission = simple().model_copy(update={"cases": [StdioCase(stdin="", expected="ok"), case], "limits": limits})
        asked: list[dict[str, Any]] = []

        async def record(request: web.Request, asked: list[Any] = asked) -> web.StreamResponse:
            asked.append(request)
            return finished()

        with pytest.raises(UnsupportedCaseError):
            against(server, record, submission)
        assert asked == []


def test_concurrency_and_the_end_of_a_backend(server: str) -> None:
    running, most = 0, 0

    async def slow(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(60 if (await request.json())["stdin"] == "forever" else 0.05)
        running -= 1
        return finished()

    async def work() -> None:
        faulty = Faulty(server, slow)
        async with faulty.serving():
            backend = SandboxFusionBackend(faulty.url, concurrency=3)
            with pytest.raises(PoolClosedError):
                await backend.judge(simple())
            await backend.start()
            with pytest.raises(PoolClosedError):
                await backend.start()
            results = await asyncio.gather(*(backend.judge(simple()) for _ in range(12)))
            assert {result.verdict for result in results} == {Verdict.ACCEPTED} and most == 3
            forever = simple().model_copy(update={"cases": [StdioCase(stdin="forever", expected="ok")]})
            waiting = [asyncio.ensure_future(backend.judge(forever)) for _ in range(5)]
            await asyncio.sleep(0.2)
            await backend.aclose()
            async with asyncio.timeout(5):
                ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(error, PoolClosedError) for error in ended), ended
            with pytest.raises(PoolClosedError):
                await backend.judge(simple())

    asyncio.run(work())
    assert isinstance(LocalPool(1), SandboxBackend)
