"""The client, with servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fusion_bench import TIGHT, judged, simple

from sandbox import (
    AssertCase,
    CallCase,
    CheckerProgram,
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
from sandbox.fusion import KEPT_BYTES, PIPE_BYTES

pytestmark = pytest.mark.slow  # starts processes all the time

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
        self._lose(answer)
        return web.json_response(answer)

    def _lose(self, answer: dict[str, Any]) -> None:
        run = answer["run_result"]
        if len(run["stdout"]) > PIPE_BYTES:
            answer["status"] = "Failed"
            run.update(status="TimeLimitExceeded", return_code=None, stdout=run["stdout"][:PIPE_BYTES])


class Keeping(Lossy):
    """A server that keeps a MiB of what a program prints, as most do."""

    def _lose(self, answer: dict[str, Any]) -> None:
        answer["run_result"]["stdout"] = answer["run_result"]["stdout"][:KEPT_BYTES]


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
    size = KEPT_BYTES + 1
    long = StdioCase(stdin="", expected="y" * size)
    rows = [
        (f"print('y' * {size})", long, Verdict.SANDBOX_ERROR),
        (f"print('y' * {size})", StdioCase(stdin="", expected="ok"), Verdict.OUTPUT_LIMIT),
        ("print('no')", long, Verdict.WRONG_ANSWER),
    ]

    async def work() -> list[Verdict]:
        keeping = Keeping(server, always(finished))
        async with keeping.serving(), SandboxFusionBackend(keeping.url) as backend:
            made = [Submission(source=source, cases=[case], limits=TIGHT) for source, case, _ in rows]
            return [(await backend.judge(submission)).verdict for submission in made]

    assert asyncio.run(work()) == [verdict for *_, verdict in rows]


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


def test_unsupported_cases_are_refused_before_anything_is_sent(server: str) -> None:
    rows = [
        (AssertCase(code="assert f() == 1", entry_point="f"), TIGHT),
        (StdioCase(stdin="", expected="ok", comparator=CheckerProgram(source="def check(*a): return True")), TIGHT),
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
