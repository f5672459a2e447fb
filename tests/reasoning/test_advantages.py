"""Advantages: what sums to zero, what does not matter, what is left out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_paths import path, step

from reasoning.advantages import (
    CONVERTERS,
    CreditSettings,
    credit_paths,
    generalised,
    leave_one_out,
    standardised,
    with_reference,
)
from reasoning.records import Action

rewards = st.lists(st.floats(0, 1), min_size=2, max_size=12)
HALF, PROCESS = CreditSettings(alpha=0.5), CreditSettings(alpha=0.0)
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


# --- converters ---

#          root 0.5
#        /          \
#   a 0.75           b 0
#   /    \            |
# aa 0.5  ab 1       ba 0
# (two paths)
TREE = [["a", "aa"], ["a", "aa"], ["a", "ab"], ["b", "ba"]]
REWARDS = [1.0, 0.0, 1.0, 0.0]
THIRD = 2 / 3
GOLDEN = {
    "leave_one_out": [[THIRD, THIRD], [-THIRD, -THIRD], [THIRD, THIRD], [-THIRD, -THIRD]],
    "grpo": [[1, 1], [-1, -1], [1, 1], [-1, -1]],
    "vine": [[THIRD - 0.5, 0.5 - THIRD], [THIRD - 0.5, 0.5 - THIRD], [THIRD - 0.5, 1 - THIRD], [-0.5, 0]],
    "sibling": [[THIRD, -0.5], [THIRD, -0.5], [THIRD, 0.5], [-THIRD, 0]],
    "tree_rl": [
        [2 * (THIRD - 0.5) / 3**0.5, (0 + 0.5 - THIRD) / 2**0.5],
        [2 * (THIRD - 0.5) / 3**0.5, (0 + 0.5 - THIRD) / 2**0.5],
        [2 * (THIRD - 0.5) / 3**0.5, 0.5 + 1 - THIRD],
        [-1.0, -0.5],
    ],
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_converters_golden(name):
    found = CONVERTERS[name](TREE, REWARDS)
    for advantages, expected in zip(found, GOLDEN[name], strict=True):
        assert advantages == pytest.approx(expected)


@st.composite
def trees(draw):
    """States of some paths of one tree, and their rewards."""
    paths = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8))
    states = [[tuple(p[: n + 1]) for n in range(len(p))] for p in paths]
    return states, draw(st.lists(st.floats(0, 1), min_size=len(paths), max_size=len(paths)))


@pytest.mark.parametrize("name", CONVERTERS)
@given(trees(), st.floats(0, 1), st.randoms())
def test_converters_do_not_look_at_the_order_and_a_constant_reward_is_nothing(name, tree, value, rng):
    states, rewards = tree
    convert = CONVERTERS[name]
    found = convert(states, rewards)
    assert list(map(len, found)) == list(map(len, states))
    order = rng.sample(range(len(states)), len(states))
    mixed = convert([states[i] for i in order], [rewards[i] for i in order])
    for n, i in enumerate(order):
        assert mixed[n] == pytest.approx(found[i], abs=1e-6)
    for advantages in convert(states, [value] * len(states)):
        assert advantages == pytest.approx([0.0] * len(advantages), abs=1e-9)


@given(trees())
def test_value_differences_add_up_to_the_value_of_the_leaf(tree):
    states, rewards = tree
    mean = sum(rewards) / len(rewards)
    for own, found in zip(states, CONVERTERS["vine"](states, rewards), strict=True):
        leaf = [r for s, r in zip(states, rewards, strict=True) if own[-1] in s]
        assert sum(found) == pytest.approx(sum(leaf) / len(leaf) - mean, abs=1e-9)


@given(trees())
def test_siblings_add_up_to_nothing(tree):
    states, rewards = tree
    found = CONVERTERS["sibling"](states, rewards)
    groups = {}
    for own, advantages in zip(states, found, strict=True):
        for state, advantage in zip(own, advantages, strict=True):
            groups.setdefault(state[:-1], {})[state] = advantage
    for siblings in groups.values():
        assert sum(siblings.values()) == pytest.approx(0, abs=1e-9)


@given(rewards)
def test_standardised_rewards_have_no_mean_and_one_deviation(values):
    found = standardised(values)
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert sum(a * a for a in found) == pytest.approx(len(values) if any(found) else 0)
    assert standardised([]) == []


# --- paths ---


@given(st.floats(0, 1), st.integers(1, 8), st.floats(0, 1))
def test_a_constant_reward_teaches_nothing(value, count, score):
    paths = numbered([value] * count)
    assert credit_paths(paths, {}, HALF) == []
    assert credit_paths(paths, {i: [score, score] for i in range(count)}, HALF) == []


@given(rewards, st.integers(0, 1000))
def test_the_order_of_the_paths_does_not_matter(values, seed):
    paths = numbered(values)
    scores = {i: [v, v / 2] for i, v in enumerate(values)}
    order = random.Random(seed).sample(range(len(paths)), len(paths))
    plain = by_first_token(credit_paths(paths, scores, HALF))
    mixed = by_first_token(credit_paths([paths[i] for i in order], {n: scores[i] for n, i in enumerate(order)}, HALF))
    assert plain.keys() == mixed.keys()
    for key, trajectory in plain.items():
        assert mixed[key].advantages == pytest.approx(trajectory.advantages, abs=1e-9)


def test_outcomes_golden():
    first, second, third = credit_paths(numbered([1.0, 0.4, 0.1]), {}, CreditSettings())
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
    for t in credit_paths(numbered(values), scores, HALF):
        assert len(t.token_ids) == len(t.loss_mask) == len(t.logprobs) == len(t.advantages)
        assert all(a == 0 and p == 0 for a, p, m in zip(t.advantages, t.logprobs, t.loss_mask, strict=True) if not m)


def test_infrastructure_failures_are_left_out_and_are_no_zero():
    with_lost = credit_paths([*numbered([1.0, 0.5]), path(value=None, steps=(step(DEFINE, [7]),))], {}, HALF)
    assert with_lost == credit_paths(numbered([1.0, 0.5]), {}, HALF)
    assert credit_paths([*numbered([1.0]), path(value=None)], {}, HALF) == []


def test_groups_do_not_mix():
    both = numbered([1.0, 1.0]) + numbered([0.0, 0.0], problem="q")
    assert credit_paths(both, {}, HALF) == []


def test_process_rewards_golden():
    # V_0 = (0.2 + 0.6) / 2 = 0.4; deltas (-0.2, 0.7) and (0.2, 0.0); means (0, 0.35).
    paths = numbered([0.5, 0.5])
    found = by_first_token(credit_paths(paths, {0: [0.2, 0.9], 1: [0.6, 0.6]}, HALF))
    assert found[100].advantages == pytest.approx((0, 0, 0, -0.1, -0.1, 0, 0.175, 0.175))
    assert found[101].advantages == pytest.approx((0, 0, 0, 0.1, 0.1, 0, -0.175, -0.175))


def test_process_rewards_count_only_where_the_program_compiles():
    paths = [*numbered([0.5, 0.5, 0.5])[:2], path(value=0.5, compiles=False, steps=numbered([0, 0, 0])[2].steps)]
    scores = {0: [0.2, 0.9], 1: [0.6, 0.6], 2: [0.9, 0.9]}
    found = by_first_token(credit_paths(paths, scores, PROCESS))
    assert found.keys() == {100, 101}
    only_one = by_first_token(credit_paths([paths[0], paths[2]], {0: [0.2, 0.9], 1: [0.9, 0.9]}, PROCESS))
    assert only_one == {}


def test_paths_without_scores_keep_their_outcome():
    found = by_first_token(credit_paths(numbered([1.0, 0.0, 0.0]), {0: [0.5, 0.9], 1: [0.5, 0.1]}, HALF))
    assert found[102].advantages[3:5] == pytest.approx((-0.25, -0.25))
    assert found[100].advantages[6] == pytest.approx(0.5 * 1.0 + 0.5 * 0.4)


def test_paths_of_different_lengths_are_compared_step_by_step():
    long = path(value=0.5, steps=(step(DEFINE, [100]), step(REFINE, [101]), step(CODE, [102])))
    short = path(value=0.5, steps=(step(DEFINE, [200]), step(CODE, [201])))
    trajectories = credit_paths([long, short], {0: [0.5, 0.7, 1.0], 1: [0.5, 0.1]}, PROCESS)
    assert trajectories[0].advantages == pytest.approx((0, 0, 0, 0, 0, 0.3, 0, 0))
    assert trajectories[1].advantages == pytest.approx((0, 0, 0, 0, 0, -0.3))


def test_versions_are_gathered():
    steps = (step(DEFINE, [3], version=4), step(CODE, [5], version=2))
    paths = [path(value=1.0, steps=steps), path(value=0.0)]
    assert credit_paths(paths, {}, CreditSettings())[0].weight_versions == (2, 4)


def test_a_step_that_several_paths_share_gets_the_same_from_its_value():
    shared = step(DEFINE, [100, 101])
    both = [path(value=v, steps=(shared, step(CODE, [n]))) for n, v in ((5, 1.0), (6, 0.0))]
    other = path(value=0.0, steps=(step(DEFINE, [200]), step(CODE, [7])))
    first, second, third = credit_paths([*both, other], {}, CreditSettings(advantage="vine"))
    assert first.advantages == pytest.approx((0, 0, 0, 0.5 - 1 / 3, 0.5 - 1 / 3, 0, 0.5))
    assert second.advantages == pytest.approx((0, 0, 0, 0.5 - 1 / 3, 0.5 - 1 / 3, 0, -0.5))
    assert third.advantages[3] == pytest.approx(-1 / 3)


@pytest.mark.parametrize("phi", ["paper_mean", "min_soft"])
def test_rewards_of_steps_can_be_part_of_the_reward_of_the_path(phi):
    paths = [*numbered([0.5, 0.5]), path(value=0.5, compiles=False, steps=numbered([0, 0, 0])[2].steps)]
    settings = CreditSettings(phi=phi, alpha=0.0, gamma=1.0, softmin_temperature=1000.0)
    found = by_first_token(credit_paths(paths, {0: [0.8, 1.0], 1: [0.6, 0.4], 2: [1.0, 1.0]}, settings))
    # 0.9 and 0.5 of the steps; of the program that does not compile the outcome alone, 0.5.
    assert found[100].advantages[3] == pytest.approx(0.4, abs=1e-3)
    for key in (101, 102):
        assert found[key].advantages[3] == pytest.approx(-0.2, abs=1e-3)


def test_a_reference_stands_at_the_tokens_that_count():
    (first, _) = credit_paths(numbered([1.0, 0.0]), {}, CreditSettings())
    found = with_reference(first, [-1.0, -2.0, -3.0, -4.0])
    assert found.reference_logprobs == (0, 0, 0, -1.0, -2.0, 0, -3.0, -4.0)


def test_generalised_advantages_golden():
    # Deltas: 0.9 * 0.6 - 0.5 = 0.04, 0.9 * 0.2 - 0.6 = -0.42, 1 - 0.2 = 0.8.
    found = generalised(1.0, [0.5, 0.6, 0.2, 99.0], 0.9, 0.5)
    assert found == pytest.approx([0.04 + 0.45 * (-0.42 + 0.45 * 0.8), -0.42 + 0.45 * 0.8, 0.8])
    assert generalised(1.0, [0.5], 0.9, 0.5) == []
    with pytest.raises(ValueError, match=r"^values: got none; use "):
        generalised(1.0, [], 0.9, 0.5)


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_without_discount_the_whole_return_is_compared_with_what_was_expected(reward, values):
    assert generalised(reward, values, 1.0, 1.0) == pytest.approx([reward - v for v in values[:-1]], abs=1e-9)
    one_step = generalised(reward, values, 1.0, 0.0)
    assert sum(one_step) == pytest.approx(reward - values[0], abs=1e-9)


def test_paths_are_compared_with_what_the_critic_expected():
    settings = CreditSettings(advantage="gae", gamma=1.0, gae_lambda=1.0)
    found = by_first_token(credit_paths(numbered([1.0, 0.0]), {}, settings, {0: [0.2, 0.9, 1.0], 1: [0.2, 0.1, 0.0]}))
    assert found[100].advantages == pytest.approx((0, 0, 0, 0.8, 0.8, 0, 0.1, 0.1))
    assert found[101].advantages == pytest.approx((0, 0, 0, -0.2, -0.2, 0, -0.1, -0.1))
    without = by_first_token(credit_paths(numbered([1.0, 0.0]), {}, settings))
    assert without[100].advantages[3:5] == pytest.approx((0.5, 0.5))
