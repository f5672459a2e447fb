"""Which work may begin, what the learner takes of it, and what is too old: the one owner of staleness.

A unit (a group of paths, or a tree) that began while the engines served version b, and is learnt from in the step that
makes version v + 1, has staleness v - b. With B units in a batch, a unit may begin only while

    units that are open  <  (1 + max_staleness) B,  less B while the learner is at a batch

which is the bound of AReaL (Fu et al. 2025, equation 3) less what was used. Were all units to take equally long, none
would ever be too old; those that are late all the same are evicted when a version is published. `max_staleness` 0 is
synchronous training: a batch begins when a version is there, and nothing begins while the learner learns from it.
Nothing else differs.

Every unit has one attempt at a time, and ends in exactly one of the ways of `End`. Pure: no clock, no thread, no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class End(StrEnum):
    """How a unit ended: `used` by the learner; `dropped`, because it teaches nothing; `evicted`, as too old; `lost` to
    the infrastructure in all of its attempts; `cancelled` with everything else."""

    USED = "used"
    DROPPED = "dropped"
    EVICTED = "evicted"
    LOST = "lost"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Ticket:
    """One attempt at a unit; `attempt` counts from 1. `version`: of the weights that it began with."""

    unit: str
    attempt: int
    version: int


@dataclass(slots=True)
class _Unit(Generic[T]):
    ticket: Ticket
    order: int
    failures: int = 0
    result: T | None = None
    finished: bool = False


class Admission(Generic[T]):
    """Admits units, keeps their results until a batch is selected, and evicts what is too old.

    batch: units of a learner step. max_staleness: versions, 0 or more. most_running: attempts at a time; a bound that
    holds whatever the staleness allows. attempts: at one unit, before it is lost. version: that the engines serve.
    """

    def __init__(
        self, batch: int, max_staleness: int, *, most_running: int, attempts: int = 3, version: int = 0
    ) -> None:
        for name, value, least in (
            ("batch", batch, 1),
            ("max_staleness", max_staleness, 0),
            ("most_running", most_running, 1),
            ("attempts", attempts, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: got {value!r}; use a whole number from {least} on")
        self.batch, self.max_staleness = batch, max_staleness
        self.version = version
        self.ends: Counter[End] = Counter()
        self.staleness: Counter[int] = Counter()
        """Of the units used, how many had which staleness."""
        self._most_running, self._attempts = most_running, attempts
        self._known: set[str] = set()
        self._open: dict[str, _Unit[T]] = {}
        self._learning = False

    # --- beginning ---

    def room(self) -> int:
        """How many units may begin now."""
        allowed = (1 + self.max_staleness - self._learning) * self.batch
        return max(0, min(allowed - len(self._open), self._most_running - self.running))

    def admit(self, unit: str) -> Ticket:
        """The first attempt at a unit. Raises ValueError for one that was there before, RuntimeError without room."""
        if unit in self._known:
            raise ValueError(f"unit: got {unit!r} again; every unit has a name of its own")
        if not self.room():
            raise RuntimeError(f"no unit may begin now: {self.describe()}")
        return self._begin(Ticket(unit, 1, self.version))

    # --- ending ---

    def finish(self, ticket: Ticket, result: T) -> bool:
        """An attempt came to its end. False where nothing waits for it any more; the result is not kept then."""
        unit = self._current(ticket)
        if unit is None:
            return False
        unit.result, unit.finished = result, True
        return True

    def fail(self, ticket: Ticket) -> Ticket | None:
        """The infrastructure lost an attempt. The next one, with the weights as they are now; None where there is
        none: the attempts are used up, or nothing waits for this one."""
        unit = self._current(ticket)
        if unit is None:
            return None
        unit.failures += 1
        if unit.failures >= self._attempts:
            self._end(ticket.unit, End.LOST)
            return None
        unit.ticket = Ticket(ticket.unit, ticket.attempt + 1, self.version)
        return unit.ticket

    def drop(self, ticket: Ticket) -> bool:
        """Nothing is to be learnt from the unit: another may begin in its place. False as in `finish`."""
        if self._current(ticket) is None:
            return False
        self._end(ticket.unit, End.DROPPED)
        return True

    # --- learning ---

    @property
    def running(self) -> int:
        """Attempts at work."""
        return sum(not unit.finished for unit in self._open.values())

    @property
    def ready(self) -> int:
        """Units that wait for the learner."""
        return len(self._open) - self.running

    def select(self, whole: bool = True) -> list[tuple[Ticket, T]]:
        """A batch of finished units, those that began with the oldest weights first; they are used then. Nothing while
        there is no whole batch; what there is with `whole=False`."""
        finished = [unit for unit in self._open.values() if unit.finished]
        if not finished or (whole and len(finished) < self.batch):
            return []
        finished.sort(key=lambda unit: (unit.ticket.version, unit.order))
        taken: list[tuple[Ticket, T]] = []
        for unit in finished[: self.batch]:
            assert unit.result is not None
            self.staleness[self.version - unit.ticket.version] += 1
            self._end(unit.ticket.unit, End.USED)
            taken.append((unit.ticket, unit.result))
        self._learning = True
        return taken

    def publish(self, version: int) -> list[Ticket]:
        """The engines serve a newer version. Evicts what could only be used too late; returns the attempts among it
        that still run. Raises ValueError for a version that is not newer."""
        if version <= self.version:
            raise ValueError(f"version: got {version!r} after {self.version!r}; versions only rise")
        self.version, self._learning = version, False
        late = [u for u in self._open.values() if version - u.ticket.version > self.max_staleness]
        return self._close(late, End.EVICTED)

    def cancel(self) -> list[Ticket]:
        """End everything that is open; returns the attempts that still run."""
        return self._close(list(self._open.values()), End.CANCELLED)

    # --- in and out ---

    def open_units(self) -> dict[str, int]:
        """Units that have begun and not ended, with the number of their attempt: what a checkpoint remembers."""
        return {name: unit.ticket.attempt for name, unit in self._open.items()}

    def resume(self, open_units: Mapping[str, int]) -> list[Ticket]:
        """Begin again what was open when a checkpoint was written, as further attempts: their results were in memory
        only. That it was interrupted does not count against a unit. Raises ValueError where something has begun."""
        if self._known:
            raise ValueError("open_units: units have begun already; resume before anything else")
        return [self._begin(Ticket(name, attempt + 1, self.version)) for name, attempt in open_units.items()]

    def describe(self) -> dict[str, Any]:
        """The counts, for a log line."""
        ends = {end.value: self.ends[end] for end in End}
        return {"version": self.version, "running": self.running, "ready": self.ready, "room": self.room(), **ends}

    def _begin(self, ticket: Ticket) -> Ticket:
        self._known.add(ticket.unit)
        self._open[ticket.unit] = _Unit(ticket, len(self._known))
        return ticket

    def _current(self, ticket: Ticket) -> _Unit[T] | None:
        unit = self._open.get(ticket.unit)
        return unit if unit is not None and unit.ticket == ticket and not unit.finished else None

    def _close(self, units: Iterable[_Unit[T]], end: End) -> list[Ticket]:
        units = list(units)
        for unit in units:
            self._end(unit.ticket.unit, end)
        return [unit.ticket for unit in units if not unit.finished]

    def _end(self, name: str, end: End) -> None:
        del self._open[name]
        self.ends[end] += 1
