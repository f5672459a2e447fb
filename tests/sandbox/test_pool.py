"""The pool as a service: faults, retries, back-pressure, a clean end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attacks import covers
from sandbox_bench import QUICK, Bench, described_fds, more_fds, open_fds, wait_gone

from sandbox import (
    CallCase,
    Limits,
    LocalPool,
    PoolClosedError,
    SandboxUnavailableError,
    StdioCase,
    Submission,
    UnserializableError,
    Verdict,
)
from sandbox.bench import processes_below
from sandbox.isolation import UNSAFE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]


def suite(source: str = "print('ok')", **fields: Any) -> Submission:
    return Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], limits=QUICK, **fields)


@pytest.mark.slow
@covers(94)
def test_zygote_killed_during_a_run_is_retried(bench: Bench) -> None:
    before = bench.pool.stats()
    ours = processes_below(os.getpid())
    slow = suite("import time\ntime.sleep(0.4)\nprint('ok')")

    async def scenario() -> Any:
        judged = asyncio.ensure_future(bench.pool.judge(slow))
        await asyncio.sleep(0.15)
        cell = bench.pool._slots[0].cell
        assert cell is not None
        running = processes_below(cell.zygote_pid) | {cell.zygote_pid}
        os.kill(max(running - {max(running)}), signal.SIGKILL)  # the zygote: the youngest but one
        return running, await judged

    running, result = bench.call(scenario())
    assert len(running) >= 2
    assert result.verdict is Verdict.ACCEPTED
    after = bench.pool.stats()
    assert after.retries == before.retries + 1 and after.sandbox_errors == before.sandbox_errors
    assert not wait_gone(running, 2)
    assert len(processes_below(os.getpid())) == len(ours)


def test_a_cell_that_never_works_is_a_sandbox_error() -> None:
    bench = Bench()
    try:
        for slot in bench.pool._slots:
            slot.options = slot.options.at_level(7)  # no such zygote: falls over at its first run

        async def break_cells() -> None:
            for slot in bench.pool._slots:
                await slot.drop()

        bench.call(break_cells())
        import sandbox.cell

        original, sandbox.cell.ZYGOTE = sandbox.cell.ZYGOTE, Path("/nonexistent.py")  # type: ignore[misc]
        try:
            result = bench.call(bench.pool.judge(suite()))
        finally:
            sandbox.cell.ZYGOTE = original  # type: ignore[misc]
        assert result.verdict is Verdict.SANDBOX_ERROR and not result.compiles
        assert bench.pool.stats().sandbox_errors == 1 and bench.pool.stats().retries == 2
    finally:
        bench.close()


EXECUTOR = """
import asyncio, sys
from sandbox import *
# Takes back, as far as it can, that it dies with its parent.
SOURCE = "import ctypes, os\\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\\nwhile True: pass"
async def main():
    pool = LocalPool(2, level=LEVEL, disabled_layers=DISABLED)
    await pool.start()
    work = [asyncio.ensure_future(pool.judge(Submission(source=SOURCE, limits=Limits(cpu_s=30),
            cases=[StdioCase(stdin="", expected="")]))) for _ in range(2)]
    print("running", flush=True)
    await asyncio.gather(*work)
