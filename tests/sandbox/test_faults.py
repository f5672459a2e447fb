"""A machine that runs out of something, and parts that are killed or stopped: typed results, recovery, nothing left."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import QUICK, Bench, described_fds, more_fds, wait_gone
from test_pool import ROOT, suite

from sandbox import (
    AssertCase,
    CallCase,
    Limits,
    LocalPool,
    PoolClosedError,
    StdioCase,
    Submission,
    SuiteResult,
    Verdict,
)
from sandbox.bench import processes_below
from sandbox.cell import Cell

pytestmark = pytest.mark.slow  # starts processes all the time

SLEEPER = suite("import time\ntime.sleep(60)").model_copy(update={"limits": QUICK.model_copy(update={"wall_s": 50.0})})

MOMENT = Limits(cpu_s=0.5, wall_s=1.0)


def script(code: str, *arguments: str, timeout: float = 100) -> Any:
    """What a program prints as JSON, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- descriptors, memory files, processes that are refused ---

OUT_OF_DESCRIPTORS = """
import asyncio, json, logging, os, resource, sys
from sandbox import *
logging.disable()
ONE = StdioCase(stdin="", expected="1")
CHECKED = StdioCase(stdin="", expected="1", comparator=CheckerProgram(source="def check(i, o, e): return True"))
F = "def f(): return 1\\nprint(1)"
WORK = [
    Submission(source=F, cases=[ONE] * 2),
    Submission(source=F, entry_point="f", cases=[AssertCase(code="assert f() == 1")]),
    Submission(source=F, cases=[CHECKED]),
]
def fds(): return len(os.listdir("/proc/self/fd"))
async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    out = []
    async with LocalPool(2) as pool:
        async def well():
            results = await asyncio.gather(*(pool.judge(each) for each in WORK * 2))
            return {str(result.verdict) for result in results} == {"accepted"}
        assert await well()
        before = fds()
        for spare in json.loads(sys.argv[1]):
            for each in [*WORK, None]:
                held = []
                resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # inherited by new zygotes, which need some
                try:
                    while True: held.append(os.dup(0))
                except OSError: pass
                for fd in held[:spare]: os.close(fd)
                if each is None:
                    some = await pool.run_calls(F, "f", [((), {})] * 2)
                    seen = [(str(one.verdict), one.detail) for one in some]
                else:
                    result = await pool.judge(each)
                    seen = [(str(case.verdict), case.detail) for case in result.cases]
                for fd in held[spare:]: os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                out.append((seen, await well(), fds() - before))
    print(json.dumps(out))
asyncio.run(main())
"""


@pytest.mark.parametrize("spares", [[0, 7], pytest.param(list(range(13)), marks=pytest.mark.slow)])
def test_no_descriptors_left(spares: list[int]) -> None:
    rounds = script(OUT_OF_DESCRIPTORS, json.dumps(spares))
    assert len(rounds) == 4 * len(spares)
    for seen, well, leaked in rounds:
        for verdict, detail in seen:
            assert verdict == "accepted" or (verdict == "sandbox_error" and "Too many open files" in detail), seen
        assert well and leaked == 0
    assert rounds[0][0][0][0] == "sandbox_error"


