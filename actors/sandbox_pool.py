"""Sandbox workers as Ray actors, and the handle that spreads programs over them."""

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

from sandbox import LocalPool, RunOutput, Submission, SuiteResult, Verdict

CALL_DEADLINE_S = 900.0  # a submission waits for its turn; each run inside has its own limits
ATTEMPTS = 3
RESTART_S = 2.0
AVOID_S = 10.0
T = TypeVar("T")


@ray.remote(num_cpus=0, max_restarts=2, max_concurrency=256)
class SandboxWorker:
    """A shell around one `LocalPool`. Candidate code runs in the pool's own processes, never in this one."""

    def __init__(self, slots: int, min_level: int) -> None:
        self._slots, self._min_level = slots, min_level
        self._pool: LocalPool | None = None
        self._starting = asyncio.Lock()

    async def _ready(self) -> LocalPool:
        async with self._starting:
            if self._pool is None:
                pool = LocalPool(slots=self._slots, min_level=self._min_level)
                await pool.__aenter__()
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


class SandboxPool:
    """Least-loaded routing over sandbox workers, with retries of infrastructure failures on another worker.

    Used inside an event loop; each holder counts its own outstanding calls.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = list(workers)
        self._outstanding = [0] * len(self.workers)
        self._order = random.Random(0)
        self._gone: dict[int, float] = {}
        self.programs = 0

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
        self.programs += 1
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
