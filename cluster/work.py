"""Units of work for rollout workers, and which of them wait, run, come again or are lost. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """Work for one worker: a method of it with arguments, under a name that no other unit has."""

    name: str
    method: str
    args: tuple[Any, ...]


class Work:
    """Units to be done. `again`: those to begin (again), with how often they were; `running`: by reference, with who is
    at it."""

    def __init__(self, units: Iterator[Unit]) -> None:
        self._units = units
        self.exhausted = False
        self.again: deque[tuple[Unit, int]] = deque()
        self.running: dict[Any, tuple[Unit, str, int]] = {}
        self.lost: list[Unit] = []

    def next(self) -> tuple[Unit, int] | None:
        """The next unit to begin; None where there is none."""
        if self.again:
            return self.again.popleft()
        unit = None if self.exhausted else next(self._units, None)
        if unit is None:
            self.exhausted = True
            return None
        return unit, 0
