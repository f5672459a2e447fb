"""Advantages: what sums to zero, what does not matter, what is left out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_paths import path, step

from reasoning.advantages import group_relative, leave_one_out, value_deltas
from reasoning.records import Action

rewards = st.lists(st.floats(0, 1), min_size=2, max_size=12)
DEFINE, REFINE, CODE = Action.DEFINE, Action.REFINE, Action.CODE


def by_first_token(trajectories):
    """Each made path has a first token of its own."""
    return {t.token_ids[3]: t for t in trajectories}


def numbered(values, compiles=True, problem="p"):
    return [
        path(problem, v, (step(DEFINE, [100 + i, 4]), step(CODE, [5, 6])), compiles=compiles)
        for i, v in enumerate(values)
    ]


@given(rewards)
def test_leave_one_out_sums_to_zero(values):
    advantages = leave_one_out(values)
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    for i, advantage in enumerate(advantages):
        others = values[:i] + values[i + 1 :]
        assert advantage == pytest.approx(values[i] - sum(others) / len(others), abs=1e-9)


def test_leave_one_out_of_one_is_nothing():
    assert leave_one_out([]) == []
    assert leave_one_out([0.7]) == [0.0]
    assert leave_one_out([1.0, 0.0]) == [1.0, -1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_potential_based_rewards_telescope(values, start):
    assert sum(value_deltas(values, start)) == pytest.approx(values[-1] - start, abs=1e-9)


@given(st.floats(0, 1), st.integers(1, 8), st.floats(0, 1))
def test_a_constant_reward_teaches_nothing(value, count, score):
    paths = numbered([value] * count)
    assert group_relative(paths, {}, 0.5) == []
    assert group_relative(paths, {i: [score, score] for i in range(count)}, 0.5) == []


@given(rewards, st.integers(0, 1000))
def test_the_order_of_the_paths_does_not_matter(values, seed):
    paths = numbered(values)
    scores = {i: [v, v / 2] for i, v in enumerate(values)}
    order = random.Random(seed).sample(range(len(paths)), len(paths))
    plain = by_first_token(group_relative(paths, scores, 0.5))
    mixed = by_first_token(group_relative([paths[i] for i in order], {n: scores[i] for n, i in enumerate(order)}, 0.5))
    assert plain.keys() == mixed.keys()
    for key, trajectory in plain.items():
        assert mixed[key].advantages == pytest.approx(trajectory.advantages, abs=1e-9)


def test_outcomes_golden():
    first, second, third = group_relative(numbered([1.0, 0.4, 0.1]), {}, 0.5)
    assert first.advantages == pytest.approx((0, 0, 0, 0.75, 0.75, 0, 0.75, 0.75))
    assert second.advantages[3] == pytest.approx(-0.15)
    assert third.advantages[3] == pytest.approx(-0.6)
    assert first.token_ids == (1, 2, 9, 100, 4, 9, 5, 6)
    assert first.loss_mask == (0, 0, 0, 1, 1, 0, 1, 1)
    assert first.logprobs == (0, 0, 0, -0.5, -0.5, 0, -0.5, -0.5)
    assert (first.outcome, first.weight_versions, first.problem_id) == (1.0, (0,), "p")


@given(rewards)
def test_prompt_and_headers_get_nothing(values):
    scores = {i: [v, 1 - v] for i, v in enumerate(values)}
    for t in group_relative(numbered(values), scores, 0.5):
        assert len(t.token_ids) == len(t.loss_mask) == len(t.logprobs) == len(t.advantages)
        assert all(a == 0 and p == 0 for a, p, m in zip(t.advantages, t.logprobs, t.loss_mask, strict=True) if not m)


def test_infrastructure_failures_are_left_out_and_are_no_zero():
    with_lost = group_relative([*numbered([1.0, 0.5]), path(value=None, steps=(step(DEFINE, [7]),))], {}, 0.5)
    assert with_lost == group_relative(numbered([1.0, 0.5]), {}, 0.5)
    assert group_relative([*numbered([1.0]), path(value=None)], {}, 0.5) == []


def test_groups_do_not_mix():
    both = numbered([1.0, 1.0]) + numbered([0.0, 0.0], problem="q")
    assert group_relative(both, {}, 0.5) == []


def test_process_rewards_golden():
    # V_0 = (0.2 + 0.6) / 2 = 0.4; deltas (-0.2, 0.7) and (0.2, 0.0); means (0, 0.35).
    paths = numbered([0.5, 0.5])
    found = by_first_token(group_relative(paths, {0: [0.2, 0.9], 1: [0.6, 0.6]}, 0.5))
    assert found[100].advantages == pytest.approx((0, 0, 0, -0.1, -0.1, 0, 0.175, 0.175))
    assert found[101].advantages == pytest.approx((0, 0, 0, 0.1, 0.1, 0, -0.175, -0.175))


def test_process_rewards_count_only_where_the_program_compiles():
    paths = [*numbered([0.5, 0.5, 0.5])[:2], path(value=0.5, compiles=False, steps=numbered([0, 0, 0])[2].steps)]
    scores = {0: [0.2, 0.9], 1: [0.6, 0.6], 2: [0.9, 0.9]}
    found = by_first_token(group_relative(paths, scores, 1.0))
    assert found.keys() == {100, 101}
    only_one = by_first_token(group_relative([paths[0], paths[2]], {0: [0.2, 0.9], 1: [0.9, 0.9]}, 1.0))
    assert only_one == {}


def test_paths_without_scores_keep_their_outcome():
    found = by_first_token(group_relative(numbered([1.0, 0.0, 0.0]), {0: [0.5, 0.9], 1: [0.5, 0.1]}, 0.5))
    assert found[102].advantages[3:5] == pytest.approx((-0.5, -0.5))
    assert found[100].advantages[6] == pytest.approx(1.0 + 0.5 * 0.4)


def test_paths_of_different_lengths_are_compared_step_by_step():
    long = path(value=0.5, steps=(step(DEFINE, [100]), step(REFINE, [101]), step(CODE, [102])))
    short = path(value=0.5, steps=(step(DEFINE, [200]), step(CODE, [201])))
    trajectories = group_relative([long, short], {0: [0.5, 0.7, 1.0], 1: [0.5, 0.1]}, 1.0)
    assert trajectories[0].advantages == pytest.approx((0, 0, 0, 0, 0, 0.3, 0, 0))
    assert trajectories[1].advantages == pytest.approx((0, 0, 0, 0, 0, -0.3))


def test_versions_are_gathered():
    steps = (step(DEFINE, [3], version=4), step(CODE, [5], version=2))
    paths = [path(value=1.0, steps=steps), path(value=0.0)]
    assert group_relative(paths, {}, 0.0)[0].weight_versions == (2, 4)
