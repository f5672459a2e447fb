"""The life of each rollout worker, decided without one: a state machine with the clock passed in.

    PENDING --started--> STALE --synced--> SERVING <--seen--/--missed--> SUSPECT
       |                   ^                  |                             |
       | too long          +---- published ---+                             | too long
       v                                                                    v
     DEAD <------------- died, or gave up on syncing it ------------------ DEAD
    any of these --drain--> DRAINING --empty, or at its deadline--> RETIRED

Only a SERVING member gets work, and it serves only after a completed weight sync of the current version; a member that
was replaced goes through STALE like any other. What a member was at when it died is handed back, once. `orders` says
what is to be done next; whoever carries it out tells what came of it. Events about members that have ended are late
news and change nothing. Pure: no clock of its own, no thread, no Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class State(StrEnum):
    """Of a member."""

    PENDING = "pending"
    STALE = "stale"
    SERVING = "serving"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"
    RETIRED = "retired"


ENDED = frozenset({State.DEAD, State.RETIRED})
STAYING = frozenset({State.PENDING, State.STALE, State.SERVING, State.SUSPECT})
"""States of members that count towards the size that is wished for."""
UP = frozenset({State.STALE, State.SERVING, State.SUSPECT, State.DRAINING})
"""States in which a member has come up and can be asked whether it is well."""
Kind = Literal["start", "sync", "kill", "retire"]


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Seconds and counts. `start_s`: to come up; `suspect_s`: that a suspect has to answer again; `drain_s`: that a
    drained member has for the work it has; `missed`: unanswered probes after which it is suspect; `sync_failures` in a
    row after which it is given up; `deaths` within `deaths_s` after which nothing is started in place of what died."""

    start_s: float = 900.0
    suspect_s: float = 30.0
    drain_s: float = 300.0
    missed: int = 2
    sync_failures: int = 3
    deaths: int = 6
    deaths_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done. `name`: of the member; for "start" of the one to make."""

    kind: Kind
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Change:
    """That a member went from one state to another, None being before it was there. `at`: on the clock."""

    at: float
    name: str
    before: State | None
    after: State
    why: str


@dataclass(slots=True)
class Member:
    """One rollout worker. `since`: it is in its state; `alone`: its one unit of work suffers no other beside it;
    `deadline`: of its draining."""

    name: str
    state: State
    since: float
    node: str = ""
    version: int | None = None
    missed: int = 0
    sync_failures: int = 0
    syncing: bool = False
    alone: bool = False
    deadline: float | None = None
    why: str = ""
    work: set[str] = field(default_factory=set)


class Fleet:
    """Members by name, the number that is wished for, and the version that they are to serve.

    capacity: units of work that a member takes at a time. most: members that may ever be wished for.
    """

    def __init__(self, settings: FleetSettings, *, target: int, most: int, capacity: int, version: int = 0) -> None:
        self.settings, self.most, self.capacity = settings, most, capacity
        self.version = version
        self.members: dict[str, Member] = {}
        self.changes: deque[Change] = deque(maxlen=10_000)
        """The latest changes, for logs and the report."""
        self._deaths: deque[float] = deque(maxlen=settings.deaths)
        self._started = 0
        self._kept = ""
        self.target = 0
        self.wish(target)

    # --- what is wished for ---

    def wish(self, target: int) -> None:
        """How many members there shall be. Raises ValueError outside 0 to `most`."""
        if not 0 <= target <= self.most:
            raise ValueError(f"rollouts: got {target!r}; use a whole number from 0 to {self.most}")
        self.target = target

    def publish(self, version: int) -> None:
        """There are newer weights: who serves older ones is stale. Raises ValueError for one that is not newer."""
        if version <= self.version:
            raise ValueError(f"version: got {version!r} after {self.version!r}; versions only rise")
        self.version = version

    # --- what happened ---

    def starting(self, order: Order, now: float, node: str = "") -> Member:
        """A "start" order is being carried out."""
        member = Member(order.name, State.PENDING, now, node)
        self.members[order.name] = member
        self._started += 1
        self.changes.append(Change(now, order.name, None, State.PENDING, order.why))
        return member

    def started(self, name: str, now: float, node: str = "") -> bool:
        """It has come up, with weights that nobody vouches for."""
        member = self._in(name, State.PENDING)
        if member is None:
            return False
        member.node = node or member.node
        self._go(member, State.STALE, now, "it is up")
        return True

    def syncing(self, name: str) -> bool:
        """A "sync" order is being carried out."""
        member = self._in(name, State.STALE, State.SERVING, State.SUSPECT)
        if member is None:
            return False
        member.syncing = True
        return True

    def synced(self, name: str, version: int, now: float) -> bool:
        """A sync of it was completed and verified. It serves, unless there are newer weights by now."""
        member = self._in(name, *UP)
        if member is None:
            return False
        member.syncing, member.version, member.sync_failures, member.missed = False, version, 0, 0
        if version == self.version and member.state in (State.STALE, State.SUSPECT):
            self._go(member, State.SERVING, now, f"it serves version {version}")
        return True

    def sync_failed(self, name: str, now: float, why: str) -> set[str]:
        """A sync of it failed: what it serves is not known, so it serves nothing. Returns what it was at where it is
        given up."""
        member = self._in(name, *UP)
        if member is None:
            return set()
        member.syncing, member.version = False, None
        member.sync_failures += 1
        if member.sync_failures >= self.settings.sync_failures:
            return self.died(name, now, f"{member.sync_failures} syncs failed, the last: {why}")
        if member.state in (State.SERVING, State.SUSPECT):
            self._go(member, State.STALE, now, why)
        return set()

    def seen(self, name: str, now: float) -> bool:
        """It answered a probe."""
        member = self._in(name, *UP)
        if member is None:
            return False
        member.missed = 0
        if member.state is State.SUSPECT:
            current = member.version == self.version
            self._go(member, State.SERVING if current else State.STALE, now, "it answers again")
        return True

    def missed(self, name: str, now: float) -> bool:
        """It left a probe unanswered. An engine that swaps its weights is not asked."""
        member = self._in(name, *UP)
        if member is None or member.syncing:
            return False
        member.missed += 1
        if member.missed >= self.settings.missed and member.state in (State.STALE, State.SERVING):
            self._go(member, State.SUSPECT, now, f"{member.missed} probes are unanswered")
        return True

    def died(self, name: str, now: float, why: str) -> set[str]:
        """It is gone, or counts as gone. Returns what it was at, for others to do."""
        member = self.members.get(name)
        if member is None or member.state in ENDED:
            return set()
        drained = member.state is State.DRAINING
        work, member.work = member.work, set()
        self._go(member, State.RETIRED if drained and not work else State.DEAD, now, why)
        if not drained:
            self._deaths.append(now)
        return work

    def drain(self, name: str, now: float, why: str, deadline: float | None = None) -> bool:
        """No more work for it. `deadline`: on the clock, when it has to be gone; by default `drain_s` from now."""
        member = self._in(name, *STAYING, State.DRAINING)
        if member is None:
            return False
        until = now + self.settings.drain_s if deadline is None else deadline
        if member.state is State.DRAINING:
            member.deadline = min(until, member.deadline if member.deadline is not None else until)
            return True
        member.deadline = until
        self._go(member, State.DRAINING, now, why)
        return True

    def drain_node(self, node: str, now: float, deadline: float, why: str) -> list[str]:
        """A machine is about to be taken away: everyone on it is drained, and others are started at once. Returns who
        it concerns."""
        names = [m.name for m in self.members.values() if m.node == node and m.state not in ENDED]
        return [name for name in names if self.drain(name, now, why, deadline)]

    # --- work ---

    def routable(self) -> list[str]:
        """Who may be given work: those that serve the current version."""
        return [m.name for m in self.members.values() if self._serves(m)]

    def room(self) -> int:
        """Units of work that could be given out now."""
        able = [m for m in self.members.values() if self._serves(m) and not m.alone and m.name != self._kept]
        return sum(max(0, self.capacity - len(m.work)) for m in able)

    def assign(self, unit: str, alone: bool = False) -> str | None:
        """Give a unit to who has least to do; None where nobody has room. `alone`: to somebody who has nothing else to
        do, and gets nothing else until it is done; where there is nobody, who has least to do is left to get there."""
        open_ = [m for m in self.members.values() if self._serves(m) and not m.alone]
        free = [m for m in open_ if len(m.work) < (1 if alone else self.capacity) and (alone or m.name != self._kept)]
        if not free:
            if alone and not any(m.name == self._kept for m in open_):
                self._kept = min(open_, key=lambda m: len(m.work)).name if open_ else ""
            return None
        member = min(free, key=lambda m: (len(m.work), m.since))
        member.work.add(unit)
        member.alone = alone
        if alone:
            self._kept = ""
        return member.name

    def keep_for_nobody(self) -> None:
        """Whoever wanted to be alone no longer does."""
        self._kept = ""

    def done(self, name: str, unit: str) -> bool:
        """A unit left a member, whatever came of it. False where it is no longer that member's."""
        member = self.members.get(name)
        if member is None or unit not in member.work:
            return False
        member.work.discard(unit)
        member.alone = False
        return True

    # --- what is to be done ---

    def orders(self, now: float) -> list[Order]:
        """What is to be done now; asking again gives the same until something happens. Marks who is stale, and drains
        who is too many."""
        for member in self.members.values():
            if member.state is State.SERVING and member.version != self.version:
                self._go(member, State.STALE, now, f"version {self.version} was published")
        self._drain_what_is_too_many(now)
        found = [order for member in self.members.values() if (order := self._order_for(member, now)) is not None]
        return [*found, *self._starts(now)]

    def exhausted(self, now: float) -> bool:
        """Whether so many died lately that nothing more is started in their place."""
        s = self.settings
        return len(self._deaths) == s.deaths and now - self._deaths[0] < s.deaths_s

    def staying(self) -> int:
        """Members that count towards the target."""
        return sum(m.state in STAYING for m in self.members.values())

    def counts(self) -> dict[str, int]:
        """Members by state, every state named; for metrics."""
        return {state.value: sum(m.state is state for m in self.members.values()) for state in State}

    def _order_for(self, member: Member, now: float) -> Order | None:
        s, waited = self.settings, now - member.since
        match member.state:
            case State.PENDING if waited >= s.start_s:
                return Order("kill", member.name, f"not up within {s.start_s:.0f} s")
            case State.SUSPECT if waited >= s.suspect_s:
                return Order("kill", member.name, f"no answer for {s.suspect_s:.0f} s")
            case State.STALE if not member.syncing:
                return Order("sync", member.name, f"to version {self.version}")
            case State.DRAINING if not member.work:
                return Order("retire", member.name, member.why)
            case State.DRAINING if member.deadline is not None and now >= member.deadline:
                return Order("kill", member.name, f"{member.why}; its time is up with {len(member.work)} at work")
        return None

    def _starts(self, now: float) -> Iterable[Order]:
        missing = self.target - self.staying()
        if missing <= 0 or self.exhausted(now):
            return []
        why = f"{self.target} are wished for, {self.staying()} are there"
        return [Order("start", f"rollout-{self._started + i + 1}", why) for i in range(missing)]

    def _drain_what_is_too_many(self, now: float) -> None:
        """Those that are of least use first: not up yet, not serving, with little to do; of equals the youngest."""
        use = (State.PENDING, State.SUSPECT, State.STALE, State.SERVING)
        staying = [m for m in self.members.values() if m.state in STAYING]
        staying.sort(key=lambda m: (use.index(m.state), len(m.work), -m.since))
        for member in staying[: max(0, len(staying) - self.target)]:
            self.drain(member.name, now, f"{self.target} are wished for")

    def _serves(self, member: Member) -> bool:
        return member.state is State.SERVING and member.version == self.version and not member.syncing

    def _in(self, name: str, *states: State) -> Member | None:
        member = self.members.get(name)
        return member if member is not None and member.state in states else None

    def _go(self, member: Member, state: State, now: float, why: str) -> None:
        self.changes.append(Change(now, member.name, member.state, state, why))
        member.state, member.since, member.why = state, now, why
