"""A run's directory: its layout, the lock of the process that owns it, and writes that are whole or absent.

Layout::

    run.json      the marker: format version, id, time of creation, command
    config.yaml   the resolved configuration        state.json   the finished stages
    metrics.jsonl one line per logged step          report.json, report.txt
    trees/ data/ checkpoints/ logs/ wandb/          lock, .scratch/ (unfinished work; emptied when the run is opened)
    snapshots/    of a training under way
    solutions/    of `o1coder search` alone
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from reasoning.durable import sync, sync_tree, write_atomic
from reasoning.errors import InputError

FORMAT = 1
"""Version of the layout; a run of a newer version is refused rather than misread."""
MARKER = "run.json"
SUBDIRECTORIES = ("trees", "data", "checkpoints", "logs", "wandb")
SCRATCH = ".scratch"
_REPLACED = "replaced--"
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def new_id() -> str:
    """A run id that sorts by time: `20260131-235959-a1b2c3` (UTC)."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def default_path() -> Path:
    """Where a run goes when the user names no place: `runs/<id>` under the working directory, absolute."""
    return Path.cwd() / "runs" / new_id()


class RunDir:
    """The directory of one run. All paths are absolute, since actors work in other directories.

    `RunDir(path)` only names the paths and may be made anywhere (actors, readers); `create` and `open` also take the
    lock, which lasts as long as the process. A pickled RunDir arrives without the lock.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _absolute(path)
        self._lock: int | None = None

    # Paths ------------------------------------------------------------------------------------------------------------

    @property
    def marker(self) -> Path:
        return self.path / MARKER

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def report_text(self) -> Path:
        return self.path / "report.txt"

    @property
    def trees(self) -> Path:
        return self.path / "trees"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    # Making and opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path | None = None, command: str | Sequence[str] = ()) -> RunDir:
        """A new, locked run directory at `path` (default: `default_path()`); the path is absent or an empty directory.

        The directory appears whole or not at all: it is made under a temporary name beside `path` and renamed.

        Raises:
            InputError: field "run-dir": there is a run already, something else is there, or it cannot be written.
        """
        run = cls(path if path is not None else default_path())
        require_free(run.path)
        made = _missing_parents(run.path)
        try:
            run.path.parent.mkdir(parents=True, exist_ok=True)
            run._build(command if isinstance(command, str) else shlex.join(command))
        except OSError as error:
            run.close()
            for parent in made:
                _remove_if_empty(parent)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                require_free(run.path)  # another process took the name in between: say what it made of it
            legal = "a path in a directory that can be written"
            raise InputError("run-dir", str(run.path), legal, error.strerror or str(error)) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """The locked directory of an existing run, with what an interrupted write left behind cleaned up.

        Raises:
            InputError: field "resume": no run is there, it is of a newer format, or another process works on it.
        """
        run = cls(path)
        legal = "the directory of an earlier run (it holds a run.json)"
        if not os.path.isdir(run.path):  # noqa: PTH112  Path's own raises where a name is too long
            reason = "it is not a directory" if os.path.exists(run.path) else "no such directory"  # noqa: PTH110
            raise InputError("resume", str(run.path), legal, reason)
        if not run.marker.is_file():
            raise InputError("resume", str(run.path), legal, "there is no run.json in it")
        info = run._read("resume", run.marker)
        version = info.get("format")
        if not isinstance(version, int) or not isinstance(info.get("id"), str):
            raise InputError("resume", str(run.path), legal, "its run.json lacks a format or an id")
        if version > FORMAT:
            raise InputError("resume", str(run.path), f"a run of format {FORMAT} or older", f"it has format {version}")
        try:
            run._take_lock(run.path, "resume")
            run._recover()
            for name in SUBDIRECTORIES:
                (run.path / name).mkdir(exist_ok=True)
        except OSError as error:
            run.close()
            legal = "a run directory that can be written"
            raise InputError("resume", str(run.path), legal, error.strerror or str(error)) from error
        return run

    def close(self) -> None:
        """Give the lock back. Only needed to hand the run on within one process; the end of the process does it too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __reduce__(self) -> tuple[type[RunDir], tuple[Path]]:
        # A lock belongs to one process: an actor that is sent a RunDir gets the paths.
        return RunDir, (self.path,)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # Contents ---------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The run's id, the same through every resume (also its W&B id). Raises InputError when run.json is damaged."""
        return str(self.info()["id"])

    def info(self) -> dict[str, Any]:
        """What run.json says: format, id, created (ISO 8601, UTC), command. Raises InputError when it is damaged."""
        return self._read("run-dir", self.marker)

    def read_state(self) -> dict[str, Any]:
        """The contents of state.json, {} before it was first written. Raises InputError when it is damaged."""
        return self._read("resume", self.state) if self.state.exists() else {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace state.json as a whole. Raises OSError when the disk refuses."""
        self.write_json(self.state, state)

    def write_atomic(self, path: str | Path, data: bytes | str) -> Path:
        """`write_atomic` of a path that may be relative to the run; returns it absolute. Raises OSError."""
        target = self.path / path
        write_atomic(target, data)
        return target

    def write_json(self, path: str | Path, value: object) -> Path:
        """Write `value` as indented JSON, atomically; returns the absolute path.

        Raises:
            ValueError: NaN or infinity, which are no JSON. TypeError: something that is no JSON at all. OSError.
        """
        return self.write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def stage_dir(self, name: str) -> Path:
        """A fresh, empty scratch directory for work on `name`, on the same file system, to be filled and published."""
        scratch = self.path / SCRATCH / f"{quote(name, safe='')}-{secrets.token_hex(4)}"
        scratch.mkdir(parents=True)
        return scratch

    def publish_dir(self, scratch: Path, target: str | Path) -> Path:
        """Move a finished directory to `target` (relative to the run or absolute, inside it), replacing what is there.

        Readers see the old directory or the new one, never a mixture; a crash in between keeps the old one (`open`
        puts it back). Returns the absolute target.

        Raises:
            ValueError: the target is not inside the run. OSError: the disk refuses; the old directory stays.
        """
        final = self.path / target
        if not final.resolve().is_relative_to(self.path) or final.resolve() == self.path:
            raise ValueError(f"target: got {str(target)!r}; use a path inside {self.path}")
        sync_tree(scratch)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside: Path | None = None
        if final.exists():
            # A rename cannot replace a full directory, so the old one steps aside under a name that says where it was.
            place = quote(str(final.relative_to(self.path)), safe="")
            aside = self.path / SCRATCH / f"{_REPLACED}{place}"
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        try:
            scratch.rename(final)
        except OSError:
            if aside is not None:
                aside.rename(final)
            raise
        sync(final.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def require_disk(self, gib: float) -> None:
        """Raises InputError (field "run-dir") unless `gib` GiB are free for the run."""
        free = shutil.disk_usage(_existing(self.path)).free / 2**30
        if free < gib:
            legal = f"a directory on a disk with at least {gib:g} GiB free"
            raise InputError("run-dir", str(self.path), legal, f"only {free:.1f} GiB are free")

    # Inside -----------------------------------------------------------------------------------------------------------

    def _build(self, command: str) -> None:
        """Make the directory beside its place, lock it, rename it. The lock follows the file, not its name."""
        scratch = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.new")
        try:
            scratch.mkdir()
            self._fill(scratch, command)
            try:
                scratch.rename(self.path)
            except OSError:
                # An empty directory that cannot be replaced (a mount point, the working directory) is filled in place.
                if not self.path.is_dir() or any(self.path.iterdir()):
                    raise
                self.close()
                self._fill(self.path, command)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        sync(self.path.parent)

    def _fill(self, place: Path, command: str) -> None:
        self._take_lock(place, "run-dir")
        for name in SUBDIRECTORIES:
            (place / name).mkdir()
        run_id = self.path.name if _ID.fullmatch(self.path.name) else new_id()
        created = datetime.now(UTC).isoformat(timespec="seconds")
        marker = {"format": FORMAT, "id": run_id, "created": created, "command": command}
        # The marker comes last: a directory that has one is complete.
        write_atomic(place / MARKER, json.dumps(marker, indent=2) + "\n")

    def _take_lock(self, place: Path, field: str) -> None:
        handle = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").split() or ["?", "this machine"]
            os.close(handle)
            legal = "another directory, or wait until that process has ended"
            reason = f"process {holder[0]} on {' '.join(holder[1:])} is working on this run"
            raise InputError(field, str(self.path), legal, reason) from None
        except OSError:
            os.close(handle)
            raise
        self._lock = handle

    def _recover(self) -> None:
        """Undo what a killed process left: put back a replaced directory whose successor never came, drop the rest."""
        scratch = self.path / SCRATCH
        if not scratch.is_dir():
            return
        for aside in scratch.glob(f"{_REPLACED}*"):
            final = self.path / unquote(aside.name.removeprefix(_REPLACED))
            if not final.exists():
                aside.rename(final)
        shutil.rmtree(scratch, ignore_errors=True)

    def _read(self, field: str, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = f"{path.name} cannot be read: {' '.join(str(error).split())}"
            raise InputError(field, str(self.path), "a run directory with intact files", reason) from error
        if not isinstance(value, dict):
            legal = "a run directory with intact files"
            raise InputError(field, str(self.path), legal, f"{path.name} does not hold a JSON object")
        return value


def expand(path: str | Path) -> Path:
    """The path with `~` and `~name` replaced, as it is where there is no such home (Path's own raises there)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _absolute(path: str | Path) -> Path:
    return expand(path).resolve()


def require_free(path: Path) -> None:
    legal = "a path that does not exist yet, or an empty directory"
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long, a parent that may not be entered
        raise InputError("run-dir", str(path), legal, error.strerror or str(error)) from error
    if not path.is_dir():
        raise InputError("run-dir", str(path), legal, "it is a file")
    if (path / MARKER).exists():
        go_on = f"--resume {shlex.quote(str(path))} to go on with it, or another path"
        raise InputError("run-dir", str(path), go_on, "there is a run in it already")
    try:
        first = next(path.iterdir(), None)
    except OSError as error:
        raise InputError("run-dir", str(path), legal, error.strerror or str(error)) from error
    if first is not None:
        reason = f"it is not a run directory and not empty (it holds {first.name!r})"
        raise InputError("run-dir", str(path), legal, reason)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _missing_parents(path: Path) -> list[Path]:
    """The parents that `create` has to make, innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return  # something else lives there by now, or it was never made
