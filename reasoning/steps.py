"""The step grammar: render, parse, legal actions, headers, loss mask (method section 1).

A step reads

    <Step_Begin>
    ### Step 1: <Action 1> Define the structure
    body
    <Step_End>

The system writes the header (first two lines) and the policy samples from the body on up to the end marker. No other
module knows these strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reasoning.records import Action, Demonstration, Step, StepRecord

BEGIN = "<Step_Begin>"
END = "<Step_End>"
TITLES = {
    Action.DEFINE: "Define the structure in pseudocode",
    Action.REFINE: "Refine the pseudocode",
    Action.CODE: "Write the Python code",
}
CODE_OPENING = "```python\n"
STOPS = {Action.DEFINE: (END,), Action.REFINE: (END,), Action.CODE: ("\n```", END)}
"""Strings that end the sampling of a step."""

MAX_STEP_CHARS = 65_536
"""No step of use is longer; what is has lost itself in a repetition, and as a program the sandbox would refuse it."""

_HEADER = re.compile(rf"\s*{BEGIN}\s*### Step (\d+): <Action ([123])>[^\n]*\n")
_HEADER_LINE = re.compile(r"^### Step \d+: <Action ", re.MULTILINE)
_FENCE_LINE = re.compile(r"^```", re.MULTILINE)
_FENCE = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


class GrammarError(ValueError):
    """A text that is not a sequence of steps; the message says what is wrong and where."""


def legal_actions(depth: int, max_depth: int, room: bool = True) -> tuple[Action, ...]:
    """Which actions may follow after `depth` steps, where a path has at most `max_depth` (>= 2).

    `room`: whether the model's context would hold the program after one more step of pseudocode.
    """
    if max_depth < 2:
        raise ValueError(f"max_depth: got {max_depth}; a path needs at least 2 steps")
    if not 0 <= depth < max_depth:
        raise ValueError(f"depth: got {depth}; use 0 to {max_depth - 1}")
    if depth == 0:
        return (Action.DEFINE,)
    if depth == max_depth - 1 or not room:
        return (Action.CODE,)
    return (Action.REFINE, Action.CODE)


def header(number: int, action: Action) -> str:
    """The lines before the body of step `number` (from 1), with the line break that ends the step before it.

    A code step's header opens the fenced block, so that the policy starts with the program itself.
    """
    opening = CODE_OPENING if action is Action.CODE else ""
    lead = "\n" if number > 1 else ""
    return f"{lead}{BEGIN}\n### Step {number}: <Action {action.value}> {TITLES[action]}\n{opening}"


def body_as_sampled(step: Step) -> str:
    """The text that the policy should sample after the header to produce `step`.

    A code step ends with its closing fence (`CODE_STOPS`); nothing follows it, so its end marker is never sampled.
    """
    body = step.text.strip("\n")
    if step.action is Action.CODE:
        return f"{(extract_program(body) or body).rstrip()}\n```"
    return f"{body}\n{END}"


def render(steps: Sequence[Step]) -> str:
    """All steps as one text; `parse` of it gives the steps back."""
    parts: list[str] = []
    for number, step in enumerate(steps, start=1):
        parts += header(number, step.action), body_as_sampled(step)
        if step.action is Action.CODE:
            parts.append(f"\n{END}")
    return "".join(parts)


def readable(number: int, step: Step) -> str:
    """Step `number` (from 1) as `render` writes it, without the markers: its header line and its body."""
    text = (header(number, step.action) + body_as_sampled(step)).strip()
    return text.removeprefix(BEGIN).removesuffix(END).strip()


def parse(text: str) -> tuple[Step, ...]:
    """The steps of a text written by `render`.

    Raises:
        GrammarError: a missing or misnumbered header, a missing end marker, text between steps, or an illegal order.
    """
    steps: list[Step] = []
    position = 0
    while position < len(text.rstrip()):
        match = _HEADER.match(text, position)
        if match is None:
            raise GrammarError(f"step {len(steps) + 1}: no header at character {position}")
        if int(match[1]) != len(steps) + 1:
            raise GrammarError(f"step {len(steps) + 1}: the header says {match[1]}")
        end = text.find(END, match.end())
        if end < 0:
            raise GrammarError(f"step {len(steps) + 1}: no {END}")
        steps.append(Step(action=Action(int(match[2])), text=text[match.end() : end].strip("\n")))
        position = end + len(END)
    check_order([step.action for step in steps])
    return tuple(steps)


def check_order(actions: Sequence[Action]) -> None:
    """Raises GrammarError where a sequence of actions could not have been produced: 1, then 2s, then at most one 3."""
    for number, action in enumerate(actions, start=1):
        if (action is Action.DEFINE) != (number == 1):
            raise GrammarError(f"step {number}: action {action.value} is not legal there")
        if action is Action.CODE and number != len(actions):
            raise GrammarError(f"step {number}: nothing may follow the code step")


def read_sample(action: Action, sampled: str, *, truncated: bool) -> tuple[Step | None, str]:
    """The step that a sampled text holds, or None and what is wrong with it.

    `truncated`: the length limit ended the sampling. A code step may end without its fence where the policy ended the
    text by itself; any other step must have its end marker.
    """
    body, marker, _ = sampled.partition(END)
    body = body.strip("\n").rstrip()
    if truncated:
        return None, "cut off by the length limit"
    if len(body) > MAX_STEP_CHARS:
        return None, f"longer than {MAX_STEP_CHARS} characters"
    if BEGIN in body or _HEADER_LINE.search(body):
        return None, "a step inside a step"
    if action is Action.CODE:
        if not body.removesuffix("```").strip():
            return None, "no program"
        if _FENCE_LINE.search(body.removesuffix("```")):
            return None, "more than one code block"
        text = CODE_OPENING + (body if body.endswith("```") else body + "\n```")
        return (Step(action=action, text=text), "") if extract_program(text) else (None, "no program")
    if not marker:
        return None, "no end marker"
    if not body:
        return None, "empty step"
    return Step(action=action, text=body), ""


def extract_program(text: str) -> str | None:
    """The program in a code step's body: its first fenced block; None where there is none or it is empty."""
    match = _FENCE.search(text)
    program = match[1].strip("\n") if match else ""
    return program + "\n" if program.strip() else None


