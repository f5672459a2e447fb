"""SandboxFusionBackend: judges on a server that speaks the SandboxFusion protocol.

Every request has a deadline and is repeated a few times; what then is still without an answer becomes sandbox_error,
never a verdict on the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from types import TracebackType
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit, urlunsplit

import aiohttp

from sandbox import fusion
from sandbox.backend import RemoteSandboxError, UnsupportedCaseError
from sandbox.isolation import IsolationReport
from sandbox.judging import Judged
from sandbox.pool import PoolClosedError
from sandbox.records import AnyCase, CallCase, CaseResult, Limits, Submission, SuiteResult
from sandbox.suite import judge_cases, suite_result
from sandbox.verdicts import Verdict

log = logging.getLogger("sandbox")

PING_TIMEOUT_S: Final = 10.0
BACKOFF_MAX_S: Final = 10.0
PROBE_LIMITS: Final = Limits(cpu_s=5.0, wall_s=5.0, output_bytes=4 * fusion.KEPT_BYTES)
PROBE_PRINTED: Final = 4 * fusion.PIPE_BYTES
PROBE_FLOOD: Final = 2 * fusion.KEPT_BYTES
# A byte of output is six in JSON at worst; stderr is not limited by anything that is asked for.
ANSWER_BYTES_PER_OUTPUT: Final = 6
ANSWER_FLOOR_BYTES: Final = 16 * 1024 * 1024
_RETRIED: Final = frozenset({408, 429})


class _LostError(Exception):
    """A request without a usable answer; `retry_after_s` is the server's wish, 0 when it has none."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class SandboxFusionBackend:
    """Judges on the SandboxFusion server at `url`, with or without `/run_code` at its end.

    token: sent as `Authorization: Bearer`. concurrency: requests in flight at once; more wait. attempts: per run.
    connect_timeout_s: for a connection to come up. queue_timeout_s: what a run may wait at the server on top of its
    own time-outs; together they are the deadline of one attempt. backoff_s: the first pause between two attempts;
    it doubles, with jitter.

    Differences to a LocalPool that no client can remove: servers other than ours measure time on their clock only,
    may count the interpreter's own memory, and cannot deliver output that is not UTF-8 (a call whose function prints
    such bytes is a runtime_error). A source that is not Unicode text is a compile_error for stdio cases. On a server
    that `start` finds to lose output beyond 64 KiB, long output together with a time-out, or where it may be the
    reason for a wrong answer, is sandbox_error; such a server lets programs bring that about.

    Use it as `async with SandboxFusionBackend(url) as backend:`, on one event loop. Raises ValueError for an unusable
    url, token or number; RemoteSandboxError on entry when the server is not there or does not judge correctly.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        concurrency: int = 64,
        attempts: int = 3,
        connect_timeout_s: float = 5.0,
        queue_timeout_s: float = 60.0,
        backoff_s: float = 0.5,
    ) -> None:
        for name, number in (("concurrency", concurrency), ("attempts", attempts)):
            if number < 1:
                raise ValueError(f"{name} is {number}; at least 1 is needed")
        times = {"connect_timeout_s": connect_timeout_s, "queue_timeout_s": queue_timeout_s, "backoff_s": backoff_s}
        for name, seconds in times.items():
            if not 0 < seconds <= 86_400:
                raise ValueError(f"{name} is {seconds}; more than 0 and at most 86400 seconds are needed, e.g. 5")
        parts = _checked_url(url)
        if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("token must be printable ASCII without blanks")
        if token is not None and parts.username is not None:
            raise ValueError(f"url {_shown(parts)} holds credentials; give either them or a token")
        self.url = _shown(parts)
        self._base = urlunsplit(parts)
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        self._attempts = attempts
        self._connect_timeout_s = connect_timeout_s
        self._queue_timeout_s = queue_timeout_s
        self._backoff_s = backoff_s
        self._free = asyncio.Semaphore(concurrency)
        self._closing = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._started = False
        self._intact_bytes: int | None = fusion.KEPT_BYTES  # None: all that is asked for

    @property
    def isolation(self) -> IsolationReport:
        """Nothing is known about how the server isolates runs, whatever it may say about itself."""
        return IsolationReport(
            level=0, level_name="remote", layers={"remote": self.url}, kernel="unknown", landlock_abi=-1, uid=-1
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Reach the server and try it with programs whose results are known. Raises RemoteSandboxError."""
        if self._session is not None or self._closing.is_set():
            raise PoolClosedError("a backend starts once")
        # The semaphore limits the connections: waiting for one must not count against the deadline of a request.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=self._headers)
        try:
            await self._ping()
            await self._probe()
        except BaseException:
            await self.aclose()
            raise
        self._started = True

    async def aclose(self) -> None:
        """Close the connections. Runs in flight and later calls raise PoolClosedError."""
        self._closing.set()
        if self._session is not None:
            await self._session.close()

    async def judge(self, submission: Submission) -> SuiteResult:
        """Run every case on the server, each in a request of its own, and compare here.

        A run that stays without a usable answer becomes a case with verdict sandbox_error. Raises
        UnsupportedCaseError before anything is sent, RemoteSandboxError when the server refuses requests like these,
        PoolClosedError before the start and after the end.
        """
        if not self._started or self._closing.is_set():
            raise PoolClosedError("the backend is not running; use `async with SandboxFusionBackend(url) as backend:`")
        return await self._judge(submission)

    async def _judge(self, submission: Submission) -> SuiteResult:
        for case in submission.cases:
            reason = fusion.unsupported(case, submission.limits)
            if reason is not None:
                raise UnsupportedCaseError(reason)
        judged = await judge_cases(submission, lambda case: self._judge_case(submission, case))
        return suite_result(submission, judged, self.isolation, "fusion")

    async def _judge_case(self, submission: Submission, case: AnyCase) -> Judged:
        assert isinstance(case, fusion.RemoteCase)  # `_judge` has refused the others
        made = fusion.question(submission, case)
        if isinstance(made, CaseResult):
            return Judged(made, False)
        try:
            answer = await self._answer(made)
        except _LostError as error:
            return Judged(CaseResult(verdict=Verdict.SANDBOX_ERROR, detail=f"{self.url}: {error}"), False)
        intact_bytes = made.output_room if self._intact_bytes is None else self._intact_bytes
        return fusion.judged(made, answer, intact_bytes)

    async def _answer(self, made: fusion.Question) -> fusion.Answer:
        """The server's answer to one run, after as many attempts as it takes. Raises _LostError."""
        body = made.body()
        seconds = made.limits.effective_wall_s + fusion.COMPILE_TIMEOUT_S + self._queue_timeout_s
        room = ANSWER_BYTES_PER_OUTPUT * made.output_room + ANSWER_FLOOR_BYTES
        for attempt in range(1, self._attempts + 1):
            try:
                async with self._free:
                    status, data = await self._request(fusion.RUN_PATH, body, seconds, room)
                return _usable(status, data)
            except _LostError as error:
                log.warning("%s: a run was lost (attempt %d of %d): %s", self.url, attempt, self._attempts, error)
                if attempt == self._attempts:
                    raise
                await self._pause(attempt, error.retry_after_s)
        raise AssertionError("at least one attempt is made")

    async def _pause(self, attempt: int, wish_s: float) -> None:
        """Wait before the next attempt; ends early with PoolClosedError when the backend is closed."""
        backoff = min(BACKOFF_MAX_S, self._backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), min(BACKOFF_MAX_S, max(backoff, wish_s)))
            raise PoolClosedError("the backend was closed")

    async def _request(self, path: str, body: bytes | None, seconds: float, room: int) -> tuple[int, bytes]:
        """One exchange: status and body of the answer. Raises _LostError, RemoteSandboxError, PoolClosedError."""
        if self._session is None or self._closing.is_set():
            raise PoolClosedError("the backend was closed")
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=self._connect_timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        method = "GET" if body is None else "POST"
        try:
            async with self._session.request(
                method, self._base + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                data = await _read(response, room)
                self._check_status(response, data)
                return response.status, data
        except TimeoutError as error:
            reason = str(error) or f"no answer within {seconds:g} s"
            raise self._closed_or(_LostError(f"time-out: {reason}")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._closed_or(_LostError(f"{type(error).__name__}: {str(error)[:300]}")) from None

    def _closed_or(self, error: _LostError) -> Exception:
        return PoolClosedError("the backend was closed") if self._closing.is_set() else error

    def _check_status(self, response: aiohttp.ClientResponse, data: bytes) -> None:
        status = response.status
        if status == 200:
            return
        said = " ".join(data[:300].decode("utf-8", "replace").split())
        reason = f"HTTP {status}{': ' if said else ''}{said}"
        if status >= 500 or status in _RETRIED:
            raise _LostError(reason, _seconds(response.headers.get("Retry-After")))
        raise RemoteSandboxError(self.url, reason, status)

    async def _ping(self) -> None:
        seconds = min(PING_TIMEOUT_S, self._connect_timeout_s + self._queue_timeout_s)
        for attempt in range(1, self._attempts + 1):
            try:
                status, data = await self._request(fusion.PING_PATH, None, seconds, 4096)
                break
            except _LostError as error:
                if attempt == self._attempts:
                    raise RemoteSandboxError(self.url, f"cannot be reached: {error}") from None
                await self._pause(attempt, error.retry_after_s)
        if data.strip().strip(b'"') != b"pong":
            raise RemoteSandboxError(self.url, f"{fusion.PING_PATH} did not answer pong; is this a server?", status)

    async def _probe(self) -> None:
        """Learn whether the server runs our programs, and how much output it delivers: a pipe, a MiB, or all."""
        found = await self._probe_case(PROBE_PRINTED)
        if found.verdict is Verdict.ACCEPTED:
            if (await self._probe_case(PROBE_FLOOD)).verdict is Verdict.ACCEPTED:
                self._intact_bytes = None
            return
        self._intact_bytes = fusion.PIPE_BYTES
        found = await self._probe_case(0)
        if found.verdict is not Verdict.ACCEPTED:
            reason = f"does not run a known program: {found.verdict}: {found.detail}"
            raise RemoteSandboxError(self.url, f"{reason} {found.stderr_tail[-300:]}".strip())
        log.warning("%s loses output beyond %d bytes", self.url, self._intact_bytes)

    async def _probe_case(self, printed: int) -> CaseResult:
        source = f"def f(x):\n    print('.' * {printed})\n    return x, 2 ** 70\n"
        case = CallCase(args=[{"a": [1, 2.5]}], expected=({"a": [1, 2.5]}, 2**70))
        submission = Submission(source=source, entry_point="f", cases=[case], limits=PROBE_LIMITS)
        return (await self._judge(submission)).cases[0]


def _usable(status: int, data: bytes) -> fusion.Answer:
    """The answer in a body. Raises _LostError for one that says nothing about the program."""
    try:
        answer = fusion.answer_from(data)
    except fusion.MalformedAnswerError as error:
        raise _LostError(f"HTTP {status}, but {error}") from None
    if answer.status == "SandboxError" or (answer.run_result and answer.run_result.status == "Error"):
        stderr = answer.run_result.stderr if answer.run_result else None
        raise _LostError(f"the server failed: {(answer.message or stderr or 'it does not say why')[:300]}")
    return answer


async def _read(response: aiohttp.ClientResponse, room: int) -> bytes:
    """The whole body. Raises _LostError when it is longer than any answer may be."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > room:
            raise _LostError(f"the answer has more than {room} bytes")
    return bytes(data)


def _seconds(header: str | None) -> float:
    """The seconds of a Retry-After header; 0 when there is none, or a date."""
    return float(header) if header is not None and header.isascii() and header.isdigit() and len(header) < 6 else 0.0


def _checked_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        shown = url.rpartition("@")[2]
        raise ValueError(f"url is {shown!r}; a server's address is needed, e.g. http://127.0.0.1:8080")
    path = parts.path.rstrip("/").removesuffix(fusion.RUN_PATH)
    return parts._replace(path=path)


def _shown(parts: SplitResult) -> str:
    """The address without credentials."""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
