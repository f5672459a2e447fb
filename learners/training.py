"""What a learner does with its data: one function per objective, each a loop of optimizer steps over micro-batches.

How the steps go is in `loop`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learners import objectives
from learners.batches import Batch, Example, PreferenceExample, pad, predicted
from learners.learner import Learner, LearnerError
from learners.loop import FitSettings, Group, Report, Row, as_batch, deal, groups, train
from reasoning.records import StepLabel, StepPair, Trajectory, mean


def _tokens(example: Example | StepLabel | Trajectory) -> list[tuple[int, ...]]:
    return [example.token_ids]


def _learnt(examples: Sequence[Example] | Sequence[Trajectory], rows: Sequence[int], settings: FitSettings) -> Batch:
    """A batch whose tokens under the masks count."""
    return as_batch([e.token_ids for e in examples], [predicted(e.loss_mask) for e in examples], rows, settings)


def _logprobs(model: Any, batch: Batch) -> Tensor:
    return model(**batch.inputs, targets=batch.targets)[0]


def sft(learner: Learner, examples: Sequence[Example], settings: FitSettings, report: Report) -> list[Row]:
    """Supervised fine-tuning: mean negative log-likelihood of the tokens under the mask (headers are masked)."""

    def loss_of(model: Any, group: Group[Example], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        logprobs = _logprobs(model, _learnt(group.items, group.rows, settings))
        return objectives.sft(logprobs, torch.full_like(logprobs, weight)), {}

    return train(
        learner,
        examples,
        settings,
        _tokens,
        lambda e: float(sum(e.loss_mask[1:])),
        loss_of,
        report,
        "sft",
    )


@contextlib.contextmanager
def _measuring(learner: Learner) -> Iterator[Any]:
    """The model without gradients, and without what it does in training only."""
    learner.model.eval()
    try:
        with torch.no_grad():
            yield learner.model
    finally:
        learner.model.train()


def completion_logprobs(learner: Learner, examples: Sequence[Example], settings: FitSettings) -> list[float]:
    """The policy's summed log-probability (nats, temperature 1) of the tokens under the mask of each example.

    Every rank is given all examples and returns all sums, but computes only its share of the micro-batches.

    In bf16 a sum depends on the shape of its micro-batch: by up to 2.6 of 600 nats (200 tokens) in SmolLM2-135M on CPU.
    """
    sums = [0.0] * len(examples)
    with _measuring(learner) as model:
        for group, weight in deal(range(len(sums)), lambda i: _tokens(examples[i]), settings, learner):
            batch = _learnt([examples[i] for i in group.items], group.rows, settings)
            values = batch.sums(_logprobs(model, batch), len(group.items)).tolist()
            if weight:
                for i, value in zip(group.items, values, strict=True):
                    sums[i] = value
    return learner.all_sum_list(sums)


def _with_references(
    learner: Learner, pairs: Sequence[PreferenceExample], settings: FitSettings
) -> list[PreferenceExample]:
    """The pairs, each with its reference: where it has none, from the learner's present weights."""
    unknown = [example for p in pairs if p.reference is None for example in (p.chosen, p.rejected)]
    # Pairs that share a completion, or that come twice, share its log-probability.
    unique = list(dict.fromkeys(unknown))
    found = dict(zip(unique, completion_logprobs(learner, unique, settings), strict=True))
    return [p if p.reference is not None else replace(p, reference=(found[p.chosen], found[p.rejected])) for p in pairs]


