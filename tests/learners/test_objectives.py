"""Objectives: golden values, gradients, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners import objectives

floats = st.floats(-5, 0)
vectors = st.lists(st.tuples(floats, floats, floats, st.floats(-2, 2)), min_size=1, max_size=20)


def columns(rows):
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def test_sft_golden():
    assert objectives.sft(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([1.0, 0.0, 0.5])).item() == pytest.approx(3.0)


def test_dpo_golden():
    loss, margin = objectives.dpo(
        torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([-2.0]), torch.tensor([-2.0]), beta=0.1
    )
    assert margin.item() == pytest.approx(0.2)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)))


@given(vectors)
def test_dpo_is_log_2_where_nothing_was_learned(rows):
    chosen, rejected, *_ = columns(rows)
    loss, margin = objectives.dpo(chosen, rejected, chosen, rejected, beta=0.1)
    assert loss.item() == pytest.approx(len(rows) * math.log(2))
    assert margin.abs().max().item() == 0


def test_mean_nll_golden_and_each_completion_counts_the_same():
    summed = torch.tensor([-6.0, -1.0], requires_grad=True)
    loss = objectives.mean_nll(summed, torch.tensor([3, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2.0 + 1.0)
    assert summed.grad.tolist() == pytest.approx([-1 / 3, -1.0])


@given(st.floats(-9, 9), st.floats(0, 9, exclude_min=True) | st.just(math.inf))
def test_only_a_fall_beyond_the_bound_is_too_far(change, most_drop):
    assert objectives.fell_too_far(change, most_drop) == (-change > most_drop)
    assert not objectives.fell_too_far(abs(change), most_drop)
    assert not objectives.fell_too_far(-most_drop, most_drop)


def test_bradley_terry_golden_and_margins():
    loss = objectives.bradley_terry(
        torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0])
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.5 * math.log(1 + math.exp(3)))


@given(vectors)
def test_bradley_terry_is_log_2_where_nothing_is_told_apart_and_falls_with_the_difference(rows):
    better, worse, _, weights = columns(rows)
    weights = weights.abs()
    same = objectives.bradley_terry(better, better, weights)
    assert same.item() == pytest.approx(weights.sum().item() * math.log(2))
    apart = objectives.bradley_terry(better.maximum(worse), better.minimum(worse), weights)
    assert apart.item() <= same.item() + 1e-9
    shifted = objectives.bradley_terry(better + 3, worse + 3, weights)
    assert shifted.item() == pytest.approx(objectives.bradley_terry(better, worse, weights).item(), abs=1e-9)


def test_step_bce_golden_and_weights():
    logits = torch.tensor([0.0, 2.0])
    loss = objectives.step_bce(logits, torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.5]))
    p = 1 / (1 + math.exp(-2))
    expected = math.log(2) + 0.5 * -(0.25 * math.log(p) + 0.75 * math.log(1 - p))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@given(vectors)
def test_the_policy_gradient_on_policy_is_reinforce(rows):
    """With the sampler's, the old and the present policy equal, the gradient is - advantage per token."""
    logprobs, _, _, advantages = columns(rows)
    logprobs.requires_grad_(True)
    same = logprobs.detach()
    loss, stats = objectives.clipped_policy_gradient(logprobs, same, same, advantages, 0.2, 2.0)
    loss.backward()
    assert torch.allclose(logprobs.grad, -advantages)
    assert stats["clipped"].item() == 0
    assert stats["kl_old"].item() == pytest.approx(0, abs=1e-12)


@given(vectors)
def test_zero_advantages_teach_nothing(rows):
    logprobs, old, sampler, _ = columns(rows)
    logprobs.requires_grad_(True)
    loss, _ = objectives.clipped_policy_gradient(logprobs, old, sampler, torch.zeros_like(old), 0.2, 2.0)
    loss.backward()
    assert loss.item() == 0
    assert logprobs.grad.abs().max().item() == 0


def test_clipping_and_truncation_golden():
    logprobs = torch.tensor([math.log(0.6), math.log(0.1)], requires_grad=True)
    old = torch.tensor([math.log(0.4), math.log(0.4)])
    sampler = torch.tensor([math.log(0.1), math.log(0.8)])
    loss, stats = objectives.clipped_policy_gradient(logprobs, old, sampler, torch.tensor([1.0, -1.0]), 0.2, 2.0)
    # ratios 1.5 and 0.25 are clipped to 1.2 and 0.8; weights min(4, 2) and 0.5.
    assert loss.item() == pytest.approx(-(2 * 1.2 + 0.5 * -0.8), rel=1e-5)
    assert stats["clipped"].item() == 2
    loss.backward()
    assert logprobs.grad.abs().max().item() == 0


@given(vectors)
def test_order_does_not_matter(rows):
    forwards = objectives.clipped_policy_gradient(*columns(rows)[:3], columns(rows)[3], 0.2, 2.0)[0]
    backwards = objectives.clipped_policy_gradient(*columns(rows[::-1])[:3], columns(rows[::-1])[3], 0.2, 2.0)[0]
    assert forwards.item() == pytest.approx(backwards.item(), rel=1e-9, abs=1e-9)


@given(vectors)
def test_mismatch_bounds(rows):
    old, sampler, *_ = columns(rows)
    report = objectives.mismatch(old, sampler, 2.0)
    assert report["mismatch_kl"] >= -1e-12
    assert 0 < report["ess"] <= 1 + 1e-9
    assert 0 <= report["truncated"] <= 1
    same = objectives.mismatch(old, old, 2.0)
    assert same == {"mismatch_kl": 0.0, "ess": pytest.approx(1.0), "truncated": 0.0}


def test_k3_golden_and_gradient():
    logprobs = torch.tensor([math.log(0.5), math.log(0.2)], requires_grad=True)
    found = objectives.k3(logprobs, torch.tensor([math.log(0.25), math.log(0.2)]))
    assert found.tolist() == pytest.approx([0.5 - 1 + math.log(2), 0.0], abs=1e-6)
    found.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([1 - 0.5, 0.0], abs=1e-6)


@given(vectors)
def test_k3_is_never_negative(rows):
    logprobs, reference, *_ = columns(rows)
    assert (objectives.k3(logprobs, reference) >= -1e-12).all()


def test_sequences_are_in_bounds_by_their_mean():
    assert objectives.in_bounds(torch.tensor([1.0, -1.0, 0.5]), 1.5)
    assert not objectives.in_bounds(torch.tensor([1.0, 1.0]), 2.0)
    assert not objectives.in_bounds(torch.tensor([-1.0]), 2.0)
    assert objectives.in_bounds(torch.tensor([math.nan]), 2.0)
    assert objectives.in_bounds(torch.tensor([9.0]), math.inf) and objectives.in_bounds(torch.zeros(0), 1.0)
