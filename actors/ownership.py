"""Processes that end with the process that owns them, however that one ends."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

POLL_S = 1.0


def end_with(owner: int) -> None:
    """Kill this process as soon as process `owner` is gone, from a thread that watches it.

    Not by PR_SET_PDEATHSIG: that follows the parent's thread, and the owner may be a grandparent.
    """
    threading.Thread(target=_watch, args=(owner,), daemon=True, name="owner-watch").start()


def _watch(owner: int) -> None:
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    except OSError:  # a kernel before 5.3, or a filter that forbids the call
        while _exists(owner):
            time.sleep(POLL_S)
    else:
        poller = select.poll()  # not select.select: a worker may hold more than 1,024 files
        poller.register(handle, select.POLLIN)
        poller.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def _exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