def _check_dpo(beta: float, sft_weight: float, most_drop: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: got {beta}; use a number above 0, such as 0.1")
    if not 0 <= sft_weight < math.inf:
        raise ValueError(f"sft_weight: got {sft_weight}; use a number from 0 on, such as 1")
    if not most_drop > 0:
        raise ValueError(f"most_drop: got {most_drop}; use nats per token above 0, such as 0.5, or inf for no bound")


def dpo(
    learner: Learner,
    pairs: Sequence[PreferenceExample],
    settings: FitSettings,
    beta: float,
    report: Report,
    sft_weight: float = 0.0,
    most_drop: float = math.inf,
) -> list[Row]:
    """Direct preference optimisation (Rafailov et al. 2023) against the pairs' references; those that are missing are
    computed once, before the first step, from the weights that the learner starts from.

    Loss of a pair: - log sigmoid(margin) + sft_weight * NLL(chosen) / tokens(chosen), with margin = beta * (change of
    the chosen one's log-probability - change of the rejected one's). The first term sees only the difference, and often
    makes both completions less likely; the second keeps the chosen one likely
    (Pang et al. 2024, Iterative Reasoning Preference Optimization, where its weight is 1).

    `most_drop` (nats per token): training ends after the first step whose batch finds the chosen completions less
    likely than the reference by more than this, on average over its pairs. A batch is measured before its own update.

    Rows hold means over the pairs of the batch: `dpo/margin`, `dpo/accuracy`, `dpo/chosen_logprob_change` (nats) and
    `dpo/chosen_change_per_token` (nats per token), all against the reference; `dpo/stopped`: 1.0 where `most_drop`
    ended training.

    Raises ValueError for `beta` or `most_drop` of 0 or less, and for a negative `sft_weight`.
    """
    _check_dpo(beta, sft_weight, most_drop)

    def both(pair: PreferenceExample) -> list[tuple[int, ...]]:
        return [pair.chosen.token_ids, pair.rejected.token_ids]

    def loss_of(model: Any, group: Group[PreferenceExample], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        own, count = group.items, len(group.items)
        batch = _learnt([p.chosen for p in own] + [p.rejected for p in own], group.rows * 2, settings)
        chosen, rejected = batch.sums(_logprobs(model, batch), 2 * count).split(count)
        tokens = batch.owners.bincount(minlength=2 * count)[:count].clamp(min=1)
        ref = torch.tensor([pair.reference for pair in own])
        loss, margin = objectives.dpo(chosen, rejected, ref[:, 0], ref[:, 1], beta)
        change = chosen.detach() - ref[:, 0]
        stats = {
            "margin": weight * margin.sum(),
            "accuracy": weight * (margin > 0).float().sum(),
            "chosen_logprob_change": weight * change.sum(),
            "chosen_change_per_token": weight * (change / tokens).sum(),
        }
        return weight * (loss + sft_weight * objectives.mean_nll(chosen, tokens)), stats

    def enough(row: Row) -> bool:
        stopped = objectives.fell_too_far(row["dpo/chosen_change_per_token"], most_drop)
        row["dpo/stopped"] = float(stopped)
        return stopped

    known = _with_references(learner, pairs, settings)
    about = (list(pairs), beta, sft_weight, most_drop)
    return train(learner, known, settings, both, lambda _: 1.0, loss_of, report, "dpo", enough, about)


def _label_batch(
    labels: Sequence[StepLabel], rows: Sequence[int], settings: FitSettings
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What a value model is called with: the output counts at the last tokens of the steps; targets and weights (N,) in
    the same order."""
    batch = as_batch([x.token_ids for x in labels], [x.ends for x in labels], rows, settings)
    targets = torch.tensor([t for x in labels for t in x.targets])
    weights = torch.tensor([w for x in labels for w in x.weights])
    return batch.inputs, targets, weights


def prm(learner: Learner, labels: Sequence[StepLabel], settings: FitSettings, report: Report) -> list[Row]:
    """Point-wise PRM: weighted BCE at the last token of every step, all steps of a path in one forward pass."""

    def loss_of(model: Any, group: Group[StepLabel], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        inputs, targets, weights = _label_batch(group.items, group.rows, settings)
        logits = model(**inputs)
        return objectives.step_bce(logits, targets, weights * weight), {}

    return train(learner, labels, settings, _tokens, lambda x: float(sum(x.weights)), loss_of, report, "prm")


def prm_pairs(
    learner: Learner, pairs: Sequence[StepPair], settings: FitSettings, report: Report, margin: float = 0.0
) -> list[Row]:
    """Pair-wise PRM: of two steps after the same prefix, the better one's value above the worse one's (Bradley-Terry).

    `margin`: how much of the difference of their pass rates the difference of the logits should have beyond 0; 0: none.
    Rows hold `prm_pairs/accuracy`, the weighted share of pairs in the right order before the update.
    """

    def both(pair: StepPair) -> list[tuple[int, ...]]:
        return [pair.prefix_ids + pair.chosen_ids, pair.prefix_ids + pair.rejected_ids]

    def loss_of(model: Any, group: Group[StepPair], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        chosen, rejected = ([both(pair)[n] for pair in group.items] for n in (0, 1))
        sequences = [*chosen, *rejected]
        batch = as_batch(sequences, [[len(ids) - 1] for ids in sequences], group.rows * 2, settings)
        better, worse = model(**batch.inputs).split(len(group.items))
        weights = weight * torch.tensor([pair.weight for pair in group.items])
        margins = margin * torch.tensor([pair.margin for pair in group.items])
        right = weights * (better > worse).float()
        return objectives.bradley_terry(better, worse, weights, margins), {"accuracy": right.sum()}

    about = (list(pairs), margin)
    return train(learner, pairs, settings, both, lambda pair: pair.weight, loss_of, report, "prm_pairs", about=about)


def step_scores(learner: Learner, labels: Sequence[StepLabel], settings: FitSettings) -> list[list[float]]:
    """The value model's sigmoid at every step end of every label, on every rank (each computes all)."""
    scores: dict[int, list[float]] = {}
    with _measuring(learner) as model:
        for group in groups(range(len(labels)), lambda i: _tokens(labels[i]), settings):
            inputs, *_ = _label_batch([labels[i] for i in group.items], group.rows, settings)
            values = model(**inputs).sigmoid().tolist()
            for i in group.items:
                scores[i], values = values[: len(labels[i].ends)], values[len(labels[i].ends) :]
    return [scores[i] for i in range(len(labels))]


def sequence_logprobs(learner: Learner, sequences: Sequence[Sequence[int]], settings: FitSettings) -> list[list[float]]:
    """The policy's log-probability (temperature 1) of every token after the first of each sequence."""
    result: list[list[float]] = []
    with torch.no_grad():
        for ids in sequences:
            batch = pad([ids], [range(len(ids) - 1)], settings.pad_id)
            result.append(_logprobs(learner.model, batch).tolist())
    return result


def _pick(values: Sequence[Sequence[float]], group: Sequence[Trajectory]) -> Tensor:
    """(N,) of per-token values those of the tokens under the masks that can be predicted."""
    return torch.tensor([v[p + 1] for v, t in zip(values, group, strict=True) for p in predicted(t.loss_mask)])


def _trajectory_batch(group: Group[Trajectory], settings: FitSettings) -> dict[str, Any]:
    """What the model is called with."""
    batch = _learnt(group.items, group.rows, settings)
    temperature = torch.tensor([t.temperature for t in group.items])[batch.owners]
    return {**batch.inputs, "targets": batch.targets, "temperature": temperature}


def token_logprobs(learner: Learner, trajectories: Sequence[Trajectory], settings: FitSettings) -> list[list[float]]:
    """Of each trajectory the policy's log-probabilities, at its temperature, of the tokens under its mask.

    Every rank is given all and returns all, but computes only its share of the micro-batches.
    """
    counts = [len(predicted(t.loss_mask)) for t in trajectories]
    starts = [0, *itertools.accumulate(counts)]
    flat = [0.0] * starts[-1]
    with _measuring(learner) as model:
        for group, weight in deal(range(len(counts)), lambda i: _tokens(trajectories[i]), settings, learner):
            own = Group([trajectories[i] for i in group.items], group.rows)
            values = model(**_trajectory_batch(own, settings))[0].tolist() if group.items else []
            for i in group.items if weight else ():
                before = sum(counts[j] for j in group.items[: group.items.index(i)])
                flat[starts[i] : starts[i + 1]] = values[before : before + counts[i]]
    flat = learner.all_sum_list(flat)
    return [flat[a:b] for a, b in itertools.pairwise(starts)]


@dataclass(frozen=True, slots=True)
class _Known:
    """A trajectory with the log-probabilities of its sampled tokens (N,): the learner's before the first step, and the
    sampler's."""

    trajectory: Trajectory
    old: Tensor
    drawn: Tensor


def _compared(
    learner: Learner, trajectories: Sequence[Trajectory], settings: FitSettings, truncation: float, bound: float
) -> tuple[list[_Known], Row]:
    """The trajectories within the bound of their mean importance weight, and how far learner and sampler are apart on
    all of them."""
    old = token_logprobs(learner, trajectories, settings)
    known = [_Known(t, torch.tensor(o), _pick([t.logprobs], [t])) for t, o in zip(trajectories, old, strict=True)]
    every = [torch.cat([*values, torch.zeros(0)]) for values in ([k.old for k in known], [k.drawn for k in known])]
    kept = [k for k in known if objectives.in_bounds(k.old - k.drawn, bound)]
    return kept, {**objectives.mismatch(*every, truncation), "masked_sequences": float(len(known) - len(kept))}


def rl(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    settings: FitSettings,
    clip: float,
    truncation: float,
    report: Report,
    kl_weight: float = 0.0,
    sequence_bound: float = math.inf,
) -> list[Row]:
    """Group-relative policy gradient: PPO-clip per token with truncated importance weights (method section 5).

    Before the first step the learner's own log-probabilities are computed; their distance from the sampler's is
    reported with every step as `rl/mismatch_kl`, `rl/ess`, `rl/truncated`.

    `kl_weight`: of the k3 estimate of KL(policy || reference) per token in the loss; the reference's log-probabilities
    are those of the trajectories. `sequence_bound`: a trajectory whose mean importance weight (geometric, per token) is
    not within [1 / bound, bound] counts for nothing; how many is reported as `rl/masked_sequences`.

    Raises ValueError for a `kl_weight` above 0 where a trajectory has no reference, and for a bound below 1.
    """
    _check_rl(trajectories, kl_weight, sequence_bound)
    started = time.monotonic()
    kept, off_policy = _compared(learner, trajectories, settings, truncation, sequence_bound)
    off_policy["old_logprobs_s"] = time.monotonic() - started

    def loss_of(model: Any, group: Group[_Known], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        own = [k.trajectory for k in group.items]
        inputs = _trajectory_batch(Group(own, group.rows), settings)
        logprobs, entropy = model(**inputs, with_entropy=True)
        before, sampler = torch.cat([k.old for k in group.items]), torch.cat([k.drawn for k in group.items])
        advantages = _pick([t.advantages for t in own], own)
        loss, stats = objectives.clipped_policy_gradient(logprobs, before, sampler, advantages, clip, truncation)
        stats["entropy"] = entropy.sum()
        if kl_weight:
            far = objectives.k3(logprobs, _pick([t.reference_logprobs for t in own], own)).sum()
            loss, stats["kl_reference"] = loss + kl_weight * far, far.detach()
        return loss * weight, {name: weight * value for name, value in stats.items()}

    def tell(row: Row) -> None:
        row.update({f"rl/{name}": value for name, value in off_policy.items()})
        row["rl/mean_outcome"] = mean([t.outcome for t in trajectories])
        report(row)

    try:
        return train(
            learner,
            kept,
            settings,
            lambda k: _tokens(k.trajectory),
            lambda k: float(sum(k.trajectory.loss_mask)),
            loss_of,
            tell,
            "rl",
            about=(list(trajectories), clip, truncation, kl_weight, sequence_bound),
        )
    except LearnerError as error:
        error.items = [k.trajectory for k in error.items]
        raise


def _check_rl(trajectories: Sequence[Trajectory], kl_weight: float, sequence_bound: float) -> None:
    if not sequence_bound >= 1:
        raise ValueError(f"sequence_bound: got {sequence_bound}; use 1 or more, such as 2, or inf for no bound")
    if kl_weight and not all(t.reference_logprobs for t in trajectories):
        raise ValueError(f"kl_weight: got {kl_weight} without a reference; use 0, or trajectories that have one")
