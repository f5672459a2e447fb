"""Many sequences in one row of a micro-batch, a prefix that several of them share computed once.

Sequences of a tree (or a prompt and its completions) are laid out as a prefix tree: every distinct prefix is one token
of the row. A token attends to itself and to those before it in its own sequence, by a mask of the row's own, and has
the position that it has there; so every sequence is computed as it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Packing = Literal["padded", "packed", "tree"]
"""A row for each sequence; rows of several; rows of several in which equal beginnings stand once."""
T = TypeVar("T")
SLACK = (1.03, 1.1, 1.25)
"""Budgets of a row that are tried, times the tokens that each had if all had as many."""
STRETCH = (1.125, 1.25)
WORTH = 0.95
"""Rows are longer by so much where that leaves less than this share of the tokens: a beginning that two rows share is
computed in both of them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`token_ids`, `positions`: of the tokens of the row. `places`: for each sequence, in the order that they were
    given in, where in the row its tokens are."""

    token_ids: list[int]
    positions: list[int]
    places: list[list[int]]


def lay_out(sequences: Sequence[Sequence[int]], shared: bool) -> Layout:
    """One row of all sequences. `shared`: tokens of equal prefixes are there once; else every sequence is there whole.

    A token stands after all those that it attends to.
    """
    layout = Layout([], [], [[] for _ in sequences])
    before: int | None = None
    # In this order, no earlier sequence shares more with one than the one just before it.
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[i]
        common = 0
        if shared and before is not None:
            common = _common(sequences[before], sequence)
            layout.places[i].extend(layout.places[before][:common])
        for position in range(common, len(sequence)):
            layout.places[i].append(len(layout.token_ids))
            layout.token_ids.append(sequence[position])
            layout.positions.append(position)
        before = i
    return layout


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


class Row:
    """How many tokens a row with shared beginnings holds, as sequences are added to it."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}

    @property
    def tokens(self) -> int:
        return len(self._children)

    def add(self, sequences: Iterable[Sequence[int]], most: int) -> bool:
        """Add sequences if the row then holds at most `most` tokens, or was empty; whether they were added."""
        new: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node = 0
            for token in sequence:
                key = (node, token)
                found = self._children.get(key) or new.get(key)
                if found is None:
                    found = new[key] = 1 + len(self._children) + len(new)
                node = found
        if self.tokens and self.tokens + len(new) > most:
            return False
        self._children |= new
        return True


def rows(
    items: Sequence[T],
    sequences_of: Callable[[T], Sequence[Sequence[int]]],
    most: int,
    shared: bool,
    longest: int | None = None,
) -> list[tuple[list[T], int]]:
    """Groups of items whose sequences fill a row with at most `most` tokens, each with the tokens of its row; an item
    over the budget stands alone.

    With `shared`, those with equal beginnings come together, and rows are up to a quarter longer, but not beyond
    `longest` (default: `most`), where fewer of the beginnings are computed twice then. Without, longest first into the
    fullest row that has room (best fit decreasing). There are as few rows as that gives, and their tokens are spread
    over them: all rows of a micro-batch are as wide as the widest.
    """
    filled = _rows(items, sequences_of, most, shared)
    for stretch in STRETCH if shared and longest is not None and len(filled) > 1 else ():
        longer = _rows(items, sequences_of, min(longest, int(stretch * most)), shared)
        if _tokens(longer) < WORTH * _tokens(filled):
            filled = longer
    return filled


def _tokens(filled: Sequence[tuple[list[T], int]]) -> int:
    return sum(size for _, size in filled)


def _rows(
    items: Sequence[T], sequences_of: Callable[[T], Sequence[Sequence[int]]], most: int, shared: bool
) -> list[tuple[list[T], int]]:
    fill = _neighbours if shared else _best_fit
    filled = fill(items, sequences_of, most)
    least = max(-(-_tokens(filled) // max(1, len(filled))), 1)
    for slack in SLACK if len(filled) > 1 else ():
        if (budget := int(slack * least)) >= most:
            break
        level = fill(items, sequences_of, budget)
        if len(level) <= len(filled):
            return level
    return filled


def _best_fit(
    items: Sequence[T], sequences_of: Callable[[T], Sequence[Sequence[int]]], most: int
) -> list[tuple[list[T], int]]:
    filled: list[tuple[list[T], int]] = []
    for size, item in sorted(((sum(map(len, sequences_of(i))), i) for i in items), key=lambda one: -one[0]):
        fits = [n for n, (_, taken) in enumerate(filled) if taken + size <= most]
        if fits:
            best = max(fits, key=lambda n: filled[n][1])
            filled[best] = ([*filled[best][0], item], filled[best][1] + size)
        else:
            filled.append(([item], size))
    return filled


def _neighbours(
    items: Sequence[T], sequences_of: Callable[[T], Sequence[Sequence[int]]], most: int
) -> list[tuple[list[T], int]]:
    filled: list[tuple[list[T], Row]] = []
    for item in sorted(items, key=lambda item: tuple(map(tuple, sequences_of(item)))):
        if not filled or not filled[-1][1].add(sequences_of(item), most):
            filled.append(([], Row()))
            filled[-1][1].add(sequences_of(item), most)
        filled[-1][0].append(item)
    return [(group, row.tokens) for group, row in filled]
