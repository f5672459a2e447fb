"""The trusted end of one cell: starts a zygote, sends it runs, reads what they left behind.

Every wait has a deadline. Any doubt about a zygote raises CellError; the caller then drops the cell and takes another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from sandbox.inside import wire
from sandbox.isolation import BEST_LEVEL, IsolationReport, PackageError, report_from_hello
from sandbox.lookout import INTERVAL_S, Lookout

ZYGOTE: Final = Path(__file__).parent / "inside" / "zygote.py"
HELLO_TIMEOUT_S: Final = 30.0
PACKAGE_TIMEOUT_S: Final = 120.0
# A reply comes at the wall limit at the latest; a loaded machine may need longer to reap and report.
REPLY_GRACE_S: Final = 15.0
EXIT_TIMEOUT_S: Final = 3.0
PING_TIMEOUT_S: Final = 10.0
MESSAGE_MAX: Final = 65536
STDERR_TAIL_BYTES: Final = 2048
STACK_BYTES: Final = 64 * 1024 * 1024
FIRST_SCRATCH_ID: Final = 62_000  # a range that systemd keeps for users without an account
SCRATCH_IDS: Final = 1000
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Loaded before the first fork, so that no run pays for them.
PRELOAD: Final = _names(
    """
    abc array ast bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal enum fractions
    functools gc hashlib heapq inspect io itertools json math numbers operator queue random re statistics string
    struct sys textwrap threading time traceback types typing unicodedata
    """
)
# Without a file system nothing can be imported later.
PRELOAD_WITHOUT_FILES: Final = _names(
    """
    asyncio base64 binascii cProfile code codecs colorsys concurrent.futures.thread configparser difflib email
    encodings.idna fileinput fnmatch getopt glob graphlib gzip html http importlib.resources ipaddress keyword linecache
    locale logging lzma mmap optparse pathlib pickle platform pprint pstats reprlib secrets select selectors shlex
    shutil signal socket sqlite3 stat subprocess symtable tempfile timeit tokenize unittest urllib.parse uuid
    warnings weakref xml.etree.ElementTree zlib
    """
)


class CellError(Exception):
    """The cell failed, not the program in it."""


@dataclass(frozen=True)
class RunSpec:
    """One run: what to execute and within what (seconds, bytes, counts)."""

    mode: int
    source_fd: int
    input_data: bytes
    cpu_s: float
    wall_s: float
    memory_bytes: int
    output_bytes: int
    threads: int
    test: bytes | None = None  # of a pair: the source of the second process


@dataclass(frozen=True)
class RawRun:
    """What a run left behind: the kernel's statement and three files. Of a pair: the solution's, with its `test`."""

    reply: wire.Reply
    stdout: bytes
    stderr_tail: bytes
    stderr_size: int
    result: bytes
    test: RawRun | None = None


@dataclass(frozen=True)
class Package:
    """An installed package: its name, the directory that it is imported from, the paths that belong to it."""

    name: str
    site: str
    paths: tuple[str, ...]


_cells = itertools.count()


def _scratch_id() -> int:
    """Another user for each cell of this process: runs of two cells must not count as each other's threads."""
    return FIRST_SCRATCH_ID + (os.getpid() * 61 + next(_cells)) % SCRATCH_IDS


def find_package(name: str) -> Package:
    """Where a package lies, without importing it. Raises PackageError when it is not installed."""
    if name in sys.stdlib_module_names:
        raise PackageError(f"packages: {name!r} is in the standard library, which programs have anyway; leave it out")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.origin or not Path(spec.origin).exists():
        raise PackageError(f"packages: {name!r} is no package that is installed here; name one, e.g. 'numpy'")
    own = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    libraries = own.parent / f"{name}.libs"  # where wheels keep the shared libraries that they bring
    return Package(name, str(own.parent), tuple(str(path) for path in (own, libraries) if path.exists()))


@dataclass(frozen=True)
class CellOptions:
    """How a cell is set up. `disabled` names layers to leave out, for tests of the other layers.

    `packages`: installed packages that programs may import, loaded before the first fork.
    """

    level: int
    disabled: Sequence[str] = ()
    preload: Sequence[str] = PRELOAD
    packages: Sequence[Package] = ()

    def at_level(self, level: int) -> CellOptions:
        """The same cell at another level."""
        return replace(self, level=level)


