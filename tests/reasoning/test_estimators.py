"""Estimators against brute force."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.estimators import (
    Interval,
    auc,
    bootstrap,
    bootstrap_ratio,
    brier,
    calibration_error,
    pass_at_k,
    rank_correlation,
)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples):
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        draws = list(itertools.combinations(range(samples), k))
        share = sum(any(i < correct for i in draw) for draw in draws) / len(draws)
        assert pass_at_k(samples, correct, k) == pytest.approx(share)


def test_pass_at_k_golden():
    assert pass_at_k(8, 2, 1) == pytest.approx(0.25)
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("n, c, k", [(0, 0, 1), (4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="samples, correct, k"):
        pass_at_k(n, c, k)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 50))
def test_the_interval_holds_the_mean_of_resamples(values, resamples):
    interval = bootstrap(values, resamples=resamples)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.mean == pytest.approx(sum(values) / len(values))
    assert interval.n == len(values)


def test_the_interval_is_as_wide_as_the_normal_approximation():
    rng = random.Random(0)
    values = [float(rng.random() < 0.3) for _ in range(200)]
    interval = bootstrap(values, resamples=1000)
    error = math.sqrt(interval.mean * (1 - interval.mean) / len(values))
    assert interval.mean - interval.low == pytest.approx(1.96 * error, rel=0.15)
    assert interval.high - interval.mean == pytest.approx(1.96 * error, rel=0.15)


def test_the_seed_decides_the_interval():
    values = [n / 30 for n in range(30)]
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_the_interval_of_nothing_and_of_one():
    with pytest.raises(ValueError, match="values"):
        bootstrap([])
    assert bootstrap([0.5]) == Interval(0.5, 0.5, 0.5, 1)
    assert str(Interval(0.25, 0.1, 0.4, 8)) == "25.0 % [10.0, 40.0]"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_a_share_of_cases_has_its_interval_over_problems(counts):
    parts, wholes = [min(c) for c in counts], [max(c) for c in counts]
    if not sum(wholes):
        with pytest.raises(ValueError, match="wholes"):
            bootstrap_ratio(parts, wholes)
        return
    found = bootstrap_ratio(parts, wholes, resamples=200)
    assert found.mean == pytest.approx(sum(parts) / sum(wholes))
    assert 0 <= found.low <= found.high <= 1
    shares = [p / w for p, w in zip(parts, wholes, strict=True) if w]
    assert min(shares) - 1e-9 <= found.low <= found.high <= max(shares) + 1e-9


def test_cases_of_one_problem_stand_or_fall_together():
    """Ten problems with ten equal cases each are worth ten cases, not a hundred."""
    alone = bootstrap_ratio([1, 0] * 5, [1] * 10)
    many = bootstrap_ratio([10, 0] * 5, [10] * 10)
    assert (many.low, many.high) == (alone.low, alone.high)


def slow_auc(scores, positives, negatives):
    area = 0.0
    for (a, p), (b, n) in itertools.product(zip(scores, positives, strict=True), zip(scores, negatives, strict=True)):
        area += p * n * (1.0 if a > b else 0.5 if a == b else 0.0)
    return area / (sum(positives) * sum(negatives))


weights = st.sampled_from([0.0, 0.25, 1.0, 3.0])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, math.inf, -math.inf]), weights, weights), max_size=12))
def test_auc_is_the_share_of_ordered_pairs(items):
    scores, positives, negatives = ([i[n] for i in items] for n in range(3))
    found = auc(scores, positives, negatives)
    if not sum(positives) or not sum(negatives):
        assert found is None
    else:
        assert found == pytest.approx(slow_auc(scores, positives, negatives))


def test_auc_golden():
    assert auc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], [1, 1, 0, 0]) == 1.0
    assert auc([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], [0, 0, 1, 1]) == 0.0
    assert auc([0.5] * 4, [0, 1, 0, 1], [1, 0, 1, 0]) == 0.5
    assert auc([], [], []) is None


@pytest.mark.timeout(10)
def test_scores_that_are_no_numbers_give_no_estimate():
    assert auc([0.1, math.nan, 0.5], [1, 0, 1], [0, 1, 0]) is None
    assert calibration_error([0.1, math.nan], [0, 1], [1, 1]) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), weights), max_size=20), st.integers(1, 12))
def test_calibration_error_is_the_weighted_gap_per_bin(items, bins):
    scores, targets, counts = ([i[n] for i in items] for n in range(3))
    total = sum(counts)
    expected = 0.0
    grouped = {}
    for s, t, w in items:
        grouped.setdefault(min(bins - 1, int(s * bins)), []).append((s, t, w))
    for group in grouped.values():
        weight = sum(w for _, _, w in group)
        if weight:
            expected += abs(sum(w * s for s, _, w in group) - sum(w * t for _, t, w in group)) / total
    found = calibration_error(scores, targets, counts, bins)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 <= found <= 1


def test_calibration_error_golden():
    assert calibration_error([0.9] * 10, [1.0] * 9 + [0.0], [1.0] * 10) == pytest.approx(0)
    assert calibration_error([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]) == 1.0
    assert calibration_error([0.5], [1.0], [0.0]) == 0.0
    assert calibration_error([math.inf, -math.inf], [1.0, 0.0], [0.0, 0.0]) == 0.0


def test_brier_golden():
    assert brier([0.8, 0.3], [2, 0], [0, 1]) == pytest.approx((2 * 0.04 + 0.09) / 3)
    assert brier([0.5], [0], [0]) is None and brier([math.nan], [1], [0]) is None


def test_rank_correlation_golden():
    assert rank_correlation([1, 2, 3], [10, 20, 21]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3.
    assert rank_correlation([1, 2, 2, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1], [1]) is None and rank_correlation([1, 1], [1, 2]) is None


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=12))
def test_rank_correlation_sees_the_order_alone(pairs):
    a, b = zip(*pairs, strict=True)
    found = rank_correlation(a, b)
    assert found is None or -1 - 1e-9 <= found <= 1 + 1e-9
    stretched = rank_correlation([x**3 for x in a], [2 * x - 5 for x in b])
    assert stretched == found if found is None else stretched == pytest.approx(found)
