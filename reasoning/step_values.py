"""What the policy's own continuations of a step are worth, estimated from a tree that was searched (method section 4).

A search does not sample where the policy would: it goes back to what looks good, and draws a program after every step.
Labels are about the policy. So a step's value is the mean of its children as the policy would draw them: the policy's
probability of each action, and within an action the number of samples that became each child. How many independent
terminals that is worth is their effective number, 1 / sum of squared weights (Kish 1965), which is their count where
all weigh the same, as in independent paths.

What was never gone on with says nothing and is left out. Two more things would make labels those of the search:

- A search forces a program after every step, however rarely the policy would write one there. Where no other action has
  a terminal, such programs stand only for the policy's probability of one: the effective number falls by its square.
- Which of the steps that a PRM has scored were gone on with is the PRM's choice, the best of k. They say nothing of the
  state before them; what follows each of them does.
"""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.nodes import Node
from sandbox import Verdict

DIGITS = 6


def step_values(nodes: Sequence[Node]) -> list[tuple[float, float]]:
    """For each node (passed, sampled): the effective number of terminals below it, and how many of them pass.

    `nodes`: of one tree, children after their parents. (0, 0) where no terminal is below, or where those that are stand
    for next to nothing of the policy. 0 <= passed <= sampled.
    """
    found: list[tuple[float, float] | None] = [None] * len(nodes)  # value, sum of squared weights
    for node in reversed(nodes):
        if node.terminal:
            solved = node.judgement is not None and node.judgement.verdict is Verdict.ACCEPTED
            found[node.id] = (float(solved), 1.0 / node.multiplicity)
        else:
            found[node.id] = _mean(node, [(nodes[i], found[i]) for i in node.children])
    return [_counts(known) for known in found]


def _mean(parent: Node, children: Sequence[tuple[Node, tuple[float, float] | None]]) -> tuple[float, float] | None:
    scored = any(child.score is not None for child, _ in children)
    chosen = {child.action for child, _ in children if not child.terminal} if scored else set()
    known = [(child, found) for child, found in children if found is not None and child.action not in chosen]
    drawn: dict[int, int] = {}
    for child, _ in known:
        drawn[int(child.action or 0)] = drawn.get(int(child.action or 0), 0) + child.multiplicity
    # Where the actions' probabilities are not known, what was drawn stands for them.
    priors = parent.action_prior or {}
    if sum(priors.values()) <= 0:
        priors = {action: float(count) for action, count in drawn.items()}
    share = sum(priors.get(action, 0.0) for action in drawn)
    if share <= 0:
        return None
    value = spread = 0.0
    for child, (mean, squares) in known:
        action = int(child.action or 0)
        weight = priors.get(action, 0.0) / share * child.multiplicity / drawn[action]
        value += weight * mean
        spread += weight * weight * squares
    return value, spread * (sum(priors.values()) / share) ** 2


def _counts(known: tuple[float, float] | None) -> tuple[float, float]:
    if known is None or known[1] <= 0:
        return 0.0, 0.0
    sampled = round(1.0 / known[1], DIGITS)
    return min(sampled, round(known[0] * sampled, DIGITS)), sampled
