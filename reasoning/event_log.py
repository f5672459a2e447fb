"""The append-only log of a search: what was asked and told, in order, one JSON object per line.

A log begins with `Opened` and holds all that is needed to build the tree again: `SearchTree.replay` of its events gives
an equal tree. A process that is killed in the middle of a line loses that line alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from reasoning.nodes import Outcome
from reasoning.records import Action


class Opened(msgspec.Struct, frozen=True, tag_field="event", tag="open"):
    """The first event. `headers`: (step number, action, token ids) of every header that the search can need.
    `judged_by`: stands for the tests and limits that judge its programs."""

    tree_id: str
    problem_id: str
    prompt_ids: tuple[int, ...]
    headers: tuple[tuple[int, int, tuple[int, ...]], ...]
    settings: dict[str, Any]
    seed: int
    judged_by: str = ""


class Asked(msgspec.Struct, frozen=True, tag_field="event", tag="ask"):
    """An expansion of a node was handed out."""

    id: int
    node: int
    count: int


class Begun(msgspec.Struct, frozen=True, tag_field="event", tag="begin"):
    """The policy's probability of each legal action was learnt (None: there was no choice)."""

    id: int
    priors: dict[int, float] | None


class Told(msgspec.Struct, frozen=True, tag_field="event", tag="tell"):
    """A sample ended."""

    id: int
    slot: int
    outcome: Outcome


class Abandoned(msgspec.Struct, frozen=True, tag_field="event", tag="abandon"):
    """An expansion that was never begun was given up. `pruned`: for want of need, not for a failure."""

    id: int
    reason: str
    pruned: bool = False


class Ended(msgspec.Struct, frozen=True, tag_field="event", tag="end"):
    """The last event of a search that came to its end. `seconds`: on the clock, since the search began or went on."""

    reason: str
    seconds: float


Event = Opened | Asked | Begun | Told | Abandoned | Ended

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Event)


class EventLogError(ValueError):
    """A log that is not one of a search, or not of this one; the message says which line and why."""


def encode(event: Event) -> bytes:
    """One line."""
    return _ENCODER.encode(event) + b"\n"


def decode(data: bytes) -> list[Event]:
    """The events of a log; a last line without its end is left out. Raises EventLogError for any other broken line."""
    lines = data.split(b"\n")
    events: list[Event] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            events.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EventLogError(f"event log: line {number}: {error}") from None
    return events


def opening(events: Iterable[Event]) -> Opened:
    """The first event. Raises EventLogError where it is another, or missing."""
    first = next(iter(events), None)
    if not isinstance(first, Opened):
        raise EventLogError("event log: line 1: it does not begin with the opening of a search")
    return first


def require_same(opened: Opened, **ours: Any) -> None:
    """Raises EventLogError naming the first field of the opening that differs from `ours`: it is another search."""
    for name, value in ours.items():
        if getattr(opened, name) != value:
            raise EventLogError(f"it is of another search: its {name} differs")


def header_rows(headers: Mapping[tuple[int, Action], tuple[int, ...]]) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """A table of headers as an opening holds it; `header_table` reads it."""
    return tuple((number, int(action), ids) for (number, action), ids in headers.items())


def header_table(opened: Opened) -> dict[tuple[int, Action], tuple[int, ...]]:
    """Header token ids by (step number, action)."""
    return {(number, Action(action)): ids for number, action, ids in opened.headers}


class EventFile:
    """A log on disk: every event reaches the operating system before the call returns, so a killed process loses none.

    An existing file is gone on with; a broken last line is cut off first. `before`: what it held.

    Raises EventLogError where another process writes it, OSError where it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.ftruncate(self._fd, whole)
        except BlockingIOError:
            os.close(self._fd)
            raise EventLogError("another process writes it") from None
        except BaseException:
            os.close(self._fd)
            raise
        self.before = data[:whole]

    def append(self, event: Event) -> None:
        """Raises OSError where the disk takes no more."""
        data = encode(event)
        written = os.write(self._fd, data)
        while written < len(data):
            written += os.write(self._fd, data[written:])

    def close(self) -> None:
        """Make what was written survive a crash of the machine, too."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
