"""Being told to stop: what SIGINT and SIGTERM do to the driver, from the first check to the end of the shutdown."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_INTERRUPTED = 130
PATIENCE_S = 5.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: not an error, and nothing that catches errors may catch it.

    Ray's waits look for signals once in a while, and end at once for a KeyboardInterrupt alone (they raise one of their
    own); any other exception is kept back until the wait is over.
    """


@dataclass(slots=True)
class Stop:
    """The signal that told the run to stop, "" before there was one."""

    signal: str = ""
    _held: bool = False
    _at: float = 0.0

    def check(self) -> None:
        """Raises Interrupted where the run was told to stop and something on the way swallowed it."""
        if self.signal:
            raise Interrupted(self.signal)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What must not be cut in two: a signal that comes in here raises Interrupted at the end of it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def listen(self) -> None:
        """Install the handlers that fill this; once more after `ray.init`, which replaces SIGTERM's by its own."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        again = bool(self.signal)
        self.signal = self.signal or signal.Signals(number).name
        if self._held or (again and now - self._at < PATIENCE_S):
            return
        self._at = now
        raise Interrupted(self.signal)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into `Interrupted`.

    A second one soon after the first would only disturb what the first set going, and is not heard; a later one is:
    the first may have been swallowed. The shutdown itself hears none (`no_signals`).

    The signal is also remembered in the `Stop` that this yields: an exception raised inside compiled code comes out as
    another one (KeyboardInterrupt from `ray.get`), or not at all.
    """
    stop = Stop()
    with _restored():
        stop.listen()
        yield stop


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """A shutdown has deadlines of its own; a second Ctrl-C must not leave half of the processes behind."""
    with _restored() as ours:
        if ours:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        yield


@contextlib.contextmanager
def _restored() -> Iterator[bool]:
    """Put the handlers back at the end; yields whether they are ours to change (only the main thread may)."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
