"""What the policy's own continuations of a step are worth, estimated from a tree that was searched (method section 4).

A search does not sample where the policy would: it goes back to what looks good, and draws a program after every step.
Labels are about the policy. So a step's value is the mean of its children as the policy would draw them: the policy's
probability of each action, and within an action the number of samples that became each child. How many independent
terminals that is worth is their effective number, 1 / sum of squared weights (Kish 1965), which is their count where
all weigh the same, as in independent paths.

What was never gone on with says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.nodes import Node
from sandbox import Verdict

DIGITS = 6


def step_values(nodes: Sequence[Node]) -> list[tuple[float, float]]:
    """For each node (passed, sampled): the effective number of terminals below it, and how many of them pass.

    `nodes`: of one tree, children after their parents. (0, 0) where no terminal is below. 0 <= passed <= sampled.
    """
    found: list[tuple[float, float] | None] = [None] * len(nodes)  # value, sum of squared weights
    for node in reversed(nodes):
        if node.terminal:
            solved = node.judgement is not None and node.judgement.verdict is Verdict.ACCEPTED
            found[node.id] = (float(solved), 1.0 / node.multiplicity)
        else:
            found[node.id] = _mean(node, [(nodes[i], known) for i in node.children if (known := found[i]) is not None])
    return [_counts(known) for known in found]


def _mean(parent: Node, children: Sequence[tuple[Node, tuple[float, float]]]) -> tuple[float, float] | None:
    if not children:
        return None
    drawn: dict[int, int] = {}
    for child, _ in children:
        drawn[int(child.action or 0)] = drawn.get(int(child.action or 0), 0) + child.multiplicity
    priors = {action: (parent.action_prior or {}).get(action, 0.0) for action in drawn}
    if sum(priors.values()) <= 0:  # the actions' probabilities are not known: what was drawn stands for them
        priors = {action: float(count) for action, count in drawn.items()}
    total = sum(priors.values())
    value = spread = 0.0
    for child, (mean, squares) in children:
        action = int(child.action or 0)
        weight = priors[action] / total * child.multiplicity / drawn[action]
        value += weight * mean
        spread += weight * weight * squares
    return value, spread


def _counts(known: tuple[float, float] | None) -> tuple[float, float]:
    if known is None or known[1] <= 0:
        return 0.0, 0.0
    sampled = round(1.0 / known[1], DIGITS)
    return min(sampled, round(known[0] * sampled, DIGITS)), sampled
