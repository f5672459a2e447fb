"""Streaming many remote calls with a bound on how many run at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray


def stream(
    calls: Iterable[Callable[[], Any]],
    in_flight: int,
    deadline_s: float,
    what: str,
    on_result: Callable[[Any], None],
    on_tick: Callable[[], None] = lambda: None,
) -> None:
    """Start each of `calls` (each returns an object reference), at most `in_flight` at a time, and hand every result to
    `on_result` as it comes. `on_tick` is called at least once a second.

    Raises TimeoutError where no call ended for `deadline_s`, and whatever a call raised.
    """
    waiting: list[Any] = []
    pending = iter(calls)
    exhausted = False
    last = time.monotonic()
    try:
        while True:
            while not exhausted and len(waiting) < in_flight:
                call = next(pending, None)
                if call is None:
                    exhausted = True
                else:
                    waiting.append(call())
            if not waiting:
                return
            done, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
            for reference in done:
                last = time.monotonic()
                on_result(ray.get(reference))
            on_tick()
            if time.monotonic() - last > deadline_s:
                raise TimeoutError(f"{what}: nothing came back for {deadline_s:.0f} s ({len(waiting)} in flight)")
    except BaseException:
        for reference in waiting:
            ray.cancel(reference, force=False)
        raise
