"""Routing over sandbox workers: a lost worker or a sandbox that failed costs another attempt, never the call."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from actors import sandbox_pool
from actors.sandbox_pool import ATTEMPTS, SandboxPool
from sandbox import CallCase, Limits, RunOutput, Submission, Verdict

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
    pool = SandboxPool(workers)
    arguments = ("f", [], LIMITS) if method == "run_calls" else ([], LIMITS)
    for _ in range(4):  # whichever worker it begins with
        assert asyncio.run(getattr(pool, method)("source", *arguments)) == GOOD
    assert workers[0].calls  # the bad one was met


def test_a_single_worker_is_asked_again_after_its_restart():
    worker = Worker(ActorDiedError(), GOOD)
    assert asyncio.run(SandboxPool([worker]).run_stdin("source", [], LIMITS)) == GOOD
    assert worker.calls == 2


def test_attempts_are_bounded():
    dead = Worker(ActorDiedError())
    with pytest.raises(RayActorError):
        asyncio.run(SandboxPool([dead]).run_stdin("source", [], LIMITS))
    assert 1 < dead.calls <= ATTEMPTS
    broken = Worker(LOST)
    assert asyncio.run(SandboxPool([broken]).run_stdin("source", [], LIMITS)) == LOST
    assert broken.calls == ATTEMPTS


def test_a_result_in_hand_is_better_than_a_dead_worker():
    for _ in range(20):
        pool = SandboxPool([Worker(LOST), Worker(ActorDiedError())])
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == LOST


def test_a_worker_found_dead_is_not_met_first_by_the_next_call():
    dead, well = Worker(ActorDiedError()), Worker(GOOD)
    pool = SandboxPool([dead, well])
    for _ in range(50):
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == GOOD
    assert dead.calls <= 1


def test_a_worker_that_hangs_is_not_waited_for_again():
    hanging = Worker(TimeoutError())
    with pytest.raises(TimeoutError):
        asyncio.run(SandboxPool([hanging]).run_stdin("source", [], LIMITS))
    assert hanging.calls == 1


def test_a_worker_that_hangs_does_not_end_the_call_where_another_answers():
    for _ in range(20):
        pool = SandboxPool([Worker(TimeoutError()), Worker(GOOD)])
        assert asyncio.run(pool.run_stdin("source", [], LIMITS)) == GOOD
        mixed = SandboxPool([Worker(TimeoutError()), Worker(LOST)])
        assert asyncio.run(mixed.run_stdin("source", [], LIMITS)) == LOST


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_workers_that_all_died_at_once_are_asked_again(count):
    workers = [Worker(ActorDiedError(), GOOD) for _ in range(count)]
    assert asyncio.run(SandboxPool(workers).run_stdin("source", [], LIMITS)) == GOOD


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
        pool = SandboxPool(workers)
        calls = [asyncio.create_task(pool.run_stdin("source", [], LIMITS)) for _ in range(6)]
        while len(gates) < 6:
            await asyncio.sleep(0)
        assert [w.calls for w in workers] == [2, 2, 2]
        for gate in gates:
            gate.set()
        await asyncio.gather(*calls)

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_killed_under_load_loses_nothing(local_ray, monkeypatch, count):
    from actors.sandbox_pool import SandboxWorker

    monkeypatch.undo()
    workers = [SandboxWorker.remote(1, 1) for _ in range(count)]
    case = CallCase(args=[2], expected=4)
    submission = Submission(source="def f(x):\n    return x * x\n", entry_point="f", cases=[case] * 4, limits=LIMITS)

    async def main():
        pids = [await w.pid.remote() for w in workers]
        pool = SandboxPool(workers)
        calls = [asyncio.create_task(pool.judge(submission)) for _ in range(24)]
        await asyncio.sleep(0.1)
        os.kill(pids[0], signal.SIGKILL)
        return await asyncio.gather(*calls)

    results = asyncio.run(asyncio.wait_for(main(), 120))
    assert [r.verdict for r in results] == [Verdict.ACCEPTED] * 24
