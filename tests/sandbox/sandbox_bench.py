"""Synchronous access to a pool on an event loop in a background thread (as inside an actor)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from sandbox import (
    CallCase,
    CaseResult,
    Limits,
    RunOutput,
    StdioCase,
    Submission,
    SuiteResult,
)
from sandbox.bench import SyncPool
from sandbox.cell import Cell

QUICK = Limits(cpu_s=1.0, wall_s=2.0, memory_mb=256)


class Bench:
    """A pool in a thread of its own, with the shapes of runs that tests are made of."""

    made: ClassVar[int] = 0

    def __init__(self, slots: int = 1, **options: Any) -> None:
        Bench.made += 1
        self._sync = SyncPool(slots, **options)
        self.pool, self.close = self._sync.pool, self._sync.close

    def call(self, work: Any, timeout: float = 60) -> Any:
        return self._sync.call(work, timeout)

    @property
    def cell(self) -> Cell | None:
        """The cell of the first slot, as it is now."""
        return self.pool._slots[0].cell

    def judge(self, source: str, *cases: Any, **fields: Any) -> SuiteResult:
        fields.setdefault("limits", QUICK)
        return self.call(self.pool.judge(Submission(source=source, cases=list(cases), **fields)))

    def script(self, source: str, stdin: str = "", expected: str = "ok", **fields: Any) -> CaseResult:
        return self.judge(source, StdioCase(stdin=stdin, expected=expected), **fields).cases[0]

    def value(self, source: str, *args: Any, expected: Any = "ok", **fields: Any) -> CaseResult:
        return self.judge(source, CallCase(args=list(args), expected=expected), entry_point="f", **fields).cases[0]

    def stdout(self, source: str, **fields: Any) -> RunOutput:
        limits = fields.pop("limits", QUICK)
        return self.call(self.pool.run_stdin(source, [fields.pop("stdin", "")], limits))[0]


def open_fds(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def described_fds() -> Counter[str]:
    """What the descriptors of this process are, by name, without the numbers of inodes.

    Left out are what a cell never has, and other threads of this process do: Ray, which tests of other rooms start
    here, keeps connections, event queues and counters that come and go. A cell's socket is one of packets in sequence.
    """
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = re.sub(r"[0-9]+", "", str(entry.readlink()))
            if name == "socket:[]":
                name = "a cell's socket" if _keeps_packets(int(entry.name)) else ""
            if name and name not in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]"):
                found[name] += 1
    return found


def _keeps_packets(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as copy:
        return copy.type == socket.SOCK_SEQPACKET


def more_fds(before: Counter[str], seconds: float = 2.0) -> Counter[str]:
    """The descriptors beyond those `before`, once there are none or after `seconds`: a cell that was just replaced may
    still be closing, and Ray reads files now and then.
    """
    deadline = time.monotonic() + seconds
    while True:
        more = described_fds() - before
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.02)


def wait_gone(pids: set[int], seconds: float) -> set[int]:
    """Those of `pids` that are still alive after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        alive = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    alive.add(pid)
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)
