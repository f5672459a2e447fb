"""Routing over sandbox workers: a lost worker or a sandbox that failed costs another attempt, never the call."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError

from actors import sandbox_pool
from actors.sandbox_pool import ATTEMPTS, POOL_CALLS, RayPool, sandbox_workers
from sandbox import CallCase, Limits, PoolClosedError, RunOutput, SandboxBackend, Submission, Verdict

LIMITS = Limits()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Fakes need no time to start again."""
    monkeypatch.setattr(sandbox_pool, "RESTART_S", 0.0)


class Worker:
    """Answers each call with the next of `answers`; an exception is raised. The last one repeats."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), 0
        self.run_calls = self.run_stdin = self.judge = SimpleNamespace(remote=self.answer)

    async def answer(self, *_):
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def outputs(*verdicts):
    return [RunOutput(verdict=v) for v in verdicts]


GOOD = outputs(Verdict.ACCEPTED, Verdict.RUNTIME_ERROR)
LOST = outputs(Verdict.ACCEPTED, Verdict.SANDBOX_ERROR)


@pytest.mark.parametrize("failure", [ActorDiedError(), LOST])
@pytest.mark.parametrize("method", ["run_calls", "run_stdin"])
def test_a_call_that_failed_is_made_again_on_another_worker(method, failure):
    workers = [Worker(failure), Worker(GOOD)]
    pool = RayPool(workers)
    arguments = ("f", [], LIMITS) if method == "run_calls" else ([], LIMITS)
    for _ in range(4):  # whichever worker it begins with
        assert asyncio.run(getattr(pool, method)("source", *arguments)) == GOOD
    assert workers[0].calls  # the bad one was met


def test_a_single_worker_is_asked_again_after_its_restart():
    worker = Worker(ActorDiedError(), GOOD)
    assert asyncio.run(RayPool([worker]).run_stdin("source", [], LIMITS)) == GOOD
    assert worker.calls == 2


def test_attempts_are_bounded():
    dead = Worker(ActorDiedError())
    with pytest.raises(RayActorError):
        asyncio.run(RayPool([dead]).run_stdin("source", [], LIMITS))
    assert 1 < dead.calls <= ATTEMPTS
    broken = Worker(LOST)
    assert asyncio.run(RayPool([broken]).run_stdin("source", [], LIMITS)) == LOST
    assert broken.calls == ATTEMPTS


def test_a_result_in_hand_is_better_than_a_dead_worker():
    for _ in range(20):
        pool = RayPool([Worker(LOST), Worker(ActorDiedError())])
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == LOST


def test_a_worker_found_dead_is_not_met_first_by_the_next_call():
    dead, well = Worker(ActorDiedError()), Worker(GOOD)
    pool = RayPool([dead, well])
    for _ in range(50):
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == GOOD
    assert dead.calls <= 1


def test_a_worker_that_hangs_is_not_waited_for_again():
    hanging = Worker(TimeoutError())
    with pytest.raises(TimeoutError):
        asyncio.run(RayPool([hanging]).run_stdin("source", [], LIMITS))
    assert hanging.calls == 1


def test_a_worker_that_hangs_does_not_end_the_call_where_another_answers():
    for _ in range(20):
        pool = RayPool([Worker(TimeoutError()), Worker(GOOD)])
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == GOOD
        mixed = RayPool([Worker(TimeoutError()), Worker(LOST)])
        assert asyncio.run(mixed.run_stdin("source", [], LIMITS)) == LOST


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_workers_that_all_died_at_once_are_asked_again(count):
    workers = [Worker(ActorDiedError(), GOOD) for _ in range(count)]
    assert asyncio.run(RayPool(workers).run_stdin("source", [], LIMITS)) == GOOD


def test_calls_go_to_the_least_loaded_worker():
    gates = []

    class Slow(Worker):
        async def answer(self, *_):
            self.calls += 1
            gate = asyncio.Event()
            gates.append(gate)
            await gate.wait()
            return GOOD

    async def main():
        workers = [Slow(GOOD) for _ in range(3)]
        pool = RayPool(workers)
        calls = [asyncio.create_task(pool.run_stdin("source", [], LIMITS)) for _ in range(6)]
        while len(gates) < 6:
            await asyncio.sleep(0)
        assert [w.calls for w in workers] == [2, 2, 2]
        for gate in gates:
            gate.set()
        await asyncio.gather(*calls)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_more_calls_than_the_pool_may_have_wait_in_it():
    gate = asyncio.Event()

    class Waiting(Worker):
        async def answer(self, *_):
            self.calls += 1
            await gate.wait()
            return GOOD

    async def main():
        worker = Waiting(GOOD)
        pool = RayPool([worker])
        calls = [asyncio.create_task(pool.run_stdin("source", [], LIMITS)) for _ in range(POOL_CALLS + 50)]
        await asyncio.sleep(0.05)
        assert worker.calls == POOL_CALLS
        gate.set()
        assert await asyncio.gather(*calls) == [GOOD] * len(calls)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_closed_pool_takes_no_more_calls():
    pool = RayPool([Worker(GOOD)])
    assert isinstance(pool, SandboxBackend)
    asyncio.run(pool.aclose())
    with pytest.raises(PoolClosedError):
        asyncio.run(pool.run_stdin("source", [], LIMITS))


@pytest.mark.slow
def test_workers_reserve_the_cpus_that_their_programs_use(local_ray):
    workers = sandbox_workers(1, slots=2, min_level=1, packages=["numpy"])
    report = ray.get(workers[0].report.remote(), timeout=60)
    assert report.layers["package numpy"].startswith("loaded")
    assert ray.available_resources().get("CPU", 0) == 0
    ray.get(workers[0].close.remote(), timeout=30)
    ray.kill(workers[0])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_killed_under_load_loses_nothing(local_ray, monkeypatch, count):
    monkeypatch.undo()
    workers = sandbox_workers(count, slots=1, min_level=1)
    case = CallCase(args=[2], expected=4)
    submission = Submission(source="def f(x):\n    return x * x\n", entry_point="f", cases=[case] * 4, limits=LIMITS)

    async def main():
        pids = [await w.pid.remote() for w in workers]
        pool = RayPool(workers)
        calls = [asyncio.create_task(pool.judge(submission)) for _ in range(24)]
        await asyncio.sleep(0.1)
        os.kill(pids[0], signal.SIGKILL)
        return await asyncio.gather(*calls)

    results = asyncio.run(asyncio.wait_for(main(), 120))
    assert [r.verdict for r in results] == [Verdict.ACCEPTED] * 24
    for worker in workers:
        ray.kill(worker)
