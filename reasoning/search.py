"""Settings of the search and the rules that choose where to expand (method section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SearchSettings(BaseModel):
    """How one problem is searched. Token budgets count sampled tokens, not prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["puct", "uct"] = "puct"
    max_depth: int = Field(default=4, ge=2, le=16, description="steps of a path at most, the code step included")
    root_samples: int = Field(default=4, ge=1, le=64, description="samples of an expansion of the root")
    samples: int = Field(default=4, ge=1, le=64, description="samples of any other expansion")
    leaves_in_flight: int = Field(default=4, ge=1, le=64, description="expansions of one tree running at a time")
    step_tokens: int = Field(default=96, ge=8, le=8192, description="length limit of a pseudocode step")
    code_tokens: int = Field(default=192, ge=16, le=16384, description="length limit of a code step")
    temperature: float = Field(default=0.8, gt=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    token_budget: int = Field(default=2000, ge=64, description="sampled tokens after which a tree begins nothing new")
    expansion_budget: int = Field(default=32, ge=1, description="stop a tree after this many expansions")
    seconds: float = Field(default=300.0, gt=0, description="stop a tree after this long")
    enough_passing: int = Field(default=4, ge=1, description="stop on this many passing and enough_failing programs")
    enough_failing: int = Field(default=4, ge=0)
    c_init: float = Field(default=1.25, ge=0)
    c_base: float = Field(default=19652.0, gt=0)
    uct_weight: float = Field(default=2.0, ge=0, description="w of UCT")
    prior_temperature: float = Field(default=1.0, gt=0, description="tau of the prior over siblings")
    first_play_reduction: float = Field(default=0.1, ge=0, le=1)
    rollout_weight: float = Field(default=1.0, ge=0, le=1, description="lambda: 1 ignores the PRM")
    compile_weight: float = Field(default=0.1, ge=0, lt=1, description="alpha of the terminal value")


def terminal_value(compiles: bool, passed: int, total: int, alpha: float) -> float:
    """alpha * compiles + (1 - alpha) * passed / total, in [0, 1] (paper section 3.3; method section 3).

    Raises ValueError where `total` is not positive: a suite without tests judges nothing.
    """
    if total <= 0 or not 0 <= passed <= total:
        raise ValueError(f"passed, total: got {passed}, {total}; use 0 <= passed <= total, total > 0")
    return alpha * compiles + (1 - alpha) * passed / total


def sibling_priors(
    mean_logprobs: Sequence[float],
    groups: Sequence[int],
    mass: Sequence[float],
    group_prior: dict[int, float],
    tau: float,
) -> list[float]:
    """P over siblings: within each action the softmax of mean token log-probability / tau, weighted by `mass` (how many
    samples were merged into the child), times the prior of the action. Sums to 1."""
    weights: list[float] = []
    for group, logprob, count in zip(groups, mean_logprobs, mass, strict=True):
        peers = [value for g, value in zip(groups, mean_logprobs, strict=True) if g == group]
        weights.append(count * math.exp((logprob - max(peers)) / tau))
    totals = {g: sum(w for w, other in zip(weights, groups, strict=True) if other == g) for g in set(groups)}
    present = sum(group_prior.get(g, 0.0) for g in totals) or 1.0
    shares = {
        g: (group_prior.get(g, 0.0) / present if any(group_prior.get(h) for h in totals) else 1 / len(totals))
        for g in totals
    }
    return [shares[g] * w / totals[g] for w, g in zip(weights, groups, strict=True)]


def normalised(values: Sequence[float | None], parent: float, reduction: float) -> list[float]:
    """Q of children for PUCT: min-max over {parent} and the known values; an unknown child takes the parent's
    normalised value minus `reduction`. Where all known values are equal, they are 0.5."""
    known = [value for value in values if value is not None]
    low, high = min([parent, *known]), max([parent, *known])

    def scaled(value: float) -> float:
        return 0.5 if high - low < 1e-12 else (value - low) / (high - low)

    return [scaled(parent) - reduction if value is None else scaled(value) for value in values]


def puct_scores(
    q: Sequence[float], priors: Sequence[float], visits: Sequence[int], parent_visits: int, c_init: float, c_base: float
) -> list[float]:
    """Qn(c) + c_puct * P(c) * sqrt(sum N') / (1 + N'(c)), AlphaZero's rule; `visits` include those in flight."""
    c_puct = c_init + math.log((parent_visits + c_base + 1) / c_base)
    total = math.sqrt(sum(visits))
    return [value + c_puct * prior * total / (1 + n) for value, prior, n in zip(q, priors, visits, strict=True)]


def uct_scores(q: Sequence[float], visits: Sequence[int], parent_visits: int, weight: float) -> list[float]:
    """Q + w * sqrt(ln N(parent) / N(child)); children without a visit come first (paper section 3.3)."""
    log_parent = math.log(max(1, parent_visits))
    return [
        math.inf if n == 0 else value + weight * math.sqrt(log_parent / n) for value, n in zip(q, visits, strict=True)
    ]


def split_samples(count: int, priors: dict[int, float], always: int) -> dict[int, int]:
    """How many of `count` samples go to each action, by largest remainder; action `always` gets at least one."""
    total = sum(priors.values())
    exact = {action: count * (share / total if total > 0 else 1 / len(priors)) for action, share in priors.items()}
    plan = {action: int(value) for action, value in exact.items()}
    for action in sorted(exact, key=lambda a: (plan[a] - exact[a], a))[: count - sum(plan.values())]:
        plan[action] += 1
    if always in plan and plan[always] == 0 and count > 0:
        plan[max(plan, key=lambda a: (plan[a], a))] -= 1
        plan[always] = 1
    return {action: n for action, n in plan.items() if n > 0}
