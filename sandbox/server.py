"""`python -m sandbox serve`: the SandboxFusion protocol, answered by a LocalPool.

    POST /run_code      {code, language: "python", stdin, run_timeout, ...}
    GET  /v1/ping       "pong"
    GET  /v1/isolation  what protects this host from the programs

A run waits for a free cell, then gets `run_timeout` seconds on the clock and as many of CPU time. Two more fields,
which other servers do not know, say it better: `cpu_limit_s`, and `output_limit_bytes` instead of 1 MiB for each
stream. Only the last 2 KiB of stderr are delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox import fusion
from sandbox.pool import LocalPool, PoolClosedError
from sandbox.records import MAX_SOURCE_BYTES, Limits, RunOutput, source_bytes
from sandbox.verdicts import Verdict

log = logging.getLogger("sandbox")

TOKEN_VARIABLE: Final = "O1CODER_SANDBOX_TOKEN"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8080
DEFAULT_QUEUE: Final = 256
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
BODY_TIMEOUT_S: Final = 30.0
RESOLVE_TIMEOUT_S: Final = 10.0
DRAIN_S: Final = 2.0
CLOSE_S: Final = 1.0
IDLE_S: Final = 75.0
EXIT_INTERRUPTED: Final = 130
_RETRY: Final = {"Retry-After": "1"}


class ServeInputError(ValueError):
    """The server cannot be started as asked; the message names the field, the value and a legal one."""


@dataclass(frozen=True)
class Settings:
    """How to serve. `token` None: no one has to show one. `queue`: runs that wait beside those that run."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    slots: int | None = None
    min_level: int = 1
    queue: int = DEFAULT_QUEUE
    token: str | None = None
    packages: tuple[str, ...] = ()


class RunRequest(BaseModel):
    """The body of a run_code request: seconds, MiB, bytes. Unknown fields are ignored: clients differ."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    code: str
    language: Literal["python"]
    stdin: str | None = None
    run_timeout: float = Field(default=10.0, gt=0, le=36000, allow_inf_nan=False)
    compile_timeout: float = Field(default=10.0, gt=0, le=36000, allow_inf_nan=False)
    memory_limit_MB: int = Field(default=-1, ge=-1, le=1024 * 1024)
    files: dict[str, Any] = Field(default={}, max_length=0)
    fetch_files: list[Any] = Field(default=[], max_length=0)
    cpu_limit_s: float | None = Field(default=None, gt=0, le=3600, allow_inf_nan=False)
    output_limit_bytes: int | None = Field(default=None, ge=1, le=fusion.OUTPUT_MAX_BYTES)

    def limits(self) -> Limits:
        """The limits of the run. -1 and 0 MiB mean the default of this sandbox. Raises ValidationError."""
        memory = {"memory_mb": self.memory_limit_MB} if self.memory_limit_MB > 0 else {}
        cpu_s = min(self.cpu_limit_s or self.run_timeout, self.run_timeout, 3600.0)
        return Limits(cpu_s=cpu_s, wall_s=self.run_timeout, output_bytes=self.output_limit_bytes, **memory)


_LEGAL: Final = {
    "code": '"print(1)"',
    "language": '"python"',
    "stdin": '"1 2"',
    "run_timeout": "10",
    "compile_timeout": "10",
    "memory_limit_MB": "1024, and at least 16",
    "files": "{}: files are not offered",
    "fetch_files": "[]: files are not offered",
    "cpu_limit_s": "10",
    "output_limit_bytes": "1048576",
}


class RefusedError(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: int, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.field = field


def run_request(body: bytes) -> tuple[RunRequest, Limits]:
    """The request in a body and the limits that it asks for. Raises RefusedError."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"body: {_short(body)} is not JSON: {str(error)[:100]}", "body") from None
    if not isinstance(data, dict):
        raise RefusedError(422, f'body: {_short(data)} is not an object, e.g. {{"code": ..., "language": "python"}}')
    try:
        request = RunRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _bad_field(str(first["loc"][0]), data, first["msg"]) from None
    size = len(source_bytes(request.code))
    if size > MAX_SOURCE_BYTES:
        raise RefusedError(422, f"code: {size} bytes; at most {MAX_SOURCE_BYTES} are allowed", "code")
    try:
        return request, request.limits()
    except ValidationError as error:
        raise _bad_field("memory_limit_MB", data, error.errors(include_url=False)[0]["msg"]) from None


