"""The loops over micro-batches, with a stand-in for the learner: its model says of every token what the test knows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_learning import settings

from learners import training
from learners.batches import Example, PreferenceExample
from learners.learner import StepResult


class StandIn:
    """One rank of a learner that does not learn. Token t has the log-probability -t / 10, and `drift` more after each
    optimizer step. What ranks add up is kept in `sent`, and comes back as it was."""

    def __init__(self, rank=0, world=1, drift=0.0):
        self.rank, self.world, self.drift = rank, world, drift
        self.model = self
        self.training, self.forwards, self.graded, self.steps = True, 0, 0, 0
        self.sent = []

    def eval(self):
        self.training = False

    def train(self):
        self.training = True

    def __call__(self, token_ids, attention, positions, select, gather, targets):
        self.forwards += 1
        self.graded += torch.is_grad_enabled() or self.training
        return -targets.float() / 10 + self.drift * self.steps, None

    def all_sum_list(self, values):
        self.sent.append(values)
        return values

    def step(self, micro_batches, loss_of, count):
        total, sums = 0.0, {}
        for batch in micro_batches:
            loss, extra = loss_of(self, batch)
            total += loss.item()
            for name, value in extra.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        self.steps += 1
        return StepResult(total / count, count, 0.0, 1.0, sums)


rows = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=2, max_size=90)


def example(row):
    return Example(tuple(token for token, _ in row), tuple(int(counts) for _, counts in row))


def known(of):
    """What the stand-in says of an example before the first step."""
    return -sum(t for t, m in list(zip(of.token_ids, of.loss_mask, strict=True))[1:] if m) / 10


@hypothesis_settings(deadline=None)
@given(
    st.lists(rows.map(example), max_size=12),
    st.integers(1, 4),
    st.integers(64, 400),
    st.sampled_from(["padded", "packed", "tree"]),
)
def test_ranks_share_the_completions_and_run_in_step(examples, world, micro_tokens, packing):
    ranks = [StandIn(rank, world) for rank in range(world)]
    for rank in ranks:
        training.completion_logprobs(rank, examples, settings(micro_tokens=micro_tokens, packing=packing))
    shares = [rank.sent[-1] for rank in ranks]
    # Each example is computed by one rank, in the place where it was given, and adds up to the whole.
    assert [sum(parts) for parts in zip(*shares, strict=True)] == pytest.approx([known(e) for e in examples], abs=1e-4)
    assert all(sum(value != 0 for value in parts) <= 1 for parts in zip(*shares, strict=True))
    assert len({rank.forwards for rank in ranks}) == 1
    assert all(rank.training and rank.graded == 0 for rank in ranks)


def test_ranks_do_not_all_compute_everything():
    examples = [Example(tuple(range(1, 60)), (1,) * 59) for _ in range(8)]
    rank = StandIn(1, 4)
    for packing in ("padded", "packed"):
        rank.forwards = 0
        training.completion_logprobs(rank, examples, settings(micro_tokens=64, packing=packing))
        assert rank.forwards == 2  # a row is no longer than a micro-batch


def pair(chosen, rejected, reference=None):
    made = [Example((1, *ids), (0, *[1] * len(ids))) for ids in (chosen, rejected)]
    return PreferenceExample(*made, reference)


def dpo(learner, pairs, **options):
    reported = []
    fit = settings(**{"batch_size": 2, "epochs": 1, "micro_tokens": 256, **options.pop("fit", {})})
    rows = training.dpo(learner, pairs, fit, **{"beta": 0.1, "report": reported.append, **options})
    assert rows == reported
    return rows


def test_references_that_are_given_are_used_and_only_the_others_computed():
    mine = pair((5, 5), (6,), reference=(-1.5, -0.1))
    rows = dpo(StandIn(), [mine, pair((7,), (8, 8))])
    # Of the second pair nothing has changed; of the first, -1.0 - -1.5 and -0.6 - -0.1.
    assert rows[0]["dpo/margin"] == pytest.approx(0.1 * (0.5 - -0.5) / 2)
    assert rows[0]["dpo/chosen_logprob_change"] == pytest.approx(0.5 / 2)
    assert rows[0]["dpo/chosen_change_per_token"] == pytest.approx(0.5 / 2 / 2)
    assert rows[0]["dpo/accuracy"] == 0.5
    learner = StandIn()
    dpo(learner, [mine, mine])
    assert learner.forwards == 1  # of training


def test_a_pair_may_come_twice_and_share_its_completions():
    one = pair((5, 5), (6,))
    twin = replace(one)
    other = replace(one, rejected=pair((5, 5), (9,)).rejected)
    learner = StandIn()
    pairs = [one, one, twin, other, replace(one, reference=(-2.0, -0.6))]
    rows = dpo(learner, pairs, fit={"batch_size": 5, "epochs": 3})
    assert len(rows) == 3
    assert all(row["dpo/chosen_logprob_change"] == pytest.approx(1.0 / 5) for row in rows)
    assert all(row["dpo/margin"] == pytest.approx(0.1 * 1.0 / 5) for row in rows)
    computed = next(values for values in learner.sent if values)
    assert sorted(computed) == pytest.approx([-1.0, -0.9, -0.6])  # three completions, each once


def test_the_sft_term_weighs_each_pair_the_same():
    pairs = [pair((10, 20, 30), (1,)), pair((40,), (1,))]
    without, half = (dpo(StandIn(), pairs, sft_weight=weight)[0]["dpo/loss"] for weight in (0.0, 0.5))
    assert without == pytest.approx(math.log(2))
    assert half - without == pytest.approx(0.5 * (6.0 / 3 + 4.0) / 2)


def test_training_ends_when_the_chosen_have_fallen_too_far():
    pairs = [pair((10, 20), (1,)), pair((40,), (1,))]
    # The log-probability of every token falls by 0.3 with each step: 0, 0.3, 0.6, 0.9 in the first rows.
    rows = dpo(StandIn(drift=-0.3), pairs, most_drop=0.5, fit={"epochs": 6})
    assert [row["dpo/chosen_change_per_token"] for row in rows] == pytest.approx([0.0, -0.3, -0.6])
    assert [row["dpo/stopped"] for row in rows] == [0.0, 0.0, 1.0]
    assert [row["dpo/step"] for row in rows] == [1, 2, 3]
    assert {row["dpo/steps"] for row in rows} == {6}


@pytest.mark.parametrize(("drift", "most_drop"), [(-0.3, math.inf), (0.3, 0.5), (-0.3, 2.0)])
def test_training_goes_on_otherwise(drift, most_drop):
    rows = dpo(StandIn(drift=drift), [pair((10, 20), (1,))] * 2, most_drop=most_drop, fit={"epochs": 6})
    assert [row["dpo/stopped"] for row in rows] == [0.0] * 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0.0),
        ("beta", math.nan),
        ("sft_weight", -1.0),
        ("sft_weight", math.inf),
        ("most_drop", 0.0),
        ("most_drop", -0.5),
        ("most_drop", math.nan),
    ],
)
def test_values_that_make_no_sense_are_refused_before_any_work(field, value):
    learner = StandIn()
    with pytest.raises(ValueError, match=f"^{field}: got {value}; use "):
        dpo(learner, [pair((1,), (2,))], **{field: value})
    assert learner.forwards == 0
