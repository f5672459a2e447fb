"""What lies outside of a run and must stay as it is: files, listening sockets, processes, System V objects, secrets."""

# ruff: noqa: PTH208 - names are enough, and paths cost half of the time

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from attacks import HARM

SECRET_VARIABLE: Final = "SANDBOX_SECRET"
IPC_KEY: Final = 0x5A4D0B0E
PROJECT: Final = Path(__file__).resolve().parents[2]
HARMED: Final = "sandbox-harm"
_libc = ctypes.CDLL(None, use_errno=True)


class Surroundings:
    """Things to harm, and a look at whether they were. Use one at a time; close it at the end."""

    def __init__(self) -> None:
        # What runs already is none of a run's doing; looking at it each time would take most of the time.
        self._strangers = {name for name in os.listdir("/proc") if name.isdigit()} - _relatives()
        self._setting: object = None
        self._last: dict[str, Any] = {}
        self.token = os.urandom(12).hex()
        self.folder = Path(tempfile.mkdtemp(prefix="sandbox-canary-", dir="/tmp"))
        self._plant()
        self._sockets = self._listen()
        self._bystander = self._stand_by()

    @property
    def facts(self) -> dict[str, Any]:
        """Where everything is, for the attacks; the token is not among it."""
        ports = {name: one.getsockname()[1] for name, one in self._sockets.items() if one.family == socket.AF_INET}
        return ports | {
            "folder": str(self.folder),
            "home": str(self.folder / "home"),
            "project": str(PROJECT / "pyproject.toml"),
            "abstract_stream": f"\0{self.folder}/stream",
            "abstract_datagram": f"\0{self.folder}/datagram",
            "path_stream": str(self.folder / "stream"),
            "path_datagram": str(self.folder / "datagram"),
            "bystander": self._bystander.pid,
            "owner": os.getpid(),
            "ipc_key": IPC_KEY,
        }

    def _plant(self) -> None:
        """A folder in which everybody may do everything, as far as files have a say."""
        shutil.rmtree(self.folder, ignore_errors=True)
        secrets = ("secret", "tests.json", "home/.ssh/id_ed25519", "home/.netrc", "home/.cache/huggingface/token")
        for name, content in (("canary", "untouched"), *((name, self.token) for name in secrets)):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (self.folder / "empty").mkdir()
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)

    def _listen(self) -> dict[str, socket.socket]:
        kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
        sockets = {"tcp": socket.create_server(("127.0.0.1", 0))}
        for name, host in (("udp", "127.0.0.1"), ("udp_any", "")):
            sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets[name].bind((host, 0))
        for name, kind in kinds.items():
            for where, address in (("abstract", f"\0{self.folder}/{name}"), ("path", f"{self.folder}/{name}")):
                one = sockets[f"{where}_{name}"] = socket.socket(socket.AF_UNIX, kind)
                one.bind(address)
                if where == "path":
                    Path(address).chmod(0o777)
        for one in sockets.values():
            if one.type == socket.SOCK_STREAM:
                one.listen()
            one.setblocking(False)
        return sockets

    def _stand_by(self) -> subprocess.Popen[bytes]:
        # It ends with the pipe, so with this process at the latest.
        return subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, env={SECRET_VARIABLE: self.token}, start_new_session=True
        )

    def before(self, setting: object) -> dict[str, Any]:
        """How things are now: a look, or the last one when nothing but attacks in the same setting came since."""
        if setting != self._setting:
            self._setting, self._last = setting, self.look()
        return self._last

    def look(self) -> dict[str, Any]:
        """Everything that may change, by name; sockets are read empty."""
        seen: dict[str, Any] = {str(path): _file_state(path) for path in self.folder.rglob("*")}
        seen[str(self.folder)] = self.folder.stat().st_mode
        library = Path(os.__file__)
        seen["library"] = [
            (_file_state(path)[1:] if path.is_file() else path.is_dir())
            for path in (library, library.parent, library.parent / "json" / "__init__.py")
        ]
        places = ("/tmp", "/dev/shm", "/var/tmp", "/", str(Path.home()), ".", str(self.folder / "home"))
        seen["new files"] = [
            f"{place}/{name}"
            for place in (*places, str(library.parent), str(library.parent / "__pycache__"))
            for name in (os.listdir(place) if Path(place).is_dir() else [])
            if name.startswith((HARMED, HARMED.replace("-", "_")))
        ]
        seen["received"] = [name for name, one in self._sockets.items() if _received(one)]
        seen["processes"] = self.processes()
        seen["bystander"] = self._state_of_bystander()
        seen["shared objects"] = [kind for kind in ("shm", "sem", "msg") if _system_v_exists(kind)]
        return seen

    def harm(self, before: dict[str, Any]) -> list[str]:
        """What has changed since `before`; puts it right again, so that the next attack starts from the same."""
        after = self.look()
        found = [f"{name}: {before.get(name)} -> {after.get(name)}" for name in before.keys() | after.keys()
                 if before.get(name) != after.get(name)]  # fmt: skip
        if _libc.mq_unlink(b"/" + HARMED.encode()) == 0:
            found.append("a POSIX message queue was made")
        self._last = after
        if found:
            self._repair(after, before)
            self._setting = None
        return found

    def _repair(self, after: dict[str, Any], before: dict[str, Any]) -> None:
        for pid in after["processes"] - before["processes"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in after["new files"]:
            Path(name).unlink(missing_ok=True)
        for one in self._sockets.values():
            one.close()
        for kind, remove in (("shm", _libc.shmctl), ("msg", _libc.msgctl)):
            if kind in after["shared objects"]:
                remove(getattr(_libc, f"{kind}get")(IPC_KEY, 0, 0), 0, None)
        if "sem" in after["shared objects"]:
            _libc.semctl(_libc.semget(IPC_KEY, 0, 0), 0, 0)
        self._end_bystander()
        self._plant()
        self._sockets = self._listen()
        self._bystander = self._stand_by()

    def processes(self) -> set[int]:
        """Living processes that belong to our pools or whose command line names our folder, wherever they hang."""
        marks = (str(self.folder).encode(), f'"parent": {os.getpid()},'.encode())
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit() and name not in self._strangers:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{name}/cmdline").read_bytes()
                    if any(mark in line for mark in marks) and _state(int(name)) != "Z":
                        found.add(int(name))
        return found

    def _state_of_bystander(self) -> tuple[Any, ...] | None:
        pid = self._bystander.pid
        state = _state(pid)
        if state in ("Z", ""):
            return None
        stopped = state == "T"
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        return pid, stopped, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), limits, (
            os.sched_getscheduler(pid)
        )  # fmt: skip

    def _end_bystander(self) -> None:
        assert self._bystander.stdin is not None
        self._bystander.stdin.close()
        self._bystander.kill()
        self._bystander.wait()

    def close(self) -> None:
        """Take everything away again."""
        self._end_bystander()
        for one in self._sockets.values():
            one.close()
        shutil.rmtree(self.folder)


