"""Rewards of paths: what phi and alpha make of outcomes and step rewards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.rewards import alpha_at, min_soft, paper_mean, value_deltas

shares = st.floats(0, 1)
steps = st.lists(shares, min_size=1, max_size=6)


@given(steps, shares)
def test_potential_based_rewards_telescope(values, start):
    assert sum(value_deltas(values, start)) == pytest.approx(values[-1] - start, abs=1e-9)


def test_the_paper_s_mean_golden():
    # 0.5 * 1 + 0.5 * (0.9 * 0.4 + 0.81 * 0.8) / 2
    assert paper_mean(1.0, [0.4, 0.8], 0.5, 0.9) == pytest.approx(0.752)
    assert paper_mean(0.3, [], 0.5, 0.9) == min_soft(0.3, [], 0.5, 0.1) == 0.3


def test_the_worst_step_decides():
    assert min_soft(1.0, [0.9, 0.1, 0.9], 0.0, 0.01) == pytest.approx(0.1, abs=1e-6)
    assert min_soft(1.0, [0.9, 0.1, 0.9], 0.5, 0.01) == pytest.approx(0.55, abs=1e-6)
    # Another good step makes it no better; under the mean it does.
    assert min_soft(0, [0.9, 0.1, 0.9, 1.0], 0.0, 0.01) == pytest.approx(0.1, abs=1e-6)
    assert paper_mean(0, [0.9, 0.1, 0.9, 1.0], 0.0, 1.0) > paper_mean(0, [0.9, 0.1, 0.9], 0.0, 1.0)


@given(shares, steps, shares, st.floats(0.01, 100))
def test_rewards_stay_between_their_parts(outcome, process, alpha, temperature):
    for found in (min_soft(outcome, process, alpha, temperature), paper_mean(outcome, process, alpha, 1.0)):
        assert min(outcome, *process) - 1e-9 <= found <= max(outcome, *process) + 1e-9
    assert min_soft(outcome, process, 1.0, temperature) == paper_mean(outcome, process, 1.0, 0.5) == outcome
    centre = sum(process) / len(process)
    assert min_soft(outcome, process, 0.0, temperature) <= centre + 1e-9
    assert min_soft(outcome, process, 0.0, 1e6) == pytest.approx(centre, abs=1e-5)


def test_alpha_golden():
    assert [alpha_at(t, 0.8, "constant", 0.2, 4) for t in (1, 4, 9)] == [0.8, 0.8, 0.8]
    assert [alpha_at(t, 0.8, "linear", 0.2, 4) for t in (1, 2, 3, 4, 9)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert [alpha_at(t, 0.8, "logarithmic", 0.3, 4) for t in (1, 3, 50)] == pytest.approx([0.8, 0.8 / 2.0986123, 0.3])


@given(st.integers(1, 100), shares, st.sampled_from(["constant", "linear", "logarithmic"]), shares, st.integers(1, 20))
def test_alpha_falls_from_its_start_and_no_further_than_its_floor(round_, start, decay, floor, rounds):
    now, then = (alpha_at(t, start, decay, floor, rounds) for t in (round_, round_ + 1))
    assert min(start, floor) - 1e-12 <= then <= now + 1e-12 <= start + 2e-12


@pytest.mark.parametrize("round_, rounds", [(0, 1), (1, 0)])
def test_rounds_are_counted_from_one(round_, rounds):
    with pytest.raises(ValueError, match=r"^round, rounds: got .*; use at least 1$"):
        alpha_at(round_, 0.5, "linear", 0.1, rounds)
