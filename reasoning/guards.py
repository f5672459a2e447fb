"""What tells early that RL goes wrong: the shape of paths, the sampler's mismatch, cheated tests (method section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasoning.records import Path, mean


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is still taken for normal.

    `mismatch_kl` (nats per token) and `ess` (share): of the importance weights between sampler and learner. `entropy`:
    nats per token, at least. `holdout_gap`: share of programs that pass their suite and fail the tests kept apart.
    `duplicates`: share of equal paths among those of a problem. `drift`: change of the mean length or number of steps
    of a path from one round to the next, as a share. A bound that cannot be crossed (inf, or 0 for `ess` and `entropy`)
    is none.
    """

    mismatch_kl: float
    ess: float
    entropy: float
    holdout_gap: float
    duplicates: float
    drift: float


def shape(paths: Sequence[Path]) -> dict[str, float]:
    """Means over paths: `path_tokens` and `path_steps`; shares of them: `duplicates`, those that repeat what an earlier
    one of their problem says, and `no_program`. Empty where there is no path."""
    if not paths:
        return {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    repeated = 0
    for path in paths:
        told = (path.problem_id, tuple(step.text for step in path.steps))
        repeated += told in seen
        seen.add(told)
    return {
        "path_tokens": mean([float(path.sampled_tokens) for path in paths]),
        "path_steps": mean([float(len(path.steps)) for path in paths]),
        "duplicates": repeated / len(paths),
        "no_program": mean([float(path.program is None) for path in paths]),
    }


def crossed(now: Mapping[str, float], before: Mapping[str, float], bounds: Bounds) -> dict[str, tuple[float, str]]:
    """The bounds that are crossed, by name, each with the value and a sentence for people.

    `now`: whatever of the bounds' quantities and of a `shape` was measured; `before`: the shape of the round before,
    empty where there is none. What is not a number is beyond every bound.
    """
    found: dict[str, tuple[float, str]] = {}

    def check(name: str, wrong: bool, value: float, says: str) -> None:
        if wrong:
            found[name] = (value, says)

    for name, unit, means in (
        ("mismatch_kl", " nats per token", "sampler and learner disagree"),
        ("holdout_gap", "", "programs pass their suite and fail the tests kept apart"),
        ("duplicates", "", "paths of a problem repeat each other"),
    ):
        if name in now:
            most = getattr(bounds, name)
            check(name, not now[name] <= most, now[name], f"{name} is {now[name]:.3f}{unit}, above {most:g}: {means}")
    for name, unit, means in (
        ("ess", "", "few tokens carry the whole update"),
        ("entropy", " nats per token", "the policy says the same whatever is drawn"),
    ):
        if name in now:
            least = getattr(bounds, name)
            check(name, not now[name] >= least, now[name], f"{name} is {now[name]:.3f}{unit}, below {least:g}: {means}")
    for name, what in (("path_tokens", "tokens"), ("path_steps", "steps")):
        if before.get(name) and name in now:
            change = now[name] / before[name] - 1
            says = f"paths have {now[name]:.1f} {what} after {before[name]:.1f} in the round before"
            check(f"{name}_drift", abs(change) > bounds.drift, change, says)
    return found