asyncio.run(main())
"""


@covers(95)
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_everything_dies_with_the_executor(bench: Bench, how: signal.Signals) -> None:
    check_that_everything_dies(bench.pool.isolation.level, how, disabled=[])


@covers(66, 95)
def test_without_the_filter_everything_dies_with_the_executor_too(best: Bench) -> None:
    """A run may then outlive its parent; the first process of its namespace takes it along."""
    if best.pool.isolation.level < 3:
        pytest.skip("no namespaces on this machine")
    check_that_everything_dies(3, signal.SIGKILL, disabled=["seccomp"])


def check_that_everything_dies(level: int, how: signal.Signals, disabled: list[str]) -> None:
    """Start an executor of two endless runs, end it, and see that nothing of it lives a second later."""
    code = EXECUTOR.replace("LEVEL", str(level)).replace("DISABLED", str(disabled))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"running\n"
            deadline = time.monotonic() + 20
            while len(below := processes_below(process.pid)) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(below) >= 4
            process.send_signal(how)
            assert not wait_gone(below, 1)
        finally:
            process.kill()


def test_aclose_leaves_no_process_and_no_descriptor() -> None:
    fds = described_fds()
    before = processes_below(os.getpid())

    async def scenario() -> set[int]:
        async with LocalPool(2) as pool:
            assert (await pool.judge(suite())).verdict is Verdict.ACCEPTED
            await asyncio.gather(*(pool.judge(suite()) for _ in range(8)))
            mine = processes_below(os.getpid()) - before
            assert len(mine) >= 2
        return mine

    mine = asyncio.run(scenario())
    assert not wait_gone(mine, 0.5)
    assert processes_below(os.getpid()) <= before
    assert not more_fds(fds)


def test_aclose_ends_runs_in_flight_and_waiting_ones() -> None:
    async def scenario() -> None:
        pool = LocalPool(1)
        await pool.start()
        work = [asyncio.ensure_future(pool.judge(suite("import time\ntime.sleep(60)"))) for _ in range(3)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await pool.aclose()
        results = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(result, PoolClosedError) for result in results), results
        assert time.monotonic() - started < 2
        with pytest.raises(PoolClosedError):
            await pool.judge(suite())

    asyncio.run(scenario())


def test_cancelled_call_frees_its_cell(best: Bench) -> None:
    async def scenario() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await best.pool.judge(suite("import time\ntime.sleep(60)"))
        return await best.pool.judge(suite())

    assert best.call(scenario()).verdict is Verdict.ACCEPTED


def test_many_programs_at_once(best: Bench) -> None:
    async def scenario() -> list[Any]:
        return await asyncio.gather(*(best.pool.judge(suite(f"print('ok' * {n % 2})")) for n in range(200)))

    results = best.call(scenario())
    expected = [Verdict.ACCEPTED if n % 2 else Verdict.WRONG_ANSWER for n in range(200)]
    assert [result.verdict for result in results] == expected


@pytest.mark.slow
def test_sleepers_do_not_stop_other_cells() -> None:
    bench = Bench(slots=2)

    async def scenario() -> float:
        sleeper = asyncio.ensure_future(bench.pool.judge(suite("import time\ntime.sleep(1.5)\nprint('ok')")))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await asyncio.gather(*(bench.pool.judge(suite()) for _ in range(20)))
        elapsed = time.monotonic() - started
        assert (await sleeper).verdict is Verdict.ACCEPTED
        return elapsed

    try:
        assert bench.call(scenario()) < 1.2
    finally:
        bench.close()


@covers(93)
def test_a_thousand_waiting_sleepers_stop_nobody_else() -> None:
    """A pool full of sleepers lets the cells of another go on, and ends at once."""
    sleepers, others = Bench(), Bench()
    submission = Submission(
        source="import time\ntime.sleep(60)", cases=[StdioCase(stdin="", expected="ok")], limits=Limits(wall_s=60)
    )

    async def asleep() -> list[asyncio.Future[Any]]:
        work = [asyncio.ensure_future(sleepers.pool.judge(submission)) for _ in range(1000)]
        await asyncio.sleep(0.2)
        return work

    async def everything_else() -> list[Any]:
        return await asyncio.gather(*(others.pool.judge(suite()) for _ in range(50)))

    async def end(work: list[asyncio.Future[Any]]) -> list[Any]:
        await sleepers.pool.aclose()
        return await asyncio.gather(*work, return_exceptions=True)

    try:
        work = sleepers.call(asleep())
        started = time.monotonic()
        assert {result.verdict for result in others.call(everything_else())} == {Verdict.ACCEPTED}
        assert time.monotonic() - started < 5
        cell = sleepers.cell
        assert cell is not None
        running = processes_below(cell.zygote_pid)
        started = time.monotonic()
        assert all(isinstance(result, PoolClosedError) for result in sleepers.call(end(work)))
        assert time.monotonic() - started < 5
        assert running and not wait_gone(running, 1)
    finally:
        sleepers.close()
        others.close()


def test_cells_are_recycled() -> None:
    bench = Bench(recycle_after=3)
    try:
        for _ in range(10):
            assert bench.script("print('ok')").verdict is Verdict.ACCEPTED
        assert bench.pool.stats().cells_started >= 3
        assert bench.pool.stats().sandbox_errors == bench.pool.stats().retries == 0
    finally:
        bench.close()


@covers(82)
@pytest.mark.slow
def test_a_cell_stays_small() -> None:
    bench = Bench()
    try:
        cell = bench.pool._slots[0].cell
        assert cell is not None

        def fds() -> int:
            pids = processes_below(cell.zygote_pid) | {cell.zygote_pid}
            return sum(open_fds(pid) for pid in pids)

        def resident() -> int:
            pids = processes_below(cell.zygote_pid) | {cell.zygote_pid}
            return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096

        bench.script("print('ok')")
        before, memory = fds(), resident()
        for _ in range(100):
            bench.script("x = ' ' * 10 ** 7\nkept = [x, [[] for _ in range(10 ** 4)]]\nprint('ok')")
        assert fds() == before
        # Each run takes ten times this.
        assert resident() < memory + (1 << 20)
        assert cell is bench.pool._slots[0].cell
    finally:
        bench.close()


@pytest.mark.slow
def test_oversubscription_changes_no_verdict() -> None:
    """Eight honest programs at once on few cores: CPU time decides, not the clock."""
    bench = Bench(slots=8)
    source = "import time\nwhile time.process_time() < 0.2: pass\nprint('ok')"

    async def scenario() -> list[Any]:
        submission = Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], limits=Limits(cpu_s=0.4))
        return await asyncio.gather(*(bench.pool.judge(submission) for _ in range(8)))

    try:
        assert {result.verdict for result in bench.call(scenario())} == {Verdict.ACCEPTED}
    finally:
        bench.close()


@covers(96, 97)
def test_unreachable_level_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(**options: Any) -> None:
        async with LocalPool(1, **options):
            pass

    monkeypatch.delenv(UNSAFE_VARIABLE, raising=False)
    for options in ({"level": 0}, {"level": 0, "allow_unsafe": True}, {"min_level": 4}):
        with pytest.raises(SandboxUnavailableError) as caught:
            asyncio.run(start(**options))
        assert caught.value.attempts
    monkeypatch.setenv(UNSAFE_VARIABLE, "1")
    with pytest.raises(SandboxUnavailableError):
        asyncio.run(start(level=0))


NO_ISOLATION = """
import asyncio, struct
from sandbox import LocalPool, SandboxUnavailableError
from sandbox.inside import kernel
# Loads the number of the call (x86_64 and aarch64 differ) and refuses prctl(PR_SET_SECCOMP).
load, equal, give = 0x20, 0x15, 0x06
steps = [(load, 0, 0, 0), (equal, 1, 0, PRCTL), (give, 0, 0, 0x7FFF0000),
         (load, 0, 0, 16), (equal, 0, 1, 22), (give, 0, 0, 0x00050016), (give, 0, 0, 0x7FFF0000)]
