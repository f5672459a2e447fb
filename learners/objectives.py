"""Objectives as pure functions of tensors. All sums, no means: the caller divides by the global count.

Shapes: (N,) vectors over the selected tokens (or steps, or pairs) of a micro-batch, unless stated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sft(logprobs: Tensor, weights: Tensor) -> Tensor:
    """- sum_i w_i log pi(token_i) (paper section 3.4). Scalar."""
    return -(logprobs * weights).sum()


def dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """- sum log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))) (Rafailov et al. 2023; paper 3.1).

    Arguments are summed log-probabilities of whole completions, one per pair. Returns the scalar loss and the reward
    margin of each pair (detached).
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -F.logsigmoid(margin).sum(), margin.detach()


def mean_nll(summed: Tensor, tokens: Tensor) -> Tensor:
    """- sum_i summed_i / tokens_i: negative log-likelihood per token of whole completions, each of the same weight
    whatever its length (the NLL term of Pang et al. 2024, Iterative Reasoning Preference Optimization). Scalar.

    `summed`: log-probabilities of the completions in nats; `tokens`: their lengths, at least 1.
    """
    return -(summed / tokens).sum()


def fell_too_far(change_per_token: float, most_drop: float) -> bool:
    """Whether log-probabilities fell by more than `most_drop` (both in nats per token)."""
    return not change_per_token >= -most_drop  # what is no number has fallen too far


def step_bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Point-wise PRM loss: weighted binary cross-entropy against step values in [0, 1] (paper 3.5, eq. 4). Scalar."""
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights).sum()


def bradley_terry(chosen: Tensor, rejected: Tensor, weights: Tensor, margins: Tensor | float = 0.0) -> Tensor:
    """Pair-wise PRM loss: - sum_i w_i log sigmoid(chosen_i - rejected_i - margin_i) (paper 3.5, eq. 5; margins: Touvron
    et al. 2023, Llama 2). Scalar.

    `chosen`, `rejected`: logits of the better and of the worse step of each pair; `margins`: by how much the better one
    should win, 0: by anything.
    """
    return -(weights * F.logsigmoid(chosen - rejected - margins)).sum()


def clipped_policy_gradient(
    logprobs: Tensor,
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    clip: float,
    truncation: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO-clip over tokens with truncated importance weights for the sampler's mismatch.

    loss = - sum_t w_t * min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t), with r_t = pi(t) / pi_old(t) and
    w_t = min(pi_old(t) / pi_sampler(t), truncation), both constants of the gradient except pi.

    `old_logprobs`: the learner's before this round's updates; `sampler_logprobs`: those the tokens were drawn with.
    Returns the scalar loss and sums over tokens: `clipped` (tokens whose update is cut off), `kl_old` (k3 estimate of
    KL(pi || pi_old) in nats).
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    weight = (old_logprobs - sampler_logprobs).exp().clamp(max=truncation).detach()
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip, 1 + clip) * advantages
    with torch.no_grad():
        stats = {"clipped": (bounded < free).float().sum(), "kl_old": k3(logprobs, old_logprobs).sum()}
    return -(weight * torch.minimum(free, bounded)).sum(), stats


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(N,) unbiased, never negative estimates of KL(pi || reference) in nats on tokens drawn from pi: r - 1 - log r
    with r = reference / pi (Schulman 2020, "Approximating KL divergence"; used as a loss by Shao et al. 2024)."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1 - log_ratio


def in_bounds(log_ratios: Tensor, bound: float) -> bool:
    """Whether a sequence is near enough to what the learner would draw: the geometric mean of its tokens' importance
    weights, whose logs are given (N,), is within [1 / bound, bound]. One without tokens is, and one whose weights are
    no numbers: that is for the loss to find."""
    return not log_ratios.numel() or not abs(log_ratios.mean().item()) > math.log(bound)


def mismatch(old_logprobs: Tensor, sampler_logprobs: Tensor, truncation: float) -> dict[str, float]:
    """How far the sampler was from the learner on the same tokens, before any update.

    `mismatch_kl`: mean k3 estimate of KL(sampler || learner), nats per token. `ess`: effective sample size of the
    importance weights as a share of the tokens. `truncated`: share of weights above the truncation.
    """
    if old_logprobs.numel() == 0:
        return {"mismatch_kl": 0.0, "ess": 1.0, "truncated": 0.0}
    log_ratio = old_logprobs - sampler_logprobs
    weight = log_ratio.exp()
    ess = weight.sum() ** 2 / (weight.square().sum() * weight.numel())
    return {
        "mismatch_kl": (weight - 1 - log_ratio).mean().item(),
        "ess": ess.item(),
        "truncated": (weight > truncation).float().mean().item(),
    }
