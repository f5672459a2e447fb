"""What a run costs here, measured: CPU seconds of all processes that take part, contenders side by side.

Clock time says little on a machine that others use too; CPU time of the whole process tree, kept on one core, does, and
it is what decides how many programs a core can judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sandbox.isolation import UNSAFE_VARIABLE
from sandbox.pool import LocalPool
from sandbox.records import AssertCase, CallCase, Limits, StdioCase, Submission, SuiteResult
from sandbox.verdicts import Verdict

ROUNDS: Final = 5
RUNS: Final = 100
QUICK_RUNS: Final = 60
SUITE_CASES: Final = 20
OVERSUBSCRIBED: Final = 8
DEADLINE_S: Final = 600.0
PR_SET_CHILD_SUBREAPER: Final = 36
_TICK: Final = os.sysconf("SC_CLK_TCK")

SOURCE: Final = """\
from typing import List


def closest(numbers: List[float], gap: float) -> bool:
    for i, a in enumerate(numbers):
        for b in numbers[i + 1:]:
            if abs(a - b) < gap:
                return True
    return False
"""
ARGUMENTS: Final[list[Any]] = [[1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3]
TEST: Final = f"assert closest({ARGUMENTS[0]}, {ARGUMENTS[1]}) == True\n"
CALL: Final = CallCase(args=ARGUMENTS, expected=True)


def tree_cpu_s(pid: int | None = None) -> float:
    """CPU seconds of this process, of the children that it waited for, and of all that live below it."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    return total + sum(_cpu_of(child) for child in processes_below(pid or os.getpid()))


def _cpu_of(pid: int) -> float:
    """Seconds of a living process and of the children that it waited for; 0 for one that has just gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICK


def adopt_orphans() -> None:
    """Become the parent of processes that lose theirs: some jails leave theirs unwaited for, and uncounted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans() -> None:
    """Wait for every child that has ended. Not while anything else waits for one."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and all that it starts, on one core.

    A core-second is then what it says, and nothing is spent on waking up another core.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processes_below(pid: int) -> set[int]:
    """All living descendants of a process; its zombies do not count."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent == pid or parent in found} - found:
        found |= more
    return found


