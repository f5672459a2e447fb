"""From the fork to the first line of user code: every layer of one run is put on here.

The order matters: descriptors before limits, identity before PDEATHSIG (a change of user clears it), Landlock while
its ruleset is still open, seccomp last, and the stage pipe closed before user code exists.
"""

from __future__ import annotations

import math
import os
import resource
import time
import types
from dataclasses import dataclass
from typing import Final, NoReturn

from sandbox.inside import kernel, program, wire

RESULT_FD: Final = 3
# The zygote keeps the numbers below this one taken, so that what a run is given never stands where it has to go.
FIRST_FREE_FD: Final = 8
LAST_FD: Final = 256  # the zygote has few descriptors, and gives all of them low numbers
OPEN_FILES: Final = 64
_WITH_PAYLOAD: Final = frozenset(
    {wire.MODE_CALL, wire.MODE_EXPRESSION, wire.MODE_SHARED, wire.MODE_CHECK, wire.MODE_CHECKER}
)


@dataclass(frozen=True)
class Plan:
    """What every run of this zygote gets."""

    zygote_pid: int
    scratch_id: int | None  # user of the runs, or None to keep the zygote's
    own_user_count: int | None  # processes of the run's user beside it, or None when they cannot be counted
    ruleset_fd: int | None
    filter: kernel.Filter | None
    base_address_space: int  # bytes that the zygote itself maps
    hard_limits: dict[int, int] | None  # the zygote's own, which no run can exceed; None: set no limit


def become_run(
    request: wire.Request, fds: tuple[int, ...], stage: int, plan: Plan, channel_fd: int | None = None
) -> NoReturn:
    """Turn this freshly forked process into a run. Never returns. `channel_fd`: a test's way to its solution."""
    try:
        source = _read_all(fds[0])
        payload = _read_all(fds[1]) if request.mode in _WITH_PAYLOAD else b""
        if plan.ruleset_fd is not None:
            kernel.landlock_restrict(plan.ruleset_fd)
        _arrange(fds, stage, channel_fd)
        if plan.hard_limits is not None:
            _limit(request, plan, plan.hard_limits)
        if plan.scratch_id is not None:
            os.setresuid(plan.scratch_id, plan.scratch_id, plan.scratch_id)
        # The change of user has emptied the capabilities; where there is none, the zygote had dropped its own.
        kernel.undumpable()
        kernel.die_with_parent(plan.zygote_pid)
        if plan.filter is not None:
            plan.filter.install()
        os.write(stage, wire.STAGE_BOOT + wire.BOOT_TIME.pack(time.monotonic()))
    except BaseException as error:
        os.write(stage, wire.STAGE_ERROR + f"{type(error).__name__}: {error}".encode()[: wire.STAGE_MAX - 1])
        os._exit(1)
    code = _compile(source, stage)
    try:
        test = program.compile_test(request.mode, payload)
    except BaseException as error:
        os.write(stage, wire.STAGE_TEST_FAILED + f"{type(error).__name__}: {error}".encode()[: wire.STAGE_MAX - 2])
        os._exit(1)
    if request.mode == wire.MODE_STDIO:
        os.close(RESULT_FD)
    os.write(stage, wire.STAGE_RUN)
    os.close(stage)
    program.execute(request.mode, code, payload, test, RESULT_FD)


def _arrange(fds: tuple[int, ...], stage: int, channel_fd: int | None) -> None:
    """Standard streams on 0-2, the result on 3, a channel on 4, the stage pipe where it is, all else closed."""
    for number, fd in enumerate(fds[1:]):
        os.dup2(fd, number)
    last = RESULT_FD
    if channel_fd is not None:
        last = program.CHANNEL_FD
        os.dup2(channel_fd, last)
    os.closerange(last + 1, stage)
    os.closerange(stage + 1, LAST_FD)


def hard_limits() -> dict[int, int]:
    """The hard limits of this process, for the kinds that runs get limits of; infinite ones left out.

    Sets those that are the same for every run.
    """
    kinds = {getattr(resource, f"RLIMIT_{name}") for name in ("CPU", "FSIZE", "NOFILE", "NPROC", "AS", "STACK")}
    for same in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(same, (0, 0))
    found = {kind: resource.getrlimit(kind)[1] for kind in kinds}
    return {kind: hard for kind, hard in found.items() if hard != resource.RLIM_INFINITY}


def _limit(request: wire.Request, plan: Plan, hard: dict[int, int]) -> None:
    cpu = math.ceil(request.cpu_s)
    space = request.memory_bytes + plan.base_address_space
    limits = [
        # The zygote's CPU poll comes first; this one holds when the zygote itself is starved.
        (resource.RLIMIT_CPU, cpu + 1, cpu + 2),
        (resource.RLIMIT_FSIZE, request.file_bytes, request.file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_STACK, request.stack_bytes, hard.get(resource.RLIMIT_STACK, resource.RLIM_INFINITY)),
        (resource.RLIMIT_AS, space, space),
    ]
    if plan.own_user_count is not None:
        # The run itself counts as one of its threads.
        processes = request.threads + 1 + plan.own_user_count
        limits.append((resource.RLIMIT_NPROC, processes, processes))
    for kind, soft, most in limits:
        if kind in hard:  # a limit can only be lowered without privilege
            soft, most = min(soft, hard[kind]), min(most, hard[kind]) if most >= 0 else hard[kind]
        resource.setrlimit(kind, (soft, most))


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
