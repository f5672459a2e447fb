"""Best, much worse, and no better: by the history of held-out evaluations alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.best import Measured, best, converged, fell, measured

histories = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=8).map(
    lambda rates: [Measured(n, rate, f"policy-{n}" if n else "", 0) for n, rate in enumerate(rates)]
)


@given(histories)
def test_nothing_is_better_than_the_best_and_nothing_later_as_good(history):
    found = best(history)
    assert all(m.pass_at_1 < found.pass_at_1 or m.round <= found.round for m in history)
    assert max(m.pass_at_1 for m in history) == found.pass_at_1


@given(histories, st.floats(0, 1))
def test_the_best_has_not_fallen(history, margin):
    assert not fell([*history, best(history)], margin)
    assert not fell(history, 1.0)


def test_falls_golden():
    history = [Measured(0, 0.5, "", 2), Measured(1, 0.25, "a", 0)]
    assert fell(history, 0.2) and not fell(history, 0.25)


@pytest.mark.parametrize(
    "rates, patience, ended",
    [
        ([0.1, 0.1], 1, True),
        ([0.1, 0.2], 1, False),
        ([0.3, 0.1, 0.2], 2, True),
        ([0.3, 0.1, 0.4], 2, False),
        ([0.3, 0.1], 2, False),
        ([0.3, 0.1, 0.1, 0.1], 0, False),
    ],
)
def test_rounds_without_gain(rates, patience, ended):
    assert converged([Measured(n, rate, "", 0) for n, rate in enumerate(rates)], patience) is ended


def test_history_is_that_of_the_finished_stages():
    stages = {
        "0/eval before": {"pass_at_1": 0.1, "shots": 2},
        "1/eval after": {"pass_at_1": 0.2, "shots": 0, "policy": "a"},
        "2/tcg": {},
    }
    assert measured(stages, 2) == [Measured(0, 0.1, "", 2), Measured(1, 0.2, "a", 0)]
    assert measured(stages, 0) == [Measured(0, 0.1, "", 2)]
    with pytest.raises(ValueError, match=r"^history: got none; use "):
        best([])
