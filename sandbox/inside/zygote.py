"""The zygote: a warm, single-threaded interpreter that forks one process per run.

Started by path with an almost empty environment: `python -P -s -S -B zygote.py CONFIG`, where CONFIG is a JSON object

    {"fd": control socket, "level": 0-3, "scratch_id": id, "parent": pid, "disabled": [layers], "preload": [modules],
     "packages": [{"name", "site", "paths"}]}

It answers with one JSON hello (the layers, or why the level cannot be reached) and then with one reply per request.
It exits when the socket closes, and dies with the process that started it.
"""

# ruff: noqa: E402 - what is set up between the imports has to stand there
from __future__ import annotations

import os

# Modules register what is to be done after a fork: locks to make anew, for a process that had threads; a new seed for
# `random`, where each run has to start from the same state. Zygotes have no threads, and every such call would cost
# each run; so none is registered.
_register_at_fork = os.register_at_fork
os.register_at_fork = lambda **hooks: None

import contextlib
import gc
import importlib
import json
import resource
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

from sandbox.inside import boot, kernel, layers, program, seccomp, wire

POLL_SLACK_S = 0.002
BOOT_S = 10.0  # how long the start of a process may take on a loaded machine; none of it counts as the run's
NO_PIDFD_POLL_S = 0.001


