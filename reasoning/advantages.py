"""From judged paths to per-token advantages (method section 5).

A converter takes the paths of one problem, as the keys of their states, and the reward of each, and gives an advantage
for every step of every path. A state is what was written up to the end of a step; paths of one tree share states. Its
value is the mean reward of the paths through it; that of the root, the mean of all.

    leave_one_out  the path's reward less the mean of the others' (RLOO: Ahmadian et al. 2024), for all of its steps
    grpo           the path's reward less the mean, over the standard deviation (Shao et al. 2024), for all of its steps
    vine           value of the state after the step less that before it (Kazemnejad et al. 2024, VinePPO)
    sibling        value of the state after the step less the mean of its siblings'; 0 for a step without any
    tree_rl        value less that of the root, plus value less that before the step, over the square root of the number
                   of paths through the state, which would count it that often (Hou et al. 2025, TreeRL)

All are 0 where all rewards are equal, and none depends on the order of the paths. One more, `gae`, compares a path with
what a critic expected of its states rather than with other paths (`generalised`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reasoning.records import Path, Trajectory, mean
from reasoning.rewards import Phi, min_soft, paper_mean, value_deltas
from reasoning.steps import completion

States = Sequence[Sequence[Hashable]]
"""Of each path the keys of its states, in their order; equal keys are one state. A key stands at one depth."""
PerStep = list[list[float]]
Converter = Callable[[States, Sequence[float]], PerStep]
ConverterName = Literal["leave_one_out", "grpo", "vine", "sibling", "tree_rl"]
AdvantageName = Literal["leave_one_out", "grpo", "vine", "sibling", "tree_rl", "gae"]


@dataclass(frozen=True, slots=True)
class CreditSettings:
    """How rewards become advantages. `alpha`: share of the outcome, in [0, 1]; `gamma`: of phi `paper_mean` and of
    `gae`; `gae_lambda`: in [0, 1]; `softmin_temperature`: of phi `min_soft`."""

    advantage: AdvantageName = "leave_one_out"
    phi: Phi = "delta"
    alpha: float = 1.0
    gamma: float = 0.99
    softmin_temperature: float = 0.1
    gae_lambda: float = 0.95


# --- converters ---


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """RLOO: each reward minus the mean of the others; zeros for fewer than two. Sums to zero."""
    n, total = len(rewards), sum(rewards)
    if n < 2:
        return [0.0] * n
    return [r - (total - r) / (n - 1) for r in rewards]


def standardised(rewards: Sequence[float]) -> list[float]:
    """GRPO: each reward minus the mean, over the standard deviation; zeros where all are equal. Sums to zero."""
    if not rewards:
        return []
    centre = mean(rewards)
    spread = math.sqrt(mean([(r - centre) ** 2 for r in rewards]))
    return [(r - centre) / spread if spread > 1e-6 else 0.0 for r in rewards]


class _Values:
    """The value of each state, and how many paths go through it."""

    def __init__(self, states: States, rewards: Sequence[float]) -> None:
        self.root = mean(rewards)
        found: dict[Hashable, list[float]] = defaultdict(list)
        self.before: dict[Hashable, Hashable | None] = {}
        for path, reward in zip(states, rewards, strict=True):
            for before, state in zip([None, *path], path, strict=False):
                found[state].append(reward)
                self.before[state] = before
        self.value = {state: mean(rewards) for state, rewards in found.items()}
        self.paths = {state: len(rewards) for state, rewards in found.items()}
        self.after: dict[Hashable | None, list[Hashable]] = defaultdict(list)
        for state, before in self.before.items():
            self.after[before].append(state)

    def gain(self, state: Hashable) -> float:
        """Value of a state less that of the one before it."""
        before = self.before[state]
        return self.value[state] - (self.root if before is None else self.value[before])

    def over_siblings(self, state: Hashable) -> float:
        """Value of a state less the mean of its siblings'; 0 without any."""
        others = [self.value[s] for s in self.after[self.before[state]] if s != state]
        return self.value[state] - mean(others) if others else 0.0

    def tree_rl(self, state: Hashable) -> float:
        """See the module."""
        return (self.value[state] - self.root + self.gain(state)) / math.sqrt(self.paths[state])


def _whole(of: Callable[[Sequence[float]], list[float]]) -> Converter:
    def convert(states: States, rewards: Sequence[float]) -> PerStep:
        return [[a] * len(path) for a, path in zip(of(rewards), states, strict=True)]

    return convert


def _by_state(of: Callable[[_Values, Hashable], float]) -> Converter:
    def convert(states: States, rewards: Sequence[float]) -> PerStep:
        values = _Values(states, rewards)
        return [[of(values, state) for state in path] for path in states]

    return convert


CONVERTERS: dict[ConverterName, Converter] = {
    "leave_one_out": _whole(leave_one_out),
    "grpo": _whole(standardised),
    "vine": _by_state(_Values.gain),
    "sibling": _by_state(_Values.over_siblings),
    "tree_rl": _by_state(_Values.tree_rl),
}


