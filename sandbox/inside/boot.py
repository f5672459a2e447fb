"""From the fork to the first line of user code: every layer of one run is put on here.

The order matters: descriptors before limits, identity before PDEATHSIG (a change of user clears it), Landlock while
its ruleset is still open, seccomp last, and the stage pipe closed before user code exists.
"""

from __future__ import annotations

import fcntl
import math
import os
import resource
import struct
import types
from dataclasses import dataclass
from typing import Final, NoReturn

from sandbox.inside import kernel, program, wire

HIGH_FD: Final = 100
RESULT_FD: Final = 3
OPEN_FILES: Final = 64


@dataclass(frozen=True)
class Plan:
    """What every run of this zygote gets."""

    zygote_pid: int
    scratch_id: int | None  # user and group of the runs, or None to keep the zygote's
    own_user_count: int | None  # processes of the run's user beside it, or None when they cannot be counted
    ruleset_fd: int | None
    filter_bytes: bytes | None
    filter_pid_offsets: tuple[int, ...]
    base_address_space: int  # bytes that the zygote itself maps
    drop_capabilities: bool
    resource_limits: bool


def become_run(
    request: wire.Request, fds: tuple[int, ...], stage_fd: int, plan: Plan, channel_fd: int | None = None
) -> NoReturn:
    """Turn this freshly forked process into a run. Never returns. `channel_fd`: a test's way to its solution."""
    stage = stage_fd
    try:
        source_fd, input_fd, result_fd, ruleset_fd, stage = _arrange(fds, stage_fd, plan.ruleset_fd, channel_fd)
        if plan.resource_limits:
            _limit(request, plan)
        _restrict(plan, ruleset_fd)
        source = _read_all(source_fd)
        payload = _read_all(input_fd) if request.mode in _WITH_PAYLOAD else b""
        os.close(source_fd)
        os.close(input_fd)
        if plan.filter_bytes is not None:
            _filter(plan.filter_bytes, plan.filter_pid_offsets)
        os.write(stage, wire.STAGE_BOOT)
    except BaseException as error:
        os.write(stage, wire.STAGE_ERROR + f"{type(error).__name__}: {error}".encode()[: wire.STAGE_MAX - 1])
        os._exit(1)
    code = _compile(source, stage)
    if request.mode == wire.MODE_STDIO:
        os.close(result_fd)
    os.write(stage, wire.STAGE_RUN)
    os.close(stage)
    program.execute(request.mode, code, payload, result_fd)


_WITH_PAYLOAD: Final = frozenset({wire.MODE_CALL, wire.MODE_EXPRESSION, wire.MODE_SHARED, wire.MODE_CHECK})


def _arrange(
    fds: tuple[int, ...], stage_fd: int, ruleset_fd: int | None, channel_fd: int | None
) -> tuple[int, int, int, int | None, int]:
    """Standard streams on 0-2, the result on 3, a channel on 4, what boot still needs above 99, all else closed."""
    source, given_input, stdout, stderr, result = fds
    kept = [source, given_input, result, stage_fd] + ([] if ruleset_fd is None else [ruleset_fd])
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in kept]
    channel = None if channel_fd is None else fcntl.fcntl(channel_fd, fcntl.F_DUPFD, HIGH_FD)
    os.dup2(given_input, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    kernel.close_range(3, HIGH_FD - 1)
    kernel.close_range(max(high if channel is None else [*high, channel]) + 1, 0x7FFFFFFF)
    os.dup2(high[2], RESULT_FD)
    os.close(high[2])
    if channel is not None:
        os.dup2(channel, program.CHANNEL_FD)
        os.close(channel)
    return high[0], high[1], RESULT_FD, high[4] if ruleset_fd is not None else None, high[3]


def _limit(request: wire.Request, plan: Plan) -> None:
    cpu = math.ceil(request.cpu_s)
    limits = [
        # The zygote's CPU poll comes first; this one holds when the zygote itself is starved.
        (resource.RLIMIT_CPU, cpu + 1, cpu + 2),
        (resource.RLIMIT_FSIZE, request.file_bytes, request.file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ]
    if plan.own_user_count is not None:
        # The run itself counts as one of its threads.
        processes = request.threads + 1 + plan.own_user_count
        limits.append((resource.RLIMIT_NPROC, processes, processes))
    for kind, soft, hard in limits:
        resource.setrlimit(kind, (_capped(kind, soft), _capped(kind, hard)))
    _, stack_hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (_capped(resource.RLIMIT_STACK, request.stack_bytes), stack_hard))
    space = request.memory_bytes + plan.base_address_space
    resource.setrlimit(resource.RLIMIT_AS, (_capped(resource.RLIMIT_AS, space), _capped(resource.RLIMIT_AS, space)))


def _capped(kind: int, wanted: int) -> int:
    """A limit can only be lowered without privilege."""
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _restrict(plan: Plan, ruleset_fd: int | None) -> None:
    if plan.scratch_id is not None:
        os.setgroups([])
        os.setresgid(plan.scratch_id, plan.scratch_id, plan.scratch_id)
        os.setresuid(plan.scratch_id, plan.scratch_id, plan.scratch_id)
    kernel.no_new_privileges()
    if plan.drop_capabilities:
        kernel.drop_capabilities()
    kernel.undumpable()
    kernel.die_with_parent(plan.zygote_pid)
    if ruleset_fd is not None:
        kernel.landlock_restrict(ruleset_fd)
        os.close(ruleset_fd)


def _filter(filter_bytes: bytes, offsets: tuple[int, ...]) -> None:
    patched = bytearray(filter_bytes)
    own = struct.pack("<I", os.getpid())
    for offset in offsets:
        patched[offset : offset + 4] = own
    kernel.install_filter(patched)


def _compile(source: bytes, stage: int) -> types.CodeType:
    try:
        return program.compile_source(source)
    except BaseException as error:
        # SyntaxError for most, ValueError for NUL bytes, RecursionError or MemoryError for source bombs.
        program._report(error)
        os.write(stage, wire.STAGE_COMPILE_FAILED)
        os._exit(1)


def _read_all(fd: int) -> bytes:
    """The whole file from its start; the descriptor's own position is shared with other runs and stays."""
    size = os.fstat(fd).st_size
    chunks: list[bytes] = []
    done = 0
    while done < size:
        chunk = os.pread(fd, size - done, done)
        if not chunk:
            break
        chunks.append(chunk)
        done += len(chunk)
    return b"".join(chunks)
