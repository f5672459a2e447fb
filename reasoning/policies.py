"""Where a search expands next: one class per policy, each a function of the tree alone (method section 3).

A policy holds no random state of its own, so that a replayed event log leads to the same choices: what is random is
drawn from a generator seeded by the tree and the expansion.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol

from reasoning.nodes import Node
from reasoning.records import Action
from reasoning.search import PolicyName, considered_visits, puct_scores, sibling_priors, split_samples, uct_scores

if TYPE_CHECKING:
    from reasoning.tree import SearchTree


class Policy(Protocol):
    """What a tree asks of its policy."""

    def choose(self, tree: SearchTree) -> Node | None:
        """The node to expand next; None where there is nothing to do before something that runs has ended."""
        ...

    def count(self, tree: SearchTree, node: Node) -> int:
        """How many samples to draw there."""
        ...

    def actions(self, tree: SearchTree, expansion_id: int, count: int, priors: dict[int, float]) -> list[Action]:
        """Which action each sample takes. `priors`: of the legal ones."""
        ...

    def attached(self, tree: SearchTree, node: Node) -> None:
        """A sample has become `node`, or was merged into it."""
        ...

    def settled(self, tree: SearchTree, node: Node) -> None:
        """An expansion of `node` has ended."""
        ...


class TreePolicy:
    """PUCT: from the root on the child with the best score, down to a state that was never expanded.

    When everything was tried the root is widened: the budget is not left unused. Every expansion where code is legal
    draws at least one code step, so that it brings a value.
    """

    def choose(self, tree: SearchTree) -> Node | None:
        """See Policy."""
        node = tree.root
        if node.available == 0:
            return node if tree.idle else None
        while node.expansions > 0:
            node = self.child(tree, node)
        return node

    def child(self, tree: SearchTree, parent: Node) -> Node:
        """The child to go on to, of those below which something was never expanded."""
        return puct_child(tree, parent)

    def count(self, tree: SearchTree, node: Node) -> int:
        """See Policy."""
        return tree.settings.root_samples if node.id == 0 else tree.settings.samples

    def actions(self, tree: SearchTree, expansion_id: int, count: int, priors: dict[int, float]) -> list[Action]:
        """See Policy."""
        plan = split_samples(count, priors, always=int(Action.CODE))
        return [Action(a) for a in sorted(plan, reverse=True) for _ in range(plan[a])]

    def attached(self, tree: SearchTree, node: Node) -> None:
        """See Policy."""

    def settled(self, tree: SearchTree, node: Node) -> None:
        """See Policy."""


class Uct(TreePolicy):
    """UCT over visits that include those in flight; children without a visit first."""

    def child(self, tree: SearchTree, parent: Node) -> Node:
        """See TreePolicy."""
        return uct_child(tree, parent)


class Gumbel(TreePolicy):
    """Sequential halving over the root's first children, PUCT below them; for small budgets.

    The candidates were drawn from the policy with noise, which is what Gumbel-top-k stands for; no second noise is
    added. A candidate's score is its log-probability plus a growing multiple of its normalised value (Danihelka et al.
    2022, equation 8). Expansions are counted, the root's own left out; there are as many as both budgets allow.
    """

    VISIT_OFFSET = 50.0
    VALUE_SCALE = 0.1
    LONGEST_TABLE = 4096

    def __init__(self) -> None:
        self._table: list[int] = []
        self._candidates = 0

    def child(self, tree: SearchTree, parent: Node) -> Node:
        """See TreePolicy."""
        if parent.id != 0 or len(parent.children) < 2:
            return puct_child(tree, parent)
        children = [tree.nodes[i] for i in parent.children]
        now = sum(c.asked for c in children)
        if self._candidates != len(children):
            self._candidates = len(children)
            left = min(tree.settings.expansion_budget - parent.expansions, now + tree.expansions_left)
            self._table = considered_visits(len(children), max(1, min(left, self.LONGEST_TABLE)))
        if now >= len(self._table):
            return puct_child(tree, parent)
        wanted = self._table[now]
        open_ = [c for c in children if c.available > 0]
        considered = [c for c in open_ if c.asked == wanted] or open_
        scale = (self.VISIT_OFFSET + max(c.visits for c in children)) * self.VALUE_SCALE
        values = dict(zip([c.id for c in children], tree.normalised_values(parent, children), strict=True))
        tau = tree.settings.prior_temperature
        return max(considered, key=lambda c: (c.mean_logprob / tau + scale * values[c.id], -c.id))


class Faithful(Uct):
    """The published search: UCT, unexplored children at random first, and after each expansion a random rollout.

    A rollout goes on with a random child of what was just expanded until that child is terminal. Unlike the published
    code, siblings of a terminal are kept, and every code step is judged.
    """

    def __init__(self) -> None:
        self._rollout: int | None = None

    def choose(self, tree: SearchTree) -> Node | None:
        """See Policy."""
        if not tree.idle:
            return None
        if self._rollout is not None:
            node, self._rollout = tree.nodes[self._rollout], None
            return node
        return super().choose(tree)

    def child(self, tree: SearchTree, parent: Node) -> Node:
        """See TreePolicy."""
        children = [tree.nodes[i] for i in parent.children]
        fresh = [c for c in children if c.asked == 0 and c.available > 0]
        return tree.random().choice(fresh) if fresh else uct_child(tree, parent)

    def actions(self, tree: SearchTree, expansion_id: int, count: int, priors: dict[int, float]) -> list[Action]:
        """See Policy."""
        return drawn_actions(tree.random(expansion_id), count, priors)

    def settled(self, tree: SearchTree, node: Node) -> None:
        """See Policy."""
        if node.children:
            following = tree.nodes[tree.random().choice(node.children)]
            self._rollout = following.id if following.available > 0 and following.expansions == 0 else None


class BestOfN:
    """Independent paths: each sample is gone on with by one sample, its action drawn by the policy, up to its code."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._due: Counter[int] = Counter()  # by node, samples that were asked for and have not come

    def choose(self, tree: SearchTree) -> Node | None:
        """See Policy."""
        node = tree.nodes[self._open.popleft()] if self._open else tree.root
        self._due[node.id] += 1
        return node

    def count(self, tree: SearchTree, node: Node) -> int:
        """See Policy."""
        return 1

    def actions(self, tree: SearchTree, expansion_id: int, count: int, priors: dict[int, float]) -> list[Action]:
        """See Policy."""
        return drawn_actions(tree.random(expansion_id), count, priors)

    def attached(self, tree: SearchTree, node: Node) -> None:
        """A path that met another one's step goes on from there by itself."""
        self._due[node.parent or 0] -= 1
        if not node.terminal:
            self._open.append(node.id)

    def settled(self, tree: SearchTree, node: Node) -> None:
        """A path whose next step was lost waits for another try; one that had not begun is not missed. Several paths
        that met in a step have several expansions there."""
        if self._due[node.id] > node.pending:
            self._due[node.id] -= 1
            if node.id != 0:
                self._open.append(node.id)