def sealed_file(name: str, content: bytes) -> int:
    """A descriptor of a memory file with `content` that nobody can change any more. The caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(fd, content[done:] if done else content, done)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Cell:
    """One zygote process and its control socket; at most one run at a time."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, stderr_fd: int) -> None:
        self.runs = 0
        self.grown_kib = 0  # by how much the zygote's memory has grown since its first run
        self._first_rss_kib = 0
        self.report: IsolationReport
        self.zygote_pid = process.pid
        self._process = process
        self._control = control
        self._stderr_fd = stderr_fd
        self._next_id = 0
        self._dead = False
        self._closed = False
        self._waiter: asyncio.Future[bytes] | None = None
        self._lookout: Lookout | None = None
        self._next_look: asyncio.TimerHandle | None = None
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control.fileno(), self._on_readable)

    @property
    def alive(self) -> bool:
        """Whether the cell may be given another run."""
        return not self._dead

    @classmethod
    async def start(cls, options: CellOptions) -> Cell:
        """Start a zygote and wait until its layers are on. Raises CellError saying why it did not come up."""
        try:
            cell = cls._spawn(options)
        except OSError as error:
            raise CellError(f"cannot start {sys.executable}: {error}") from None
        try:
            # Packages may take long to load from a cold disk; a time-out must not look like a missing level.
            patience = HELLO_TIMEOUT_S + PACKAGE_TIMEOUT_S * len(options.packages)
            hello = json.loads(await cell._receive(patience, "hello"))
            if "package_error" in hello:
                raise PackageError(f"packages: {hello['package_error']}; name another, e.g. 'numpy'")
            if "error" in hello:
                raise CellError(str(hello["error"]))
            cell._set_lookout(options, hello["layers"])
            cell.report = report_from_hello(options.level, hello["layers"], hello["landlock_abi"])
        except PackageError:
            await cell.close()
            raise
        except (CellError, ValueError, LookupError, TypeError, RecursionError) as error:
            reason = f"{error}{cell._startup_stderr()}"
            await cell.close()
            raise CellError(reason) from None
        except BaseException:
            await cell.close()
            raise
        return cell

    @classmethod
    def _spawn(cls, options: CellOptions) -> Cell:
        preload = [*options.preload, *(PRELOAD_WITHOUT_FILES if options.level == 1 else ())]
        stderr_fd = os.memfd_create("zygote-stderr", os.MFD_CLOEXEC)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(stderr_fd)
            raise
        config = {
            "fd": theirs.fileno(),
            "level": options.level,
            "scratch_id": _scratch_id(),
            "parent": os.getpid(),
            "disabled": list(options.disabled),
            "preload": preload,
            "packages": [asdict(package) for package in options.packages],
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-X", "no_debug_ranges", str(ZYGOTE), json.dumps(config)],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr_fd,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            os.close(stderr_fd)
            raise
        finally:
            theirs.close()
        return cls(process, ours, stderr_fd)

    def _set_lookout(self, options: CellOptions, layers: dict[str, str]) -> None:
        missing = Lookout.missing()
        if "lookout" in options.disabled:
            layers["lookout"] = "disabled"
        elif missing is not None:
            layers["lookout"] = f"unavailable: {missing}"
        else:
            layers["lookout"] = "enforced"
            counts_threads = not layers["threads"].startswith("enforced")
            if counts_threads:
                layers["threads"] = "enforced: by the lookout, for runs share the caller's user"
            self._lookout = Lookout(self.zygote_pid, options.level == BEST_LEVEL, counts_threads)

    def _look(self, spec: RunSpec, outputs: Sequence[int]) -> None:
        """Look at the run in work, and again after a while."""
        if self._lookout is not None:
            self._lookout.look(spec.memory_bytes, spec.output_bytes, spec.threads, outputs)
            self._next_look = asyncio.get_running_loop().call_later(INTERVAL_S, self._look, spec, outputs)

    async def run(self, spec: RunSpec) -> RawRun:
        """Execute one run. Raises CellError when the zygote fails or stays silent."""
        self.runs += 1
        self._next_id += 1
        files: list[int] = []
        try:
            files += _files_of(spec)
            request = wire.Request(
                self._next_id, spec.mode, spec.cpu_s, spec.wall_s, spec.memory_bytes, spec.output_bytes, STACK_BYTES,
                spec.threads,
            )  # fmt: skip
            self._send(request, (spec.source_fd, *files))
            self._next_look = asyncio.get_running_loop().call_later(INTERVAL_S, self._look, spec, files[1:4])
            replies = wire.unpack_replies(await self._receive(spec.wall_s + REPLY_GRACE_S, "reply"))
            if len(replies) != (1 if spec.test is None else 2) or any(r.run_id != self._next_id for r in replies):
                raise CellError("the zygote answered another request")
            self.grown_kib = max(0, replies[0].zygote_rss_kib - self._first_rss_kib) if self._first_rss_kib else 0
            self._first_rss_kib = self._first_rss_kib or replies[0].zygote_rss_kib
            return _collect(replies, files, spec.output_bytes)
        except (OSError, struct.error) as error:
            self._dead = True
            raise CellError(f"{type(error).__name__}: {error}") from None
        except BaseException:
            self._dead = True
            raise
        finally:
            if self._next_look is not None:
                self._next_look.cancel()
            for fd in files:
                os.close(fd)

    async def ping(self) -> None:
        """Ask the zygote whether it still serves. Raises CellError when it does not answer."""
        self._next_id += 1
        try:
            self._send(wire.Request(self._next_id, wire.MODE_PING, 0.0, 0.0, 0, 0, 0, 0), ())
            (reply,) = wire.unpack_replies(await self._receive(PING_TIMEOUT_S, "answer to a ping"))
            if reply.run_id != self._next_id:
                raise CellError("the zygote answered another request")
        except (OSError, ValueError, struct.error) as error:
            self._dead = True
            raise CellError(f"{type(error).__name__}: {error}") from None
        except BaseException:
            self._dead = True
            raise

    def _send(self, request: wire.Request, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        self._control.sendmsg([request.pack()], ancillary)

    async def _receive(self, timeout_s: float, what: str) -> bytes:
        if self._dead:
            raise CellError(f"no {what}: the zygote is gone")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiter
        except TimeoutError:
            self._dead = True
            raise CellError(f"no {what} from the zygote within {timeout_s:.1f} s") from None
        except CellError as error:
            raise CellError(f"no {what}: {error}") from None
        finally:
            self._waiter = None

    def _on_readable(self) -> None:
        try:
            data = self._control.recv(MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        waiter = self._waiter
        if not data:
            # Also notices a zygote that dies between two runs, before the next one is lost to it.
            self._end("the zygote died")
        elif waiter is not None and not waiter.done():
            waiter.set_result(data)

    def _end(self, reason: str) -> None:
        """No message will come any more."""
        self._dead = True
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(CellError(reason))

    async def close(self) -> None:
        """End the zygote and everything in the cell; no process is left afterwards."""
        if self._closed:
            return
        self._closed = True
        self._end("the cell was closed")
        # close() alone would not reach the zygote while any copy of our end is inherited somewhere.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            await asyncio.shield(self._reap())
        finally:
            os.close(self._stderr_fd)

    async def _reap(self) -> None:
        deadline = asyncio.get_running_loop().time() + EXIT_TIMEOUT_S
        pause = 0.001
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                self._process.kill()
                self._process.wait()
                return
            await asyncio.sleep(pause)
            pause = min(0.02, pause * 2)

    def _startup_stderr(self) -> str:
        size = os.fstat(self._stderr_fd).st_size
        tail = os.pread(self._stderr_fd, STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
        return f" (stderr: {tail.decode('utf-8', 'replace').strip()})" if tail.strip() else ""


def _environment() -> dict[str, str]:
    """All that user code can find in os.environ."""
    environment = {
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TZ": "UTC",
        # Every function is looked up once, in the zygote, and not by the first call of it in each run.
        "LD_BIND_NOW": "1",
    }
    # An interpreter that finds its own library this way cannot start without it.
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


def _files_of(spec: RunSpec) -> list[int]:
    """The descriptors of one run besides its source, in the order of `wire.REQUEST_FDS`. The caller closes them."""
    files: list[int] = []
    try:
        files.append(sealed_file("input", b"" if spec.test is not None else spec.input_data))
        for name in ("stdout", "stderr", "result"):  # one by one: what has been made is closed when the next one fails
            files.append(os.memfd_create(name, os.MFD_CLOEXEC))
        if spec.test is not None:
            files.append(sealed_file("test", spec.test))
            files.append(sealed_file("test-input", spec.input_data))
            files.append(os.memfd_create("test-log", os.MFD_CLOEXEC))
    except BaseException:
        for fd in files:
            os.close(fd)
        raise
    return files


def _collect(replies: Sequence[wire.Reply], files: Sequence[int], limit: int) -> RawRun:
    stdout, stderr, result = files[1:4]
    if len(replies) == 1:
        return _raw(replies[0], _read(stdout, limit), stderr, _read(result, limit))
    test = _raw(replies[1], b"", files[6], _read(result, limit))
    return replace(_raw(replies[0], _read(stdout, limit), stderr, b""), test=test)


def _raw(reply: wire.Reply, stdout: bytes, stderr: int, result: bytes) -> RawRun:
    size = os.fstat(stderr).st_size
    tail = os.pread(stderr, STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
    return RawRun(reply, stdout, tail, size, result)


def _read(fd: int, limit: int) -> bytes:
    size = min(os.fstat(fd).st_size, limit)
    content = os.pread(fd, size, 0) if size else b""
    while len(content) < size:
        more = os.pread(fd, size - len(content), len(content))
        if not more:
            break
        content += more
    return content
