"""Pairs of which one is better: of sibling steps for the pair-wise PRM, of paths for DPO (method sections 4, 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from reasoning.records import Action, Path, StepPair

MIN_MARGIN = 0.25
STANDARD_ERRORS = 2.0

# Differences of fractions that are equal on paper differ in their last bits: 0.282 - 0.032 < 0.25.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class _Sibling:
    """A step with `sampled` > 0 independently sampled terminals below it, `passed` of which pass; `header`: how many of
    its tokens the system wrote.

    `exact`: it is a code step, so that its value was judged and not estimated.
    """

    ids: tuple[int, ...]
    passed: float
    sampled: float
    header: int = 0
    exact: bool = False

    @property
    def value(self) -> float:
        return self.passed / self.sampled

    @property
    def variance(self) -> float:
        return 0.0 if self.exact else _variance(self.passed, self.sampled)


def standard_error(passed: float, sampled: float, other_passed: float, other_sampled: float) -> float:
    """Standard error of the difference of two proportions, sqrt(p(1 - p)/n + q(1 - q)/m).

    p and q are smoothed to (passed + 0.5) / (sampled + 1), so that 0 of 1 and 1 of 1 are not taken for certain.
    Raises ValueError unless 0 <= passed <= sampled and 0 < sampled for both. Method section 4.
    """
    return math.sqrt(_variance(passed, sampled) + _variance(other_passed, other_sampled))


def required_margin(passed: float, sampled: float, other_passed: float, other_sampled: float) -> float:
    """The least difference of two siblings' values that makes a pair: max(0.25, 2 standard errors).

    Raises ValueError as `standard_error` does. Method section 4.
    """
    return _required(_variance(passed, sampled) + _variance(other_passed, other_sampled))


def _required(variance: float) -> float:
    return max(MIN_MARGIN, STANDARD_ERRORS * math.sqrt(variance))


def step_pairs(paths: Iterable[Path], per_problem: int) -> list[StepPair]:
    """Up to `per_problem` pairs of each problem, widest margins first (equal ones by tree and token ids).

    Siblings are distinct steps of one tree after the same token ids. A step's value is the share of the independently
    sampled terminals below it that pass, malformed ones among those that do not; steps without any are in no pair. A
    pair needs a difference of at least `required_margin`, in which a code step, whose value was judged, has no error of
    its own. Its weight is 1 / (n_pos * n_neg), the numbers of distinct winners and losers in the returned pairs of its
    siblings, so that no group of siblings weighs more than 1.

    The result does not depend on the order of the paths, but for that of the problems, which is that of `paths`.

    Raises:
        ValueError: `per_problem` below 1, or a step with more passing than sampled terminals.
    """
    if per_problem < 1:
        raise ValueError(f"per_problem: got {per_problem}; use at least 1")
    chosen: dict[str, list[StepPair]] = {}
    for (problem_id, tree_id, prefix), siblings in _sibling_groups(paths).items():
        chosen.setdefault(problem_id, []).extend(_pairs(problem_id, tree_id, prefix, siblings))
    return [pair for pairs in chosen.values() for pair in _weighted(sorted(pairs, key=_rank)[:per_problem])]


def path_pairs(paths: Iterable[Path], per_problem: int) -> list[tuple[Path, Path]]:
    """Up to `per_problem` pairs of each problem for iterative DPO: a path whose program passes against one that does
    not (method section 5).

    The best first: the shortest of those that pass, with the least valued and then longest of those that fail; no path
    is in two pairs. Paths that the infrastructure failed on are in none.
    """
    by_problem: dict[str, list[Path]] = {}
    for path in paths:
        if path.complete and path.value is not None:
            by_problem.setdefault(path.problem_id, []).append(path)
    pairs: list[tuple[Path, Path]] = []
    for own in by_problem.values():
        passing = sorted((p for p in own if p.solved), key=lambda p: p.sampled_tokens)
        failing = sorted((p for p in own if not p.solved), key=lambda p: (p.value or 0.0, -p.sampled_tokens))
        pairs += list(zip(passing, failing, strict=False))[:per_problem]
    return pairs


_Group = tuple[str, str, tuple[int, ...]]


def _sibling_groups(paths: Iterable[Path]) -> dict[_Group, list[_Sibling]]:
    groups: dict[_Group, dict[tuple[int, ...], _Sibling]] = {}
    for path in paths:
        prefix = path.prompt_ids
        for step in path.steps:
            ids = step.header_ids + step.token_ids
            if step.passed > step.sampled:
                raise ValueError(f"passed, sampled: got {step.passed}, {step.sampled}; use passed <= sampled")
            if step.sampled:
                group = groups.setdefault((path.problem_id, path.tree_id, prefix), {})
                known = group.get(ids)
                # Where paths were taken at different times, the later counts include the earlier ones.
                if known is None or (known.sampled, known.passed) < (step.sampled, step.passed):
                    group[ids] = _Sibling(
                        ids, step.passed, step.sampled, len(step.header_ids), step.action is Action.CODE
                    )
            prefix += ids
    return {key: list(group.values()) for key, group in groups.items()}


def _pairs(problem_id: str, tree_id: str, prefix: tuple[int, ...], siblings: Sequence[_Sibling]) -> list[StepPair]:
    """Every pair of a sibling group that is far enough apart, with weight 1 for now."""
    pairs: list[StepPair] = []
    for winner, loser in permutations(siblings, 2):
        margin = winner.value - loser.value
        if margin + _ROUNDING >= _required(winner.variance + loser.variance):
            pairs.append(
                StepPair(
                    problem_id=problem_id,
                    tree_id=tree_id,
                    prefix_ids=prefix,
                    chosen_ids=winner.ids,
                    rejected_ids=loser.ids,
                    chosen_value=winner.value,
                    rejected_value=loser.value,
                    margin=margin,
                    weight=1.0,
                    chosen_header=winner.header,
                    rejected_header=loser.header,
                )
            )
    return pairs


def _weighted(pairs: Sequence[StepPair]) -> list[StepPair]:
    winners: dict[_Group, set[tuple[int, ...]]] = {}
    losers: dict[_Group, set[tuple[int, ...]]] = {}
    for pair in pairs:
        winners.setdefault(_group(pair), set()).add(pair.chosen_ids)
        losers.setdefault(_group(pair), set()).add(pair.rejected_ids)
    return [
        pair.model_copy(update={"weight": 1.0 / (len(winners[_group(pair)]) * len(losers[_group(pair)]))})
        for pair in pairs
    ]


def _group(pair: StepPair) -> _Group:
    return pair.problem_id, pair.tree_id, pair.prefix_ids


def _rank(pair: StepPair) -> tuple[float, str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return -pair.margin, pair.tree_id, pair.prefix_ids, pair.chosen_ids, pair.rejected_ids


def _variance(passed: float, sampled: float) -> float:
    if not 0 <= passed <= sampled or not sampled:
        raise ValueError(f"passed, sampled: got {passed}, {sampled}; use 0 <= passed <= sampled, at least one sampled")
    smoothed = (passed + 0.5) / (sampled + 1)
    return smoothed * (1 - smoothed) / sampled
