"""Settings of the search and the rules that choose where to expand (method section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PolicyName = Literal["puct", "uct", "gumbel", "faithful", "best-of-n", "beam"]


class SearchSettings(BaseModel):
    """How one problem is searched. Token budgets count sampled tokens, not prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyName = "puct"
    max_depth: int = Field(default=4, ge=2, le=16, description="steps of a path at most, the code step included")
    root_samples: int = Field(default=4, ge=1, le=64, description="samples of an expansion of the root")
    samples: int = Field(default=4, ge=1, le=64, description="samples of any other expansion")
    leaves_in_flight: int = Field(default=4, ge=1, le=64, description="expansions of one tree running at a time")
    step_tokens: int = Field(default=96, ge=8, le=8192, description="length limit of a pseudocode step")
    code_tokens: int = Field(default=192, ge=16, le=16384, description="length limit of a code step")
    path_tokens: int | None = Field(
        default=None,
        ge=64,
        description="of prompt and steps together; a long path turns to code; None: engine.max_model_len",
    )
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
    virtual_loss: Literal["visits", "losses"] = Field(
        default="visits", description="running expansions count as visits only, or as visits of value 0"
    )
    beam_width: int = Field(default=2, ge=1, le=64, description="states kept per depth; policy beam only")
    rollout_weight: float = Field(default=1.0, ge=0, le=1, description="lambda: 1 ignores the PRM")
    compile_weight: float = Field(default=0.1, ge=0, lt=1, description="alpha of the terminal value")

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        # The policy brings its own numbers; what is set beside it wins.
        published = isinstance(values, dict) and values.get("policy") == "faithful"
        return {**FAITHFUL, **values} if published else values

    def has_room(self, length: int, header: int) -> bool:
        """Whether a step and a program fit after `length` tokens, each with `header` tokens before it."""
        needed = length + 2 * header + self.step_tokens + self.code_tokens
        return self.path_tokens is None or needed <= self.path_tokens

    def with_policy(self, policy: PolicyName) -> SearchSettings:
        """These settings under another policy; `faithful` brings its own numbers, whatever was set."""
        return self.model_copy(update={"policy": policy, **(FAITHFUL if policy == "faithful" else {})})


FAITHFUL: dict[str, Any] = {
    "uct_weight": 2.0, "root_samples": 3, "samples": 3, "temperature": 0.8, "top_p": 0.95, "leaves_in_flight": 1,
}  # fmt: skip
"""w, n, T and top-p of the published search (paper section 3.3), which grows one tree by one expansion at a time.

They are the defaults where the policy is `faithful`."""


def terminal_value(compiles: bool, passed: int, total: int, alpha: float) -> float:
    """alpha * compiles + (1 - alpha) * passed / total, in [0, 1] (paper section 3.3; method section 3).

    Raises ValueError where `total` is not positive: a suite without tests judges nothing.
    """
    if total <= 0 or not 0 <= passed <= total:
        raise ValueError(f"passed, total: got {passed}, {total}; use 0 <= passed <= total, total > 0")
    return alpha * compiles + (1 - alpha) * passed / total


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b); -inf stands for nothing."""
    low, high = sorted((a, b))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def sibling_priors(log_masses: Sequence[float], groups: Sequence[int], group_prior: dict[int, float]) -> list[float]:
    """P over siblings: within each action in proportion to their masses, times the prior of the action. Sums to 1.

    `log_masses`: ln of the sum, over the samples that became the child, of exp(mean token log-probability / tau). For
    children of one sample each that is the softmax of method section 3; where samples were merged their mass adds.
    """
    top: dict[int, float] = {}
    for group, mass in zip(groups, log_masses, strict=True):
        top[group] = max(mass, top.get(group, -math.inf))
    weights = [math.exp(mass - top[g]) for g, mass in zip(groups, log_masses, strict=True)]
    totals = dict.fromkeys(top, 0.0)
    for group, weight in zip(groups, weights, strict=True):
        totals[group] += weight
    present = sum(group_prior.get(g, 0.0) for g in top)
    shares = {g: group_prior.get(g, 0.0) / present if present > 0 else 1 / len(top) for g in top}
    return [shares[g] * w / totals[g] for w, g in zip(weights, groups, strict=True)]


def normalised(values: Sequence[float | None], parent: float, reduction: float) -> list[float]:
    """Q of children for PUCT: min-max over {parent} and the known values; an unknown child takes the parent's
    normalised value minus `reduction`. Where all known values are equal, they are 0.5."""
    known = [value for value in values if value is not None]
    low, high = min([parent, *known]), max([parent, *known])

    def scaled(value: float) -> float:
        return 0.5 if high - low < 1e-12 else (value - low) / (high - low)

    return [scaled(parent) - reduction if value is None else scaled(value) for value in values]


def exploration(parent_visits: int, c_init: float, c_base: float) -> float:
    """c_puct = c_init + ln((N' + c_base + 1) / c_base), which grows slowly with the parent's visits (AlphaZero)."""
    return c_init + math.log((parent_visits + c_base + 1) / c_base)


def puct_scores(
    q: Sequence[float], priors: Sequence[float], visits: Sequence[int], parent_visits: int, c_init: float, c_base: float
) -> list[float]:
    """Qn(c) + c_puct * P(c) * sqrt(sum N') / (1 + N'(c)), AlphaZero's rule; `visits` include those in flight."""
    factor = exploration(parent_visits, c_init, c_base) * math.sqrt(sum(visits))
    return [value + factor * prior / (1 + n) for value, prior, n in zip(q, priors, visits, strict=True)]


def uct_scores(q: Sequence[float], visits: Sequence[int], parent_visits: int, weight: float) -> list[float]:
    """Q + w * sqrt(ln N(parent) / N(child)); children without a visit come first (paper section 3.3)."""
    log_parent = math.log(max(1, parent_visits))
    return [
        math.inf if n == 0 else value + weight * math.sqrt(log_parent / n) for value, n in zip(q, visits, strict=True)
    ]


def considered_visits(candidates: int, simulations: int) -> list[int]:
    """Sequential halving as a table: entry i is how many visits a candidate must have had to get simulation i.

    Every phase gives all candidates that are left the same number of visits, then drops the worse half; two are never
    reduced (Danihelka et al. 2022, section 3; Karnin et al. 2013).
    """
    if candidates <= 1:
        return list(range(simulations))
    phases = math.ceil(math.log2(candidates))
    visits = [0] * candidates
    table: list[int] = []
    left = candidates
    while len(table) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            table += visits[:left]
            visits[:left] = [n + 1 for n in visits[:left]]
        left = max(2, left // 2)
    return table[:simulations]


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
