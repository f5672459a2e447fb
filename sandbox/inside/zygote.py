"""The zygote: a warm, single-threaded interpreter that forks one process per run.

Started by path with an almost empty environment: `python -P -s -S -B zygote.py CONFIG`, where CONFIG is a JSON object

    {"fd": control socket, "level": 0-3, "scratch_id": id, "parent": pid, "disabled": [layers], "preload": [modules]}

It answers with one JSON hello (the layers, or why the level cannot be reached) and then with one reply per request.
It exits when the socket closes, and dies with the process that started it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any, NoReturn

# The package is entered by its path and not by import: its __init__ belongs to the trusted side and would load far
# more than a zygote may.
_package = types.ModuleType("sandbox")
_package.__path__ = [str(Path(__file__).resolve().parent.parent)]
sys.modules["sandbox"] = _package

# The random module reseeds itself in every fork; here each run has to start from the same state.
_register_at_fork = os.register_at_fork
os.register_at_fork = lambda **hooks: None
import random  # noqa: E402, F401

os.register_at_fork = _register_at_fork

from sandbox.inside import boot, kernel, layers, program, seccomp, wire  # noqa: E402

POLL_SLACK_S = 0.002
NO_PIDFD_POLL_S = 0.001


def main() -> None:
    """Put the cell's layers on, say hello, serve."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    # Whatever the caller ignores or blocks would be inherited; these few are as Python itself sets them.
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
    for number in signal.valid_signals() - kept:
        if number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    kernel.die_with_parent(config["parent"])
    control = socket.socket(fileno=config["fd"])
    for name in config["preload"]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # a Python built without an optional module
    report: dict[str, str] = {}
    os.umask(0o022)
    # Both are looked up while /proc and the whole file system are still in sight.
    config["mapped_bytes"] = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    config["libraries"] = layers.library_paths()
    try:
        if config["level"] >= 3:
            _enter_cell(config, control, report)
        plan = _plan(config, report)
    except (OSError, KeyError, RuntimeError) as error:
        _hello(control, {"error": f"{type(error).__name__}: {error}", "layers": report})
        return
    _hello(control, {"layers": report, "landlock_abi": kernel.landlock_abi(), "uid": os.getuid(), "pid": os.getpid()})
    for name in [name for name in sys.modules if name == "sandbox" or name.startswith("sandbox.")]:
        plan_modules.append(sys.modules.pop(name))
    program.prepare()
    gc.collect()
    gc.freeze()
    _serve(control, plan)


plan_modules: list[types.ModuleType] = []  # keeps our own modules alive once user code cannot import them


def _hello(control: socket.socket, content: dict[str, Any]) -> None:
    control.send(json.dumps(content).encode())


def _enter_cell(config: dict[str, Any], control: socket.socket, report: dict[str, str]) -> None:
    """Continue as the first process of fresh namespaces; the caller's process stays behind as a guard."""
    libraries = config["libraries"]
    root = os.getuid() == 0
    refusals: list[str] = []
    for with_user in (True, False) if root else (True,):
        go_read, go_write = os.pipe()
        flags = kernel.CLONE_NEWNS | (kernel.CLONE_NEWUSER if with_user else 0)
        flags |= sum(flag for name, flag in layers.NAMESPACES.items() if name not in config["disabled"])
        try:
            child = kernel.clone(flags)
        except OSError as error:
            refusals.append(f"{'user' if with_user else 'plain'} namespaces: {error.strerror}")
            os.close(go_read)
            os.close(go_write)
            continue
        if child == 0:
            os.close(go_write)
            _settle(config, report, libraries, root, with_user, go_read)
            return
        os.close(go_read)
        try:
            if with_user:
                layers.write_id_maps(child, root, config["scratch_id"])
        except OSError as error:
            refusals.append(f"id maps: {error.strerror}")
            os.close(go_write)
            os.waitpid(child, 0)
            continue
        os.write(go_write, b"g")
        os.close(go_write)
        _guard(child, control)
    report["namespaces"] = f"failed: {'; '.join(refusals)}"
    raise RuntimeError("; ".join(refusals))


def _settle(
    config: dict[str, Any], report: dict[str, str], libraries: list[str], root: bool, with_user: bool, go: int
) -> None:
    """The new process's side: wait for the id maps, then build the minimal root."""
    if os.read(go, 1) != b"g":
        os._exit(0)
    os.close(go)
    if root and with_user:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    kernel.die_with_parent(None)
    names = ["user"] if with_user else []
    names += ["mount", *(name for name in layers.NAMESPACES if name not in config["disabled"])]
    nested = "; no nested ones" if with_user and layers.forbid_nested_user_namespaces() else ""
    if "mount" in config["disabled"]:
        report["mount"] = "disabled"
    else:
        layers.enter_minimal_root(libraries)
        report["mount"] = "enforced"
    report["namespaces"] = f"enforced: {', '.join(names)}{nested}"
    config["scratch_id"] = layers.INNER_UID if with_user else config["scratch_id"]
    config["own_user_count"] = 0 if root else 1


def _guard(child: int, control: socket.socket) -> NoReturn:
    """Wait for the namespaces' first process: when it is gone, everything in them is."""
    control.close()
    os.waitpid(child, 0)
    os._exit(0)


