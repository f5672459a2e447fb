"""Calibration: what is known to be off is put right, and the order of scores never changes."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.calibration import LEAST, MOST, Calibration, Scored, cross_fitted, fit, quality
from reasoning.estimators import auc, brier, calibration_error

rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 8), st.floats(0, 8)), max_size=30)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("slope, bias", [(1.0, 0.0), (0.4, 0.0), (2.5, 0.0), (1.0, -1.5), (0.5, 1.0)])
def test_a_distortion_is_found(slope, bias):
    """Terminals as frequent as the true values say, in the limit of many."""
    logits = [x / 4 for x in range(-12, 13)]
    true = [sigmoid(slope * x + bias) for x in logits]
    found = fit(list(map(sigmoid, logits)), [1000 * v for v in true], [1000 * (1 - v) for v in true])
    assert (found.slope, found.bias) == (pytest.approx(slope, rel=0.01), pytest.approx(bias, abs=0.01))
    assert found(sigmoid(1.0)) == pytest.approx(sigmoid(slope + bias), abs=0.01)


def test_an_overconfident_model_is_calmed_down():
    rng = random.Random(0)
    true = [rng.random() for _ in range(400)]
    scores = [sigmoid(4 * math.log(t / (1 - t))) for t in true]
    passed = [float(rng.random() < t) for t in true]
    failed = [1 - p for p in passed]
    found = fit(scores, passed, failed)
    values = list(map(found, scores))
    ones = [1.0] * len(scores)
    assert calibration_error(values, passed, ones) < calibration_error(scores, passed, ones) / 2
    assert auc(values, passed, failed) == pytest.approx(auc(scores, passed, failed))


@given(rows)
def test_the_order_of_scores_stays_and_values_are_probabilities(found):
    scores, positives, negatives = ([row[i] for row in found] for i in range(3))
    made = fit(scores, positives, negatives)
    assert LEAST <= made.slope <= MOST and math.isfinite(made.bias)
    values = [made(score) for score in sorted(scores)]
    assert values == sorted(values) and all(0 <= v <= 1 for v in values)


@given(rows.filter(bool))
def test_what_is_fitted_is_no_less_likely_than_before(found):
    scores, positives, negatives = ([row[i] for row in found] for i in range(3))

    def loss(made):
        values = [min(1 - 1e-12, max(1e-12, made(s))) for s in scores]
        return -sum(p * math.log(v) + n * math.log(1 - v) for v, p, n in zip(values, positives, negatives, strict=True))

    assert loss(fit(scores, positives, negatives)) <= loss(Calibration()) + 1e-6


def test_nothing_known_changes_nothing():
    assert fit([], [], []) == fit([0.3], [0.0], [0.0]) == fit([math.nan], [1.0], [0.0]) == Calibration()
    assert Calibration()(0.3) == pytest.approx(0.3)


# --- a reward model ---


def steps(problems, score_of, rate_of, terminals=6):
    return [
        Scored(f"p{n}", score_of(rate := rate_of(n, k)), terminals * rate, terminals * (1 - rate))
        for n in range(problems)
        for k in range(5)
    ]


def test_quality_of_a_model_that_knows_everything_but_is_too_sure():
    made = steps(40, lambda r: sigmoid(3 * math.log(r / (1 - r))), lambda n, k: 0.1 + 0.8 * ((7 * n + k) % 11) / 10)
    found = quality(made)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["auc"] > 0.7
    assert found["ece"] < 0.05 < 0.1 < found["ece_raw"]
    assert found["brier"] < brier([s.score for s in made], [s.passed for s in made], [s.failed for s in made])


def test_a_problem_has_no_part_in_its_own_calibration():
    made = steps(12, lambda r: r, lambda n, k: 0.2 + 0.1 * k)
    before = dict(zip(((s.problem_id, s.score) for s in made), cross_fitted(made), strict=True))
    changed = [Scored(s.problem_id, s.score, s.failed, s.passed) if s.problem_id == "p3" else s for s in made]
    after = dict(zip(((s.problem_id, s.score) for s in changed), cross_fitted(changed), strict=True))
    moved = {name for (name, score), value in after.items() if before[name, score] != value}
    assert moved and "p3" not in moved


def test_nothing_known_has_no_quality():
    assert set(quality([]).values()) == {None}
    assert quality([Scored("p", 0.5, 0.0, 0.0)])["auc"] is None
    only = quality([Scored("p", 0.5, 3.0, 0.0)])
    assert only["auc"] is None and only["ece"] is not None