def _bad_field(field: str, data: dict[str, Any], message: str) -> RefusedError:
    value = _short(data[field]) if field in data else "missing"
    return RefusedError(422, f"{field}: {value}: {message}; a legal value: {_LEGAL.get(field, 'none')}", field)


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return repr(value.decode("utf-8", "replace")[:80])
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "a value nested too deep"


def response_for(output: RunOutput) -> dict[str, Any]:
    """The answer to a run, in the shape of the protocol."""
    verdict = output.verdict
    if verdict is Verdict.SANDBOX_ERROR:
        return _response("SandboxError", output.detail or "", _command(output, "Error", None, output.detail or ""))
    if verdict is Verdict.TIME_LIMIT:
        return _response("Failed", "", _command(output, "TimeLimitExceeded", None, output.stderr_tail))
    if verdict is Verdict.ACCEPTED:
        return _response("Success", "", _command(output, "Finished", 0, output.stderr_tail))
    # A run over its output limit, for one, may have ended well by itself: clients must not take that for success.
    return _response("Failed", "", _command(output, "Finished", output.exit_status or 1, _stderr(output)))


def _stderr(output: RunOutput) -> str:
    """The error output in the form by which clients of this protocol tell failures apart."""
    stderr, detail = output.stderr_tail, output.detail or ""
    if output.verdict is Verdict.MEMORY_LIMIT and not detail.startswith("MemoryError"):
        return f"{stderr}{detail}\nMemoryError\n"
    return stderr if output.exit_status else f"{stderr}{detail}\n"


def _command(output: RunOutput, status: str, return_code: int | None, stderr: str) -> dict[str, Any]:
    result: dict[str, Any] = {"status": status, "execution_time": output.wall_s, "return_code": return_code}
    return result | {"stdout": output.stdout, "stderr": stderr}


def _response(status: str, message: str, run_result: dict[str, Any]) -> dict[str, Any]:
    outcome = {"status": status, "message": message, "compile_result": None, "run_result": run_result}
    return outcome | {"executor_pod_name": None, "files": {}}


class Service:
    """The handlers, and how many runs are in work."""

    def __init__(self, pool: LocalPool, queue: int, token: str | None) -> None:
        self.in_work = 0
        self._pool = pool
        self._room = pool.slots + queue
        self._token = token

    def application(self) -> web.Application:
        """The routes, behind the token and with JSON for every refusal."""
        made = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[self._guard])
        made.router.add_post(fusion.RUN_PATH, self._run_code)
        made.router.add_get(fusion.PING_PATH, self._ping)
        made.router.add_get(fusion.ISOLATION_PATH, self._isolation)
        return made

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._check_token(request)
            return await handler(request)
        except RefusedError as error:
            named = {"field": error.field} if error.field else {}
            retry = _RETRY if error.status == 503 else {}
            return web.json_response({"detail": str(error), **named}, status=error.status, headers=retry)
        except web.HTTPRequestEntityTooLarge:
            detail = f"body: more than {BODY_MAX_BYTES} bytes; fewer are allowed"
            return web.json_response({"detail": detail, "field": "body"}, status=413)
        except web.HTTPException as error:
            detail = f"{request.method} {request.path}: {error.reason}; there is POST {fusion.RUN_PATH}"
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return web.json_response({"detail": detail}, status=error.status, headers=headers)
        except PoolClosedError:
            return web.json_response({"detail": "the server ends"}, status=503, headers=_RETRY)
        except Exception:
            log.exception("a request failed")
            return web.json_response({"detail": "the server failed; its log says why"}, status=500)

    def _check_token(self, request: web.Request) -> None:
        if self._token is None:
            return
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token.encode()):
            raise RefusedError(401, "Authorization: a valid token is needed, as in 'Authorization: Bearer TOKEN'")

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response("pong")

    async def _isolation(self, request: web.Request) -> web.Response:
        return web.json_response(self._pool.isolation.model_dump())

    async def _run_code(self, request: web.Request) -> web.Response:
        if self.in_work >= self._room:
            raise RefusedError(503, f"the queue is full: {self.in_work} runs are in work")
        self.in_work += 1
        try:
            asked, limits = run_request(await _body(request))
            output = (await self._pool.run_stdin(asked.code, [asked.stdin or ""], limits))[0]
            # An output of many megabytes takes seconds to write as JSON, and others are waiting for answers.
            text = await asyncio.to_thread(json.dumps, response_for(output))
            return web.json_response(text=text)
        finally:
            self.in_work -= 1


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise RefusedError(408, f"body: not complete within {BODY_TIMEOUT_S:g} s", "body") from None
    except web.RequestPayloadError as error:
        raise RefusedError(400, f"body: cannot be read: {str(error)[:100]}; send JSON, plain or gzip", "body") from None