@pytest.mark.parametrize("where", ["the source", "a run's input", "the checker"])
def test_no_memory_for_files(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full memory file system cannot be had for the asking; the error can."""
    name = {"the source": b"print('ok')", "a run's input": b"stdin!", "the checker": b"def check"}[where]
    full = True
    write = os.pwrite

    def refusing(fd: int, data: Any, offset: int) -> int:
        if full and bytes(data).startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    from sandbox import CheckerProgram

    checker = CheckerProgram(source="def check(given, output, expected): return True")
    submission = Submission(
        source="print('ok')", cases=[StdioCase(stdin="stdin!", expected="", comparator=checker)] * 2, limits=QUICK
    )
    bench = Bench()
    try:
        assert bench.call(bench.pool.judge(submission)).verdict is Verdict.ACCEPTED
        before = described_fds()
        monkeypatch.setattr(os, "pwrite", refusing)
        errors = bench.pool.stats().sandbox_errors
        result = bench.call(bench.pool.judge(submission))
        assert [case.verdict for case in result.cases] == [Verdict.SANDBOX_ERROR] * 2
        assert all("No space left" in str(case.detail) for case in result.cases)
        assert not result.passed and bench.pool.stats().sandbox_errors == errors + 2
        if where == "the source":
            (output,) = bench.call(bench.pool.run_stdin(submission.source, [""]))
            assert output.verdict is Verdict.SANDBOX_ERROR and "No space left" in str(output.detail)
        full = False
        assert bench.call(bench.pool.judge(submission)).verdict is Verdict.ACCEPTED
        assert not more_fds(before), "a lost run left descriptors"
    finally:
        bench.close()


FILES_LIMITED = """
import asyncio, json, logging, resource
from sandbox import *
logging.disable()
BIG = Submission(source="print('ok')" + "#" * 9000, cases=[StdioCase(stdin="", expected="ok")])
async def main():
    out = []
    async with LocalPool(1) as pool:
        for size in (4096, resource.RLIM_INFINITY):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            case = (await pool.judge(BIG)).cases[0]
            out.append((str(case.verdict), str(case.detail)))
    print(json.dumps(out))
asyncio.run(main())
"""


def test_files_may_not_grow() -> None:
    refused, well = script(FILES_LIMITED)
    assert refused[0] == "sandbox_error" and "File too large" in refused[1]
    assert well[0] == "accepted"


NO_PROCESSES = """
import asyncio, json, logging, os, resource, sys
from pathlib import Path
from sandbox import *
logging.disable()
OK = Submission(source="print('ok')", cases=[StdioCase(stdin="", expected="ok")])
PAIR = Submission(source="def f(): return 1", entry_point="f", cases=[AssertCase(code="assert f() == 1")])
def below(pid):
    found = [pid]
    for entry in found:
        found += [int(child) for child in Path(f"/proc/{entry}/task/{entry}/children").read_text().split()]
    return found
def refuse(pid, soft):
    hard = resource.prlimit(pid, resource.RLIMIT_NPROC)[1]
    resource.prlimit(pid, resource.RLIMIT_NPROC, (soft if soft >= 0 else hard, hard))
async def main():
    if os.getuid() == 0:
        import concurrent.futures
        os.setgroups([]); os.setresgid(62999, 62999, 62999); os.setresuid(62999, 62999, 62999)
        sys.executable = sys.argv[1]
    out = []
    async with LocalPool(1) as pool:
        for everywhere in (False, True):
            for each in (OK, PAIR):
                retries = pool.stats().retries
                for pid in below(pool._slots[0].cell.zygote_pid) if pool._slots[0].cell else ():
                    refuse(pid, 0)
                if everywhere: refuse(0, 0)
                case = (await pool.judge(each)).cases[0]
                if everywhere: refuse(0, -1)
                again = await pool.judge(each)
                out.append((str(case.verdict), str(case.detail), pool.stats().retries - retries, str(again.verdict)))
    print(json.dumps(out))
asyncio.run(main())
"""


def python_for_others() -> str:
    """A Python that a user without any right can run; skips where there is none."""
    readable = all(path.stat().st_mode & 1 for path in Path(sys.base_prefix).parents)
    python = sys.executable if readable else shutil.which("python3", path="/usr/bin")
    return python or pytest.skip("other users cannot run any Python here")


def test_a_fork_is_refused() -> None:
    """Root is never refused a process, so this runs as somebody else."""
    once_ok, once_pair, ok, pair = script(NO_PROCESSES, python_for_others())
    for verdict, _, retries, again in (once_ok, once_pair):
        assert (verdict, retries, again) == ("accepted", 1, "accepted")
    for verdict, detail, retries, again in (ok, pair):
        assert verdict == "sandbox_error" and "Resource temporarily unavailable" in detail
        assert (retries, again) == (2, "accepted")


THREADS_OF_ALL = """
import asyncio, collections, json, logging, os, resource, sys
from sandbox import *
logging.disable()
OK = Submission(source="print('ok')", cases=[StdioCase(stdin="", expected="ok")])
BOMB = [
    "import threading, time",
    "threading.stack_size(32768)",
    "while True:",
    "    try: threading.Thread(target=time.sleep, args=(9,)).start()",
    "    except RuntimeError: pass",
]
BOMB = OK.model_copy(update={"source": chr(10).join(BOMB), "limits": Limits(cpu_s=1, wall_s=2)})
async def main():
    if os.getuid() == 0:
        os.setgroups([]); os.setresgid(62998, 62998, 62998); os.setresuid(62998, 62998, 62998)
        sys.executable = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    async with LocalPool(2, level=int(sys.argv[2])) as pool:
        async def honest():
            verdicts = collections.Counter()
            while not bombs.done():
                verdicts[str((await pool.judge(OK)).verdict)] += 1
            return verdicts
        async def attack():
            return [await pool.judge(BOMB) for _ in range(5)]
        bombs = asyncio.ensure_future(attack())
        verdicts = await honest()
        seen = collections.Counter(str(result.verdict) for result in bombs.result())
    print(json.dumps([pool.isolation.layers["threads"], verdicts, seen]))
asyncio.run(main())
"""


@pytest.mark.parametrize("level", [1, 2])
def test_no_program_takes_all_threads_of_an_account(level: int) -> None:
    """Where runs share the caller's user, the kernel has one limit for all of them: the lookout counts each one's."""
    layer, honest, bombs = script(THREADS_OF_ALL, python_for_others(), str(level))
    assert layer.startswith("enforced: by the lookout")
    assert set(honest) == {"accepted"} and honest["accepted"] > 5
    assert set(bombs) == {"runtime_error"}


# --- parts that are killed or stopped ---


async def during_a_run(pool: LocalPool) -> tuple[list[int], asyncio.Task[SuiteResult]]:
    """A program that sleeps a moment is running: the processes of its cell from the outermost in."""
    source = "import time\ntime.sleep(0.25)\nprint('ok')"
    judged = asyncio.ensure_future(pool.judge(suite(source).model_copy(update={"limits": MOMENT})))
    cell = pool._slots[0].cell
    assert cell is not None
    idle = len(processes_below(cell.zygote_pid)) + 1
    while len(processes_below(cell.zygote_pid)) < idle:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # its program is at work, not its boot
    return [cell.zygote_pid, *sorted(processes_below(cell.zygote_pid))], judged


@pytest.mark.parametrize("which", [0, 1, 2], ids=["outermost", "next", "innermost"])
def test_any_process_of_a_cell_is_killed(bench: Bench, which: int) -> None:
    """Guard, zygote, run (at levels without a guard: zygote, run)."""
    before = bench.pool.stats()

    async def scenario() -> tuple[list[int], SuiteResult]:
        chain, judged = await during_a_run(bench.pool)
        os.kill(chain[min(which, len(chain) - 1)], signal.SIGKILL)
        return chain, await judged

    chain, result = bench.call(scenario())
    after = bench.pool.stats()
    if which >= len(chain) - 1:
        # The run itself: a signal is a statement about the program, from whomever it came.
        assert result.verdict is Verdict.RUNTIME_ERROR and after.retries == before.retries
        assert not wait_gone(set(chain[-1:]), 2)
    else:
        assert result.verdict is Verdict.ACCEPTED and after.retries == before.retries + 1
        assert not wait_gone(set(chain), 2)
    assert after.sandbox_errors == before.sandbox_errors


def test_a_zygote_is_stopped_during_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cell.REPLY_GRACE_S", 0.2)
    monkeypatch.setattr("sandbox.cell.EXIT_TIMEOUT_S", 0.2)
    if bench.pool.isolation.level == 1:
        pytest.skip("the processes are those of level 2")

    async def scenario() -> tuple[list[int], SuiteResult, float]:
        chain, judged = await during_a_run(bench.pool)
        started = time.monotonic()
        os.kill(chain[-2], signal.SIGSTOP)
        return chain, await judged, time.monotonic() - started

    before = bench.pool.stats()
    chain, result, took = bench.call(scenario())
    assert result.verdict is Verdict.ACCEPTED and bench.pool.stats().retries == before.retries + 1
    assert 0.7 < took < 5  # its limit, the grace, the second run
    assert not wait_gone(set(chain), 2)


# --- many callers ---


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def test_a_thousand_sleepers_do_not_starve_the_others() -> None:
    limits = QUICK.model_copy(update={"wall_s": 0.06})
    sleeper = SLEEPER.model_copy(update={"limits": limits})
    honest = suite()
    bench = Bench(slots=6)
    finished: list[float] = []

    async def one(number: int) -> Verdict:
        if number % 10:
            return (await bench.pool.judge(sleeper)).verdict
        verdict = (await bench.pool.judge(honest)).verdict
        finished.append(time.monotonic())
        return verdict

    async def scenario() -> list[Verdict]:
        return list(await asyncio.gather(*(one(number) for number in range(1100))))

    try:
        memory, started = rss_mib(), time.monotonic()
        most = len(processes_below(os.getpid()))
        verdicts = bench.call(scenario(), timeout=120)
        ended = time.monotonic()
        assert [verdict is Verdict.ACCEPTED for verdict in verdicts] == [number % 10 == 0 for number in range(1100)]
        assert set(verdicts) == {Verdict.ACCEPTED, Verdict.TIME_LIMIT}
        assert sum(at < (started + ended) / 2 for at in finished) > 30  # about half of the 110
        assert rss_mib() - memory < 64
        assert len(processes_below(os.getpid())) <= most + 2 * 6
    finally:
        bench.close()


def test_closing_ends_a_thousand_waiting_calls() -> None:
    async def scenario(queue_limit: int) -> None:
        pool = LocalPool(2, queue_limit=queue_limit)
        await pool.start()
        work = [asyncio.ensure_future(pool.judge(SLEEPER)) for _ in range(1000)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await pool.aclose()
        results = await asyncio.gather(*work, return_exceptions=True)
        assert time.monotonic() - started < 2
        assert all(isinstance(result, PoolClosedError) for result in results)

    before, fds = processes_below(os.getpid()), described_fds()
    asyncio.run(scenario(2000))
    asyncio.run(scenario(5))
    assert processes_below(os.getpid()) <= before and not more_fds(fds)


@pytest.mark.parametrize("pause", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_closing_while_a_cell_comes_up(pause: float) -> None:
    """The second cell starts with the second program; closing waits for it, twice at once too."""

    async def scenario() -> None:
        pool = LocalPool(2)
        await pool.start()
        work = [asyncio.ensure_future(pool.judge(SLEEPER)) for _ in range(4)]
        await asyncio.sleep(pause)
        await asyncio.gather(pool.aclose(), pool.aclose())
        assert processes_below(os.getpid()) <= before
        assert not [name for name in described_fds() - fds if "memfd" in name]  # the event loop has some of its own
        results = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(result, PoolClosedError) for result in results), results

    before, fds = processes_below(os.getpid()), described_fds()
    asyncio.run(scenario())
    assert processes_below(os.getpid()) <= before and not more_fds(fds)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_cancelled_callers_free_everything(count: int) -> None:
    rng = random.Random(7)
    before, fds = processes_below(os.getpid()), described_fds()
    work = [
        suite(),
        suite("while True: pass"),
        SLEEPER,
        Submission(source="def f(): return 1", entry_point="f", cases=[AssertCase(code="f()")] * 3, limits=QUICK),
    ]

    async def one(pool: LocalPool, number: int) -> bool:
        try:
            async with asyncio.timeout(rng.random() * count / 200):
                await pool.judge(work[number % len(work)])
        except TimeoutError:
            return True
        return False

    async def scenario() -> None:
        async with LocalPool(3) as pool:
            cancelled = await asyncio.gather(*(one(pool, number) for number in range(count)))
            assert sum(cancelled) > count / 2
            results = await asyncio.gather(*(pool.judge(suite()) for _ in range(20)))
            assert {result.verdict for result in results} == {Verdict.ACCEPTED}
            assert pool.stats().sandbox_errors == 0
            cells = [slot.cell for slot in pool._slots if isinstance(slot.cell, Cell)]
            mine = set().union(*({cell.zygote_pid, *processes_below(cell.zygote_pid)} for cell in cells))
            assert processes_below(os.getpid()) - before <= mine

    asyncio.run(scenario())
    assert processes_below(os.getpid()) <= before and not more_fds(fds)


def test_a_case_that_cannot_be_sent(best: Bench) -> None:
    """The deepest value that a case may hold is one level too deep in a list of arguments; judge raises nothing."""
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    errors = best.pool.stats().sandbox_errors
    result = best.judge("def f(x): return x", CallCase(args=[deep], expected=1), entry_point="f")
    assert result.verdict is Verdict.SANDBOX_ERROR and "nested" in str(result.cases[0].detail)
    assert best.pool.stats().sandbox_errors == errors + 1
