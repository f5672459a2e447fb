"""What the benchmark of learners counts, and that both sides are given the same."""

from benchmarks._trainers import _item
from benchmarks.learners import ideal_tokens, token_count

PAIR = {"prompt": [1, 2, 3], "chosen": [4, 5], "rejected": [4, 6, 7]}
GROUP = [
    {"prompt": [1, 2], "completion": [3], "advantage": 1.0},
    {"prompt": [1, 2], "completion": [4, 5], "advantage": -1.0},
]


def test_tokens_are_those_of_every_sequence():
    assert token_count([PAIR]) == 5 + 6
    assert token_count(GROUP) == 3 + 4


def test_what_is_shared_has_to_be_computed_once():
    assert ideal_tokens([PAIR]) == 3 + 1 + 1 + 2
    assert ideal_tokens(GROUP) == 2 + 1 + 2
    assert ideal_tokens([PAIR, PAIR]) == ideal_tokens([PAIR])


def test_prompts_are_not_learnt():
    assert _item("sft", {"prompt": [1, 2], "completion": [3]}).loss_mask == (0, 0, 1)
    pair = _item("dpo", PAIR)
    assert (pair.chosen.loss_mask, pair.rejected.token_ids) == ((0, 0, 0, 1, 1), (1, 2, 3, 4, 6, 7))
    trajectory = _item("grpo", GROUP[1])
    assert (trajectory.loss_mask, trajectory.advantages) == ((0, 0, 1, 1), (0.0, 0.0, -1.0, -1.0))
