"""The search tree of one problem: ask/tell, pure data, no model and no sandbox (method section 3).

    tree = SearchTree("t1", problem_id, prompt_ids, codec.headers(settings.max_depth), settings)
    expansion = tree.ask()                       # None: nothing to do now
    actions = tree.begin(expansion.id, priors)   # one action per sample to draw
    tree.tell(expansion.id, slot, outcome)       # for each sample, in any order, at most once

Every drawn sample ends in exactly one `tell`. What happens is written to an append-only log (`reasoning.event_log`);
`SearchTree.replay` of it gives the same tree.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from reasoning.event_log import (
    Abandoned,
    Asked,
    Begun,
    Ended,
    Event,
    EventLogError,
    Opened,
    Told,
    header_rows,
    header_table,
)
from reasoning.nodes import BROKEN_OFF, Expansion, Judgement, Node, Outcome, TreeReport, step_key
from reasoning.policies import POLICIES, Policy
from reasoning.records import Action, Path, Sample, StepRecord
from reasoning.search import SearchSettings, log_add, normalised, terminal_value
from reasoning.step_values import step_values
from reasoning.steps import extract_program, legal_actions, read_sample
from sandbox import Verdict
from sandbox.cache import program_key

FAILED_IN_ROW: Final = 8
"""A tree is given up when this many expansions more than can run at a time were lost one after the other."""

Headers = Mapping[tuple[int, Action], tuple[int, ...]]
"""Token ids of the header of step number (from 1) and action."""


@dataclass(slots=True)
class _Pending:
    node: int
    count: int
    legal: tuple[Action, ...]
    actions: tuple[Action, ...] = ()
    told: set[int] = field(default_factory=set)
    lost: int = 0


class SearchTree:
    """One problem's tree. Not thread-safe: one owner asks and tells.

    `log`: gets every event, the opening first; None keeps none. `seed`: of the policies that draw. `judged_by`: stands
    for the tests and limits that judge its programs.
    """

    def __init__(
        self,
        tree_id: str,
        problem_id: str,
        prompt_ids: Sequence[int],
        headers: Headers,
        settings: SearchSettings,
        seed: int = 0,
        log: Callable[[Event], None] | None = None,
        judged_by: str = "",
    ) -> None:
        self.id, self.problem_id, self.settings, self.seed = tree_id, problem_id, settings, seed
        self.prompt_ids = tuple(prompt_ids)
        self.nodes = [Node(id=0, parent=None, depth=0, action=None)]
        self.tokens = 0
        self.samples = 0
        self.squared_lengths = 0
        self.infra_errors = 0
        self.unscored = 0
        self.pruned = 0
        self.duplicates = 0
        self._headers = headers
        self._longest_header = max(map(len, headers.values()), default=0)
        self._policy: Policy = POLICIES[settings.policy]()
        self._judged: dict[bytes, Judgement] = {}
        self._pending: dict[int, _Pending] = {}
        self._open_slots = 0
        self._next_id = 0
        self._failed_in_row = 0
        self._log = log
        if log is not None:
            table = header_rows(headers)
            log(Opened(tree_id, problem_id, self.prompt_ids, table, settings.model_dump(), seed, judged_by))

    # --- state ---

    @property
    def root(self) -> Node:
        return self.nodes[0]

    @property
    def expansions(self) -> int:
        """How many expansions were handed out."""
        return self._next_id

    @property
    def expansions_left(self) -> int:
        """How many more there will be, if samples stay as long as they have been."""
        s = self.settings
        length = self.tokens / self.samples if self.samples else s.step_tokens / 2
        by_tokens = (s.token_budget - self.tokens) / max(1.0, s.samples * length) - len(self._pending)
        return max(0, min(s.expansion_budget - self._next_id, round(by_tokens)))

    @property
    def idle(self) -> bool:
        """No expansion is in flight."""
        return not self._pending

    @property
    def in_flight(self) -> list[int]:
        """The expansions that have not ended."""
        return list(self._pending)

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
        if self._failed_in_row > FAILED_IN_ROW + s.leaves_in_flight:
            return BROKEN_OFF
        return ""

    def prompt_for(self, node_id: int) -> tuple[int, ...]:
        """Exact token ids of the state at a node: the prompt and every step as it was sampled."""
        ids: list[int] = list(self.prompt_ids)
        for node in self._lineage(node_id)[1:]:
            ids += node.header_ids
            ids += node.token_ids
        return tuple(ids)

    def known_judgement(self, program: str) -> Judgement | None:
        """The judgement of a program of this tree with the same syntax tree, if there is one."""
        return self._judged.get(program_key(program))

    def q(self, node: Node) -> float | None:
        """Search value: lambda * mean of backed-up values + (1 - lambda) * PRM; what is missing is left out."""
        visits = node.visits + (node.in_flight if self.settings.virtual_loss == "losses" else 0)
        rollout = node.value_sum / visits if visits else None
        if node.score is None:
            return rollout
        weight = self.settings.rollout_weight
        return node.score if rollout is None else (1 - weight) * node.score + weight * rollout

    def normalised_values(self, parent: Node, children: Sequence[Node]) -> list[float]:
        """`normalised` values of the children of `parent`."""
        return normalised([self.q(c) for c in children], self.q(parent) or 0.0, self.settings.first_play_reduction)

    def random(self, expansion_id: int | None = None) -> random.Random:
        """A generator that depends on the seed and on how far the search is, or on an expansion."""
        at = f"{self._next_id}:{len(self.nodes)}" if expansion_id is None else f"expansion {expansion_id}"
        return random.Random(f"{self.seed}:{self.id}:{at}")

    # --- ask ---

    def ask(self, at_most: int | None = None, length: float | None = None) -> Expansion | None:
        """The next expansion, marked in flight; None where there is nothing to do before something in flight ends.

        Never more samples than `at_most`, and than the token budget has room for, with those in flight and those to
        come counted at `length` tokens each. None: as long as samples of this tree are in the mean when one of them is
        found running, sum of squares over sum; long ones run longer, so that is more than their mean.
        """
        room = self._room(length)
        if at_most is not None:
            room = min(at_most, room)
        if room <= 0 and self._pending:
            return None
        node = self._policy.choose(self)
        if node is None:
            return None
        return self._hand_out(node, max(1, min(self._policy.count(self, node), room)))

    def _room(self, length: float | None) -> int:
        """How many samples the token budget has room for."""
        s = self.settings
        if length is None:
            length = self.squared_lengths / self.tokens if self.tokens else s.code_tokens / 2
        left = s.token_budget - self.tokens - self._open_slots * length
        return round(left / max(1.0, length))

    def _hand_out(self, node: Node, count: int) -> Expansion:
        lineage = self._lineage(node.id)
        length = len(self.prompt_ids) + sum(len(n.header_ids) + len(n.token_ids) for n in lineage)
        room = self.settings.has_room(length, self._longest_header)
        legal = legal_actions(node.depth, self.settings.max_depth, room)
        expansion = Expansion(self._next_id, node.id, node.depth, count, legal)
        self._next_id += 1
        self._pending[expansion.id] = _Pending(node.id, count, legal)
        self._open_slots += count
        first = node.expansions == 0
        node.expansions += 1
        node.pending += 1
        for ancestor in lineage:
            ancestor.in_flight += 1
            ancestor.asked += 1
            ancestor.available -= first
        self._write(Asked(expansion.id, node.id, count))
        return expansion

    def begin(self, expansion_id: int, priors: Mapping[int, float] | None = None) -> tuple[Action, ...]:
        """Fix which action each sample of an expansion takes.

        `priors`: the policy's probability of each legal action; equal shares where None.
        """
        pending = self._pending[expansion_id]
        node = self.nodes[pending.node]
        shares = {int(a): (priors or {}).get(int(a), 0.0 if priors else 1.0) for a in pending.legal}
        node.action_prior = shares
        node.priors_stale = True
        pending.actions = tuple(self._policy.actions(self, expansion_id, pending.count, shares))
        self._write(Begun(expansion_id, dict(priors) if priors is not None else None))
        return pending.actions

    # --- tell ---

    def tell(self, expansion_id: int, slot: int, outcome: Outcome) -> Node | None:
        """Record how one sample ended; telling the same slot again changes nothing.

        Returns: the node that holds the sample (an older one where it is a duplicate), None for a sample that was lost
        or pruned and for a repeated tell. Raises IndexError for a slot that the expansion does not have.
        """
        pending = self._pending.get(expansion_id)
        if pending is None or slot in pending.told:
            return None
        if not 0 <= slot < len(pending.actions):
            raise IndexError(f"slot: got {slot}; expansion {expansion_id} has {len(pending.actions)}")
        pending.told.add(slot)
        self._open_slots -= 1
        self._write(Told(expansion_id, slot, outcome))
        parent = self.nodes[pending.node]
        node = None
        if outcome.pruned:
            self.pruned += 1
        else:
            if outcome.sample is not None:
                length = len(outcome.sample.token_ids)
                self.tokens += length
                self.squared_lengths += length * length
                node = self._attach(parent, pending.actions[slot], outcome.sample, outcome)
            self.samples += node is not None
            self.infra_errors += node is None
            self.unscored += node is not None and bool(outcome.infra_error)
            pending.lost += node is None
        if len(pending.told) == pending.count:
            self._settle(expansion_id, pending)
        return node

    def abandon(self, expansion_id: int, reason: str, *, pruned: bool = False) -> None:
        """End every open slot of an expansion: as a failure of the infrastructure, or as `pruned`."""
        pending = self._pending.get(expansion_id)
        if pending is None:
            return
        if not pending.actions:  # it was never begun
            self._write(Abandoned(expansion_id, reason, pruned))
            self._open_slots -= pending.count
            self.pruned += pending.count if pruned else 0
            pending.lost = 0 if pruned else pending.count
            self.infra_errors += pending.lost
            self._settle(expansion_id, pending)
            return
        for slot in range(pending.count):
            self.tell(expansion_id, slot, Outcome(infra_error="" if pruned else reason, pruned=pruned))

    def end(self, reason: str, seconds: float) -> None:
        """Write the last event of the log."""
        self._write(Ended(reason, seconds))

    def _attach(self, parent: Node, action: Action, sample: Sample, outcome: Outcome) -> Node | None:
        step, failure = read_sample(action, sample.text, truncated=sample.finish == "length")
        program = extract_program(step.text) if step is not None and action is Action.CODE else None
        judgement = outcome.judgement
        if program is not None and judgement is None:
            return None  # nobody judged it: an infrastructure failure, not a value of 0
        text = step.text if step is not None else sample.text
        key = step_key(action, text, program, failure)
        if program is not None and judgement is not None:
            self._judged.setdefault(program_key(program), judgement)
        if parent.by_key is None:
            parent.by_key = {}
        twin = parent.by_key.get(key)
        if twin is not None:
            self.duplicates += 1
            node = self.nodes[twin]
            node.multiplicity += 1
        else:
            node = self._new_node(parent, action, sample, outcome)
            node.text, node.program, node.failure = text, program, failure
            node.value = self._value(action, failure, judgement)
            parent.by_key[key] = node.id
            if node.value is None:
                for ancestor in self._lineage(parent.id):
                    ancestor.available += 1
            else:
                node.available = 0
        mean_logprob = sum(sample.logprobs) / len(sample.logprobs) if sample.logprobs else 0.0
        node.log_mass = log_add(node.log_mass, mean_logprob / self.settings.prior_temperature)
        parent.priors_stale = True
        if node.value is not None:
            self._back_up(node)
        self._policy.attached(self, node)
        return node

    def _new_node(self, parent: Node, action: Action, sample: Sample, outcome: Outcome) -> Node:
        node = Node(
            id=len(self.nodes),
            parent=parent.id,
            depth=parent.depth + 1,
            action=action,
            header_ids=self._headers[parent.depth + 1, action],
            token_ids=array("i", sample.token_ids),
            logprobs=array("f", sample.logprobs),
            mean_logprob=sum(sample.logprobs) / len(sample.logprobs) if sample.logprobs else 0.0,
            weight_spans=sample.weight_spans,
            judgement=outcome.judgement,
            score=outcome.score,
        )
        self.nodes.append(node)
        parent.children.append(node.id)
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
        for ancestor in self._lineage(node.id):
            ancestor.visits += 1
            ancestor.value_sum += value
            ancestor.sampled += 1
            ancestor.passed += solved
            ancestor.best = value if ancestor.best is None else max(ancestor.best, value)

    def _settle(self, expansion_id: int, pending: _Pending) -> None:
        del self._pending[expansion_id]
        if pending.lost == pending.count:
            self._failed_in_row += 1
        elif pending.lost < len(pending.told):
            self._failed_in_row = 0
        node = self.nodes[pending.node]
        node.pending -= 1
        again = not node.children and node.pending == 0  # nothing came of it: the node may be expanded again
        if again:
            node.expansions = 0
        for ancestor in self._lineage(node.id):
            ancestor.in_flight -= 1
            ancestor.available += again
        self._policy.settled(self, node)

    def _lineage(self, node_id: int) -> list[Node]:
        """Root first."""
        nodes = self.nodes
        node = nodes[node_id]
        lineage = [node]
        while node.parent is not None:
            node = nodes[node.parent]
            lineage.append(node)
        return lineage[::-1]

    def _write(self, event: Event) -> None:
        if self._log is not None:
            self._log(event)

    # --- out ---

    def report(self, reason: str = "", seconds: float = 0.0) -> TreeReport:
        """What the tree came to. `reason`: why it ended, "" where it has not; `seconds`: how long it took."""
        ended = [node for node in self.nodes if node.terminal]
        return TreeReport(
            problem_id=self.problem_id,
            solved=any(n.judgement is not None and n.judgement.verdict is Verdict.ACCEPTED for n in ended),
            tokens=self.tokens,
            expansions=self.expansions,
            paths=len(ended),
            programs=sum(n.program is not None for n in ended),
            duplicates=self.duplicates,
            lost=self.infra_errors,
            unscored=self.unscored,
            pruned=self.pruned,
            seconds=seconds,
            reason=reason,
        )

    def paths(self) -> list[Path]:
        """Every path that ended: complete ones, and those that a malformed step cut short (value 0, no program)."""
        values = step_values(self.nodes)
        return [self._path(node, values) for node in self.nodes if node.terminal]

    def _path(self, node: Node, values: Sequence[tuple[float, float]]) -> Path:
        """The path from the root to `node`."""
        steps = tuple(
            StepRecord(
                action=Action(n.action or 1),
                header_ids=n.header_ids,
                token_ids=tuple(n.token_ids),
                logprobs=tuple(n.logprobs),
                text=n.text,
                weight_spans=n.weight_spans,
                value=self.q(n),
                passed=values[n.id][0],
                sampled=values[n.id][1],
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
    def replay(cls, events: Iterable[Event], log: Callable[[Event], None] | None = None) -> SearchTree:
        """The tree that a log describes; what it does from now on goes to `log`.

        Expansions that were in flight still are: their owner is gone, so the caller abandons them (`in_flight`).
        Raises EventLogError where an event does not follow from those before it.
        """
        rest = iter(events)
        for opened in islice(rest, 1):
            if isinstance(opened, Opened):
                try:
                    settings = SearchSettings.model_validate(opened.settings)
                    table = header_table(opened)
                except ValueError as error:
                    raise _broken(1, f"its settings or headers are none ({' '.join(str(error).split())})") from error
                tree = cls(opened.tree_id, opened.problem_id, opened.prompt_ids, table, settings, opened.seed)
                for number, event in enumerate(rest, start=2):
                    try:
                        tree._apply(event, number)
                    except EventLogError:
                        raise
                    except (LookupError, ValueError, OverflowError, TypeError) as error:
                        raise _broken(number, f"{type(event).__name__} does not fit ({error})") from error
                tree._log = log
                return tree
        raise EventLogError("event log: line 1: it does not begin with the opening of a search")

    def _apply(self, event: Event, number: int) -> None:
        match event:
            case Asked():
                node = self._policy.choose(self)
                if node is None or (self._next_id, node.id) != (event.id, event.node):
                    raise _broken(number, f"expansion {event.id} of node {event.node} does not follow")
                self._hand_out(node, event.count)
            case Begun() if event.id in self._pending:
                self.begin(event.id, event.priors)
            case Told() if event.id in self._pending:
                self.tell(event.id, event.slot, event.outcome)
            case Abandoned() if event.id in self._pending:
                self.abandon(event.id, event.reason, pruned=event.pruned)
            case Ended():
                self._failed_in_row = 0  # whoever goes on tries again
            case _:
                raise _broken(number, f"{type(event).__name__} does not follow")


def _broken(number: int, what: str) -> EventLogError:
    return EventLogError(f"event log: line {number}: {what}")
