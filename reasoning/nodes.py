"""What a search tree is made of: nodes, what is asked for, and how a sample ended (method section 3)."""

from __future__ import annotations

import hashlib
import math
from array import array
from dataclasses import dataclass, field
from typing import Final

from reasoning.records import Action, Sample
from sandbox import Verdict
from sandbox.cache import program_key

KEY_BYTES: Final = 16
BROKEN_OFF: Final = "too many infrastructure errors"
"""The reason of an end that says nothing about the problem."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the sandbox said of a program on the suite."""

    verdict: Verdict
    compiles: bool
    passed: int
    total: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one drawn sample ended: a sample (judged if it holds a program), a failure of the infrastructure, or
    `pruned`, because the tree needed it no more.

    `score`: the PRM's value of the state after the step, if it was asked. A sample with an `infra_error` was drawn, and
    then nobody could judge or score it: a program is lost, a step of pseudocode has no score.
    """

    sample: Sample | None = None
    judgement: Judgement | None = None
    score: float | None = None
    infra_error: str = ""
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class Expansion:
    """A request: draw `count` samples after `node`, each of one of the `legal` actions."""

    id: int
    node: int
    depth: int
    count: int
    legal: tuple[Action, ...]


@dataclass(slots=True, eq=False)
class Node:
    """A step. Four statistics, never mixed: search value (`visits`, `value_sum`), what the policy itself makes of it
    (`reasoning.step_values`; for labels), the best terminal (`best`), and counts (`multiplicity`, `asked`, `in_flight`,
    and of terminals below and those that pass: `sampled`, `passed`).

    `mean_logprob` and the tokens are of the first sample that became the node, `log_mass` is of all (`sibling_priors`).
    `token_ids` and `logprobs` are packed (4 bytes each): trees have millions of them. `available`: nodes of the
    subtree, itself included, that were never expanded and can be. `in_flight`, `asked`: expansions of the subtree that
    are running, that were ever handed out.
    """

    id: int
    parent: int | None
    depth: int
    action: Action | None
    header_ids: tuple[int, ...] = ()
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    mean_logprob: float = 0.0
    log_mass: float = -math.inf
    weight_spans: tuple[tuple[int, int, int], ...] = ()
    text: str = ""
    failure: str = ""
    program: str | None = None
    judgement: Judgement | None = None
    score: float | None = None
    value: float | None = None
    children: list[int] = field(default_factory=list)
    by_key: dict[bytes, int] | None = None
    action_prior: dict[int, float] | None = None
    prior: float = 0.0
    priors_stale: bool = False
    expansions: int = 0
    pending: int = 0
    available: int = 1
    in_flight: int = 0
    asked: int = 0
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
    def closed(self) -> bool:
        """Nothing below is left to try, and nothing is running there."""
        return self.value is not None or (self.available == 0 and self.in_flight == 0)

    def statistics(self) -> tuple[object, ...]:
        """All that was counted, for comparing trees."""
        return (
            self.visits, self.value_sum, self.sampled, self.passed, self.best, self.multiplicity, self.asked,
            self.in_flight, self.available, self.expansions, self.pending,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What a tree came to. Counts as in `SearchTree`; `programs`: paths that end in a judged program; `unscored`: steps
    that the PRM failed on.

    `tokens`: sampled; `seconds`: on the clock since it began or went on; `reason`: why it ended, "" where it has not.
    """

    problem_id: str
    solved: bool
    tokens: int
    expansions: int
    paths: int
    programs: int
    duplicates: int
    lost: int
    unscored: int
    pruned: int
    seconds: float
    reason: str

    @property
    def finished(self) -> bool:
        """Whether it came to an end of its own; one that infrastructure errors ended can be gone on with."""
        return self.reason not in ("", BROKEN_OFF)


def step_key(action: Action, text: str, program: str | None, failure: str = "") -> bytes:
    """What makes two siblings the same step: the program's syntax tree, or action, text and what is wrong with it."""
    if program is not None:
        return program_key(program)
    content = f"{int(action)}:{failure}:{text}"
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
