"""Choosing what to train on under a token budget."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def within_tokens(
    items: Sequence[T],
    length: Callable[[T], int],
    problem: Callable[[T], str],
    budget: int,
    longest: int,
    seed: int,
    kind: Callable[[T], bool] = lambda _: False,
) -> tuple[list[T], int]:
    """Items up to `budget` tokens in all, taken from the problems in turn so that none crowds out the others, and of a
    problem those with and without `kind` in turn, beginning with those that have it.

    Items over `longest` tokens are left out. Returns the chosen items and how many were too long.
    """
    rng = random.Random(seed)
    groups: dict[str, list[T]] = defaultdict(list)
    too_long = 0
    for item in items:
        if length(item) > longest:
            too_long += 1
        else:
            groups[problem(item)].append(item)
    queues = [groups[name] for name in sorted(groups)]
    for queue in queues:
        rng.shuffle(queue)
        queue[:] = _in_turn([i for i in queue if kind(i)], [i for i in queue if not kind(i)])[::-1]
    rng.shuffle(queues)
    chosen: list[T] = []
    used = 0
    while queues:
        for queue in list(queues):
            item = queue.pop()
            if used + length(item) <= budget:
                chosen.append(item)
                used += length(item)
            if not queue:
                queues.remove(queue)
    return chosen, too_long


def _in_turn(first: Sequence[T], second: Sequence[T]) -> list[T]:
    """One of each in turn, then what is left of the longer."""
    both = min(len(first), len(second))
    turns = [item for pair in zip(first, second, strict=False) for item in pair]
    return [*turns, *first[both:], *second[both:]]
