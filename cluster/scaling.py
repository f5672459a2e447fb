"""How many rollout workers a run would do best with, judged by who waits for whom.

A learner that waits for data wants more of them; workers that may begin nothing, because enough waits for the learner
or would be too old by the time it is used, are too many. Pure: measures and the clock come in, a wish comes out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """least, most: bounds on the wish. `wait`: share of the time that the learner may wait before more are wished for;
    `blocked`: share of the time that no unit may begin before fewer are; `evicted`: share of units that may end as too
    old before fewer are. `every_s`: between two changes, time enough to see what the last one did."""

    least: int = 1
    most: int = 1
    wait: float = 0.2
    blocked: float = 0.5
    evicted: float = 0.1
    every_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"least: got {self.least!r}; use a whole number from 0 to most ({self.most})")


@dataclass(frozen=True, slots=True)
class Load:
    """Of the time since the last one: seconds in all, that the learner waited for data, and that no unit might begin;
    units that ended, and those of them that were too old. `size`: workers wished for; `serving`: those at work."""

    seconds: float
    learner_waited_s: float
    blocked_s: float
    ended: int
    evicted: int
    size: int
    serving: int


@dataclass(frozen=True, slots=True)
class Wish:
    """Another number of workers, and why."""

    target: int
    why: str


class ScalePolicy:
    """Decides once per `every_s`; half as many again are added at a time, and one is taken away."""

    def __init__(self, settings: ScaleSettings, now: float) -> None:
        self.settings, self._last = settings, now

    def decide(self, load: Load, now: float) -> Wish | None:
        """A changed wish; None to leave it as it is. While workers are still coming up nothing more is wished for."""
        s = self.settings
        if now - self._last < s.every_s or load.seconds <= 0:
            return None
        wish = self._wish(load)
        if wish is None or wish.target == load.size:
            return None
        self._last = now
        return wish

    def _wish(self, load: Load) -> Wish | None:
        s = self.settings
        if not s.least <= load.size <= s.most:
            return Wish(min(max(load.size, s.least), s.most), f"from {s.least} to {s.most} are allowed")
        evicted = load.evicted / load.ended if load.ended else 0.0
        if evicted > s.evicted:
            return Wish(max(s.least, load.size - 1), f"{evicted:.0%} of the work was too old to be used")
        waited, blocked = load.learner_waited_s / load.seconds, load.blocked_s / load.seconds
        if waited > s.wait and load.serving >= load.size:
            more = max(1, load.size // 2)
            return Wish(min(s.most, load.size + more), f"the learner waited {waited:.0%} of the time")
        if blocked > s.blocked and waited <= s.wait / 2:
            return Wish(max(s.least, load.size - 1), f"nothing might begin for {blocked:.0%} of the time")
        return None
