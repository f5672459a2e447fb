"""What a matrix of programs and tests says: rates, a small suite with the same kill set, rewards, consensus."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning import execution_matrix as em

CELL = st.sampled_from([True, False, False, None])
MATRIX = st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=7))
T, F, N = True, False, None


def test_rates_of_a_suite():
    right, wrong = [[T, T], [T, F], [T, N]], [[F, T], [T, T], [N, T], [N, F]]
    assert em.rates(right, wrong) == em.Rates(false_accept=1 / 3, false_reject=1 / 2, wrong=3, right=2)
    assert em.rates([], [[N, N]]) == em.Rates(None, None, 0, 0)


def test_a_poisoned_suite_that_passes_everything_kills_nothing():
    wrong = [[T, T, T]] * 5
    assert em.rates([[T, T, T]], wrong).false_accept == 1.0
    assert em.smallest(wrong) == []
    assert em.self_play_rewards([[T, T, T]], wrong, 3) == [0.0, 0.0, 0.0]


def test_redundancy_counts_tests_that_could_go():
    assert em.redundancy([[F, F, T], [T, T, F]]) == pytest.approx(2 / 3)
    assert em.redundancy([[F, T], [T, F]]) == 0.0
    assert em.redundancy([]) == 0.0
    assert em.redundancy([[T, F]]) == 0.5


def killed(matrix, columns):
    found = em.kills(matrix)
    return frozenset().union(*(found[j] for j in columns))


@given(MATRIX, st.integers(0, 3))
def test_the_smallest_suite_kills_the_same(matrix, keep):
    width = len(matrix[0])
    keep = min(keep, width)
    chosen = em.smallest(matrix, keep)
    assert chosen == sorted(set(chosen)) and set(range(keep)) <= set(chosen)
    assert killed(matrix, chosen) == killed(matrix, range(width))
    for j in chosen[keep:]:
        assert killed(matrix, [i for i in chosen if i != j]) != killed(matrix, chosen), "nothing in it is needless"
    best = next(
        n
        for n in range(width + 1)
        if any(killed(matrix, c) == killed(matrix, range(width)) for c in itertools.combinations(range(width), n))
    )
    assert len(em.smallest(matrix)) <= best * (math.log(len(matrix)) + 1)


@given(MATRIX, st.integers(0, 4))
def test_a_bound_on_the_size_is_kept(matrix, size):
    assert len(em.smallest(matrix, 0, size)) <= size


def test_rewards_of_generated_tests():
    right, wrong = [[T, F, T, T], [T, T, T, N]], [[F, F, T, F], [F, T, T, F], [T, T, T, N]]
    # True and sharp; false, and two of three wrong programs pass it; true and blunt; not known to be true.
    assert em.self_play_rewards(right, wrong, 4) == [pytest.approx(2 / 3), pytest.approx(-2 / 3), 0.0, None]
    assert em.self_play_rewards([], wrong, 4) == [None] * 4
    assert em.self_play_rewards(right, [], 4) == [None] * 4
    # One right program that fails it is enough to know.
    assert em.self_play_rewards([[N], [F]], [[T]], 1) == [-1.0]


@given(st.lists(st.none() | st.floats(-1, 1), max_size=8))
def test_normalised_rewards_have_mean_0_and_keep_their_order(rewards):
    made = em.normalised(rewards)
    assert [r is None for r in made] == [r is None for r in rewards]
    known = [r for r in made if r is not None]
    if known:
        assert sum(known) == pytest.approx(0, abs=1e-6)
    pairs = [(a, b) for a, b in zip(rewards, made, strict=True) if a is not None]
    for (a, x), (b, y) in itertools.combinations(pairs, 2):
        assert (a <= b and x <= y + 1e-9) or (a >= b and x >= y - 1e-9)


def test_the_consensus_weighs_programs_and_tests():
    # Two programs agree on three tests; one alone passes four; one passes nothing.
    matrix = [[T, T, T, F, F], [T, T, T, F, F], [F, T, T, T, T], [F, F, F, F, F]]
    found = em.consensus(matrix)
    assert (found.programs, found.tests) == ((0, 1), (0, 1, 2))
    assert found.score == pytest.approx(3 * math.sqrt(2))
    assert em.consensus([[F, N]]) is None
    assert em.consensus([]) is None


@given(MATRIX)
def test_permuted_programs_have_the_same_score(matrix):
    first, second = em.consensus(matrix), em.consensus(matrix[::-1])
    assert (first and first.score) == (second and second.score)
