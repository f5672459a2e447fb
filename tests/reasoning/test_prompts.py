"""Prompts of the policy: what is shown, in which order, and never the problem's own solution."""

import pytest

from reasoning.problems import bundled, demonstrations
from reasoning.prompts import SYSTEM, PolicyPrompts, example_text, question_text
from reasoning.records import ProblemTest
from reasoning.steps import render
from sandbox import CallCase, ExpressionCase, StdioCase

PROBLEMS = {p.id: p for p in bundled()}
DEMOS = demonstrations()


def prompts(shots, encode=lambda messages: [len(messages)]):
    return PolicyPrompts(encode, DEMOS, PROBLEMS, shots)


@pytest.mark.parametrize(
    "case, text",
    [
        (CallCase(args=[[1], "a"], kwargs={"k": {2}}, expected=(3,)), "f([1], 'a', k={2}) == (3,)"),
        (CallCase(args=[], expected=None), "f() == None"),
        (StdioCase(stdin="1\n2\n", expected="3\n"), "Input:\n1\n2\nOutput:\n3"),
        (ExpressionCase(expression="set(f(1))", expected={1}), "set(f(1)) == {1}"),
    ],
)
def test_example_text(case, text):
    assert example_text(ProblemTest(case=case), "f") == text


def test_the_question_shows_the_examples_and_no_hidden_test():
    problem = PROBLEMS["bundled/sum_of_evens"]
    text = question_text(problem, problem.shown_tests)
    assert text.startswith(problem.question.strip() + "\n\nExamples:\n")
    assert all(example_text(t, problem.entry_point) in text for t in problem.shown_tests)
    assert not any(example_text(t, problem.entry_point) in text for t in problem.hidden_tests)


def test_no_shots_is_system_and_question():
    problem = PROBLEMS["bundled/sum_of_evens"]
    messages = prompts(0).messages(problem)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[0]["content"] == SYSTEM
    assert messages[1]["content"] == question_text(problem, problem.shown_tests)


@pytest.mark.parametrize("stdin", [True, False])
def test_shots_are_of_the_same_style_and_share_a_prefix(stdin):
    same = [p for p in PROBLEMS.values() if (p.entry_point is None) == stdin and p.split == "heldout"]
    built = [prompts(2).messages(p) for p in same]
    assert all([m["role"] for m in b] == ["system", "user", "assistant", "user", "assistant", "user"] for b in built)
    assert all(b[:-1] == built[0][:-1] for b in built)
    shown = {render(d.steps): PROBLEMS[d.problem_id] for d in DEMOS}
    assert all((shown[m["content"]].entry_point is None) == stdin for m in built[0] if m["role"] == "assistant")


@pytest.mark.parametrize("problem", [PROBLEMS[d.problem_id] for d in DEMOS], ids=lambda p: p.id)
def test_a_problems_own_solution_is_never_shown(problem):
    own = next(render(d.steps) for d in DEMOS if d.problem_id == problem.id)
    messages = prompts(3).messages(problem)
    assert len(messages) == 8
    assert all(own != m["content"] for m in messages)
    assert sum(question_text(problem, problem.shown_tests) == m["content"] for m in messages) == 1


def test_ids_are_encoded_once_per_problem_and_number_of_shots():
    calls = []

    def encode(messages):
        calls.append(len(messages))
        return [len(messages)]

    made = prompts(1, encode)
    problem = PROBLEMS["bundled/sum_of_evens"]
    assert made.ids(problem) == made.ids(problem) == (4,)
    made.shots = 0
    assert made.ids(problem) == (2,)
    assert calls == [4, 2]
