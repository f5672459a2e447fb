"""Selection rules: golden values from the formulas, and properties."""

import math
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.search import log_add, normalised, puct_scores, sibling_priors, split_samples, terminal_value, uct_scores


def test_terminal_value_golden():
    assert terminal_value(True, 3, 4, 0.1) == pytest.approx(0.1 + 0.9 * 0.75)
    assert terminal_value(False, 0, 4, 0.1) == 0.0
    assert terminal_value(True, 4, 4, 0.1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="total"):
        terminal_value(True, 0, 0, 0.1)


def test_puct_golden():
    # c_puct = 1.25 + ln((3 + 19652 + 1) / 19652); sqrt(sum N') = sqrt(3)
    c = 1.25 + math.log((3 + 19652 + 1) / 19652)
    scores = puct_scores([0.5, 1.0], [0.75, 0.25], [2, 1], 3, 1.25, 19652)
    assert scores == pytest.approx([0.5 + c * 0.75 * math.sqrt(3) / 3, 1.0 + c * 0.25 * math.sqrt(3) / 2])


def test_uct_golden_and_unvisited_first():
    scores = uct_scores([0.5, 0.0], [2, 0], 3, 2.0)
    assert scores[0] == pytest.approx(0.5 + 2 * math.sqrt(math.log(3) / 2))
    assert scores[1] == math.inf


def test_normalised_q():
    assert normalised([0.2, None, 0.6], 0.2, 0.1) == pytest.approx([0.0, -0.1, 1.0])
    # However close the known values are, the reduction stays what it is.
    assert normalised([0.11, None], 0.10, 0.1) == pytest.approx([1.0, -0.1])
    assert normalised([0.3, None], 0.3, 0.1) == pytest.approx([0.5, 0.4])


logprobs = st.lists(st.floats(-20, 0), min_size=1, max_size=8)


@given(logprobs, st.floats(0.1, 5), st.data())
def test_priors_are_a_distribution_and_ordered_by_likelihood(values, tau, data):
    groups = data.draw(st.lists(st.sampled_from([2, 3]), min_size=len(values), max_size=len(values)))
    priors = sibling_priors([value / tau for value in values], groups, {2: 0.3, 3: 0.7})
    assert sum(priors) == pytest.approx(1.0)
    for i in range(len(values)):
        for j in range(len(values)):
            if groups[i] == groups[j] and values[i] > values[j] + 1e-6:
                assert priors[i] >= priors[j]
    if len(set(groups)) == 2:
        assert sum(p for p, g in zip(priors, groups, strict=True) if g == 3) == pytest.approx(0.7)


@given(logprobs, logprobs)
def test_merged_mass_adds_to_the_prior(merged, alone):
    """A child of several samples has the sum of the priors that they would have as children of their own."""
    apart = sibling_priors([*merged, *alone], [1] * (len(merged) + len(alone)), {1: 1.0})
    together = sibling_priors([reduce(log_add, merged), *alone], [1] * (1 + len(alone)), {1: 1.0})
    assert together[0] == pytest.approx(sum(apart[: len(merged)]))
    assert together[1:] == pytest.approx(apart[len(merged) :])
    assert log_add(-math.inf, -math.inf) == -math.inf
    assert len(sibling_priors(alone, [1] * len(alone), {})) == len(alone)


@given(st.integers(1, 64), st.floats(0, 1))
def test_samples_are_split_without_loss_and_code_is_always_there(count, share):
    plan = split_samples(count, {2: 1 - share, 3: share}, always=3)
    assert sum(plan.values()) == count
    assert plan[3] >= 1
    assert abs(plan[3] - count * share) <= 1


@given(st.floats(-1, 1), st.integers(0, 50), st.integers(0, 50))
def test_more_visits_explore_less(q, few, more):
    few, more = sorted((few, more))
    a = puct_scores([q, q], [0.5, 0.5], [few, more], few + more, 1.25, 19652)
    assert a[0] >= a[1]
