"""What a learner does with its data: one function per objective, each a loop of optimizer steps over micro-batches.

Every rank is given the whole data and takes its share of each optimizer batch; micro-batches are formed before they are
dealt out, and a rank without one computes a copy that counts for nothing, so that all ranks run the same collectives.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from learners import objectives
from learners.batches import Example, Padded, PreferenceExample, micro_batches, optimizer_batches, pad, padded_length
from learners.learner import Learner
from reasoning.records import StepLabel, Trajectory, mean

T = TypeVar("T")
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """`batch_size`: sequences (or pairs) per optimizer step over all ranks. `micro_tokens`: padded tokens of a
    micro-batch. `pad_id`: any token id; padding is masked."""

    batch_size: int = 16
    epochs: int = 1
    micro_tokens: int = 2048
    pad_id: int = 0
    seed: int = 0


def _deal(
    batch: Sequence[T], length: Callable[[T], int], settings: FitSettings, learner: Learner
) -> list[tuple[list[T], float]]:
    """This rank's micro-batches of an optimizer batch, each with its weight (0 for one that only keeps step)."""
    groups = micro_batches(batch, length, settings.micro_tokens)
    share = -(-len(groups) // learner.world)
    mine = [(g, 1.0) for g in groups[learner.rank :: learner.world]]
    return mine + [(group, 0.0) for group in groups[:1]] * (share - len(mine))


def _train(
    learner: Learner,
    items: Sequence[T],
    settings: FitSettings,
    length: Callable[[T], int],
    count: Callable[[T], float],
    loss_of: Callable[[Any, list[T], float], tuple[Tensor, dict[str, Tensor | float]]],
    report: Report,
    prefix: str,
    tokens_of: Callable[[T], int] | None = None,
    enough: Callable[[dict[str, float]], bool] | None = None,
) -> list[dict[str, float]]:
    """The loop shared by all objectives. `loss_of(model, items, weight)` returns a sum and sums to report; a reported
    sum is divided by the count of the batch. `tokens_of`: tokens of an item, where that is not its `length`.

    `enough(row)`: whether training ends after this step; may add to the row before it is reported. Must decide by what
    is the same on every rank: all numbers but those of time are, being made of the same sums over ranks.
    """
    history: list[dict[str, float]] = []
    batches = optimizer_batches(items, settings.batch_size, settings.epochs, settings.seed)
    for number, batch in enumerate(batches, start=1):
        dealt = _deal(batch, length, settings, learner)
        own = sum(count(item) for group, weight in dealt if weight for item in group)
        result = learner.step(dealt, lambda model, pair: loss_of(model, pair[0], pair[1]), own)
        tokens = sum((tokens_of or length)(item) for item in batch)
        row = {
            f"{prefix}/loss": result.loss,
            f"{prefix}/grad_norm": result.grad_norm,
            f"{prefix}/tokens_per_s": tokens / max(result.seconds, 1e-9),
            f"{prefix}/step": number,
            f"{prefix}/steps": len(batches),
            **{f"{prefix}/{name}": value / max(result.count, 1e-9) for name, value in result.sums.items()},
        }
        ended = enough is not None and enough(row)
        history.append(row)
        report(row)
        if ended:
            break
    return history


def _padded(examples: Sequence[Example], pad_id: int) -> Padded:
    return pad([e.token_ids for e in examples], [e.loss_mask for e in examples], pad_id)


def _logprobs(model: Any, batch: Padded, temperature: Tensor | float = 1.0) -> Tensor:
    return model(batch.token_ids, batch.attention, batch.select, batch.targets, temperature)[0]


def sft(learner: Learner, examples: Sequence[Example], settings: FitSettings, report: Report) -> list[dict[str, float]]:
    """Supervised fine-tuning: mean negative log-likelihood of the tokens under the mask (headers are masked)."""

    def loss_of(model: Any, group: list[Example], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        logprobs = _logprobs(model, _padded(group, settings.pad_id))
        return objectives.sft(logprobs, torch.full_like(logprobs, weight)), {}

    return _train(
        learner,
        examples,
        settings,
        lambda e: len(e.token_ids),
        lambda e: float(sum(e.loss_mask[1:])),
        loss_of,
        report,
        "sft",
    )


def _sums_by_row(values: Tensor, select: Tensor) -> Tensor:
    """(B,) sums of the selected values of each row."""
    rows = select.nonzero()[:, 0]
    return torch.zeros(select.shape[0], dtype=values.dtype).index_add(0, rows, values)


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
        for group, weight in _deal(range(len(sums)), lambda i: len(examples[i].token_ids), settings, learner):
            batch = _padded([examples[i] for i in group], settings.pad_id)
            values = _sums_by_row(_logprobs(model, batch), batch.select).tolist()
            if weight:
                for i, value in zip(group, values, strict=True):
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
) -> list[dict[str, float]]:
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

    def length(pair: PreferenceExample) -> int:
        return 2 * padded_length(max(len(pair.chosen.token_ids), len(pair.rejected.token_ids)))

    def loss_of(model: Any, group: list[PreferenceExample], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch = _padded([p.chosen for p in group] + [p.rejected for p in group], settings.pad_id)
        chosen, rejected = _sums_by_row(_logprobs(model, batch), batch.select).split(len(group))
        tokens = batch.select[: len(group)].sum(1).clamp(min=1)
        ref = torch.tensor([pair.reference for pair in group])
        loss, margin = objectives.dpo(chosen, rejected, ref[:, 0], ref[:, 1], beta)
        change = chosen.detach() - ref[:, 0]
        stats = {
            "margin": weight * margin.sum(),
            "accuracy": weight * (margin > 0).float().sum(),
            "chosen_logprob_change": weight * change.sum(),
            "chosen_change_per_token": weight * (change / tokens).sum(),
        }
        return weight * (loss + sft_weight * objectives.mean_nll(chosen, tokens)), stats

    def tokens_of(pair: PreferenceExample) -> int:
        return len(pair.chosen.token_ids) + len(pair.rejected.token_ids)

    def enough(row: dict[str, float]) -> bool:
        stopped = objectives.fell_too_far(row["dpo/chosen_change_per_token"], most_drop)
        row["dpo/stopped"] = float(stopped)
        return stopped

    known = _with_references(learner, pairs, settings)
    return _train(learner, known, settings, length, lambda _: 1.0, loss_of, report, "dpo", tokens_of, enough)


def _label_batch(labels: Sequence[StepLabel], pad_id: int) -> tuple[Padded, Tensor, Tensor]:
    """Selected are the last tokens of the steps; targets and weights (N,) in the same order."""
    batch = pad([x.token_ids for x in labels], [[0] * len(x.token_ids) for x in labels], pad_id)
    for row, label in enumerate(labels):
        batch.select[row, list(label.ends)] = True
    targets = torch.tensor([t for x in labels for t in x.targets])
    weights = torch.tensor([w for x in labels for w in x.weights])
    return batch, targets, weights


def prm(learner: Learner, labels: Sequence[StepLabel], settings: FitSettings, report: Report) -> list[dict[str, float]]:
    """Point-wise PRM: weighted BCE at the last token of every step, all steps of a path in one forward pass."""

    def loss_of(model: Any, group: list[StepLabel], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch, targets, weights = _label_batch(group, settings.pad_id)
        logits = model(batch.token_ids, batch.attention, batch.select)
        return objectives.step_bce(logits, targets, weights * weight), {}

    return _train(
        learner, labels, settings, lambda x: len(x.token_ids), lambda x: float(sum(x.weights)), loss_of, report, "prm"
    )


def step_scores(learner: Learner, labels: Sequence[StepLabel], settings: FitSettings) -> list[list[float]]:
    """The value model's sigmoid at every step end of every label, on every rank (each computes all)."""
    scores: dict[int, list[float]] = {}
    with _measuring(learner) as model:
        for group in micro_batches(range(len(labels)), lambda i: len(labels[i].token_ids), settings.micro_tokens):
            batch, *_ = _label_batch([labels[i] for i in group], settings.pad_id)
            values = model(batch.token_ids, batch.attention, batch.select).sigmoid().tolist()
            for i in group:
                scores[i], values = values[: len(labels[i].ends)], values[len(labels[i].ends) :]
    return [scores[i] for i in range(len(labels))]


def sequence_logprobs(learner: Learner, sequences: Sequence[Sequence[int]], settings: FitSettings) -> list[list[float]]:
    """The policy's log-probability (temperature 1) of every token after the first of each sequence."""
    result: list[list[float]] = []
    with torch.no_grad():
        for ids in sequences:
            batch = pad([ids], [[1] * len(ids)], settings.pad_id)
            result.append(_logprobs(learner.model, batch).tolist())
    return result


def _pick(rows: Sequence[Sequence[float]], select: Tensor) -> Tensor:
    """(N,) per-token values of the *next* token at the selected positions."""
    width = select.shape[1]
    full = torch.tensor([[*row[1:], *[0.0] * (width - len(row) + 1)] for row in rows])
    return full[select]


def rl(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    settings: FitSettings,
    clip: float,
    truncation: float,
    report: Report,
) -> list[dict[str, float]]:
    """Group-relative policy gradient: PPO-clip per token with truncated importance weights (method section 5).

    Before the first step the learner's own log-probabilities are computed; their distance from the sampler's is
    reported with every step as `rl/mismatch_kl`, `rl/ess`, `rl/truncated`.
    """

    def batch_of(group: Sequence[Trajectory]) -> tuple[Padded, Tensor, Tensor, Tensor]:
        batch = pad([t.token_ids for t in group], [t.loss_mask for t in group], settings.pad_id)
        temperature = torch.tensor([t.temperature for t in group]).unsqueeze(1).expand(batch.select.shape)[batch.select]
        sampler = _pick([t.logprobs for t in group], batch.select)
        return batch, temperature, sampler, _pick([t.advantages for t in group], batch.select)

    old: dict[int, Tensor] = {}
    drawn: list[Tensor] = []
    started = time.monotonic()
    with torch.no_grad():
        for group in micro_batches(trajectories, lambda t: len(t.token_ids), settings.micro_tokens):
            batch, temperature, sampler, _ = batch_of(group)
            logprobs = _logprobs(learner.model, batch, temperature)
            counts = batch.select.sum(1).tolist()
            for trajectory, values in zip(group, logprobs.split(counts), strict=True):
                old[id(trajectory)] = values
            drawn.append(torch.stack([logprobs, sampler]))
    seen = torch.cat(drawn, dim=1) if drawn else torch.zeros(2, 0)
    off_policy = objectives.mismatch(seen[0], seen[1], truncation)
    off_policy["old_logprobs_s"] = time.monotonic() - started

    def loss_of(model: Any, group: list[Trajectory], weight: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch, temperature, sampler, advantages = batch_of(group)
        logprobs, entropy = model(
            batch.token_ids, batch.attention, batch.select, batch.targets, temperature, with_entropy=True
        )
        before = torch.cat([old[id(t)] for t in group])
        loss, stats = objectives.clipped_policy_gradient(logprobs, before, sampler, advantages, clip, truncation)
        stats["entropy"] = entropy.sum()
        return loss * weight, {name: weight * value for name, value in stats.items()}

    def tell(row: dict[str, float]) -> None:
        row.update({f"rl/{name}": value for name, value in off_policy.items()})
        row["rl/mean_outcome"] = mean([t.outcome for t in trajectories])
        report(row)

    return _train(
        learner,
        trajectories,
        settings,
        lambda t: len(t.token_ids),
        lambda t: float(sum(t.loss_mask)),
        loss_of,
        tell,
        "rl",
    )
