"""Micro-batches: sequences as tensors, padded or packed, in groups under a token budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from learners import packing
from reasoning.records import StepPair

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
class Batch:
    """A micro-batch, and where in it the model's output counts.

    `token_ids`: (B, T). `attention`: (B, T), 1 at tokens of a sequence; or (B, 1, T, T) bool, True where the query
    (third) attends to the key (fourth). `positions`: (B, T), None where they count from 0. `select`: (B, T) bool, the
    positions whose output counts. `gather`: (N,) for each output that counts which of the selected positions has it,
    None where it is one for each, in their order. `targets`: (N,) the tokens that follow there, 0 after the last of a
    sequence. `owners`: (N,) the sequences that they are of, rising.
    """

    token_ids: Tensor
    attention: Tensor
    positions: Tensor | None
    select: Tensor
    gather: Tensor | None
    targets: Tensor
    owners: Tensor

    @property
    def inputs(self) -> dict[str, Tensor | None]:
        """What a model is called with."""
        names = ("token_ids", "attention", "positions", "select", "gather")
        return {name: getattr(self, name) for name in names}

    def sums(self, values: Tensor, count: int) -> Tensor:
        """(count,) sums of (N,) values over each sequence."""
        return torch.zeros(count, dtype=values.dtype).index_add(0, self.owners, values)


def require_readable(items: Sequence[Any], vocabulary: int) -> None:
    """Raises ValueError where a model of so many tokens cannot read something: what another tokenizer wrote, most
    likely. `items`: token ids, or what holds them, one sequence or the two of a pair."""
    for number, item in enumerate(items, start=1):
        for ids in _sequences(item):
            if not ids:
                raise ValueError(f"data: item {number} has no tokens; use sequences of one at least")
            if not 0 <= min(ids) <= max(ids) < vocabulary:
                wrong = next(i for i in ids if not 0 <= i < vocabulary)
                legal = f"use 0 to {vocabulary - 1}, the tokens of this model: was another tokenizer used?"
                raise ValueError(f"data: item {number} holds token {wrong}; {legal}")


def _sequences(item: Any) -> list[Sequence[int]]:
    if isinstance(item, PreferenceExample):
        return [item.chosen.token_ids, item.rejected.token_ids]
    if isinstance(item, StepPair):
        return [item.prefix_ids + item.chosen_ids, item.prefix_ids + item.rejected_ids]
    return [getattr(item, "token_ids", item)]


def predicted(mask: Sequence[int]) -> list[int]:
    """The positions whose output predicts the tokens under a mask: token t is predicted at t - 1. The first token of a
    sequence cannot be predicted and never counts."""
    return [t - 1 for t, counts in enumerate(mask) if counts and t]


def _targets(sequences: Sequence[Sequence[int]], points: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    ends = zip(sequences, points, strict=True)
    targets = [s[at + 1] if at + 1 < len(s) else 0 for s, mine in ends for at in mine]
    owners = [row for row, mine in enumerate(points) for _ in mine]
    return torch.tensor(targets, dtype=torch.long), torch.tensor(owners, dtype=torch.long)


def pad(sequences: Sequence[Sequence[int]], points: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Right-padded rows, one for each sequence, their width a multiple of `ROUNDING`. `points`: of each sequence the
    positions whose output counts, rising."""
    width = padded_length(max(len(s) for s in sequences))
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(sequences), width), dtype=torch.long)
    select = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, (sequence, mine) in enumerate(zip(sequences, points, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
        select[row, list(mine)] = True
    return Batch(ids, attention, None, select, None, *_targets(sequences, points))


def pack(
    sequences: Sequence[Sequence[int]],
    points: Sequence[Sequence[int]],
    rows: Sequence[int],
    pad_id: int,
    shared: bool,
) -> Batch:
    """Several sequences in a row (`packing.lay_out`), all rows of the same width, a multiple of `ROUNDING`. `rows`: for
    each sequence the row that it stands in, from 0 on without a gap; else see `pad`."""
    members = [[i for i, row in enumerate(rows) if row == n] for n in range(max(rows) + 1)]
    layouts = [packing.lay_out([sequences[i] for i in mine], shared) for mine in members]
    width = padded_length(max(len(layout.token_ids) for layout in layouts))
    places = {i: layouts[n].places[k] for n, mine in enumerate(members) for k, i in enumerate(mine)}
    at = [(rows[i], places[i][point]) for i, mine in enumerate(points) for point in mine]
    chosen = sorted(set(at))
    rank = {place: n for n, place in enumerate(chosen)}
    select = torch.zeros((len(layouts), width), dtype=torch.bool)
    where = torch.tensor(chosen, dtype=torch.long).reshape(-1, 2)
    select[where[:, 0], where[:, 1]] = True
    targets, owners = _targets(sequences, points)

    def filled(values: Sequence[int], fill: int) -> list[int]:
        return [*values, *[fill] * (width - len(values))]

    return Batch(
        token_ids=torch.tensor([filled(layout.token_ids, pad_id) for layout in layouts]),
        attention=torch.stack([attention_mask(layout, width) for layout in layouts]).unsqueeze(1),
        positions=torch.tensor([filled(layout.positions, 0) for layout in layouts]),
        select=select,
        gather=torch.tensor([rank[place] for place in at], dtype=torch.long),
        targets=targets,
        owners=owners,
    )


def attention_mask(layout: packing.Layout, width: int) -> Tensor:
    """(width, width) bool: [q, k] is True where the token at q attends to the token at k. `width`: at least the tokens
    of the row; what fills it up attends to itself alone, so that no row is empty.

    Memory grows with the square of the width: 1 MB for 1,024 tokens.
    """
    allowed = torch.eye(width, dtype=torch.bool)
    told = torch.zeros(width, dtype=torch.bool)
    for places in layout.places:
        at = torch.tensor(places, dtype=torch.long)
        new = (~told[at]).nonzero()[:, 0]
        told[at] = True
        # Row by row what is at or before the own position in the sequence.
        allowed[at[new].unsqueeze(1), at.unsqueeze(0)] = torch.arange(len(at)).unsqueeze(0) <= new.unsqueeze(1)
    return allowed


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