def read_token(path: str | None) -> str | None:
    """The token in a file, else in the environment, else None. Raises ServeInputError."""
    if path is None:
        token, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            return None
    else:
        where = f"--token-file {path}"
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeInputError(f"{where}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ServeInputError(f"{where} holds no token; one line of printable ASCII without blanks is needed")
    return token


async def listening_socket(settings: Settings) -> socket.socket:
    """A socket bound to the host and port. Raises ServeInputError for what the caller has to change."""
    host, port = settings.host, settings.port
    if not 0 <= port <= 65535:
        raise ServeInputError(f"--port is {port}; a port from 0 (any free one) to 65535 is needed, e.g. {DEFAULT_PORT}")
    family, address = await _resolved(host, port)
    if settings.token is None and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise ServeInputError(
            f"--host is {host}: other machines could run programs here; set {TOKEN_VARIABLE} or --token-file, "
            f"or use {DEFAULT_HOST}"
        )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Not only bound: a second server on the port is refused from now on.
        bound.listen(128)
    except OSError as error:
        bound.close()
        elsewhere = error.errno == errno.EADDRNOTAVAIL
        field = f"--host is {host}" if elsewhere else f"--port is {port}"
        hint = f"use an address of this machine, e.g. {DEFAULT_HOST}" if elsewhere else "0 takes any free port"
        raise ServeInputError(f"{field}: {(error.strerror or str(error)).lower()}; {hint}") from None
    return bound


async def _resolved(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host or "?", port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        raise ServeInputError(f"--host is {host!r}: {reason}; an address is needed, e.g. {DEFAULT_HOST}") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM (returns 0) or SIGINT (returns 130).

    Raises ServeInputError and SandboxUnavailableError before anything is served.
    """
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    _on_signals(ended)
    bound = await listening_socket(settings)
    try:
        pool = LocalPool(settings.slots, min_level=settings.min_level, packages=settings.packages)
        async with pool:
            await _serve(settings, bound, pool, ended)
    finally:
        bound.close()
    return ended.result()


def _on_signals(ended: asyncio.Future[int]) -> None:
    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end, 0)
    loop.add_signal_handler(signal.SIGINT, end, EXIT_INTERRUPTED)


async def _serve(settings: Settings, bound: socket.socket, pool: LocalPool, ended: asyncio.Future[int]) -> None:
    service = Service(pool, settings.queue, settings.token)
    runner = web.AppRunner(
        service.application(),
        access_log=None,
        # A client that goes away takes its run with it.
        handler_cancellation=True,
        keepalive_timeout=IDLE_S,
        shutdown_timeout=CLOSE_S,
    )
    await runner.setup()
    try:
        site = web.SockSite(runner, bound)
        await site.start()
        print(_ready_line(settings, bound, pool), file=sys.stderr, flush=True)
        await ended
        await site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while service.in_work:
                    await asyncio.sleep(0.02)
        # Runs that are still in work end here; their clients are told.
        await pool.aclose()
    finally:
        await runner.cleanup()


def _ready_line(settings: Settings, bound: socket.socket, pool: LocalPool) -> str:
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    report = pool.isolation
    guarded = "token needed" if settings.token else "no token"
    return (
        f"sandbox: serving on {address}, isolation {report.level_name} (level {report.level}), "
        f"{pool.slots} slots, queue {settings.queue}, {guarded}"
    )
