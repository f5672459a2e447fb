"""The records that travel between rooms. One type per idea, frozen.

pydantic where a record crosses to disk; slotted dataclasses where it stays inside a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sandbox import Case, Verdict


class Record(BaseModel):
    """Base of what is written to disk: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Action(IntEnum):
    """What a reasoning step does (method section 1; paper section 3.2)."""

    DEFINE = 1
    REFINE = 2
    CODE = 3


class Origin(StrEnum):
    """Where the expected output of a test case comes from."""

    GIVEN = "given"
    REFERENCE = "reference"  # by executing the reference solutions, which agreed
    GENERATED = "generated"  # written by the model
    CONSENSUS = "consensus"  # agreed on by independent solutions


class ProblemTest(Record):
    """A test case of a problem. `shown`: given as an example in the prompt."""

    case: Case
    origin: Origin = Origin.GIVEN
    shown: bool = False


class Problem(Record):
    """A programming problem.

    `entry_point`: the function to write, or None where the program reads stdin and prints. `references`: right
    solutions; without one a problem can be searched and given tests by consensus, but not be trained on.
    """

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    entry_point: str | None = None
    references: tuple[str, ...] = ()
    tests: tuple[ProblemTest, ...] = Field(min_length=1)
    difficulty: str = "unknown"
    split: Literal["train", "heldout"] = "train"

    @property
    def shown_tests(self) -> tuple[ProblemTest, ...]:
        return tuple(test for test in self.tests if test.shown)

    @property
    def hidden_tests(self) -> tuple[ProblemTest, ...]:
        return tuple(test for test in self.tests if not test.shown)


class SuiteQuality(Record):
    """What a suite was measured by (method section 2).

    Of the generator: `asked`, cases that it was asked for; `cases`, different ones that could be read and run;
    `cases_valid`, on whose inputs the references ran and agreed; `cases_right`, whose written output is theirs.
    `inputs`, `inputs_legal`: made from known ones, and those on which the references ran and agreed.

    `mutants`: programs with one fault; `screened`: those that any known test tells from the reference, the others count
    as its equals; `killed`, `killed_by_given`: by the suite, and by the given tests among the candidates. `samples`:
    programs of the policy; `samples_wrong`, `samples_killed`, `samples_killed_by_given` likewise. `false_accept`,
    `false_reject`: share of wrong programs (mutants and samples) that the suite takes, and of right ones (references
    and samples) that it refuses. `branches`: of the reference. `redundancy`: share of the suite's tests without which
    it would kill the same.
    """

    asked: int = Field(default=0, ge=0)
    cases: int = Field(default=0, ge=0)
    cases_valid: int = Field(default=0, ge=0)
    cases_right: int = Field(default=0, ge=0)
    inputs: int = Field(default=0, ge=0)
    inputs_legal: int = Field(default=0, ge=0)
    mutants: int = Field(ge=0)
    screened: int = Field(ge=0)
    killed: int = Field(ge=0)
    killed_by_given: int = Field(ge=0)
    samples: int = Field(default=0, ge=0)
    samples_wrong: int = Field(default=0, ge=0)
    samples_killed: int = Field(default=0, ge=0)
    samples_killed_by_given: int = Field(default=0, ge=0)
    false_accept: float | None = Field(default=None, ge=0, le=1)
    false_reject: float | None = Field(default=None, ge=0, le=1)
    branches: int = Field(default=0, ge=0)
    branches_covered: int = Field(default=0, ge=0)
    redundancy: float = Field(ge=0, le=1)


class Suite(Record):
    """The tests that decide a problem's reward, with what is known of their quality (method section 2).

    `kill_rate`: share of the reference's screened mutants that the suite rejects, None where there were none.
    `holdout`: given tests kept apart, never used for reward; they measure how far the reward is from the truth.
    `difficulty`: of the problem.
    """

    problem_id: str
    tests: tuple[ProblemTest, ...]
    holdout: tuple[ProblemTest, ...] = ()
    kill_rate: float | None = None
    accepted: bool = True
    reason: str = ""
    quality: SuiteQuality | None = None
    difficulty: str = "unknown"


class Step(Record):
    """One reasoning step as text: an action and its body, without header and end marker."""

    action: Action
    text: str