class Beam(TreePolicy):
    """Step beam search: all kept states are expanded and the `beam_width` best children kept; then anew from the root.

    Best by the PRM's score where there is one (nothing is known below them yet), then by mean log-probability.
    """

    def __init__(self) -> None:
        self._queue: deque[int] = deque([0])
        self._frontier: list[int] = []

    def choose(self, tree: SearchTree) -> Node | None:
        """See Policy."""
        if not self._queue:
            if not tree.idle:
                return None
            lost = [i for i in self._frontier if tree.nodes[i].expansions == 0]
            self._queue.extend(lost or self._best(tree))
            self._frontier = [i for i in self._frontier if i not in lost] if lost else []
        node = tree.nodes[self._queue.popleft()]
        self._frontier.append(node.id)
        return node

    def _best(self, tree: SearchTree) -> list[int]:
        """The children of the frontier that are kept; the root where there are none."""
        found = {i for f in self._frontier for i in tree.nodes[f].children}
        states = [tree.nodes[i] for i in sorted(found) if tree.nodes[i].available > 0 and not tree.nodes[i].expansions]
        states.sort(key=lambda n: (-(tree.q(n) or 0.0), -n.mean_logprob, n.id))
        return [n.id for n in states[: tree.settings.beam_width]] or [0]


POLICIES: dict[PolicyName, type[TreePolicy] | type[BestOfN]] = {
    "puct": TreePolicy, "uct": Uct, "gumbel": Gumbel, "faithful": Faithful, "best-of-n": BestOfN, "beam": Beam,
}  # fmt: skip


def drawn_actions(rng: random.Random, count: int, priors: dict[int, float]) -> list[Action]:
    """Actions drawn one by one from the policy's own probabilities."""
    weights = list(priors.values()) if sum(priors.values()) > 0 else [1.0] * len(priors)
    return [Action(a) for a in rng.choices(list(priors), weights, k=count)]


def puct_child(tree: SearchTree, parent: Node) -> Node:
    """The child with the best PUCT score among those with something to expand below; all count in the normalisation."""
    children = [tree.nodes[i] for i in parent.children]
    if parent.priors_stale:
        _refresh_priors(tree, parent, children)
    s = tree.settings
    scores = puct_scores(
        tree.normalised_values(parent, children),
        [c.prior for c in children],
        [c.visits + c.in_flight for c in children],
        parent.visits + parent.in_flight,
        s.c_init,
        s.c_base,
    )
    return _best(children, scores, [c.prior for c in children])


def uct_child(tree: SearchTree, parent: Node) -> Node:
    """The child with the best UCT score among those with something to expand below."""
    children = [tree.nodes[i] for i in parent.children]
    visits = [c.visits + c.in_flight for c in children]
    values = [tree.q(c) or 0.0 for c in children]
    scores = uct_scores(values, visits, parent.visits + parent.in_flight, tree.settings.uct_weight)
    return _best(children, scores, [0.0] * len(children))


def _best(children: list[Node], scores: list[float], priors: list[float]) -> Node:
    """The best among those with something to expand below; there is one. Where scores are equal, as before the first
    visit, the likelier; then the first."""
    best, highest = None, (-math.inf, -math.inf)
    for child, score, prior in zip(children, scores, priors, strict=True):
        if child.available > 0 and (best is None or (score, prior) > highest):
            best, highest = child, (score, prior)
    if best is None:
        raise RuntimeError("no child has anything to expand below")
    return best


def _refresh_priors(tree: SearchTree, parent: Node, children: list[Node]) -> None:
    priors = sibling_priors(
        [c.log_mass for c in children], [int(c.action or 0) for c in children], parent.action_prior or {}
    )
    for child, prior in zip(children, priors, strict=True):
        child.prior = prior
    parent.priors_stale = False