def generalised(reward: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimates of the steps of one path whose `reward` comes with its last step (Schulman et al.
    2016): sum_k (gamma lam)^k delta_{j+k}, with delta_j = r_j + gamma V_j - V_{j-1}.

    `values`: V_0 to V_m, of the state before the first step to that after the last, whose own is not used: nothing
    comes after it. Returns m advantages. Raises ValueError for no value.
    """
    if not values:
        raise ValueError("values: got none; use one more than there are steps")
    found: list[float] = []
    later, after = 0.0, 0.0  # advantage and value of what follows
    for j in range(len(values) - 1, 0, -1):
        delta = (reward if j == len(values) - 1 else 0.0) + gamma * after - values[j - 1]
        later, after = delta + gamma * lam * later, values[j - 1]
        found.append(later)
    return found[::-1]


# --- paths ---


def credit_paths(
    paths: Sequence[Path],
    scores: Mapping[int, Sequence[float]],
    settings: CreditSettings,
    expected: Mapping[int, Sequence[float]] | None = None,
) -> list[Trajectory]:
    """Trajectories with an advantage for every sampled token, one group per problem.

    Rewards of paths by `settings.phi` (`reasoning.rewards`), advantages by `settings.advantage`. Under phi `delta` they
    are of the outcome, and alpha of them is mixed with the process advantage of step j: the PRM's V_j - V_{j-1}, minus
    the group's mean at that step. V_0 is the group's mean of V_1, since the prompt itself is not a step. Process
    rewards count only where the program compiles. Paths without a value (infrastructure failures) are left out;
    trajectories whose advantages are all zero carry no gradient and are dropped.

    `scores`: PRM values of the steps of `paths[i]` by index i; for a path without an entry the outcome counts alone.
    `expected`: for `gae`, a critic's values of `paths[i]` before the first step and after each; where there are none,
    the mean reward of the group.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        if path.complete and path.steps:
            groups[path.problem_id].append(i)
    trajectories: list[Trajectory] = []
    for members in groups.values():
        own = {i: scores[i] for i in members if i in scores and paths[i].compiles}
        rewards = [_reward(paths[i].value or 0.0, own.get(i, ()), settings) for i in members]
        if settings.advantage == "gae":
            outcome = _against_critic(paths, members, rewards, expected or {}, settings)
        else:
            outcome = CONVERTERS[settings.advantage]([_states(paths[i]) for i in members], rewards)
        process = _process_advantages(paths, members, own, scores) if settings.phi == "delta" else None
        for k, i in enumerate(members):
            per_step = outcome[k]
            if process is not None:
                per_step = [
                    settings.alpha * a + (1 - settings.alpha) * p for a, p in zip(per_step, process[i], strict=True)
                ]
            if any(abs(a) > 1e-9 for a in per_step):
                trajectories.append(_trajectory(paths[i], per_step))
    return trajectories


def _reward(outcome: float, process: Sequence[float], settings: CreditSettings) -> float:
    match settings.phi:
        case "paper_mean":
            return paper_mean(outcome, process, settings.alpha, settings.gamma)
        case "min_soft":
            return min_soft(outcome, process, settings.alpha, settings.softmin_temperature)
        case "delta":
            return outcome


def _against_critic(
    paths: Sequence[Path],
    members: Sequence[int],
    rewards: Sequence[float],
    expected: Mapping[int, Sequence[float]],
    settings: CreditSettings,
) -> PerStep:
    flat = mean(rewards)
    found = []
    for i, reward in zip(members, rewards, strict=True):
        values = expected.get(i) or [flat] * (len(paths[i].steps) + 1)
        found.append(generalised(reward, values, settings.gamma, settings.gae_lambda))
    return found


def _states(path: Path) -> list[Hashable]:
    ids = path.prompt_ids
    states: list[Hashable] = []
    for step in path.steps:
        ids += step.header_ids + step.token_ids
        states.append(ids)
    return states


def _process_advantages(
    paths: Sequence[Path],
    members: Sequence[int],
    own: Mapping[int, Sequence[float]],
    scores: Mapping[int, Sequence[float]],
) -> dict[int, list[float]]:
    start = mean([scores[i][0] for i in members if i in scores])
    deltas = {i: value_deltas(values, start) for i, values in own.items()}
    result: dict[int, list[float]] = {}
    for i in members:
        mine = deltas.get(i)
        if mine is None or len(deltas) < 2:
            result[i] = [0.0] * len(paths[i].steps)
            continue
        result[i] = [d - mean([o[j] for o in deltas.values() if j < len(o)]) for j, d in enumerate(mine)]
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


def with_reference(trajectory: Trajectory, logprobs: Sequence[float]) -> Trajectory:
    """The trajectory with a reference policy's log-probabilities of the tokens under its mask, in their order."""
    known = iter(logprobs)
    spread = tuple(next(known) if counts else 0.0 for counts in trajectory.loss_mask)
    return trajectory.model_copy(update={"reference_logprobs": spread})
