"""Estimators used in reports: pass@k, bootstrap intervals, AUC, calibration error (method section 7)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Raises ValueError unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(
            f"samples, correct, k: got {samples}, {correct}, {k}; use 0 <= correct <= samples, 1 <= k <= samples"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over problems with a 95 % bootstrap interval; `n`: problems."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """Percentile bootstrap over problems. Raises ValueError for no values."""
    if not values:
        raise ValueError("values: got none; a mean needs at least one problem")
    rng = random.Random(seed)
    n = len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(resamples))
    return Interval(sum(values) / n, means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1], n)


def bootstrap_ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """sum(parts) / sum(wholes) with a percentile bootstrap over problems, of which each has a part and a whole: the
    cases of one problem stand or fall together.

    Raises ValueError where the wholes add up to nothing, or for unequal lengths.
    """
    if not sum(wholes):
        raise ValueError("wholes: add up to 0; a share needs at least one case")
    pairs = list(zip(parts, wholes, strict=True))
    rng = random.Random(seed)
    found = []
    for _ in range(resamples):
        drawn = rng.choices(pairs, k=len(pairs))
        whole = sum(w for _, w in drawn)
        if whole:
            found.append(sum(p for p, _ in drawn) / whole)
    found.sort()
    low, high = found[int(0.025 * len(found))], found[max(0, int(0.975 * len(found)) - 1)]
    return Interval(sum(parts) / sum(wholes), low, high, len(pairs))


def auc(scores: Sequence[float], positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Weighted area under the ROC curve; item i counts `positives[i]` times as a positive and `negatives[i]` times as a
    negative. Ties count half. None where one class is empty or a score is not a number."""
    if any(math.isnan(score) for score in scores):
        return None
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total_pos, total_neg = sum(positives), sum(negatives)
    if total_pos <= 0 or total_neg <= 0:
        return None
    area = below = 0.0
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        pos = sum(positives[i] for i in order[start:end])
        neg = sum(negatives[i] for i in order[start:end])
        area += pos * (below + neg / 2)
        below += neg
        start = end
    return area / (total_pos * total_neg)


def calibration_error(
    scores: Sequence[float], targets: Sequence[float], weights: Sequence[float], bins: int = 10
) -> float | None:
    """Expected calibration error over equal-width bins of [0, 1]; 0 where all weights are 0.

    None where a score is not a number.
    """
    if any(math.isnan(score) for score in scores):
        return None
    total = sum(weights)
    if total <= 0:
        return 0.0
    error = 0.0
    for b in range(bins):
        chosen = [i for i, s in enumerate(scores) if int(min(bins - 1, max(0, s * bins))) == b]
        weight = sum(weights[i] for i in chosen)
        if weight > 0:
            gap = sum(weights[i] * (scores[i] - targets[i]) for i in chosen) / weight
            error += weight / total * abs(gap)
    return error


def brier(scores: Sequence[float], positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """Mean squared error of scores as probabilities, over items that count as in `auc`; None where nothing counts or a
    score is not a number."""
    total = sum(positives) + sum(negatives)
    if total <= 0 or any(math.isnan(score) for score in scores):
        return None
    return sum(p * (1 - s) ** 2 + n * s * s for s, p, n in zip(scores, positives, negatives, strict=True)) / total


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the ranks, equal values sharing theirs. None for fewer than two items, where all
    of one side are equal, or where a value is not a number."""
    if len(a) < 2 or any(map(math.isnan, (*a, *b))):
        return None
    x, y = _ranks(a), _ranks(b)
    centre = (len(a) - 1) / 2
    across = sum((p - centre) * (q - centre) for p, q in zip(x, y, strict=True))
    spread = math.sqrt(sum((p - centre) ** 2 for p in x) * sum((q - centre) ** 2 for q in y))
    return across / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for i in order[start:end]:
            ranks[i] = (start + end - 1) / 2
        start = end
    return ranks
