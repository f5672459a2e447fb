"""What programs did on tests, as a matrix, and what that says of the tests (method section 2).

Rows are programs, columns are tests: `True` where the program passes, `False` where it fails, `None` where the sandbox
itself failed: then nothing is known, and nothing is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Row = Sequence[bool | None]
Matrix = Sequence[Row]


def kills(wrong: Matrix) -> list[frozenset[int]]:
    """For each test, the rows of the wrong programs that fail it."""
    width = len(wrong[0]) if wrong else 0
    return [frozenset(i for i, row in enumerate(wrong) if row[j] is False) for j in range(width)]


@dataclass(frozen=True, slots=True)
class Rates:
    """A suite as a classifier of programs; None where there is nothing to count.

    `false_accept`: share of wrong programs that pass all tests. `false_reject`: share of right programs that fail one.
    """

    false_accept: float | None
    false_reject: float | None
    wrong: int
    right: int


def rates(right: Matrix, wrong: Matrix) -> Rates:
    """How often the suite takes a wrong program, and refuses a right one."""
    known = [[row for row in rows if False in row or None not in row] for rows in (right, wrong)]
    rejected, killed = (sum(False in row for row in rows) for rows in known)
    accepted = len(known[1]) - killed
    return Rates(
        accepted / len(known[1]) if known[1] else None,
        rejected / len(known[0]) if known[0] else None,
        wrong=len(known[1]),
        right=len(known[0]),
    )


def redundancy(wrong: Matrix) -> float:
    """Share of tests without which the suite would kill the same programs, one at a time taken away."""
    found = kills(wrong)
    if not found:
        return 0.0
    counts: dict[int, int] = {}
    for rows in found:
        for row in rows:
            counts[row] = counts.get(row, 0) + 1
    return sum(all(counts[row] > 1 for row in rows) for rows in found) / len(found)


def smallest(wrong: Matrix, keep: int = 0, size: int | None = None) -> list[int]:
    """The columns of a small suite with the same kill set as the whole, the first `keep` always among them.

    Greedy: each time the test that kills most of what is left, the earlier one of equals; then tests that turned out to
    be needless are dropped, the least useful first. At most `size` tests; the kill set may then be smaller. It is never
    larger than ln(programs) + 1 times the smallest possible.
    """
    found = kills(wrong)
    chosen = list(range(min(keep, len(found))))
    left = frozenset().union(*found) - frozenset().union(*(found[j] for j in chosen)) if found else frozenset()
    while left and (size is None or len(chosen) < size):
        best = max(range(len(found)), key=lambda j: (len(found[j] & left), -j))
        chosen.append(best)
        left -= found[best]
    for j in sorted(chosen[keep:], key=lambda j: (len(found[j]), -j)):
        others = frozenset().union(*(found[i] for i in chosen if i != j))
        if found[j] <= others:
            chosen.remove(j)
    return sorted(chosen)


def self_play_rewards(right: Matrix, wrong: Matrix, tests: int) -> list[float | None]:
    """The reward of each of `tests` generated tests of one problem (method section 2): the share of wrong programs that
    it fails where every right program passes it, else minus the share of wrong programs that pass it.

    In [-1, 1]. None where a right program's result is not known, where no wrong program's is, or where no right program
    says whether the test is true.
    """
    found: list[float | None] = []
    for j in range(tests):
        truth = [row[j] for row in right]
        passes = [row[j] for row in wrong if row[j] is not None]
        if not truth or not passes or (None in truth and False not in truth):
            found.append(None)
            continue
        share = sum(map(bool, passes)) / len(passes)
        found.append(-share if False in truth else 1 - share)
    return found


def normalised(rewards: Sequence[float | None]) -> list[float | None]:
    """Rewards of one problem less their mean, over their standard deviation; 0 where all are equal."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return list(rewards)
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in known) / len(known))
    return [None if r is None else (r - mean) / deviation if deviation > 1e-9 else 0.0 for r in rewards]


@dataclass(frozen=True, slots=True)
class Consensus:
    """Programs that agree, and the tests that they agree on. `score`: sqrt(#programs) * #tests."""

    programs: tuple[int, ...]
    tests: tuple[int, ...]
    score: float


def consensus(matrix: Matrix) -> Consensus | None:
    """The best agreeing set: programs that pass exactly the same tests, weighed as in method section 2 (Chen et al.
    2023). Programs of independent origin confirm the tests, and the other way round. None where no program passes any.

    Of equal scores the set with more programs wins, then the earlier one.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(matrix):
        passed = tuple(j for j, passes in enumerate(row) if passes)
        if passed:
            groups.setdefault(passed, []).append(i)
    found = [Consensus(tuple(rows), tests, math.sqrt(len(rows)) * len(tests)) for tests, rows in groups.items()]
    return max(found, key=lambda c: (c.score, len(c.programs), -c.programs[0]), default=None)