def marked(text: str, token: str) -> list[str]:
    """What a program says that it has done or read."""
    found = [line for line in text.splitlines() if HARM in line]
    return found + (["a secret was read"] if token in text else [])


def _relatives() -> set[str]:
    """This process and everything below it, where a pool may have been started before."""
    found: set[str] = set()
    todo = [str(os.getpid())]
    while todo:
        pid = todo.pop()
        found.add(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += (task / "children").read_text().split()
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _file_state(path: Path) -> tuple[Any, ...]:
    stat = path.lstat()
    content = path.read_bytes() if path.is_file() and not path.is_symlink() and stat.st_size < 1 << 20 else None
    attributes = os.listxattr(path, follow_symlinks=False) if path.is_file() else []
    # The time of a folder changes with what happens in it, which is seen by itself.
    changed = None if path.is_dir() else stat.st_mtime_ns
    return content, attributes, stat.st_ino, stat.st_mode, stat.st_uid, stat.st_nlink, stat.st_size, changed


def _received(one: socket.socket) -> bool:
    """Whether anything has come in; it is taken out."""
    with contextlib.suppress(BlockingIOError):
        if one.type == socket.SOCK_STREAM:
            one.accept()[0].close()
        else:
            one.recv(64)
        return True
    return False


def _system_v_exists(kind: str) -> bool:
    lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
    return any(int(line.split()[0]) & 0xFFFFFFFF == IPC_KEY for line in lines)
