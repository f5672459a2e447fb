"""Our server, mostly spoken to without our client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fusion_bench import TOKEN, judged, simple, start, stop, until
from sandbox_bench import Bench

from sandbox import (
    Limits,
    RemoteSandboxError,
    SandboxFusionBackend,
    Verdict,
)
from sandbox.__main__ import main
from sandbox.bench import processes_below
from sandbox.server import RefusedError, run_request

pytestmark = pytest.mark.slow  # starts processes all the time


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


def test_a_body_nested_too_deep(server: str) -> None:
    for depth in (500, 200_000):
        status, answer, _ = post(server, b"[" * depth + b"]" * depth)
        assert status in (400, 422) and answer["detail"].startswith("body")
    for depth in range(800, 1000):  # somewhere here reading works and writing does not
        nested = b"[" * depth + b"]" * depth
        for body in (nested, b'{"language": "python", "code": ' + nested + b"}"):
            with pytest.raises(RefusedError, match=r"body|code"):
                run_request(body)


def test_a_body_that_is_no_gzip(server: str) -> None:
    async def asked() -> tuple[int, Any]:
        headers = {"Content-Encoding": "gzip"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            async with session.post(f"{server}/run_code", data=b"no gzip at all", headers=headers) as response:
                return response.status, await response.json()

    status, answer = asyncio.run(asked())
    assert status == 400 and answer["field"] == "body" and "gzip" in answer["detail"]


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


def test_a_full_queue_is_refused_and_runs_of_lost_clients_end() -> None:
    process, url = start("--slots", "1", "--queue", "1")
    try:
        below = processes_below(process.pid)
        sleeper = {"code": "import time\ntime.sleep(30)", "language": "python", "run_timeout": 40}

        async def scenario() -> None:
            async with aiohttp.ClientSession() as session:
                runs = [asyncio.ensure_future(session.post(f"{url}/run_code", json=sleeper)) for _ in range(2)]
                await until(lambda: processes_below(process.pid) > below)
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
        assert len(processes_below(process.pid)) <= len(below)
    finally:
        assert stop(process) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_server_ends_everything(how: signal.Signals) -> None:
    process, url = start("--slots", "2")
    below = processes_below(process.pid)

    async def scenario() -> tuple[Any, int, float]:
        limits = Limits(cpu_s=20, wall_s=30)
        async with SandboxFusionBackend(url, attempts=2, backoff_s=0.01) as backend:
            submission = simple("import time\ntime.sleep(30)").model_copy(update={"limits": limits})
            work = [asyncio.ensure_future(backend.judge(submission)) for _ in range(3)]
            await until(lambda: processes_below(process.pid) > below)
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
