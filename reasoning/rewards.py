"""What a path is worth, from its outcome and the rewards of its steps (method section 5).

The outcome R is in [0, 1], from the sandbox. `alpha` says how much of a path's reward it is; the rest comes from the
process reward model. Aggregation (`Phi`) is how the rewards of the steps become one number for the path, or one for
each step:

    paper_mean  alpha R + (1 - alpha) * 1/m * sum_{j=1..m} gamma^j r_j          (the paper's)
    min_soft    alpha R + (1 - alpha) * sum_j w_j r_j, w = softmax(-r / tau)    (the worst step decides: Cheng et al.
                2025, PURE: a path cannot make up for a bad step by adding good ones)
    delta       alpha R for the path, (1 - alpha) (V_j - V_{j-1}) for its step j (potential-based: Ng et al. 1999)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Phi = Literal["paper_mean", "min_soft", "delta"]
Decay = Literal["constant", "linear", "logarithmic"]


def alpha_at(round_: int, start: float, decay: Decay, floor: float, rounds: int) -> float:
    """alpha(t) of round t, from 1 on: `start` in the first round, never below the lower of `start` and `floor`.

    linear: from `start` to `floor` over `rounds` rounds. logarithmic: start / (1 + ln t).

    Raises ValueError for a round or number of rounds below 1.
    """
    if round_ < 1 or rounds < 1:
        raise ValueError(f"round, rounds: got {round_}, {rounds}; use at least 1")
    least = min(start, floor)
    match decay:
        case "linear":
            value = start - (start - least) * (round_ - 1) / max(1, rounds - 1)
        case "logarithmic":
            value = start / (1 + math.log(round_))
        case _:
            value = start
    return max(least, value)


def paper_mean(outcome: float, process: Sequence[float], alpha: float, gamma: float) -> float:
    """alpha R + (1 - alpha) * 1/m * sum_j gamma^j r_j, exponents from 1; the outcome alone where there is no step."""
    if not process:
        return outcome
    return alpha * outcome + (1 - alpha) * sum(gamma**j * r for j, r in enumerate(process, start=1)) / len(process)


def min_soft(outcome: float, process: Sequence[float], alpha: float, temperature: float) -> float:
    """alpha R + (1 - alpha) * the mean of the rewards of the steps under softmax(-r / temperature): between their mean
    (temperature to infinity) and their minimum (to 0)."""
    if not process:
        return outcome
    least = min(process)
    weights = [math.exp((least - r) / temperature) for r in process]
    return alpha * outcome + (1 - alpha) * sum(w * r for w, r in zip(weights, process, strict=True)) / sum(weights)


def value_deltas(values: Sequence[float], start: float) -> list[float]:
    """Potential-based process rewards r_j = V_j - V_{j-1} with V_0 = `start` (phi `delta`)."""
    return [v - before for v, before in zip(values, [start, *values][:-1], strict=True)]
