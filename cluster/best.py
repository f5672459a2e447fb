"""Which policy of a run is best on held-out problems, when to go back to it, and when to stop (method section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """One held-out evaluation. `round`: 0 before the first. `policy`: its checkpoint, relative to the run; empty: the
    model of the start. `shots`: demonstrations that its prompts show."""

    round: int
    pass_at_1: float
    policy: str
    shots: int

    def record(self) -> dict[str, Any]:
        """As the state of a run keeps it."""
        return asdict(self)


def measured(stages: Mapping[str, Mapping[str, Any]], upto: int) -> list[Measured]:
    """The evaluations of the finished stages of a run up to a round, in their order."""
    keys = ["0/eval before", *(f"{round_}/eval after" for round_ in range(1, upto + 1))]
    found = [(int(key.split("/")[0]), stages[key]) for key in keys if key in stages]
    return [Measured(n, e["pass_at_1"], e.get("policy", ""), e["shots"]) for n, e in found]


def best(history: Sequence[Measured]) -> Measured:
    """That with the highest pass@1; of equal ones the latest, which has learnt more.

    Raises ValueError where there is none.
    """
    if not history:
        raise ValueError("history: got none; use at least one evaluation")
    return max(history, key=lambda m: (m.pass_at_1, m.round))


def fell(history: Sequence[Measured], margin: float) -> bool:
    """Whether the last evaluation is worse than the best by more than `margin` (pass@1)."""
    return history[-1].pass_at_1 < best(history).pass_at_1 - margin


def converged(history: Sequence[Measured], patience: int) -> bool:
    """Whether the last `patience` rounds have brought no higher pass@1 than all before them; 0: never."""
    if not patience or len(history) <= patience:
        return False
    return max(m.pass_at_1 for m in history[-patience:]) <= max(m.pass_at_1 for m in history[:-patience])