class Demonstration(Record):
    """A worked solution of a problem in steps; the last one is the code."""

    problem_id: str
    steps: tuple[Step, ...] = Field(min_length=2)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the policy sampled for one step.

    `token_ids` and `logprobs` have equal length; `logprobs[i]` is the log-probability (nats) of `token_ids[i]` under
    the distribution it was drawn from. `weight_spans`: (version, start, end) runs over the tokens.
    `finish`: "stop" (the end marker or the end-of-text token), or "length".
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]
    weight_spans: tuple[tuple[int, int, int], ...] = ()


class StepRecord(Record):
    """One step of a path as it was sampled; the token ids are the source of truth, the text is for people.

    `value`: of the search. `sampled`, `passed`: how many terminals below it, drawn as the policy draws them, the step's
    value is worth, and how many of them pass (`reasoning.step_values`).
    """

    action: Action
    header_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    weight_spans: tuple[tuple[int, int, int], ...] = ()
    value: float | None = None
    passed: float = Field(default=0, ge=0)
    sampled: float = Field(default=0, ge=0)


class Path(Record):
    """Root to leaf. Complete if it ends in a code step whose program was judged.

    `value`: alpha * compiles + (1 - alpha) * passed / total of the program, None where the path is incomplete or the
    judging failed for reasons of infrastructure.
    """

    problem_id: str
    tree_id: str
    prompt_ids: tuple[int, ...]
    steps: tuple[StepRecord, ...]
    program: str | None = None
    verdict: Verdict | None = None
    compiles: bool = False
    tests_passed: int = 0
    tests_total: int = 0
    value: float | None = None
    temperature: float = 1.0

    @property
    def sampled_tokens(self) -> int:
        """Of all steps, headers not among them."""
        return sum(len(step.token_ids) for step in self.steps)

    @property
    def complete(self) -> bool:
        return self.value is not None

    @property
    def solved(self) -> bool:
        """Whether the program passed every test: the path belongs to D+."""
        return self.verdict is Verdict.ACCEPTED


class StepLabel(Record):
    """A training target of the PRM: the value of the state after the last step of `token_ids`.

    `ends`: positions in `token_ids` of the last token of each step; `targets`, `weights`: one per end, targets in
    [0, 1], `weights` 0 where nothing is known.
    """

    problem_id: str
    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    targets: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _one_of_each(self) -> StepLabel:
        if not len(self.ends) == len(self.targets) == len(self.weights):
            counts = f"{len(self.ends)} ends, {len(self.targets)} targets, {len(self.weights)} weights"
            raise ValueError(f"got {counts}; use as many of each")
        if any(not 0 <= end < len(self.token_ids) for end in self.ends):
            raise ValueError(f"ends: got {self.ends}; use positions below {len(self.token_ids)}")
        return self


class StepPair(Record):
    """A preference pair of the pair-wise PRM and DPO: two steps after the same prefix in one tree (method section 4).

    `prefix_ids`: prompt and steps up to the end of the parent. `chosen_ids`, `rejected_ids`: header and tokens of the
    step that wins and of the one that loses; `chosen_header`, `rejected_header`: how many of them the system wrote.
    `chosen_value`, `rejected_value`: passed / sampled terminals below them,
    in [0, 1]; `margin`: their difference. `weight`: 1 / (n_pos * n_neg) of the sibling group.
    """

    problem_id: str
    tree_id: str
    prefix_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_value: float
    rejected_value: float
    margin: float = Field(gt=0)
    weight: float = Field(gt=0)
    chosen_header: int = Field(default=0, ge=0)
    rejected_header: int = Field(default=0, ge=0)


class Trajectory(Record):
    """What the policy learner trains on; all sequences have the length of `token_ids`.

    `loss_mask`: 1 on sampled tokens, 0 on prompt and headers. `logprobs`: the sampler's, 0 where masked.
    `advantages`: per token, 0 where masked. `reference_logprobs`: of the policy that the learner is kept near to, at
    the same temperature; empty where there is none.
    """

    problem_id: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    reference_logprobs: tuple[float, ...] = ()
    outcome: float
    temperature: float = Field(default=1.0, gt=0)
    weight_versions: tuple[int, ...] = ()


class GeneratedText(Record):
    """What the test case generator wrote after one prompt; nothing where the engine failed (`lost`)."""

    problem_id: str
    text: str
    lost: bool = False


class TextPair(Record):
    """A preference pair of completions of one prompt (DPO)."""

    problem_id: str
    prompt: str
    chosen: str
    rejected: str


def mean(values: Sequence[float], default: float = 0.0) -> float:
    """Arithmetic mean, or `default` of nothing."""
    return sum(values) / len(values) if values else default
