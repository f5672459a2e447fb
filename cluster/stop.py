"""Being told to stop."""

from __future__ import annotations

from dataclasses import dataclass


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: not an error, and nothing that catches errors may catch it."""


@dataclass(slots=True)
class Stop:
    """The signal that told the run to stop, "" before there was one."""

    signal: str = ""

    def check(self) -> None:
        """Raises Interrupted where the run was told to stop and something on the way swallowed it."""
        if self.signal:
            raise Interrupted(self.signal)
