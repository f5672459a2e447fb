"""Choosing under a token budget."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reasoning.budgets import within_tokens

items = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=30)


def choose(things, budget, longest=20, seed=0):
    return within_tokens(things, lambda x: x[1], lambda x: x[0], budget, longest, seed)


@given(items, st.integers(0, 200), st.integers(0, 100))
def test_the_budget_holds_and_nothing_is_invented(things, budget, seed):
    chosen, too_long = choose(things, budget, seed=seed)
    assert sum(n for _, n in chosen) <= budget
    assert all(n <= 20 for _, n in chosen)
    assert too_long == sum(n > 20 for _, n in things)
    assert not Counter(chosen) - Counter(things)


@given(items, st.integers(0, 200))
def test_what_is_left_out_would_not_have_fitted(things, budget):
    chosen, _ = choose(things, budget)
    room = budget - sum(n for _, n in chosen)
    left = Counter(t for t in things if t[1] <= 20) - Counter(chosen)
    assert all(n > room for _, n in left)


@given(items)
def test_everything_fits_a_large_budget(things):
    chosen, _ = choose(things, 10_000, longest=30)
    assert Counter(chosen) == Counter(things)


@given(items, st.integers(0, 200), st.integers(0, 100))
def test_the_seed_decides(things, budget, seed):
    assert choose(things, budget, seed=seed) == choose(things, budget, seed=seed)


def test_no_problem_crowds_out_the_others():
    things = [("a", 10)] * 50 + [("b", 10)] * 3 + [("c", 10)] * 2
    assert Counter(p for p, _ in choose(things, 90)[0]) == {"a": 4, "b": 3, "c": 2}


@given(items, st.integers(0, 200), st.integers(0, 100))
def test_a_kind_does_not_change_what_holds(things, budget, seed):
    chosen, too_long = within_tokens(things, lambda x: x[1], lambda x: x[0], budget, 20, seed, kind=lambda x: x[1] % 2)
    assert sum(n for _, n in chosen) <= budget
    assert not Counter(chosen) - Counter(things)
    assert too_long == sum(n > 20 for _, n in things)


def test_the_rare_kind_is_not_left_to_chance():
    things = [("a", 10)] * 50 + [("a", 9)] * 2 + [("b", 10)] * 50
    for seed in range(20):
        chosen, _ = within_tokens(things, lambda x: x[1], lambda x: x[0], 80, 20, seed, kind=lambda x: x[1] == 9)
        assert Counter(chosen) == {("a", 9): 2, ("a", 10): 2, ("b", 10): 4}
