"""An event loop whose clock jumps from timer to timer: hours of waiting in milliseconds, the same on every run."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_CLEANUP_S = 10.0
_TASKS_SHOWN = 5


class DeadlockError(RuntimeError):
    """Every task waits for something that nothing scheduled will bring about."""


class _JumpingSelector(selectors.DefaultSelector):
    """Hands the time that the loop wants to wait to `wait` instead of waiting."""

    def __init__(self, wait: Callable[[float | None], None]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)  # the loop's own pipe, by which signals arrive
        if not found:
            self._wait(timeout)
        return found


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a virtual clock, which starts at 0 s.

    The clock stands still while anything is ready to run and then jumps to the next timer: `asyncio.sleep`, `timeout`,
    `wait_for`, `call_later` and `time` all follow it. Other threads cannot wake the loop: what waits for one alone
    (`asyncio.to_thread`) is a deadlock here.

    Raises, out of `run_until_complete`:
        DeadlockError: nothing is ready and no timer is set.
        TimeoutError: the real clock passed `real_deadline`, a value of `time.monotonic()`. It is looked at between
            callbacks: a callback that never returns is not interrupted.
    """

    def __init__(self, real_deadline: float | None = None) -> None:
        self._virtual_now = 0.0
        self.real_deadline = real_deadline
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_now

    def _jump(self, timeout: float | None) -> None:
        if self.real_deadline is not None and time.monotonic() > self.real_deadline:
            raise TimeoutError(f"the real deadline passed at {self._virtual_now:.6g} s of virtual time")
        if timeout is None:
            raise DeadlockError(self._what_waits())
        self._virtual_now += timeout

    def _what_waits(self) -> str:
        names = sorted(f"{task.get_name()} ({_name(task.get_coro())})" for task in asyncio.all_tasks(self))
        shown = ", ".join(names[:_TASKS_SHOWN]) + (", ..." if len(names) > _TASKS_SHOWN else "")
        return f"deadlock at {self._virtual_now:.6g} s: nothing is scheduled, and {len(names)} tasks wait: {shown}"


def run_virtual(coroutine: Coroutine[Any, Any, _T], deadline_s: float = 60.0) -> _T:
    """Run a coroutine on a new VirtualTimeLoop, which is closed afterwards; returns its result.

    `deadline_s`: real seconds. Tasks still running at the end are cancelled. Raises what the coroutine raises, and
    DeadlockError and TimeoutError as the loop does.
    """
    loop = VirtualTimeLoop(time.monotonic() + deadline_s)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(coroutine)
        finally:
            # Tasks that are cancelled at the end need time of their own, also where the deadline has passed.
            loop.real_deadline = time.monotonic() + _CLEANUP_S


def _name(coroutine: Any) -> str:
    return getattr(coroutine, "__qualname__", type(coroutine).__name__)
