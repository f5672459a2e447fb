"""From judged paths to per-token advantages (method section 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from reasoning.records import Path, Trajectory, mean
from reasoning.steps import completion


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """RLOO: each reward minus the mean of the others; zeros for fewer than two. Sums to zero."""
    n, total = len(rewards), sum(rewards)
    if n < 2:
        return [0.0] * n
    return [r - (total - r) / (n - 1) for r in rewards]


def value_deltas(values: Sequence[float], start: float) -> list[float]:
    """Potential-based process rewards r_j = V_j - V_{j-1} with V_0 = `start` (phi `delta`)."""
    return [v - before for v, before in zip(values, [start, *values][:-1], strict=True)]


def group_relative(
    paths: Sequence[Path], scores: Mapping[int, Sequence[float]], process_weight: float
) -> list[Trajectory]:
    """Trajectories with outcome and process advantages, one group per problem.

    The outcome advantage of a path is leave-one-out over the judged paths of its problem. The process advantage of its
    step j is the PRM's V_j - V_{j-1}, minus the group's mean at that step, counted only where the program compiles.
    V_0 is the group's mean of V_1, since the prompt itself is not a step. Paths without a value (infrastructure
    failures) are left out; trajectories whose advantages are all zero carry no gradient and are dropped.

    `scores`: PRM values of the steps of `paths[i]` by index i; paths without an entry get no process advantage.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        if path.complete and path.steps:
            groups[path.problem_id].append(i)
    trajectories: list[Trajectory] = []
    for members in groups.values():
        outcome = dict(zip(members, leave_one_out([paths[i].value or 0.0 for i in members]), strict=True))
        process = _process_advantages(paths, members, scores)
        for i in members:
            per_step = [outcome[i] + process_weight * p for p in process[i]]
            if any(abs(a) > 1e-9 for a in per_step):
                trajectories.append(_trajectory(paths[i], per_step))
    return trajectories


def _process_advantages(
    paths: Sequence[Path], members: Sequence[int], scores: Mapping[int, Sequence[float]]
) -> dict[int, list[float]]:
    start = mean([scores[i][0] for i in members if i in scores])
    deltas = {i: value_deltas(scores[i], start) for i in members if i in scores and paths[i].compiles}
    result: dict[int, list[float]] = {}
    for i in members:
        own = deltas.get(i)
        if own is None or len(deltas) < 2:
            result[i] = [0.0] * len(paths[i].steps)
            continue
        result[i] = [d - mean([o[j] for o in deltas.values() if j < len(o)]) for j, d in enumerate(own)]
    return result


def _trajectory(path: Path, per_step: Sequence[float]) -> Trajectory:
    ids, mask, logprobs = completion(path.steps)
    advantages: list[float] = []
    for step, advantage in zip(path.steps, per_step, strict=True):
        advantages += [0.0] * len(step.header_ids) + [advantage] * len(step.token_ids)
    prompt = len(path.prompt_ids)
    versions = sorted({span[0] for step in path.steps for span in step.weight_spans})
    return Trajectory(
        problem_id=path.problem_id,
        token_ids=(*path.prompt_ids, *ids),
        loss_mask=(*[0] * prompt, *mask),
        logprobs=(*[0.0] * prompt, *logprobs),
        advantages=(*[0.0] * prompt, *advantages),
        outcome=path.value or 0.0,
        temperature=path.temperature,
        weight_versions=tuple(versions),
    )