def main() -> None:
    """Put the cell's layers on, say hello, serve."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    os.environ.pop("LD_BIND_NOW", None)  # for the start of this process alone
    # Whatever the caller ignores or blocks would be inherited; these few are as Python itself sets them.
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
    for number in signal.valid_signals() - kept:
        if number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    kernel.die_with_parent(config["parent"])
    while os.open(os.devnull, os.O_RDONLY) < boot.FIRST_FREE_FD:
        pass  # see there
    # Its number is the caller's, who may have thousands; here it must be one of those that boot closes in every run.
    control = socket.socket(fileno=os.dup(config["fd"]))
    os.close(config["fd"])
    for name in config["preload"]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # a Python built without an optional module
    report: dict[str, str] = {}
    os.umask(0o022)
    try:
        _load_packages(config["packages"], report)
    except ImportError as error:
        _hello(control, {"package_error": str(error), "layers": report})
        return
    # All three are looked up while /proc and the whole file system are still in sight.
    config["mapped_bytes"] = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    config["landlock_abi"] = kernel.landlock_abi()
    config["libraries"] = layers.library_paths([path for package in config["packages"] for path in package["paths"]])
    try:
        if config["level"] >= 3:
            _enter_cell(config, control, report)
        plan = _plan(config, report)
    except (OSError, KeyError, RuntimeError) as error:
        _hello(control, {"error": f"{type(error).__name__}: {error}", "layers": report})
        return
    _hello(control, {"layers": report, "landlock_abi": config["landlock_abi"]})
    for name in [name for name in sys.modules if name == "sandbox" or name.startswith("sandbox.")]:
        plan_modules.append(sys.modules.pop(name))
    program.prepare()
    program.warm_up()
    os.register_at_fork = _register_at_fork
    gc.collect()
    gc.freeze()
    gc.disable()  # here and in the boot of runs; programs find it enabled
    _serve(control, plan)


def _load_packages(packages: list[dict[str, Any]], report: dict[str, str]) -> None:
    """Import what programs may import beside the standard library. Raises ImportError naming the package."""
    for package in packages:
        if package["site"] not in sys.path:
            sys.path.append(package["site"])
        try:
            module = importlib.import_module(package["name"])
        except BaseException as error:
            raise ImportError(f"{package['name']!r} does not load: {type(error).__name__}: {error}") from None
        report[f"package {package['name']}"] = f"loaded: {getattr(module, '__version__', 'unknown version')}"
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise ImportError(f"{package['name']!r} starts threads when it is imported, which no cell can do")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)  # as the random module: every run starts from the same state


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
    ruleset = _ruleset(config, report)
    filters: dict[str, bytes] = {}
    if level >= 1:
        machine = os.uname().machine
        filters = {"seccomp": seccomp.build_run(machine), "cell_filter": seccomp.build_cell(machine, level >= 2)}
    for name in ("seccomp", "cell_filter"):
        report[name] = "enforced" if name in filters and name not in disabled else "disabled"
    run_filter = filters["seccomp"] if report["seccomp"] == "enforced" else None
    if level >= 1:
        # Inherited by every run, and no run gets it back.
        kernel.no_new_privileges()
        if scratch is None:
            kernel.drop_capabilities()
    own_count = config.get("own_user_count", 0 if scratch is not None else None)
    report["rlimits"] = "disabled" if "rlimits" in disabled else "enforced"
    report["threads"] = "enforced" if own_count is not None else "unavailable: runs share the caller's user"
    plan = boot.Plan(
        zygote_pid=os.getpid(),
        scratch_id=scratch,
        own_user_count=own_count,
        ruleset_fd=ruleset,
        filter=kernel.Filter(run_filter, seccomp.pid_offsets(run_filter)) if run_filter else None,
        base_address_space=config["mapped_bytes"],
        hard_limits=None if "rlimits" in disabled else boot.hard_limits(),
    )
    if scratch is not None:
        # The group may change at once; the user changes in each run, since it takes root to become another one.
        os.setgroups([])
        os.setresgid(scratch, scratch, scratch)
        kernel.die_with_parent(None)  # the change has cleared this
    if report["cell_filter"] == "enforced":
        kernel.Filter(filters["cell_filter"]).install()
    return plan


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


def _ruleset(config: dict[str, Any], report: dict[str, str]) -> int | None:
    abi, level = config["landlock_abi"], config["level"]
    if level < 2 or "landlock" in config["disabled"]:
        report["landlock"] = "disabled"
        return None
    if abi < 1:
        report["landlock"] = "unavailable: the kernel has no Landlock or it is not enabled"
        if level == 2:
            raise RuntimeError("Landlock is not available")
        return None
    ruleset = layers.landlock_ruleset(abi, config["libraries"])
    report["landlock"] = "enforced: files" + (", TCP" if abi >= 4 else "") + (", signals" if abi >= 6 else "")
    return ruleset


def _serve(control: socket.socket, plan: boot.Plan) -> None:
    """One request, one reply, until the executor closes the socket."""
    room = socket.CMSG_SPACE(4 * len(wire.REQUEST_FDS))
    while True:
        data, ancillary, _, _ = control.recvmsg(wire.REQUEST.size + 1, room)
        if not data:
            return
        fds: tuple[int, ...] = ()
        for _, _, content in ancillary:
            fds += tuple(int.from_bytes(content[i : i + 4], sys.byteorder) for i in range(0, len(content) - 3, 4))
        request = wire.Request.unpack(data)
        runs = [] if request.mode == wire.MODE_PING else _start(request, fds, plan)
        for fd in fds:
            os.close(fd)
        _watch(control, runs)
        _end_leftovers()
        control.send(wire.pack_replies([run.reply() for run in runs] or [wire.Reply.about_nothing(request.run_id)]))


class _Run:
    """One forked process, from the fork to what the kernel said about it."""

    def __init__(
        self, request: wire.Request, fds: tuple[int, ...], plan: boot.Plan, channel: int | None = None
    ) -> None:
        self.request = request
        self.killed = wire.KILLED_NO
        self.status = 0
        self.ended = False
        self.cpu_s = self.system_s = self.wall_s = 0.0
        self.peak_rss_kib = 0
        self.stages = b""
        self._stage_pipe, stage_write = os.pipe()
        os.set_blocking(self._stage_pipe, False)
        self._booted = False
        self.started = time.monotonic()
        try:
            self.pid = os.fork()
        except OSError as error:
            self.pid, self.ended = -1, True
            self.stages = wire.STAGE_ERROR + f"fork: {error}".encode()
        if self.pid == 0:
            try:
                boot.become_run(request, fds, stage_write, plan, channel)
            finally:
                os._exit(1)
        os.close(stage_write)
        self.pidfd = _pidfd(self.pid) if self.pid > 0 else -1

    def left(self) -> tuple[float, float]:
        """Seconds of CPU and of the clock that are left."""
        cpu_clock = (~self.pid << 3) | 2  # the kernel's name for "CPU time of process pid"
        passed, wall_s = time.monotonic() - self.started, self.request.wall_s
        if passed >= wall_s and not self._booted:
            self._read_stages()
            if not self._booted:
                return self.request.cpu_s - _cpu(cpu_clock), min(wall_s, BOOT_S - passed)
            passed = time.monotonic() - self.started
        return self.request.cpu_s - _cpu(cpu_clock), wall_s - passed

    def _read_stages(self) -> None:
        """Take in what the run's boot has said so far. The clock of a run starts when its boot is complete."""
        with contextlib.suppress(BlockingIOError):
            self.stages += os.read(self._stage_pipe, wire.STAGE_MAX)
        if not self._booted and self.stages.startswith(wire.STAGE_BOOT):
            self._booted = True
            at, end = len(wire.STAGE_BOOT), len(wire.STAGE_BOOT) + wire.BOOT_TIME.size
            (self.started,) = wire.BOOT_TIME.unpack(self.stages[at:end])
            self.stages = self.stages[:at] + self.stages[end:]

    def kill(self, why: int) -> None:
        """Send SIGKILL, once. The process is our child and not reaped yet, so its number is its own."""
        if self.killed == wire.KILLED_NO and not self.ended:
            self.killed = why
            os.kill(self.pid, signal.SIGKILL)

    def gone(self) -> bool:
        """Whether it has ended; takes note of how."""
        if not self.ended:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.ended, self.status = True, status
                ended = time.monotonic()
                self._read_stages()
                self.wall_s = ended - self.started
                self.cpu_s, self.system_s = usage.ru_utime + usage.ru_stime, usage.ru_stime
                self.peak_rss_kib = usage.ru_maxrss
                if os.WIFEXITED(status):
                    self.killed = wire.KILLED_NO  # it ended by itself just before the signal
        return self.ended

    def reply(self) -> wire.Reply:
        """What there is to say, after the end."""
        os.close(self._stage_pipe)
        return wire.Reply(
            self.request.run_id, self.status, self.killed, self.cpu_s, self.wall_s, self.system_s, self.peak_rss_kib,
            int(self.pid > 0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, self.stages,
        )  # fmt: skip


def _start(request: wire.Request, fds: tuple[int, ...], plan: boot.Plan) -> list[_Run]:
    """Fork what the request asks for. The run whose end ends the others comes last."""
    if request.mode != wire.MODE_PAIR:
        return [_Run(request, fds, plan)]
    source, given_input, stdout, stderr, result, test_source, test_input, test_log = fds
    ours, theirs = socket.socketpair()
    solution_fds = (source, given_input, stdout, stderr, theirs.fileno())
    test_fds = (test_source, test_input, test_log, test_log, result)
    # Each side ends up with its own end alone: boot closes all that it was not given.
    solution = _Run(request._replace(mode=wire.MODE_SERVE), solution_fds, plan)
    test = _Run(request._replace(mode=wire.MODE_CHECK), test_fds, plan, ours.fileno())
    ours.close()
    theirs.close()
    return [solution, test]


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


def _watch(control: socket.socket, runs: list[_Run]) -> None:
    """Wait for the end of all runs; kill one at its limits, all when the executor is gone or the last has ended."""
    poller = select.poll()
    poller.register(control, select.POLLIN)
    living = [run for run in runs if not run.ended]
    for run in living:
        if run.pidfd >= 0:
            poller.register(run.pidfd, select.POLLIN)
    wait = min((min(run.request.cpu_s, run.request.wall_s) for run in living), default=0.0)
    while living:
        if any(run.pidfd < 0 for run in living):
            wait = NO_PIDFD_POLL_S
        if any(fd == control.fileno() for fd, _ in poller.poll(wait * 1000 + 1)):
            # Nothing is ever sent during a run: the executor has closed the socket.
            for run in living:
                os.kill(run.pid, signal.SIGKILL)
                os.waitpid(run.pid, 0)
            os._exit(0)
        for run in [run for run in living if run.gone()]:
            living.remove(run)
            if run.pidfd >= 0:
                poller.unregister(run.pidfd)
                os.close(run.pidfd)
        wait = min((_kill_or_wait(run, runs[-1].ended) for run in living), default=0.0)


def _kill_or_wait(run: _Run, done: bool) -> float:
    """Kill a run that has no time left, or that nobody needs any more; else how long it may go on unobserved."""
    if done:
        run.kill(wire.KILLED_DONE)
    left_cpu, left_wall = run.left()
    if left_cpu <= 0 or left_wall <= 0:
        run.kill(wire.KILLED_CPU if left_cpu <= 0 else wire.KILLED_WALL)
    return max(POLL_SLACK_S, min(left_cpu, left_wall)) if run.killed == wire.KILLED_NO else 1.0


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
