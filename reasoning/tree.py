"""The search tree of one problem: ask/tell, pure data, no model and no sandbox (method section 3).

    tree = SearchTree("t1", problem_id, prompt_ids, codec.header_ids, settings)
    expansion = tree.ask()                       # None: nothing to do now
    actions = tree.begin(expansion.id, priors)   # one action per sample to draw
    tree.tell(expansion.id, slot, outcome)       # for each sample, in any order, at most once

Every drawn sample ends in exactly one `tell`. The event log (`events`) is append-only; `SearchTree.replay` of it gives
the same tree.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reasoning.records import Action, Path, Sample, StepRecord, mean
from reasoning.search import (
    SearchSettings,
    normalised,
    puct_scores,
    sibling_priors,
    split_samples,
    terminal_value,
    uct_scores,
)
from reasoning.steps import extract_program, legal_actions, read_sample
from sandbox import Verdict

HeaderIds = Callable[[int, Action], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the sandbox said of a program on the suite."""

    verdict: Verdict
    compiles: bool
    passed: int
    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one drawn sample ended: a sample (judged if it holds a program), or an infrastructure failure.

    `score`: the PRM's value of the state after the step, if it was asked.
    """

    sample: Sample | None = None
    judgement: Judgement | None = None
    score: float | None = None
    infra_error: str = ""


@dataclass(frozen=True, slots=True)
class Expansion:
    """A request: draw `count` samples after `node`, each of one of the `legal` actions."""

    id: int
    node: int
    depth: int
    count: int
    legal: tuple[Action, ...]


@dataclass(slots=True)
class Node:
    """A step. Four statistics, never mixed: search value (`visits`, `value_sum`), independently sampled terminals below
    (`sampled`, `passed`; for labels), the best terminal (`best`), and counts (`multiplicity`, `in_flight`)."""

    id: int
    parent: int | None
    depth: int
    action: Action | None
    header_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    weight_spans: tuple[tuple[int, int, int], ...] = ()
    text: str = ""
    key: str = ""
    failure: str = ""
    program: str | None = None
    judgement: Judgement | None = None
    score: float | None = None
    value: float | None = None
    closed: bool = False
    children: list[int] = field(default_factory=list)
    action_prior: dict[int, float] = field(default_factory=dict)
    expansions: int = 0
    pending: int = 0
    in_flight: int = 0
    multiplicity: int = 1
    visits: int = 0
    value_sum: float = 0.0
    sampled: int = 0
    passed: int = 0
    best: float | None = None

    @property
    def terminal(self) -> bool:
        return self.value is not None

    @property
    def mean_logprob(self) -> float:
        return mean(self.logprobs)


@dataclass(slots=True)
class _Pending:
    node: int
    actions: tuple[Action, ...] = ()
    told: set[int] = field(default_factory=set)


def program_key(program: str) -> str:
    """A hash that is equal for programs with the same syntax tree (layout and comments do not count)."""
    try:
        text = ast.dump(ast.parse(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        text = program.strip()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class SearchTree:
    """One problem's tree. Not thread-safe: one owner asks and tells."""

    def __init__(
        self,
        tree_id: str,
        problem_id: str,
        prompt_ids: Sequence[int],
        header_ids: HeaderIds,
        settings: SearchSettings,
    ) -> None:
        self.id, self.problem_id, self.settings = tree_id, problem_id, settings
        self.prompt_ids = tuple(prompt_ids)
        self._header_ids = header_ids
        self.nodes = [Node(id=0, parent=None, depth=0, action=None)]
        self.events: list[dict[str, Any]] = []
        self.tokens = 0
        self.infra_errors = 0
        self.duplicates = 0
        self._pending: dict[int, _Pending] = {}
        self._next_id = 0

    # --- state ---

    @property
    def root(self) -> Node:
        return self.nodes[0]

    @property
    def expansions(self) -> int:
        """How many expansions were handed out."""
        return self._next_id

    @property
    def idle(self) -> bool:
        """No expansion is in flight."""
        return not self._pending

    def finished(self, elapsed_s: float = 0.0) -> str:
        """Why no further expansion should be asked for, or "" if the search may go on."""
        s = self.settings
        failing = self.root.sampled - self.root.passed
        if self.root.passed >= s.enough_passing and failing >= s.enough_failing:
            return "enough passing and failing programs"
        if self.tokens >= s.token_budget:
            return "token budget"
        if self._next_id >= s.expansion_budget:
            return "expansion budget"
        if elapsed_s >= s.seconds:
            return "time budget"
        if self.infra_errors > 8 + self.root.sampled:
            return "too many infrastructure errors"
        return ""

    def prompt_for(self, node_id: int) -> tuple[int, ...]:
        """Exact token ids of the state at a node: the prompt and every step as it was sampled."""
        ids: list[int] = list(self.prompt_ids)
        for node in self._lineage(node_id)[1:]:
            ids += node.header_ids + node.token_ids
        return tuple(ids)

    def known_judgement(self, program: str) -> Judgement | None:
        """The judgement of a program of this tree with the same syntax tree, if there is one."""
        key = program_key(program)
        return next((n.judgement for n in self.nodes if n.key == key and n.judgement is not None), None)

    # --- ask ---

    def ask(self) -> Expansion | None:
        """The next expansion, marked in flight; None where every open node is already being expanded."""
        node = self._select(self.root)
        if node is None and self.root.closed and self.idle:
            # Everything below was tried: widen at the root rather than leave the budget unused.
            node = self.root
        if node is None:
            return None
        s = self.settings
        expansion = Expansion(
            id=self._next_id,
            node=node.id,
            depth=node.depth,
            count=s.root_samples if node.id == 0 else s.samples,
            legal=legal_actions(node.depth, s.max_depth),
        )
        self._next_id += 1
        self._pending[expansion.id] = _Pending(node.id)
        node.expansions += 1
        node.pending += 1
        node.closed = False
        for ancestor in self._lineage(node.id):
            ancestor.in_flight += 1
        self.events.append({"event": "ask", "id": expansion.id, "node": node.id})
        return expansion

    def begin(self, expansion_id: int, count: int, priors: dict[int, float] | None = None) -> tuple[Action, ...]:
        """Fix which action each of the `count` samples of an expansion takes.

        `priors`: the policy's probability of each legal action; equal shares where None. A code step is always among
        them where it is legal, so that every expansion below the root brings at least one value.
        """
        pending = self._pending[expansion_id]
        node = self.nodes[pending.node]
        legal = legal_actions(node.depth, self.settings.max_depth)
        shares = {int(a): (priors or {}).get(int(a), 0.0 if priors else 1.0) for a in legal}
        plan = split_samples(count, shares, always=int(Action.CODE))
        node.action_prior = shares
        pending.actions = tuple(Action(a) for a in sorted(plan, reverse=True) for _ in range(plan[a]))
        self.events.append({"event": "begin", "id": expansion_id, "count": count, "priors": priors})
        return pending.actions

    def _select(self, node: Node) -> Node | None:
        if node.closed or node.terminal:
            return None
        if node.expansions == 0:
            return node
        children = [self.nodes[i] for i in node.children]
        ranked = sorted(zip(self._scores(node, children), children, strict=True), key=lambda p: (-p[0], p[1].id))
        for _, child in ranked:
            found = self._select(child)
            if found is not None:
                return found
        return None

    def _scores(self, parent: Node, children: list[Node]) -> list[float]:
        """Scores of all children; closed ones cannot be chosen, but their visits and values count for the others."""
        s = self.settings
        if not children:
            return []
        visits = [c.visits + c.in_flight for c in children]
        parent_visits = parent.visits + parent.in_flight
        if s.policy == "uct":
            return uct_scores([self.q(c) or 0.0 for c in children], visits, parent_visits, s.uct_weight)
        priors = sibling_priors(
            [c.mean_logprob for c in children],
            [int(c.action or 0) for c in children],
            [float(c.multiplicity) for c in children],
            parent.action_prior,
            s.prior_temperature,
        )
        q = normalised([self.q(c) for c in children], self.q(parent) or 0.0, s.first_play_reduction)
        return puct_scores(q, priors, visits, parent_visits, s.c_init, s.c_base)

    def q(self, node: Node) -> float | None:
        """Search value: lambda * mean of backed-up values + (1 - lambda) * PRM; what is missing is left out."""
        rollout = node.value_sum / node.visits if node.visits else None
        if node.score is None:
            return rollout
        weight = self.settings.rollout_weight
        return node.score if rollout is None else (1 - weight) * node.score + weight * rollout

    # --- tell ---

    def tell(self, expansion_id: int, slot: int, outcome: Outcome) -> Node | None:
        """Record how one sample ended; telling the same slot again changes nothing.

        Returns: the node that holds the sample (an older one where it is a duplicate), None for an infrastructure
        failure or a repeated tell.
        """
        pending = self._pending.get(expansion_id)
        if pending is None or slot in pending.told:
            return None
        if not 0 <= slot < len(pending.actions):
            raise IndexError(f"slot: got {slot}; expansion {expansion_id} has {len(pending.actions)}")
        pending.told.add(slot)
        self.events.append({"event": "tell", "id": expansion_id, "slot": slot, "outcome": asdict(outcome)})
        parent = self.nodes[pending.node]
        node = None
        if outcome.sample is None:
            self.infra_errors += 1
        else:
            self.tokens += len(outcome.sample.token_ids)
            node = self._attach(parent, pending.actions[slot], outcome.sample, outcome)
        self._settle(expansion_id, pending)
        return node

    def abandon(self, expansion_id: int, reason: str) -> None:
        """End every open slot of an expansion as an infrastructure failure."""
        pending = self._pending.get(expansion_id)
        if pending is None:
            return
        for slot in range(len(pending.actions)):
            self.tell(expansion_id, slot, Outcome(infra_error=reason))
        if expansion_id in self._pending:  # it was never begun
            self.infra_errors += 1
            self.events.append({"event": "abandon", "id": expansion_id, "reason": reason})
            self._settle(expansion_id, pending)

    def _attach(self, parent: Node, action: Action, sample: Sample, outcome: Outcome) -> Node | None:
        step, failure = read_sample(action, sample.text, truncated=sample.finish == "length")
        program = extract_program(step.text) if step is not None and action is Action.CODE else None
        if program is not None and outcome.judgement is None:
            self.infra_errors += 1  # nobody judged it: not a value of 0
            return None
        text = step.text if step is not None else sample.text
        key = program_key(program) if program is not None else f"{int(action)}:{text}"
        twin = next((self.nodes[i] for i in parent.children if self.nodes[i].key == key), None)
        if twin is not None:
            self.duplicates += 1
            twin.multiplicity += 1
            node = twin
        else:
            node = Node(
                id=len(self.nodes),
                parent=parent.id,
                depth=parent.depth + 1,
                action=action,
                header_ids=self._header_ids(parent.depth + 1, action),
                token_ids=sample.token_ids,
                logprobs=sample.logprobs,
                weight_spans=sample.weight_spans,
                text=text,
                key=key,
                failure=failure,
                program=program,
                judgement=outcome.judgement,
                score=outcome.score,
                value=self._value(action, failure, outcome.judgement),
            )
            self.nodes.append(node)
            parent.children.append(node.id)
        if node.value is not None:
            self._back_up(node)
        return node

    def _value(self, action: Action, failure: str, judgement: Judgement | None) -> float | None:
        if failure:
            return 0.0
        if action is not Action.CODE or judgement is None:
            return None
        return terminal_value(judgement.compiles, judgement.passed, judgement.total, self.settings.compile_weight)

    def _back_up(self, node: Node) -> None:
        value = node.value or 0.0
        solved = node.judgement is not None and node.judgement.verdict is Verdict.ACCEPTED
        node.closed = True
        for ancestor in self._lineage(node.id):
            ancestor.visits += 1
            ancestor.value_sum += value
            ancestor.sampled += 1
            ancestor.passed += solved
            ancestor.best = value if ancestor.best is None else max(ancestor.best, value)

    def _settle(self, expansion_id: int, pending: _Pending) -> None:
        if len(pending.told) < len(pending.actions):
            return
        del self._pending[expansion_id]
        node = self.nodes[pending.node]
        node.pending -= 1
        if not node.children and node.pending == 0:
            node.expansions = 0  # nothing came of it: the node may be expanded again
        lineage = self._lineage(pending.node)
        for ancestor in lineage:
            ancestor.in_flight -= 1
        for ancestor in reversed(lineage):
            tried = ancestor.pending == 0 and ancestor.expansions > 0
            ancestor.closed = tried and all(self.nodes[i].closed for i in ancestor.children)
            if not ancestor.closed:
                break

    def _lineage(self, node_id: int) -> list[Node]:
        """Root first."""
        lineage = [self.nodes[node_id]]
        while (parent := lineage[-1].parent) is not None:
            lineage.append(self.nodes[parent])
        return lineage[::-1]

    # --- out ---

    def paths(self) -> list[Path]:
        """Every path that ended: complete ones, and those that a malformed step cut short (value 0, no program)."""
        return [self.path_to(node) for node in self.nodes if node.terminal]

    def path_to(self, node: Node) -> Path:
        """The path from the root to `node`."""
        steps = tuple(
            StepRecord(
                action=Action(n.action or 1),
                header_ids=n.header_ids,
                token_ids=n.token_ids,
                logprobs=n.logprobs,
                text=n.text,
                weight_spans=n.weight_spans,
                value=self.q(n),
                passed=n.passed,
                sampled=n.sampled,
            )
            for n in self._lineage(node.id)[1:]
        )
        judgement = node.judgement
        return Path(
            problem_id=self.problem_id,
            tree_id=self.id,
            prompt_ids=self.prompt_ids,
            steps=steps,
            program=node.program,
            verdict=judgement.verdict if judgement else None,
            compiles=bool(judgement and judgement.compiles),
            tests_passed=judgement.passed if judgement else 0,
            tests_total=judgement.total if judgement else 0,
            value=node.value,
            temperature=self.settings.temperature,
        )

    @classmethod
    def replay(
        cls,
        tree_id: str,
        problem_id: str,
        prompt_ids: Sequence[int],
        header_ids: HeaderIds,
        settings: SearchSettings,
        events: Iterable[dict[str, Any]],
    ) -> SearchTree:
        """The tree that an event log describes. Expansions in flight at its end are abandoned by the caller, if wanted.

        Raises ValueError where the log does not fit the settings (an expansion of another node would be chosen).
        """
        tree = cls(tree_id, problem_id, prompt_ids, header_ids, settings)
        for event in events:
            match event["event"]:
                case "ask":
                    expansion = tree.ask()
                    if expansion is None or (expansion.id, expansion.node) != (event["id"], event["node"]):
                        raise ValueError(f"event log: ask {event['id']} of node {event['node']} does not follow")
                case "begin":
                    priors = event["priors"]
                    tree.begin(event["id"], event["count"], priors and {int(k): v for k, v in priors.items()})
                case "tell":
                    tree.tell(event["id"], event["slot"], _outcome(event["outcome"]))
                case "abandon":
                    tree.abandon(event["id"], event["reason"])
        return tree


def _outcome(raw: dict[str, Any]) -> Outcome:
    sample, judgement = raw["sample"], raw["judgement"]
    return Outcome(
        sample=sample
        and Sample(
            token_ids=tuple(sample["token_ids"]),
            logprobs=tuple(sample["logprobs"]),
            text=sample["text"],
            finish=sample["finish"],
            weight_spans=tuple((int(v), int(a), int(b)) for v, a, b in sample["weight_spans"]),
        ),
        judgement=judgement and Judgement(**{**judgement, "verdict": Verdict(judgement["verdict"])}),
        score=raw["score"],
        infra_error=raw["infra_error"],
    )
