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
from reasoning.records import Trajectory


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

    def __call__(self, token_ids, attention, positions, select, gather, targets, temperature=None, with_entropy=False):
        self.forwards += 1
        self.graded += torch.is_grad_enabled() or self.training
        return -targets.float() / 10 + self.drift * self.steps, torch.ones(len(targets)) if with_entropy else None

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


# --- trajectories ---


def trajectory(ids, sampler=None, advantage=1.0, reference=()):
    """One prompt token, then sampled ones; the sampler's log-probabilities are those of the stand-in unless given."""
    logprobs = [-t / 10 for t in ids] if sampler is None else sampler
    return Trajectory(
        problem_id="p",
        token_ids=(1, *ids),
        loss_mask=(0, *[1] * len(ids)),
        logprobs=(0.0, *logprobs),
        advantages=(0.0, *[advantage] * len(ids)),
        outcome=1.0,
        reference_logprobs=(0.0, *reference) if reference else (),
    )


def rl(learner, trajectories, **options):
    fit = settings(batch_size=8, epochs=1, micro_tokens=256)
    return training.rl(learner, trajectories, fit, 0.2, 2.0, lambda row: None, **options)


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=40), max_size=9),
    st.integers(1, 3),
    st.sampled_from(["padded", "packed", "tree"]),
)
def test_ranks_share_the_tokens_of_trajectories(sequences, world, packing):
    ranks = [StandIn(rank, world) for rank in range(world)]
    made = [trajectory(ids) for ids in sequences]
    parts = [training.token_logprobs(r, made, settings(micro_tokens=128, packing=packing)) for r in ranks]
    for n, ids in enumerate(sequences):
        own = [part[n] for part in parts]
        assert [sum(values) for values in zip(*own, strict=True)] == pytest.approx([-t / 10 for t in ids])
        assert sum(any(values) for values in own) == 1
    assert len({rank.forwards for rank in ranks}) == 1


def test_paths_that_the_learner_would_not_have_drawn_count_for_nothing():
    near, far = trajectory([5, 6]), trajectory([5, 6], sampler=[-3.0, -3.0])
    (row,) = rl(StandIn(), [near, far, near], sequence_bound=4.0)
    assert row["rl/masked_sequences"] == 1 and row["rl/loss"] == pytest.approx(-1.0)
    (row,) = rl(StandIn(), [near, far, near])
    # Of the far one every token weighs at most 2.
    assert row["rl/masked_sequences"] == 0 and row["rl/loss"] == pytest.approx(-(1 + 2 + 1) / 3)
    assert rl(StandIn(), [far], sequence_bound=4.0) == []


def test_distance_from_a_reference_is_part_of_the_loss():
    made = [trajectory([5, 6], advantage=0.0, reference=[-0.5, -1.6])]
    (row,) = rl(StandIn(), made, kl_weight=0.5)
    # The second token is e times less likely under the reference.
    k3 = math.exp(-1) - 1 + 1
    assert row["rl/kl_reference"] == pytest.approx(k3 / 2)
    assert row["rl/loss"] == pytest.approx(0.5 * k3 / 2)
    assert "rl/kl_reference" not in rl(StandIn(), made)[0]


@pytest.mark.parametrize("options, says", [({"kl_weight": 1.0}, "kl_weight"), ({"sequence_bound": 0.5}, "sequence_b")])
def test_settings_of_rl_that_make_no_sense_are_refused(options, says):
    learner = StandIn()
    with pytest.raises(ValueError, match=rf"^{says}\w*: got .*; use "):
        rl(learner, [trajectory([5])], **options)
    assert learner.forwards == 0
