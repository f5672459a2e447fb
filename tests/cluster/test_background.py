"""Work beside the main thread: its results, its errors, and its end."""

import asyncio
import threading
import time

import pytest

from cluster.background import Background


def test_work_goes_on_while_this_thread_waits():
    async def work(n):
        await asyncio.sleep(0.05)
        return n

    with Background() as background:
        futures = [background.start(work(n)) for n in range(20)]
        began = time.monotonic()
        assert [f.result(10) for f in futures] == list(range(20))
        assert time.monotonic() - began < 0.9  # side by side


def test_an_error_comes_out_where_the_result_is_asked_for():
    async def work():
        raise ValueError("broken")

    with Background() as background, pytest.raises(ValueError, match="broken"):
        background.start(work()).result(10)


def test_what_is_left_is_cancelled_and_the_thread_ends():
    ended = []

    async def endless():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Background() as background:
        future = background.start(endless())
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert ended == [True] and future.cancelled()
    assert threading.active_count() == before
