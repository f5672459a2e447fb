"""Publishing new policy weights to every serving engine, and proving that they arrived."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from reasoning.records import mean

SYNC_DEADLINE_S = 600.0
FIRST_TOLERANCE = 0.15
"""Mean |difference| in nats per token that two bf16 implementations may show on fixed text; stale weights that matter
differ by more than one nat, and the largest single difference of equal weights was seen at 0.4."""


class SyncFailed(RuntimeError):
    """An engine does not serve the weights that were published."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """`seconds`: the slowest engine's pause. `to_new`, `to_old`: mean |difference| (nats per token) of the engine's
    log-probabilities on the probe to the learner's new weights, and to what the engine said before."""

    version: int
    seconds: float
    to_new: float
    to_old: float


def mean_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Mean |a - b| over all tokens of all sequences. Raises ValueError where the shapes differ."""
    return mean([abs(x - y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True)])


def judge_probe(new: float, old: float, moved: float, tolerance: float) -> str:
    """Why a probe fails, or "".

    `new`, `old`: the engine's mean difference to the new weights and to the old ones; `moved`: difference of the new
    weights to the old ones. Weights count as arrived where the engine is within tolerance of the new ones and, if the
    two can be told apart at all, closer to the new than to the old.
    """
    if new > tolerance:
        return f"the engine is {new:.3f} nats per token away from the learner's weights (tolerance {tolerance:.3f})"
    if moved > tolerance and new >= old:
        return f"the engine is closer to the old weights ({old:.3f}) than to the new ones ({new:.3f})"
    return ""


def transfer_dir(run_id: str, need_bytes: int, fallback: Path) -> Path:
    """Where weights are handed over: shared memory where it has room, else a directory of the run."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 * need_bytes:
        target = shm / f"o1coder-{run_id}"
    else:
        target = fallback
    target.mkdir(parents=True, exist_ok=True)
    return target


class WeightSync:
    """Keeps the version counter and the probe; one per run."""

    def __init__(self, engines: Sequence[Any], probe: Sequence[Sequence[int]], version: int = 0) -> None:
        self.engines = list(engines)
        self.probe = [list(ids) for ids in probe]
        self.version = version
        self.tolerance = FIRST_TOLERANCE
        self._last = self._scores()

    def current_scores(self) -> list[list[float]]:
        """What the first engine says of the probe under its present weights."""
        return self._last[0]

    def publish(self, source: Path, expected: Sequence[Sequence[float]]) -> SyncReport:
        """Load `source` (file or model directory) into every engine as the next version, and verify it.

        `expected`: log-probabilities of the probe under those weights, by the learner that made them.

        Raises SyncFailed naming the engine and what it got wrong.
        """
        version = self.version + 1
        calls = [engine.update_weights.remote(str(source), version) for engine in self.engines]
        seconds = max(ray.get(calls, timeout=SYNC_DEADLINE_S))
        seen = ray.get([engine.counters.remote() for engine in self.engines], timeout=SYNC_DEADLINE_S)
        for i, counters in enumerate(seen):
            if counters.version != version:
                raise SyncFailed(f"engine {i} serves version {counters.version} after version {version} was published")
        scores = self._scores()
        reports = []
        for i, (now, before) in enumerate(zip(scores, self._last, strict=True)):
            to_new, to_old = mean_difference(now, expected), mean_difference(now, before)
            reason = judge_probe(to_new, to_old, mean_difference(expected, before), self.tolerance)
            if reason:
                raise SyncFailed(f"engine {i}, version {version}: {reason}")
            reports.append((to_new, to_old))
        self.version, self._last = version, scores
        return SyncReport(version, seconds, max(r[0] for r in reports), min(r[1] for r in reports))

    def _scores(self) -> list[list[list[float]]]:
        return ray.get([engine.score.remote(self.probe) for engine in self.engines], timeout=SYNC_DEADLINE_S)
