"""The learning stages without actors: which reward models may decide something."""

import pytest

from cluster.stage_learn import good_enough


@pytest.mark.parametrize(
    "auc, bar, may",
    [(0.6, 0.5, True), (0.5, 0.5, True), (0.49, 0.5, False), (None, 0.5, False), (None, 0.0, True), (0.1, 0.0, True)],
)
def test_a_reward_model_below_the_bar_decides_nothing(auc, bar, may):
    assert good_enough(auc, bar) is may