kernel.no_new_privileges()
kernel.Filter(b"".join(struct.pack("<HBBI", *step) for step in steps)).install()
async def main():
    try:
        async with LocalPool(1):
            print("started")
    except SandboxUnavailableError as error:
        print(sorted(error.attempts), *error.attempts.values(), sep="\\n")
asyncio.run(main())
"""


@covers(96)
def test_a_kernel_without_filters_is_refused() -> None:
    code = NO_ISOLATION.replace("PRCTL", "157" if os.uname().machine == "x86_64" else "167")
    environment = {name: value for name, value in os.environ.items() if name != UNSAFE_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, env=environment
    )
    levels, *reasons = done.stdout.splitlines()
    assert levels == "[0, 1, 2, 3]", done
    assert all("PR_SET_SECCOMP" in reason or "namespaces" in reason for reason in reasons[:3]), reasons
    assert "refused" in reasons[3]


def test_without_isolation_every_result_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNSAFE_VARIABLE, "1")
    bench = Bench(level=0, allow_unsafe=True)
    try:
        result = bench.judge("print('ok')", StdioCase(stdin="", expected="ok"))
        assert result.verdict is Verdict.ACCEPTED and result.isolation.level_name == "none"
    finally:
        bench.close()


def test_bad_input_is_an_error_and_not_a_verdict(best: Bench) -> None:
    with pytest.raises(ValueError, match="entry_point"):
        Submission(source="", cases=[CallCase(expected=1)])
    with pytest.raises(ValueError, match="at least 1"):
        Submission(source="", cases=[])
    with pytest.raises(ValueError, match="at most"):
        Submission(source="#" * 300_000, cases=[CallCase(expected=1)], entry_point="f")
    with pytest.raises(ValueError):
        CallCase(args=[object()], expected=1)
    for bad in ({"cpu_s": -1}, {"cpu_s": float("nan")}, {"memory_mb": 1}, {"wall_s": 0}, {"threads": 0}, {"cpus": 1}):
        with pytest.raises(ValueError):
            Limits(**bad)
    with pytest.raises(UnserializableError):
        best.call(best.pool.run_calls("def f(x): pass", "f", [((object(),), {})], QUICK))
    with pytest.raises(ValueError):
        LocalPool(0)


def test_zygote_that_dies_idle_is_replaced_without_losing_a_run() -> None:
    bench = Bench()

    async def scenario() -> Any:
        cell = bench.pool._slots[0].cell
        assert cell is not None
        os.kill(cell.zygote_pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        return await bench.pool.judge(suite())

    try:
        assert bench.call(scenario()).verdict is Verdict.ACCEPTED
        assert bench.pool.stats().retries == 0 and bench.pool.stats().cells_started == 2
    finally:
        bench.close()


def test_stopped_zygote_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cell.REPLY_GRACE_S", 0.2)
    monkeypatch.setattr("sandbox.cell.EXIT_TIMEOUT_S", 0.2)
    bench = Bench()

    async def scenario() -> Any:
        cell = bench.pool._slots[0].cell
        assert cell is not None
        ours = processes_below(cell.zygote_pid) | {cell.zygote_pid}
        for pid in ours:
            os.kill(pid, signal.SIGSTOP)
        submission = suite().model_copy(update={"limits": Limits(cpu_s=0.2, wall_s=0.3)})
        return ours, await bench.pool.judge(submission)

    try:
        ours, result = bench.call(scenario())
        assert result.verdict is Verdict.ACCEPTED and bench.pool.stats().retries == 1
        assert not wait_gone(ours, 1)
    finally:
        bench.close()


@pytest.mark.slow
def test_an_idle_cell_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cell.PING_TIMEOUT_S", 0.3)
    bench = Bench(watchdog_s=0.2)
    try:
        cell = bench.pool._slots[0].cell
        assert cell is not None
        time.sleep(0.5)
        assert bench.pool._slots[0].cell is cell  # a healthy one stays
        stopped = processes_below(cell.zygote_pid) | {cell.zygote_pid}
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert not wait_gone(stopped, 8)
        assert bench.script("print('ok')").verdict is Verdict.ACCEPTED
        assert bench.pool.stats().retries == 0 and bench.pool.stats().cells_started >= 2
    finally:
        bench.close()


def test_a_cell_that_grows_is_recycled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pool.RECYCLE_AFTER_KIB", -1)
    bench = Bench()
    try:
        for _ in range(3):
            assert bench.script("print('ok')").verdict is Verdict.ACCEPTED
        assert bench.pool.stats().cells_started >= 3 and bench.pool.stats().retries == 0
    finally:
        bench.close()


@pytest.mark.parametrize("level", [3, 2, 1])
def test_packages(level: int) -> None:
    source = (
        "import numpy as np\nimport numpy.linalg\n"
        "def f(n):\n  a = np.arange(n) * np.float64(1.5)\n  return a, np.linalg.norm(a), np.bool_(1), np.random.rand()"
    )
    try:
        bench = Bench(level=level, packages=["numpy"])
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    try:
        assert bench.pool.isolation.layers["package numpy"].startswith("loaded: ")
        results = [bench.value(source, 2, limits=Limits(memory_mb=512)) for _ in range(2)]
        assert results[0].returned == results[1].returned
        assert results[0].returned is not None
        assert results[0].returned.startswith('{"$tuple":[[0.0,1.5],1.5,true,0.')
        beside = bench.stdout("import os, numpy\nprint(os.listdir(os.path.dirname(os.path.dirname(numpy.__file__))))")
        assert not beside.ok or set(eval(beside.stdout)) <= {"numpy", "numpy.libs"}
    finally:
        bench.close()


@pytest.mark.parametrize("name", ["no_such_package", "numpy.linalg", ""])
def test_a_package_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match="packages"):
        LocalPool(packages=[name])


def test_cells_of_one_process_have_users_of_their_own() -> None:
    from sandbox.cell import FIRST_SCRATCH_ID, SCRATCH_IDS, _scratch_id

    given = [_scratch_id() for _ in range(100)]
    assert len(set(given)) == 100
    assert all(FIRST_SCRATCH_ID <= one < FIRST_SCRATCH_ID + SCRATCH_IDS for one in given)


def test_the_clock_of_a_run_starts_with_its_program(best: Bench) -> None:
    """However long the start of its process takes, it is not the time limit that ends it."""
    before = best.pool.stats().retries
    for wall_s in (0.0002, 0.001, 0.005):
        limits = Limits(cpu_s=1, wall_s=wall_s)
        asleep = [best.script("import time\ntime.sleep(1)", limits=limits) for _ in range(5)]
        assert {result.verdict for result in asleep} <= {Verdict.TIME_LIMIT, Verdict.COMPILE_ERROR}
    assert best.pool.stats().retries == before


def test_an_ordinary_error_within_little_memory(best: Bench) -> None:
    limits = Limits(cpu_s=1, memory_mb=16)
    assert best.script("print('ok')", limits=limits).verdict is Verdict.ACCEPTED
    assert best.script("1 / 0", limits=limits).verdict is Verdict.RUNTIME_ERROR
    assert best.script("x = 'x' * (1 << 26)\nprint('ok')", limits=limits).verdict is Verdict.MEMORY_LIMIT
