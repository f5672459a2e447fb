"""Training targets of the PRM from finished trees, and D+ (method sections 0 and 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from reasoning.records import Path, StepLabel

FULL_WEIGHT_SAMPLES = 8


def soft_label(passed: int, sampled: int) -> tuple[float, float]:
    """Target (n_pass + 0.5) / (n_term + 1) and weight min(1, n_term / 8); weight 0 where nothing was sampled."""
    if not 0 <= passed <= sampled:
        raise ValueError(f"passed, sampled: got {passed}, {sampled}; use 0 <= passed <= sampled")
    return (passed + 0.5) / (sampled + 1), min(1.0, sampled / FULL_WEIGHT_SAMPLES)


def label_counts(target: float, weight: float) -> tuple[float, float]:
    """Passing and failing terminals that a soft label stands for, at most `FULL_WEIGHT_SAMPLES` in all."""
    sampled = FULL_WEIGHT_SAMPLES * weight
    passed = min(sampled, max(0.0, target * (sampled + 1) - 0.5))
    return passed, sampled - passed


def step_labels(paths: Iterable[Path]) -> list[StepLabel]:
    """One label per path; a step shared by several paths of a tree carries its weight once."""
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
            target, weight = soft_label(step.passed, step.sampled)
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
    """D+ for training: up to `per_problem` solved paths of each problem, distinct programs, shortest first."""
    chosen: dict[str, list[Path]] = {}
    programs: set[tuple[str, str]] = set()
    for path in sorted(paths, key=_tokens):
        kept = chosen.setdefault(path.problem_id, [])
        key = (path.problem_id, path.program or "")
        if path.solved and len(kept) < per_problem and key not in programs:
            programs.add(key)
            kept.append(path)
    return [path for kept in chosen.values() for path in kept]


def _tokens(path: Path) -> int:
    return sum(len(step.token_ids) for step in path.steps)


def pass_rate(paths: Sequence[Path]) -> float:
    """Share of complete paths that are solved; 0 of none."""
    complete = [p for p in paths if p.complete]
    return sum(p.solved for p in complete) / len(complete) if complete else 0.0
