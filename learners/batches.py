"""Micro-batches: padded sequences of similar length under a token budget, equal in number on every rank."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ROUNDING = 64
"""Widths are rounded up to a multiple of this: a CPU kernel is prepared, and kept in memory, for every new shape."""


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized sequence with its loss mask (1: learn to produce this token)."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    problem_id: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """Two completions of one prompt, as full sequences.

    `reference`: summed log-probabilities (nats) of the two completions under the weights that training starts from, as
    `training.completion_logprobs` gives them; None: not known yet.
    """

    chosen: Example
    rejected: Example
    reference: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Padded:
    """`token_ids`, `attention`: (B, T) long. `select`: (B, T) bool, True at positions whose *next* token counts; the
    order of selected positions is row by row."""

    token_ids: Tensor
    attention: Tensor
    select: Tensor

    @property
    def targets(self) -> Tensor:
        """(N,) the tokens to predict at the selected positions."""
        return self.token_ids.roll(-1, dims=1)[self.select]


def pad(sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """Right-padded tensors, their width a multiple of `ROUNDING`; token t counts (mask 1) through its prediction at
    position t - 1. The first token of a sequence cannot be predicted and never counts."""
    width = padded_length(max(len(s) for s in sequences))
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(sequences), width), dtype=torch.long)
    select = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
        n = len(sequence)
        ids[row, :n] = torch.tensor(sequence)
        attention[row, :n] = 1
        select[row, : n - 1] = torch.tensor(mask[1:], dtype=torch.bool)
    return Padded(ids, attention, select)


def padded_length(length: int) -> int:
    """What a sequence takes in a micro-batch of its own length."""
    return -(-length // ROUNDING) * ROUNDING


def micro_batches(items: Sequence[T], length: Callable[[T], int], max_tokens: int) -> list[list[T]]:
    """Groups of similar length whose padded size is at most `max_tokens`; an item over the budget stands alone."""
    groups: list[list[T]] = []
    widest = 0
    for item in sorted(items, key=length):
        widest = max(widest if groups and groups[-1] else 0, padded_length(length(item)))
        if groups and widest * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(item)
        else:
            groups.append([item])
            widest = padded_length(length(item))
    return groups


def optimizer_batches(items: Sequence[T], size: int, epochs: int, seed: int) -> list[list[T]]:
    """Shuffled batches of `size` items for `epochs` passes; a last smaller batch is kept."""
    batches: list[list[T]] = []
    for epoch in range(epochs):
        order = list(items)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        batches += [order[i : i + size] for i in range(0, len(order), size)]
    return batches


def shard(items: Sequence[T], rank: int, world: int) -> list[T]:
    """Every `world`-th item from `rank` on."""
    return list(items[rank::world])
