"""What a score really means: slope and bias that make the reward model's values into pass rates (method section 4).

Platt scaling: value = sigmoid(slope * logit + bias), fitted by maximum likelihood on problems that the model was not
trained on (Platt 1999; Guo et al. 2017 for the slope alone, as a temperature). It never changes the order of scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning.estimators import auc, brier, calibration_error, rank_correlation

LEAST, MOST = 0.05, 20.0
"""Bounds of the slope: below, scores would be turned around or thrown away; above, they would be taken for certain."""
PRIOR = 1.0
"""Weight of "as it is" (slope 1, bias 0), in terminals: few of them, all alike, would fit anything."""
STEPS = 50
EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """value = sigmoid(slope * logit + bias)."""

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, score: float) -> float:
        """The calibrated value of a score in [0, 1]."""
        return _sigmoid(self.slope * _logit(score) + self.bias)


def fit(scores: Sequence[float], positives: Sequence[float], negatives: Sequence[float]) -> Calibration:
    """The calibration under which the terminals are likeliest; score i, in [0, 1], has `positives[i]` that pass and
    `negatives[i]` that do not. As it is where there are none, or a score is not a number."""
    if any(map(math.isnan, scores)) or not sum(positives) + sum(negatives):
        return Calibration()
    logits = [_logit(score) for score in scores]
    slope, bias = 1.0, 0.0
    for _ in range(STEPS):
        # Newton's method on the negative log-likelihood, with the prior as a quadratic term.
        down, across = PRIOR * (slope - 1.0), PRIOR * bias
        a, b, c = PRIOR, 0.0, PRIOR
        for x, passed, failed in zip(logits, positives, negatives, strict=True):
            value, count = _sigmoid(slope * x + bias), passed + failed
            error, curve = count * value - passed, count * value * (1 - value)
            down, across = down + error * x, across + error
            a, b, c = a + curve * x * x, b + curve * x, c + curve
        determinant = a * c - b * b
        step = ((c * down - b * across) / determinant, (a * across - b * down) / determinant)
        size = max(1.0, math.hypot(*step))  # a long step may overshoot where the sigmoid is flat
        slope, bias = min(MOST, max(LEAST, slope - step[0] / size)), bias - step[1] / size
        if math.hypot(*step) < 1e-9:
            break
    return Calibration(slope, bias)


# --- a reward model on problems that it was not trained on ---


@dataclass(frozen=True, slots=True)
class Scored:
    """A step with its score in [0, 1], and the terminals below it that pass and that do not."""

    problem_id: str
    score: float
    passed: float
    failed: float


def fit_steps(steps: Sequence[Scored]) -> Calibration:
    """The calibration of some steps."""
    return fit([s.score for s in steps], [s.passed for s in steps], [s.failed for s in steps])


def cross_fitted(steps: Sequence[Scored]) -> list[float]:
    """Calibrated values, each by a calibration that its problem had no part in: the problems are dealt into two halves
    by their ids, and each half is calibrated by the other. As they are where the other half is empty."""
    halves = [[s for s in steps if _half(s.problem_id) == n] for n in (0, 1)]
    made = [fit_steps(half) for half in halves]
    return [made[1 - _half(s.problem_id)](s.score) for s in steps]


def _half(problem_id: str) -> int:
    return hashlib.sha256(f"calibration:{problem_id}".encode()).digest()[0] % 2


def quality(steps: Sequence[Scored]) -> dict[str, float | None]:
    """`auc` and `rank_correlation` (with the pass rate) of the scores; `ece` and `brier` after calibration
    (`cross_fitted`), and `ece_raw` before. None where it cannot be told."""
    known = [s for s in steps if s.passed + s.failed > 0]
    scores, passed, failed = [s.score for s in known], [s.passed for s in known], [s.failed for s in known]
    if not known:
        return dict.fromkeys(("auc", "rank_correlation", "ece", "ece_raw", "brier"))
    counts = [p + n for p, n in zip(passed, failed, strict=True)]
    rates = [p / c for p, c in zip(passed, counts, strict=True)]
    values = cross_fitted(known)
    return {
        "auc": auc(scores, passed, failed),
        "rank_correlation": rank_correlation(scores, rates),
        "ece": calibration_error(values, rates, counts),
        "ece_raw": calibration_error(scores, rates, counts),
        "brier": brier(values, passed, failed),
    }


def _logit(score: float) -> float:
    inside = min(1 - EDGE, max(EDGE, score))
    return math.log(inside / (1 - inside))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
