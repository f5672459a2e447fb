"""LocalPool: cells on this machine, fed from one asyncio loop.

A cell runs one process at a time; the pool holds one cell per slot, replaces it after a failure or after many runs,
and retries a run that the infrastructure lost. Programs that the pool has no room for wait in `judge`, which is the
back-pressure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sandbox import judging, selftest
from sandbox.cell import PRELOAD, Cell, CellError, CellOptions, RawRun, RunSpec, find_package, sealed_file
from sandbox.codec import UnserializableError
from sandbox.isolation import (
    BEST_LEVEL,
    LEVEL_NAMES,
    UNSAFE_VARIABLE,
    IsolationReport,
    SandboxUnavailableError,
    unsafe_allowed,
)
from sandbox.judging import Answer, Judged
from sandbox.records import (
    AnyCase,
    CaseResult,
    Limits,
    RunOutput,
    Submission,
    SuiteResult,
    checked_source,
    source_bytes,
)
from sandbox.suite import judge_cases, suite_result, together
from sandbox.verdicts import Verdict

log = logging.getLogger("sandbox")

RETRY_PAUSES_S: Final = (0.05, 0.3)  # what starved a run may be another run, which is ended meanwhile
RECYCLE_AFTER_RUNS: Final = 5000
RECYCLE_AFTER_KIB: Final = 32 * 1024
WATCHDOG_S: Final = 30.0
LAYERS: Final = frozenset(
    {
        "mount",
        "network",
        "ipc",
        "uts",
        "pid",
        "landlock",
        "seccomp",
        "cell_filter",
        "scratch_user",
        "rlimits",
        "lookout",
    }
)
"""What can be left out of a cell, for tests of the other layers."""
QUEUE_LIMIT: Final = 1024
DEFAULT_LIMITS: Final = Limits()

_Made = TypeVar("_Made")


class PoolClosedError(RuntimeError):
    """The pool was closed, or was never started."""


@dataclass
class PoolStats:
    """Counters since the start of a pool.

    programs: judged or executed submissions; runs: processes that ended well or badly by themselves; sandbox_errors:
    runs given up; retries: runs repeated on a fresh cell; cells_started: zygotes.
    """

    programs: int = 0
    runs: int = 0
    sandbox_errors: int = 0
    retries: int = 0
    cells_started: int = 0


class _Slot:
    """One place for a cell; used by one run at a time."""

    def __init__(self, options: CellOptions, stats: PoolStats) -> None:
        self.options = options
        self.cell: Cell | None = None
        self._stats = stats

    async def ready(self, recycle_after: int) -> Cell:
        """A live cell. Raises CellError when none comes up."""
        cell = self.cell
        if cell is not None and (not cell.alive or cell.runs >= recycle_after or cell.grown_kib > RECYCLE_AFTER_KIB):
            await self.drop()
        if self.cell is None:
            self._stats.cells_started += 1
            self.cell = await Cell.start(self.options)
        return self.cell

    async def drop(self) -> None:
        """Close the cell, if there is one."""
        cell, self.cell = self.cell, None
        if cell is not None:
            await cell.close()


class LocalPool:
    """Judges programs on this machine.

    slots: cells, each running one process at a time; the usable cores when None. min_level: refuse to start below
    this isolation level. level: take exactly this level instead of the best. allow_unsafe: run without isolation
    where nothing better exists; needs the environment variable O1CODER_SANDBOX_ALLOW_UNSAFE=1 as well.
    queue_limit: submissions in work at once; more wait. packages: installed packages that programs may import beside
    the standard library, e.g. numpy. watchdog_s: how often idle cells are asked whether they still answer.
    disabled_layers: leave layers out, for tests of the others.

    Use it as `async with LocalPool() as pool:`, on one event loop. Raises SandboxUnavailableError on entry when no
    acceptable isolation is available, PackageError for a package that cannot be loaded.
    """

    def __init__(
        self,
        slots: int | None = None,
        *,
        min_level: int = 1,
        level: int | None = None,
        allow_unsafe: bool = False,
        queue_limit: int = QUEUE_LIMIT,
        recycle_after: int = RECYCLE_AFTER_RUNS,
        preload: Sequence[str] = PRELOAD,
        packages: Sequence[str] = (),
        watchdog_s: float = WATCHDOG_S,
        disabled_layers: Sequence[str] = (),
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots is {slots}; at least 1 is needed")
        if level is not None and level not in LEVEL_NAMES:
            raise ValueError(f"level is {level}; levels are {sorted(LEVEL_NAMES)}")
        for name, value, least in (("queue_limit", queue_limit, 1), ("recycle_after", recycle_after, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")
        if min_level < 0:
            raise ValueError(f"min_level is {min_level}; levels are {sorted(LEVEL_NAMES)}")
        if isinstance(packages, str):
            raise ValueError(f"packages is {packages!r}; a list is needed, e.g. [{packages!r}]")
        unknown = sorted(set(disabled_layers) - LAYERS)
        if unknown:
            raise ValueError(f"disabled_layers holds {unknown[0]!r}; layers are {', '.join(sorted(LAYERS))}")
        self.slots = slots or len(os.sched_getaffinity(0))
        self._min_level = min_level
        self._level = level
        self._allow_unsafe = allow_unsafe
        self._recycle_after = recycle_after
        found = tuple(find_package(name) for name in packages)
        self._options = CellOptions(0, disabled=tuple(disabled_layers), preload=tuple(preload), packages=found)
        self._watchdog_s = watchdog_s
        self._watchdog: asyncio.Task[None] | None = None
        self._stats = PoolStats()
        self._slots: list[_Slot] = []
        self._free: asyncio.Queue[_Slot] = asyncio.Queue()
        self._admission = asyncio.Semaphore(queue_limit)
        self._isolation: IsolationReport | None = None
        self._closed = False
        self._closing = asyncio.Lock()

    @property
    def isolation(self) -> IsolationReport:
        """What protects the host. Raises PoolClosedError before the pool has started."""
        if self._isolation is None:
            raise PoolClosedError("the pool has not been started; use `async with LocalPool() as pool:`")
        return self._isolation

    def stats(self) -> PoolStats:
        """A copy of the counters."""
        return PoolStats(**vars(self._stats))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Find the best level, start the cells. Raises SandboxUnavailableError."""
        if self._isolation is not None or self._closed:
            raise PoolClosedError("a pool starts once")
        first = await self._first_cell()
        self._isolation = first.report
        log.info("sandbox level %d (%s): %s", first.report.level, first.report.level_name, first.report.layers)
        for number in range(self.slots):
            slot = _Slot(self._options.at_level(first.report.level), self._stats)
            slot.cell = first if number == 0 else None
            self._slots.append(slot)
            self._free.put_nowait(slot)
        self._watchdog = asyncio.create_task(self._watch_idle_cells())

    async def _watch_idle_cells(self) -> None:
        """A zygote that dies is noticed at once; this one finds those that hang, before a run is lost to them."""
        while True:
            await asyncio.sleep(self._watchdog_s)
            for _ in range(self._free.qsize()):
                if self._free.empty():  # a ping takes a moment, and others take slots meanwhile
                    break
                slot = self._free.get_nowait()
                try:
                    if slot.cell is not None and slot.cell.alive:
                        await slot.cell.ping()
                except CellError as error:
                    log.warning("an idle cell is replaced: %s", error)
                    await slot.drop()
                finally:
                    self._free.put_nowait(slot)

    async def _first_cell(self) -> Cell:
        unsafe = unsafe_allowed(self._allow_unsafe)
        attempts: dict[int, str] = {}
        wanted = range(BEST_LEVEL, -1, -1) if self._level is None else (self._level,)
        for level in wanted:
            if level == 0:
                if not unsafe:
                    attempts[0] = f"refused: it needs allow_unsafe=True and {UNSAFE_VARIABLE}=1 in the environment"
                    continue
            elif level < self._min_level:
                attempts[level] = f"not tried: below min_level={self._min_level}"
                continue
            try:
                cell = await self._tried(level)
            except CellError as error:
                attempts[level] = str(error)
                continue
            better = {f"level {n} ({LEVEL_NAMES[n]})": f"unavailable: {why}" for n, why in attempts.items()}
            cell.report = cell.report.model_copy(update={"layers": {**better, **cell.report.layers}})
            return cell
        raise SandboxUnavailableError(attempts, self._min_level)

    async def _tried(self, level: int) -> Cell:
        """A cell of this level that has shown that it holds. Raises CellError."""
        self._stats.cells_started += 1
        cell = await Cell.start(self._options.at_level(level))
        try:
            if level > 0 and not self._options.disabled:
                await selftest.check(cell)
        except BaseException:
            await cell.close()
            raise
        return cell

    async def aclose(self) -> None:
        """End every cell. Runs in flight and waiting calls raise PoolClosedError; no process is left."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
        await asyncio.gather(*(slot.drop() for slot in self._slots))
        async with self._closing:
            # A slot is free again when its run has noticed; only then is no cell of it coming up any more.
            free: list[_Slot] = []
            try:
                while len(free) < len(self._slots):
                    free.append(await self._free.get())
                    await free[-1].drop()
            finally:
                for slot in free:
                    self._free.put_nowait(slot)

    async def judge(self, submission: Submission) -> SuiteResult:
        """Run every case in a process of its own and compare. Raises PoolClosedError, nothing else.

        A lost run becomes a case with verdict sandbox_error after two retries.
        """
        isolation = self.isolation
        try:
            async with self._program(submission.source) as source_fd:
                judged = await judge_cases(submission, lambda case: self._judge_case(submission, case, source_fd))
        except CellError as error:
            self._stats.sandbox_errors += len(submission.cases)
            judged = [_lost_case(str(error))] * len(submission.cases)
        return suite_result(submission, judged, isolation, "local")

    async def run_calls(
        self,
        source: str,
        entry_point: str,
        inputs: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> list[RunOutput]:
        """Call the entry point on every (args, kwargs), each in a process of its own.

        Raises UnserializableError for arguments that typed JSON cannot express and ValueError for a source that is
        too long.
        """
        return await self._outputs(
            source,
            len(inputs),
            lambda source_fd: [judging.spec_for_call(source_fd, entry_point, a, k, limits, None) for a, k in inputs],
        )

    async def run_stdin(
        self, source: str, stdins: Sequence[str | bytes], limits: Limits = DEFAULT_LIMITS
    ) -> list[RunOutput]:
        """Run the program on every input, each in a process of its own. Raises ValueError for too long a source."""
        return await self._outputs(
            source,
            len(stdins),
            lambda source_fd: [judging.spec_for_stdin(source_fd, text, limits, None) for text in stdins],
        )

    @contextlib.asynccontextmanager
    async def _program(self, source: str) -> AsyncIterator[int]:
        """Room for one program: its source as a sealed descriptor, shared by all its runs.

        Raises CellError where this machine has no descriptor or no memory for it.
        """
        if self._closed or self._isolation is None:
            raise PoolClosedError("the pool is not running")
        async with self._admission:
            try:
                source_fd = sealed_file("source", source_bytes(source))
            except OSError as error:
                raise CellError(f"no file for the source: {error}") from None
            try:
                yield source_fd
            finally:
                os.close(source_fd)
            self._stats.programs += 1

    async def _judge_case(self, submission: Submission, case: AnyCase, source_fd: int) -> Judged:
        try:
            spec = judging.spec_for_case(source_fd, case, submission)
        except UnserializableError as error:
            self._stats.sandbox_errors += 1
            return _lost_case(f"the case cannot be given to a run: {error}")
        judged = await self._run(spec, lambda raw: judging.case_result(raw, spec, case), _lost_case)
        if judged.unchecked is None:
            return judged
        verdict, detail = await self._check(case, judged.unchecked, submission.limits)
        return Judged(judged.result.model_copy(update={"verdict": verdict, "detail": detail}), judged.compiled)

    async def _check(self, case: AnyCase, answer: Answer, limits: Limits) -> tuple[Verdict, str | None]:
        """What the case's own checker says about an answer."""
        checker = judging.checker_of(case)
        assert checker is not None
        try:
            source_fd = sealed_file("checker", source_bytes(checker.source))
        except OSError as error:
            self._stats.sandbox_errors += 1
            return Verdict.SANDBOX_ERROR, f"no file for the checker: {error}"
        try:
            spec = judging.spec_for_checker(source_fd, case, answer, limits)
            return await self._run(
                spec, lambda raw: judging.checked(raw, spec), lambda reason: (Verdict.SANDBOX_ERROR, reason)
            )
        except UnserializableError as error:
            return Verdict.WRONG_ANSWER, f"the answer cannot be given to the checker: {error}"
        finally:
            os.close(source_fd)

    async def _outputs(self, source: str, count: int, specs: Callable[[int], list[RunSpec]]) -> list[RunOutput]:
        """What `count` runs of a source did. `specs` makes them for the descriptor of the source."""

        def failed(reason: str) -> RunOutput:
            return RunOutput(verdict=Verdict.SANDBOX_ERROR, detail=reason)

        def run(spec: RunSpec) -> Coroutine[Any, Any, RunOutput]:
            return self._run(spec, lambda raw: judging.run_output(raw, spec), failed)

        checked_source(source)
        try:
            async with self._program(source) as source_fd:
                return await together([run(spec) for spec in specs(source_fd)])
        except CellError as error:
            self._stats.sandbox_errors += count
            return [failed(str(error))] * count

    async def _run(self, spec: RunSpec, made: Callable[[RawRun], _Made], failed: Callable[[str], _Made]) -> _Made:
        """One run on some cell; a run that the infrastructure loses is repeated on a fresh one."""
        reason = ""
        for attempt, pause in enumerate((0.0, *RETRY_PAUSES_S), 1):
            self._stats.retries += attempt > 1
            await asyncio.sleep(pause)
            slot = await self._free.get()
            try:
                if self._closed:
                    raise PoolClosedError("the pool was closed")
                cell = await slot.ready(self._recycle_after)
                if self._closed:
                    raise PoolClosedError("the pool was closed")
                raw = await cell.run(spec)
                failure = judging.infrastructure_failure(raw)
                if failure is not None:
                    raise CellError(failure)
                self._stats.runs += 1
                return made(raw)
            except CellError as error:
                reason = str(error)
                await slot.drop()
                log.warning("a run was lost (attempt %d): %s", attempt, reason)
            except asyncio.CancelledError:
                await slot.drop()
                raise
            finally:
                self._free.put_nowait(slot)
            if self._closed:
                raise PoolClosedError("the pool was closed")
        self._stats.sandbox_errors += 1
        return failed(reason)


def _lost_case(reason: str) -> Judged:
    return Judged(CaseResult(verdict=Verdict.SANDBOX_ERROR, detail=reason), False)


async def detect_async(min_level: int = 1, *, level: int | None = None) -> IsolationReport:
    """Find the best level by trying it. Raises SandboxUnavailableError."""
    async with LocalPool(1, min_level=min_level, level=level) as pool:
        return pool.isolation


def detect(min_level: int = 1, *, level: int | None = None) -> IsolationReport:
    """`detect_async` for callers without an event loop, and for those inside one. Raises SandboxUnavailableError."""
    found: list[IsolationReport | BaseException] = []

    def work() -> None:
        try:
            found.append(asyncio.run(detect_async(min_level, level=level)))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="sandbox-detect")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
