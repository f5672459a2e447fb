"""Rewards of texts, and what is learnt from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.records import Sample
from reasoning.self_play import text_reward, text_trajectories

rewards = st.none() | st.floats(-1, 1)


def sample(count):
    return Sample(tuple(range(10, 10 + count)), (-0.5,) * count, "text", "stop", ((3, 0, count),))


@pytest.mark.parametrize(
    "given_rewards, asked, reward",
    [
        ([1.0, 0.5, 0.0], 3, 0.5),
        ([1.0], 3, -1 / 3),
        ([], 3, -1.0),
        ([1.0, 1.0, 1.0, -1.0], 3, 1.0),  # a fourth case was not asked for
        ([None, 0.5], 2, 0.5),
        ([None, None], 2, None),
        ([None], 2, -1.0),
    ],
)
def test_reward_of_a_text(given_rewards, asked, reward):
    assert text_reward(given_rewards, asked) == (None if reward is None else pytest.approx(reward))


@given(st.lists(rewards, max_size=6), st.integers(1, 4))
def test_a_reward_stays_within_its_bounds(given_rewards, asked):
    reward = text_reward(given_rewards, asked)
    assert reward is None or -1 <= reward <= 1


def test_better_texts_are_made_likelier():
    found = text_trajectories("p", (1, 2), [sample(2), sample(3), sample(1)], [1.0, None, -1.0], 0.8)
    good, bad = found
    assert good.token_ids == (1, 2, 10, 11) and good.loss_mask == (0, 0, 1, 1)
    assert good.advantages == (0, 0, 1, 1) and bad.advantages == (0, 0, -1)
    assert good.logprobs == (0, 0, -0.5, -0.5) and good.weight_versions == (3,)
    assert (good.outcome, bad.outcome, good.temperature) == (1.0, -1.0, 0.8)


@given(st.lists(rewards, min_size=1, max_size=6))
def test_advantages_of_a_problem_add_up_to_nothing(given_rewards):
    found = text_trajectories("p", (1,), [sample(1)] * len(given_rewards), given_rewards, 1.0)
    assert sum(t.advantages[-1] for t in found) == pytest.approx(0, abs=1e-6)
    if len({r for r in given_rewards if r is not None}) < 2:
        assert found == []
