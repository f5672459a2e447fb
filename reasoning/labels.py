"""Training targets of the point-wise PRM from finished trees, and D+ (method sections 0 and 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from reasoning.records import Path, StepLabel
from sandbox.cache import program_key

FULL_WEIGHT_SAMPLES = 8

LabelKind = Literal["soft", "hard"]


def soft_label(passed: float, sampled: float) -> tuple[float, float]:
    """Target (n_pass + 0.5) / (n_term + 1) and weight min(1, n_term / 8); weight 0 where nothing was sampled.

    Raises ValueError unless 0 <= passed <= sampled. Method section 4.
    """
    _check_counts(passed, sampled)
    return (passed + 0.5) / (sampled + 1), min(1.0, sampled / FULL_WEIGHT_SAMPLES)


def hard_label(passed: float, sampled: float) -> tuple[float, float]:
    """Target 1[n_pass > 0] with weight 1 where n_term >= 8; no label (0.5 with weight 0) where fewer were sampled.

    Raises ValueError unless 0 <= passed <= sampled. Method section 4.
    """
    _check_counts(passed, sampled)
    if sampled < FULL_WEIGHT_SAMPLES:
        return 0.5, 0.0
    return float(passed > 0), 1.0


_LABELS = {"soft": soft_label, "hard": hard_label}


def _check_counts(passed: float, sampled: float) -> None:
    if not 0 <= passed <= sampled:
        raise ValueError(f"passed, sampled: got {passed}, {sampled}; use 0 <= passed <= sampled")


def label_counts(target: float, weight: float) -> tuple[float, float]:
    """Passing and failing terminals that a soft label stands for, at most `FULL_WEIGHT_SAMPLES` in all.

    A hard label stands for terminals that all pass or all fail: its counts do not measure a pass rate.
    """
    sampled = FULL_WEIGHT_SAMPLES * weight
    passed = min(sampled, max(0.0, target * (sampled + 1) - 0.5))
    return passed, sampled - passed


def step_labels(paths: Iterable[Path], kind: LabelKind = "soft") -> list[StepLabel]:
    """One label per path that has any weight; a step shared by several paths of a tree carries its weight once.

    Raises ValueError for another `kind`. Method section 4.
    """
    if kind not in _LABELS:
        raise ValueError(f"kind: got {kind!r}; use one of {', '.join(_LABELS)}")
    label_of = _LABELS[kind]
    seen: set[tuple[str, tuple[int, ...]]] = set()
    labels: list[StepLabel] = []
    for path in paths:
        ids = list(path.prompt_ids)
        ends: list[int] = []
        targets: list[float] = []
        weights: list[float] = []
        for step in path.steps:
            ids += step.header_ids + step.token_ids
            key = (path.tree_id, tuple(ids))
            target, weight = label_of(step.passed, step.sampled)
            ends.append(len(ids) - 1)
            targets.append(target)
            weights.append(0.0 if key in seen else weight)
            seen.add(key)
        if any(weights):
            labels.append(
                StepLabel(
                    problem_id=path.problem_id,
                    token_ids=tuple(ids),
                    ends=tuple(ends),
                    targets=tuple(targets),
                    weights=tuple(weights),
                )
            )
    return labels


def mean_target(labels: Iterable[StepLabel]) -> float:
    """Weighted mean of the targets, in (0, 1); 0.5 where nothing has weight."""
    pairs = [pair for label in labels for pair in zip(label.targets, label.weights, strict=True)]
    total = sum(weight for _, weight in pairs)
    return sum(target * weight for target, weight in pairs) / total if total else 0.5


def held_out(problem_id: str, share: float) -> bool:
    """Whether a problem belongs to the held-out part of a split by problem; depends on the id alone."""
    digest = hashlib.sha256(f"prm-split:{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def solved_paths(paths: Iterable[Path], per_problem: int) -> list[Path]:
    """D+ for training: up to `per_problem` complete paths of each problem whose program passes all tests.

    Shortest first, ties in the order of `paths`. Programs are distinct by syntax tree: one that differs in layout or
    comments alone would teach the same program twice. Method sections 0 and 4.
    """
    chosen: dict[str, list[Path]] = {}
    programs: set[tuple[str, bytes]] = set()
    for path in sorted(paths, key=lambda path: path.sampled_tokens):
        if not (path.complete and path.solved) or path.program is None:
            continue
        kept = chosen.setdefault(path.problem_id, [])
        if len(kept) < per_problem and (key := (path.problem_id, program_key(path.program))) not in programs:
            programs.add(key)
            kept.append(path)
    return [path for kept in chosen.values() for path in kept]


def pass_rate(paths: Sequence[Path]) -> float:
    """Share of complete paths that are solved; 0 of none."""
    complete = [p for p in paths if p.complete]
    return sum(p.solved for p in complete) / len(complete) if complete else 0.0
