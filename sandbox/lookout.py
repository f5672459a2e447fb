"""A second count of what a run takes, from outside the cell: resident memory, the size of its output files, threads.

The kernel's limits come first and are exact. This count holds where one of them does not, as the limit of threads where
runs share the caller's user: it looks every few milliseconds and kills what has taken more than it was given. Runs that
are over before the first look cost nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INTERVAL_S: Final = 0.02
# Beside its own limit a run holds what it shares with the zygote, and what the kernel counts more coarsely than this.
MEMORY_SLACK: Final = 64 << 20
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Lookout:
    """Looks at the runs of one zygote.

    guarded: the process that was started is the zygote's parent, not itself. counts_threads: the kernel does not.
    """

    def __init__(self, started_pid: int, guarded: bool, counts_threads: bool) -> None:
        self._counts_threads = counts_threads
        self._started_pid = started_pid
        self._zygote_pid = 0 if guarded else started_pid

    @staticmethod
    def missing() -> str | None:
        """Why processes cannot be looked at here, or None."""
        own = os.getpid()
        if not Path(f"/proc/{own}/task/{own}/children").exists():
            return "the kernel does not list the children of a process"
        return None

    def look(self, memory_bytes: int, output_bytes: int, threads: int, outputs: Sequence[int]) -> bool:
        """Kill the runs of the zygote when one holds more memory or threads, or an output is longer, than allowed."""
        runs = self._runs()
        held = max(map(_resident, runs), default=0)
        longest = max((os.fstat(fd).st_size for fd in outputs), default=0)
        most = max(map(_threads, runs), default=0) if self._counts_threads else 0
        if held <= memory_bytes + MEMORY_SLACK and longest <= output_bytes and most <= threads + 1:
            return False
        for pid in runs:
            self._kill(pid)
        return True

    def _runs(self) -> list[int]:
        if not self._zygote_pid:
            self._zygote_pid = next(iter(_children(self._started_pid)), 0)
        return _children(self._zygote_pid) if self._zygote_pid else []

    def _kill(self, pid: int) -> None:
        """Through a descriptor, and only while it still is the zygote's child: the number may be another's by now."""
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if pid in _children(self._zygote_pid):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # it has just ended


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _threads(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    except OSError:
        return 0