@dataclass(slots=True)
class StepCodec:
    """Headers and demonstrations as token ids, for one tokenizer (`encode` adds no special tokens)."""

    encode: Callable[[str], Sequence[int]]
    _headers: dict[tuple[int, Action], tuple[int, ...]] = field(default_factory=dict)
    _tables: dict[int, dict[tuple[int, Action], tuple[int, ...]]] = field(default_factory=dict)

    def header_ids(self, number: int, action: Action) -> tuple[int, ...]:
        """Token ids of `header(number, action)`."""
        key = (number, action)
        if key not in self._headers:
            self._headers[key] = tuple(self.encode(header(number, action)))
        return self._headers[key]

    def headers(self, max_depth: int) -> dict[tuple[int, Action], tuple[int, ...]]:
        """All headers of paths of at most `max_depth` steps, by (step number, action)."""
        if max_depth not in self._tables:
            steps = [(depth + 1, action) for depth in range(max_depth) for action in legal_actions(depth, max_depth)]
            self._tables[max_depth] = {at: self.header_ids(*at) for at in steps}
        return self._tables[max_depth]

    def longest_header(self, max_depth: int) -> int:
        """Tokens of the longest header of a path of at most `max_depth` steps."""
        return max(map(len, self.headers(max_depth).values()))

    def choice(self, number: int) -> tuple[tuple[int, ...], dict[Action, int]]:
        """How to ask the policy for its next action: the ids shared by the headers of refine and code, and the token
        that tells them apart."""
        refine, code = (self.header_ids(number, action) for action in (Action.REFINE, Action.CODE))
        shared = next(i for i, (a, b) in enumerate(zip(refine, code, strict=False)) if a != b)
        return refine[:shared], {Action.REFINE: refine[shared], Action.CODE: code[shared]}

    def demonstration(self, demonstration: Demonstration) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids and loss mask of a demonstration's completion (headers masked)."""
        ids: list[int] = []
        mask: list[int] = []
        for number, step in enumerate(demonstration.steps, start=1):
            head = self.header_ids(number, step.action)
            body = tuple(self.encode(body_as_sampled(step)))
            ids += head + body
            mask += [0] * len(head) + [1] * len(body)
        return tuple(ids), tuple(mask)


def completion(steps: Sequence[StepRecord]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """A sampled path after its prompt: token ids, loss mask (headers 0), sampler's log-probabilities (headers 0)."""
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for step in steps:
        ids += step.header_ids + step.token_ids
        mask += [0] * len(step.header_ids) + [1] * len(step.token_ids)
        logprobs += [0.0] * len(step.header_ids) + list(step.logprobs)
    return tuple(ids), tuple(mask), tuple(logprobs)
