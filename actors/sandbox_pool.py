"""Sandbox workers as Ray actors, one or more a node, and the pool that spreads programs over them."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from sandbox import LocalPool, PoolClosedError, RunOutput, Submission, SuiteResult, Verdict

CALL_DEADLINE_S = 900.0  # a submission waits for its turn; each run inside has its own limits
ATTEMPTS = 3
RESTART_S = 2.0
AVOID_S = 10.0
WORKER_CALLS = 256
"""Calls that a worker holds at once; its own pool runs as many as it has slots."""
POOL_CALLS = 128
"""Calls that one pool has at a worker at most; more wait in the pool, so that no queue grows without bound."""
T = TypeVar("T")


@ray.remote(num_cpus=1, max_restarts=2, max_concurrency=WORKER_CALLS)
class SandboxWorker:
    """A shell around one `LocalPool`. Candidate code runs in the pool's own processes, never in this one.

    Create it with `sandbox_workers`, which reserves a CPU for every slot.
    """

    def __init__(self, slots: int, min_level: int, packages: Sequence[str] = ()) -> None:
        self._slots, self._min_level, self._packages = slots, min_level, tuple(packages)
        self._pool: LocalPool | None = None
        self._starting = asyncio.Lock()

    async def _ready(self) -> LocalPool:
        async with self._starting:
            if self._pool is None:
                pool = LocalPool(slots=self._slots, min_level=self._min_level, packages=self._packages)
                await pool.start()
                self._pool = pool
        return self._pool

    async def report(self) -> Any:
        """The isolation report of this worker; starts the pool."""
        return (await self._ready()).isolation

    async def pid(self) -> int:
        return os.getpid()

    async def judge(self, submission: Submission) -> SuiteResult:
        return await (await self._ready()).judge(submission)

    async def run_calls(self, source: str, entry_point: str, inputs: Sequence[Any], limits: Any) -> list[RunOutput]:
        return await (await self._ready()).run_calls(source, entry_point, inputs, limits)

    async def run_stdin(self, source: str, stdins: Sequence[str], limits: Any) -> list[RunOutput]:
        return await (await self._ready()).run_stdin(source, stdins, limits)

    async def stats(self) -> Any:
        return (await self._ready()).stats()

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None


def sandbox_workers(count: int, slots: int, min_level: int, packages: Sequence[str] = ()) -> list[Any]:
    """`count` workers over the nodes of the cluster, each with as many CPUs reserved as it runs programs at a time.

    They start when they are first called; one that no node has room for waits until there is.
    """
    made = SandboxWorker.options(num_cpus=slots, scheduling_strategy="SPREAD")
    return [made.remote(slots, min_level, tuple(packages)) for _ in range(count)]


class RayPool:
    """Least-loaded routing over sandbox workers, with retries of infrastructure failures on another worker.

    A `SandboxBackend`. Used inside an event loop; each holder counts its own outstanding calls, and waits where it has
    POOL_CALLS of them at every worker. The workers belong to whoever created them.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = list(workers)
        self._outstanding = [0] * len(self.workers)
        self._room = asyncio.Semaphore(POOL_CALLS * len(self.workers))
        self._order = random.Random(0)
        self._gone: dict[int, float] = {}
        self._closed = False
        self.programs = 0

    async def aclose(self) -> None:
        """Take no more calls; those in flight end as they would. Later ones raise PoolClosedError."""
        self._closed = True

    async def judge(self, submission: Submission) -> SuiteResult:
        """Judge a program. A result of `sandbox_error` after all attempts is returned as it is.

        Raises RayActorError where every worker is gone, TimeoutError where none answers.
        """
        return await self._call(
            lambda worker: worker.judge.remote(submission), lambda result: result.verdict is Verdict.SANDBOX_ERROR
        )

    async def run_calls(self, source: str, entry_point: str, inputs: Sequence[Any], limits: Any) -> list[RunOutput]:
        """A function's values on `inputs` (pairs of args and kwargs). Raises like `judge`."""
        return await self._call(lambda worker: worker.run_calls.remote(source, entry_point, inputs, limits), _lost)

    async def run_stdin(self, source: str, stdins: Sequence[str], limits: Any) -> list[RunOutput]:
        """A program's outputs on `stdins`. Raises like `judge`."""
        return await self._call(lambda worker: worker.run_stdin.remote(source, stdins, limits), _lost)

    async def _call(self, call: Callable[[Any], Awaitable[T]], failed: Callable[[T], bool]) -> T:
        """The result of `call` on the least loaded worker, tried again elsewhere while a worker is gone or `failed`.

        A failed result is returned where nothing better came; a worker that did not answer in time is not waited for
        again.
        """
        if self._closed:
            raise PoolClosedError("the pool was closed")
        async with self._room:
            self.programs += 1
            return await self._attempts(call, failed)

    async def _attempts(self, call: Callable[[Any], Awaitable[T]], failed: Callable[[T], bool]) -> T:
        tried: set[int] = set()
        results: list[T] = []
        attempts = max(ATTEMPTS, len(self.workers) + 1)
        for attempt in range(1, attempts + 1):
            index = self._least_loaded(tried)
            tried.add(index)
            self._outstanding[index] += 1
            try:
                results.append(await asyncio.wait_for(call(self.workers[index]), CALL_DEADLINE_S))
            except RayActorError:
                self._gone[index] = time.monotonic()
                if attempt == attempts and not results:
                    raise
                if attempt < attempts and len(tried) == len(self.workers):  # Ray needs a moment to start one again
                    await asyncio.sleep(RESTART_S * min(attempt, ATTEMPTS))
                continue
            except TimeoutError:
                self._gone[index] = time.monotonic()
                if attempt < attempts and len(tried) < len(self.workers):
                    continue
                if not results:
                    raise
                break
            finally:
                self._outstanding[index] -= 1
            if not failed(results[-1]) or len(results) == ATTEMPTS:
                break
        return results[-1]

    def _least_loaded(self, tried: set[int]) -> int:
        """A worker not tried yet, where there is one; those that were just found dead come last: they look idle."""
        now = time.monotonic()

        def cost(index: int) -> tuple[bool, bool, int]:
            return index in tried, now - self._gone.get(index, -math.inf) < AVOID_S, self._outstanding[index]

        least = min(map(cost, range(len(self.workers))))
        return self._order.choice([i for i in range(len(self.workers)) if cost(i) == least])


def _lost(outputs: list[RunOutput]) -> bool:
    return any(output.verdict is Verdict.SANDBOX_ERROR for output in outputs)