class SyncPool:
    """A LocalPool on an event loop in a thread of its own, for callers that are not asynchronous."""

    def __init__(self, slots: int = 1, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-pool", daemon=True)
        self._thread.start()
        self.pool: LocalPool = self.call(self._start(slots, options))

    async def _start(self, slots: int, options: dict[str, Any]) -> LocalPool:
        pool = LocalPool(slots, **options)
        await pool.start()
        return pool

    def call(self, work: Coroutine[Any, Any, Any], timeout: float = DEADLINE_S) -> Any:
        """The result of a coroutine. Raises TimeoutError after `timeout` seconds, and what the coroutine raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def judge(self, submission: Submission) -> SuiteResult:
        """`LocalPool.judge`."""
        result: SuiteResult = self.call(self.pool.judge(submission))
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the pool and its thread."""
        self.call(self.pool.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Contender:
    """A way to run the task: `block` does so that many times and raises BenchError when one goes wrong.

    `tests`: how many tests it makes each time; its cost is counted per test.
    """

    name: str
    block: Callable[[int], None]
    tests: int = 1


class BenchError(RuntimeError):
    """A contender did not do its work, so its figure would mean nothing."""


def blocks_of(submission: Submission, pool: SyncPool, at_once: int = 1) -> Callable[[int], None]:
    """Judge the submission that often, one after another, and insist on the verdict."""

    async def many(count: int) -> list[SuiteResult]:
        results: list[SuiteResult] = []
        for _ in range(0, count, at_once):
            results += await asyncio.gather(*(pool.pool.judge(submission) for _ in range(at_once)))
        return results

    def block(count: int) -> None:
        for result in pool.call(many(count)):
            if result.verdict is not Verdict.ACCEPTED:
                raise BenchError(f"{result.verdict}: {next(c.detail for c in result.cases if c.detail)}")

    return block


def cold_python(count: int) -> None:
    """A new interpreter for every run, without isolation: what `subprocess.run([python, ...])` costs at least."""
    for _ in range(count):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", SOURCE + TEST],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise BenchError(f"python: {done.stdout!r}")


def measure(contenders: Sequence[Contender], runs: int, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU milliseconds per test, one figure per round: in each round every contender has its turn of `runs` tests."""
    for contender in contenders:
        contender.block(3)  # caches, imports
    figures: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            times = math.ceil(runs / contender.tests)
            before = tree_cpu_s()
            contender.block(times)
            figures[contender.name].append(1000 * (tree_cpu_s() - before) / (times * contender.tests))
    return figures


def ratio(figures: dict[str, list[float]], of: str, to: str) -> float:
    """The median over the rounds of one contender's cost by another's in the same round."""
    return statistics.median(a / b for a, b in zip(figures[of], figures[to], strict=True))


def bare_pool() -> SyncPool:
    """The same pool without any layer: zygote, fork, files and pipes. Only for the task of this module."""
    before = os.environ.get(UNSAFE_VARIABLE)
    os.environ[UNSAFE_VARIABLE] = "1"
    try:
        return SyncPool(level=0, allow_unsafe=True, disabled_layers=["rlimits"])
    finally:
        if before is None:
            del os.environ[UNSAFE_VARIABLE]
        else:
            os.environ[UNSAFE_VARIABLE] = before


CALL_TASK: Final = Submission(source=SOURCE, entry_point="closest", cases=[CALL])
ASSERT_TASK: Final = Submission(source=SOURCE, entry_point="closest", cases=[AssertCase(code=TEST)])
SUITE_TASK: Final = Submission(source=SOURCE, entry_point="closest", cases=[CALL] * (1 + SUITE_CASES))


def own_contenders(pool: SyncPool, bare: SyncPool) -> list[Contender]:
    """What the sandbox can be compared with without any peer."""
    return [
        Contender("isolated", blocks_of(CALL_TASK, pool)),
        Contender("bare_fork", blocks_of(CALL_TASK, bare)),
        Contender("cold_python", cold_python),
        Contender("checker_mode", blocks_of(ASSERT_TASK, pool)),
        Contender("suite", blocks_of(SUITE_TASK, pool), tests=1 + SUITE_CASES),
    ]


def own_ratios(figures: dict[str, list[float]]) -> dict[str, float]:
    """The ratios among them. `nth_test`: a test after the first one, in the same submission, by the first."""
    pairs = zip(figures["suite"], figures["isolated"], strict=True)
    nth = [(test * (1 + SUITE_CASES) - first) / SUITE_CASES / first for test, first in pairs]
    return {
        "over_bare_fork": ratio(figures, "isolated", "bare_fork"),
        "vs_cold_python": ratio(figures, "cold_python", "isolated"),
        "checker_mode": ratio(figures, "checker_mode", "isolated"),
        "nth_test": statistics.median(nth),
    }


def oversubscription() -> dict[str, int]:
    """Eight honest programs for every core at once, each close to its CPU limit: how many verdicts change?"""
    cores = len(os.sched_getaffinity(0))
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint('ok')"
    task = Submission(source=busy, cases=[StdioCase(stdin="", expected="ok")], limits=Limits(cpu_s=0.4))

    async def together(pool: LocalPool, count: int) -> list[SuiteResult]:
        return await asyncio.gather(*(pool.judge(task) for _ in range(count)))

    with SyncPool(OVERSUBSCRIBED * cores) as pool:
        results = pool.call(together(pool.pool, OVERSUBSCRIBED * cores))
    changed = sum(result.verdict is not Verdict.ACCEPTED for result in results)
    return {"programs": len(results), "cores": cores, "verdicts_changed": changed}


def soak(runs: int, slots: int | None = None) -> dict[str, Any]:
    """That many runs of mixed programs in one pool; what has grown afterwards.

    Descriptors and resident memory are those of this process and of the zygotes, after a warm-up. Raises BenchError for
    a wrong verdict or a lost run.
    """
    slots = slots or len(os.sched_getaffinity(0))
    tasks = [
        (CALL_TASK, Verdict.ACCEPTED),
        (ASSERT_TASK, Verdict.ACCEPTED),
        (_script("print('ok')"), Verdict.ACCEPTED),
        (_script("print('no')"), Verdict.WRONG_ANSWER),
        (_script("import os\nos.abort()"), Verdict.RUNTIME_ERROR),
        (_script("x = ("), Verdict.COMPILE_ERROR),
        (_script("x = ' ' * (1 << 24)\nprint('ok')"), Verdict.ACCEPTED),
    ]
    before_all = processes_below(os.getpid())
    with SyncPool(slots, recycle_after=10 * runs) as pool:

        async def batch(count: int) -> None:
            picked = [tasks[n % len(tasks)] for n in range(count)]
            results = await asyncio.gather(*(pool.pool.judge(task) for task, _ in picked))
            for result, (_, verdict) in zip(results, picked, strict=True):
                if result.verdict is not verdict:
                    raise BenchError(f"{result.verdict} instead of {verdict}: {result.cases[0].detail}")

        pool.call(batch(50 * slots))
        first = _held(before_all)
        started = time.monotonic()
        done = 0
        while done < runs:
            size = min(500, runs - done)
            pool.call(batch(size))
            done += size
        wall = time.monotonic() - started
        last, stats = _held(before_all), pool.pool.stats()
    left = processes_below(os.getpid()) - before_all
    return {
        "runs": done, "slots": slots, "wall_s": round(wall, 1), "runs_per_s": round(done / wall, 1),
        "retries": stats.retries, "sandbox_errors": stats.sandbox_errors, "processes_left": len(left),
        "processes_grown": last[0] - first[0], "descriptors_grown": last[1] - first[1],
        "memory_grown_mb": round((last[2] - first[2]) / 2**20, 2), "memory_mb": round(last[2] / 2**20, 1),
    }  # fmt: skip


def _script(source: str) -> Submission:
    return Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], limits=Limits(memory_mb=256))


def _held(before: set[int]) -> tuple[int, int, int]:
    """Processes, descriptors and resident bytes that this process and its zygotes hold."""
    pids = processes_below(os.getpid()) - before
    descriptors = resident = 0
    for pid in {os.getpid(), *pids}:
        descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(pids), descriptors, resident


def quick_report(quick: bool) -> dict[str, Any]:
    """What `python -m sandbox bench` prints. `quick`: fewer runs a round."""
    runs = QUICK_RUNS if quick else RUNS
    with one_core(), SyncPool() as pool, bare_pool() as bare:
        figures = measure(own_contenders(pool, bare), runs)
        isolation = pool.pool.isolation
    return {
        "ratios": {name: round(value, 3) for name, value in own_ratios(figures).items()},
        "cpu_ms_per_test": {name: round(statistics.median(values), 3) for name, values in figures.items()},
        "runs_per_core_s": round(1000 / statistics.median(figures["isolated"]), 1),
        "runs": runs,
        "rounds": ROUNDS,
        "isolation": isolation.level_name,
    }


def as_text(found: dict[str, Any]) -> str:
    """Figures for people, one a line."""
    lines: list[str] = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {inner:<22}{one}" for inner, one in value.items())]
        else:
            lines.append(f"{name:<24}{value}")
    return "\n".join(lines)