def _plan(config: dict[str, Any], report: dict[str, str]) -> boot.Plan:
    """Decide and build what each run gets; fills `report`. Raises OSError or KeyError for a layer that is missing."""
    level, disabled = config["level"], set(config["disabled"])
    libraries = config["libraries"]
    scratch = _scratch_id(config, report, libraries, root=os.getuid() == 0)
    ruleset = _ruleset(level, disabled, libraries, report)
    filter_bytes = None
    if level >= 1 and "seccomp" not in disabled:
        filter_bytes = seccomp.build(os.uname().machine, allow_files=level >= 2)
        report["seccomp"] = "enforced"
    else:
        report["seccomp"] = "disabled"
    own_count = config.get("own_user_count", 0 if scratch is not None else None)
    report["rlimits"] = "disabled" if "rlimits" in disabled else "enforced"
    report["threads"] = "enforced" if own_count is not None else "unavailable: runs share the caller's user"
    return boot.Plan(
        zygote_pid=os.getpid(),
        scratch_id=scratch,
        own_user_count=own_count,
        ruleset_fd=ruleset,
        filter_bytes=filter_bytes,
        filter_pid_offsets=seccomp.pid_offsets(filter_bytes) if filter_bytes else (),
        base_address_space=config["mapped_bytes"],
        drop_capabilities=level >= 1,
        resource_limits="rlimits" not in disabled,
    )


def _scratch_id(config: dict[str, Any], report: dict[str, str], libraries: list[str], root: bool) -> int | None:
    """The user that runs get, where the zygote may change it and the libraries stay readable."""
    if not root:
        report["scratch_user"] = "unavailable: not started by root"
        return None
    if "scratch_user" in config["disabled"]:
        report["scratch_user"] = "disabled"
        return None
    if not all(layers.reachable_by_others(path) for path in libraries):
        report["scratch_user"] = "unavailable: the Python installation is not readable by other users"
        return None
    report["scratch_user"] = "enforced"
    scratch: int = config["scratch_id"]
    return scratch


def _ruleset(level: int, disabled: set[str], libraries: list[str], report: dict[str, str]) -> int | None:
    abi = kernel.landlock_abi()
    if level < 2 or "landlock" in disabled:
        report["landlock"] = "disabled"
        return None
    if abi < 1:
        report["landlock"] = "unavailable: the kernel has no Landlock or it is not enabled"
        if level == 2:
            raise RuntimeError("Landlock is not available")
        return None
    ruleset = layers.landlock_ruleset(abi, libraries)
    report["landlock"] = "enforced: files" + (", TCP" if abi >= 4 else "") + (", signals" if abi >= 6 else "")
    return ruleset


def _serve(control: socket.socket, plan: boot.Plan) -> None:
    """One request, one fork, one reply, until the executor closes the socket."""
    room = socket.CMSG_SPACE(4 * len(wire.REQUEST_FDS))
    while True:
        data, ancillary, _, _ = control.recvmsg(wire.REQUEST.size + 1, room)
        if not data:
            return
        fds: tuple[int, ...] = ()
        for _, _, content in ancillary:
            fds += tuple(int.from_bytes(content[i : i + 4], sys.byteorder) for i in range(0, len(content) - 3, 4))
        reply = _run(control, wire.Request.unpack(data), fds, plan)
        control.send(reply.pack())


def _run(control: socket.socket, request: wire.Request, fds: tuple[int, ...], plan: boot.Plan) -> wire.Reply:
    stage_read, stage_write = os.pipe()
    started = time.monotonic()
    try:
        pid = os.fork()
    except OSError as error:
        pid = -1
        refusal = wire.STAGE_ERROR + f"fork: {error}".encode()
    if pid == 0:
        try:
            boot.become_run(request, fds, stage_write, plan)
        finally:
            os._exit(1)
    for fd in (*fds, stage_write):
        os.close(fd)
    if pid < 0:
        os.close(stage_read)
        return wire.Reply(request.run_id, 0, 0, 0.0, 0.0, 0.0, 0, 0, refusal)
    killed = _watch(control, request, pid, started)
    _, status, usage = os.wait4(pid, 0)
    _end_leftovers()
    wall = time.monotonic() - started
    stages = os.read(stage_read, wire.STAGE_MAX)
    os.close(stage_read)
    if os.WIFEXITED(status):
        killed = wire.KILLED_NO  # it ended by itself just before the signal
    cpu = usage.ru_utime + usage.ru_stime
    return wire.Reply(request.run_id, status, killed, cpu, wall, usage.ru_stime, usage.ru_maxrss, 1, stages)


def _end_leftovers() -> None:
    """Where this process is the first of a namespace, end whatever else a run may have started in it.

    The filter lets no run start a process; this holds where the filter does not.
    """
    if os.getpid() != 1:
        return
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _watch(control: socket.socket, request: wire.Request, pid: int, started: float) -> int:
    """Wait for the end of a run; kill it at its CPU or wall limit, or when the executor is gone."""
    cpu_clock = (~pid << 3) | 2  # the kernel's name for "CPU time of process pid"
    poller = select.poll()
    poller.register(control, select.POLLIN)
    pidfd = _pidfd(pid)
    if pidfd >= 0:
        poller.register(pidfd, select.POLLIN)
    killed = wire.KILLED_NO
    wait = min(request.cpu_s, request.wall_s)
    try:
        while True:
            ready = [fd for fd, _ in poller.poll((wait if pidfd >= 0 else NO_PIDFD_POLL_S) * 1000 + 1)]
            if control.fileno() in ready:
                # Nothing is ever sent during a run: the executor has closed the socket.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os._exit(0)
            if pidfd in ready or (pidfd < 0 and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                return killed
            left_cpu, left_wall = request.cpu_s - _cpu(cpu_clock), request.wall_s - (time.monotonic() - started)
            if killed == wire.KILLED_NO and (left_cpu <= 0 or left_wall <= 0):
                killed = wire.KILLED_CPU if left_cpu <= 0 else wire.KILLED_WALL
                os.kill(pid, signal.SIGKILL)
            wait = max(POLL_SLACK_S, min(left_cpu, left_wall)) if killed == wire.KILLED_NO else 1.0
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1  # kernels before 5.3


def _cpu(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0  # it has just ended


if __name__ == "__main__":
    main()
