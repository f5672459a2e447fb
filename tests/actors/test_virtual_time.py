"""The event loop on virtual time."""

import asyncio
import time

import pytest

from actors.simulation import (
    DeadlockError,
    VirtualTimeLoop,
    run_virtual,
)


def now():
    return asyncio.get_running_loop().time()


def test_an_hour_takes_no_time():
    async def hour():
        await asyncio.gather(*[asyncio.sleep(n) for n in range(0, 3600, 7)], asyncio.sleep(3600))
        return now()

    started = time.monotonic()
    assert run_virtual(hour()) == 3600
    assert time.monotonic() - started < 1


def test_timers_and_deadlines_follow_the_virtual_clock():
    async def scenario():
        seen = []
        loop = asyncio.get_running_loop()
        loop.call_later(2, lambda: seen.append(("later", now())))
        loop.call_at(1, lambda: seen.append(("at", now())))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(100)
        seen.append(("timeout", now()))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 10)
        seen.append(("wait_for", now()))
        return seen

    assert run_virtual(scenario()) == [("at", 1), ("later", 2), ("timeout", 5), ("wait_for", 15)]


def test_the_clock_stands_still_while_anything_is_ready():
    async def scenario():
        waker = asyncio.create_task(asyncio.sleep(1))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert now() == 0
        await waker
        return now()

    assert run_virtual(scenario()) == 1


def test_waiting_for_nothing_is_a_deadlock_that_names_who_waits():
    cleaned = []

    async def stuck():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(now())

    async def scenario():
        await asyncio.sleep(3)
        await asyncio.create_task(stuck(), name="the stuck one")

    with pytest.raises(DeadlockError, match=r"deadlock at 3 s.*2 tasks wait.*the stuck one \(.*stuck\)"):
        run_virtual(scenario())
    assert cleaned == [3]


def test_a_thread_cannot_wake_the_loop():
    async def scenario():
        await asyncio.to_thread(int)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError):
        run_virtual(scenario())


@pytest.mark.parametrize("pause", [0, 1])
def test_the_real_deadline_ends_a_run_that_never_does(pause):
    cleaned = []

    async def forever():
        try:
            while True:
                await asyncio.sleep(pause)
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    with pytest.raises(TimeoutError, match="real deadline"):
        run_virtual(forever(), deadline_s=0.05)
    assert cleaned == [True]


def test_results_and_errors_come_out_and_the_loop_is_closed():
    async def fine():
        return asyncio.get_running_loop()

    async def broken():
        raise KeyError("x")

    loop = run_virtual(fine())
    assert isinstance(loop, VirtualTimeLoop)
    assert loop.is_closed()
    with pytest.raises(KeyError):
        run_virtual(broken())
