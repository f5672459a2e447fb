"""The fixed-size messages between an executor and its zygote, and the codes inside them.

A request carries limits and file descriptors, never a byte of a task: every run inherits the
zygote's memory, so what never enters the zygote cannot leak from one task into the next.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MODE_STDIO: Final = 0
MODE_CALL: Final = 1
MODE_EXPRESSION: Final = 2

# How a run was ended by the zygote.
KILLED_NO: Final = 0
KILLED_CPU: Final = 1
KILLED_WALL: Final = 2

# Stage bytes. Trusted boot writes them to a pipe that is closed before user code starts.
STAGE_BOOT: Final = b"B"  # every layer is on
STAGE_COMPILE_FAILED: Final = b"C"
STAGE_RUN: Final = b"R"  # user code starts next
STAGE_ERROR: Final = b"E"  # a layer could not be put on; a reason follows

REQUEST: Final = struct.Struct("<QBddQQQI")
REPLY: Final = struct.Struct("<QiBdddQB")
STAGE_MAX: Final = 512
REPLY_MAX: Final = REPLY.size + STAGE_MAX

# Order of the descriptors that travel with a request.
REQUEST_FDS: Final = ("source", "input", "stdout", "stderr", "result")


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
    """What the kernel said about one run: wait status, who killed it, seconds, KiB, stages."""

    run_id: int
    wait_status: int
    killed_by: int
    cpu_s: float
    wall_s: float
    system_s: float
    peak_rss_kib: int
    forked: int
    stages: bytes

    def pack(self) -> bytes:
        """The bytes that go over the control socket."""
        return REPLY.pack(*self[:-1]) + self.stages[:STAGE_MAX]

    @classmethod
    def unpack(cls, data: bytes) -> Reply:
        """The inverse of `pack`. Raises struct.error for a frame that is too short."""
        fixed = REPLY.unpack(data[: REPLY.size])
        return cls._make((*fixed, data[REPLY.size :]))
