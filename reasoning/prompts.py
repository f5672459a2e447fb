"""Prompts of the policy as chat messages, and their token ids (method section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reasoning.literals import literal
from reasoning.records import Demonstration, Problem, ProblemTest
from reasoning.steps import render
from sandbox import AssertCase, CallCase, ExpressionCase, StdioCase

SYSTEM = "You solve programming problems in steps: pseudocode first, then Python code."

Message = dict[str, str]
ChatEncoder = Callable[[list[Message]], Sequence[int]]
"""Chat messages -> token ids, ending where the assistant's answer begins."""


def example_text(test: ProblemTest, entry_point: str | None) -> str:
    """A test as a line (function) or a block (stdin) that a person can read."""
    case = test.case
    match case:
        case StdioCase():
            return f"Input:\n{case.stdin.rstrip()}\nOutput:\n{case.expected.rstrip()}"
        case CallCase():
            arguments = [literal(a) for a in case.args] + [f"{k}={literal(v)}" for k, v in case.kwargs.items()]
            return f"{entry_point}({', '.join(arguments)}) == {literal(case.expected)}"
        case ExpressionCase():
            return f"{case.expression} == {literal(case.expected)}"
        case AssertCase():
            return case.code.strip()


def question_text(problem: Problem, tests: Sequence[ProblemTest]) -> str:
    """The user's message: the question and `tests` as examples."""
    examples = "\n".join(example_text(test, problem.entry_point) for test in tests)
    return f"{problem.question.strip()}\n\nExamples:\n{examples}"


@dataclass(slots=True)
class PolicyPrompts:
    """Builds prompts for one tokenizer, with `shots` demonstrations of the same style before the question.

    `problems`: by id, for the questions of the demonstrations.
    """

    encode_chat: ChatEncoder
    demonstrations: Sequence[Demonstration]
    problems: dict[str, Problem]
    shots: int = 0
    _cache: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)

    def ids(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of the prompt of `problem`; a demonstration of the problem itself is never shown."""
        key = (problem.id, self.shots)
        if key not in self._cache:
            self._cache[key] = tuple(self.encode_chat(self.messages(problem)))
        return self._cache[key]

    def messages(self, problem: Problem) -> list[Message]:
        """System message, shots, question. Shots come first, so that all problems of a style share a prefix."""
        messages: list[Message] = [{"role": "system", "content": SYSTEM}]
        for demonstration in self._shots_for(problem):
            shown = self.problems[demonstration.problem_id]
            messages.append({"role": "user", "content": question_text(shown, shown.shown_tests)})
            messages.append({"role": "assistant", "content": render(demonstration.steps)})
        messages.append({"role": "user", "content": question_text(problem, problem.shown_tests)})
        return messages

    def _shots_for(self, problem: Problem) -> list[Demonstration]:
        style = problem.entry_point is None
        fitting = [
            d
            for d in self.demonstrations
            if d.problem_id != problem.id and (self.problems[d.problem_id].entry_point is None) == style
        ]
        return fitting[: self.shots]
