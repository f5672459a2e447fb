"""The fixed-size messages between an executor and its zygote, and the codes inside them.

A request carries limits and file descriptors, never a byte of a task: every run inherits the
zygote's memory, so what never enters the zygote cannot leak from one task into the next.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

MODE_STDIO: Final = 0
MODE_CALL: Final = 1
MODE_EXPRESSION: Final = 2
MODE_SHARED: Final = 3  # test code in the solution's own process
MODE_PAIR: Final = 4  # a solution that answers calls, and test code that makes them: two processes
MODE_SERVE: Final = 5  # the first of a pair
MODE_CHECK: Final = 6  # the second of a pair
MODE_PING: Final = 7  # no process at all
MODE_CHECKER: Final = 8  # a call of a checker program

# How a run was ended by the zygote.
KILLED_NO: Final = 0
KILLED_CPU: Final = 1
KILLED_WALL: Final = 2
KILLED_DONE: Final = 3  # its partner had ended, so it was of no more use

# Stage bytes. Trusted boot writes them to a pipe that is closed before user code starts.
STAGE_BOOT: Final = b"B"  # every layer is on; BOOT_TIME follows
STAGE_COMPILE_FAILED: Final = b"C"
STAGE_RUN: Final = b"R"  # user code starts next
STAGE_TEST_FAILED: Final = b"T"  # the test that goes with the program does not compile; a reason follows
STAGE_ERROR: Final = b"E"  # a layer could not be put on; a reason follows

BOOT_TIME: Final = struct.Struct("<d")  # when, as time.monotonic() counts
REQUEST: Final = struct.Struct("<QBddQQQI")
REPLY: Final = struct.Struct("<QiBdddQBQH")
STAGE_MAX: Final = 512

# Order of the descriptors that travel with a request; the last three only for a pair.
REQUEST_FDS: Final = ("source", "input", "stdout", "stderr", "result", "test source", "test input", "test log")


class Request(NamedTuple):
    """Limits of one run: seconds, bytes, counts."""

    run_id: int
    mode: int
    cpu_s: float
    wall_s: float
    memory_bytes: int
    file_bytes: int
    stack_bytes: int
    threads: int

    def pack(self) -> bytes:
        """The bytes that go over the control socket."""
        return REQUEST.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """The inverse of `pack`. Raises struct.error for a frame of another size."""
        return cls(*REQUEST.unpack(data))


class Reply(NamedTuple):
    """What the kernel said about one run: wait status, who killed it, seconds, KiB, stages; KiB of the zygote."""

    run_id: int
    wait_status: int
    killed_by: int
    cpu_s: float
    wall_s: float
    system_s: float
    peak_rss_kib: int
    forked: int
    zygote_rss_kib: int
    stages: bytes

    @classmethod
    def about_nothing(cls, run_id: int) -> Reply:
        """The answer to a ping: no process was started."""
        return cls(run_id, 0, KILLED_NO, 0.0, 0.0, 0.0, 0, 0, 0, b"")

    def pack(self) -> bytes:
        """The bytes that go over the control socket."""
        stages = self.stages[:STAGE_MAX]
        return REPLY.pack(*self[:-1], len(stages)) + stages


def pack_replies(replies: Sequence[Reply]) -> bytes:
    """One frame: the reply about a run, or about both runs of a pair (solution, then test)."""
    return b"".join(reply.pack() for reply in replies)


def unpack_replies(data: bytes) -> list[Reply]:
    """The inverse of `pack_replies`. Raises struct.error for a frame that no `pack_replies` made."""
    replies: list[Reply] = []
    at = 0
    while at < len(data):
        *fields, size = REPLY.unpack_from(data, at)
        at += REPLY.size + size
        if at > len(data) or size > STAGE_MAX:
            raise struct.error("a reply is cut short")
        replies.append(Reply._make((*fields, data[at - size : at])))
    return replies
