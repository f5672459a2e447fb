"""Suites: which tests decide a reward, which are held out, when a suite is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.records import Origin, Problem, ProblemTest, Suite
from reasoning.suites import assemble, judge_quality
from reasoning.suites import tests_by_origin as count_by_origin
from sandbox import CallCase, ExpressionCase, StdioCase


def call(n, expected=0, origin=Origin.GIVEN, shown=False):
    return ProblemTest(case=CallCase(args=[n], expected=expected), origin=origin, shown=shown)


def made(n):
    return call(n, origin=Origin.REFERENCE)


def problem(*tests, entry_point="f"):
    return Problem(id="p", question="q", entry_point=entry_point, references=("x",), tests=tests)


def args(tests):
    return [t.case.args[0] for t in tests]


PLAIN = problem(*[call(n, shown=True) for n in (1, 2, 3)], *[call(n) for n in (4, 5, 6, 7, 8)])


def test_shown_then_generated_then_given_and_the_rest_is_held_out():
    suite = assemble(PLAIN, [made(10), made(11)], size=7)
    assert args(suite.tests) == [1, 2, 3, 10, 11, 4, 5]
    assert args(suite.holdout) == [7, 8]
    assert (suite.problem_id, suite.accepted, suite.kill_rate) == ("p", True, None)


def test_without_generated_tests_the_given_ones_fill_in():
    suite = assemble(PLAIN, [], size=20)
    assert args(suite.tests) == [1, 2, 3, 4, 5, 6]
    assert args(suite.holdout) == [7, 8]


@given(st.lists(st.integers(0, 15), max_size=12), st.integers(2, 12), st.integers(0, 3), st.integers(0, 9))
def test_no_test_is_in_twice_and_none_decides_that_is_held_out(generated, size, shown, hidden):
    if not shown + hidden:
        hidden = 1
    tests = [call(n, shown=True) for n in range(shown)] + [call(n) for n in range(shown, shown + hidden)]
    suite = assemble(problem(*tests), [made(n) for n in generated], size)
    assert 1 <= len(suite.tests) <= size
    assert len(set(args(suite.tests))) == len(suite.tests)
    assert not set(args(suite.tests)) & set(args(suite.holdout))
    assert len(suite.holdout) <= hidden // 2
    assert not any(t.shown or t.origin is not Origin.GIVEN for t in suite.holdout)


def test_a_generated_copy_of_a_shown_test_is_left_out():
    suite = assemble(PLAIN, [made(1)], size=20)
    assert args(suite.tests).count(1) == 1
    assert suite.tests[0].origin is Origin.GIVEN


def test_the_input_decides_what_is_the_same_test():
    # The expected text has what separates input and output in a prompt.
    shown = call(1, "a == b", shown=True)
    suite = assemble(problem(shown, call(2)), [call(1, "a == c", Origin.REFERENCE)], size=9)
    assert args(suite.tests) == [1, 2]
    stdin = [ProblemTest(case=StdioCase(stdin=f"x\nOutput:\n{n}", expected=str(n))) for n in range(4)]
    assert len(assemble(problem(*stdin, entry_point=None), [], size=9).tests) == 2
    assert len(assemble(problem(*stdin, entry_point=None), [], size=9).holdout) == 2
    expressions = [ProblemTest(case=ExpressionCase(setup=f"x = {n}", expression="f(x)", expected=n)) for n in range(4)]
    assert len(assemble(problem(*expressions), [], size=9).tests) == 2


def test_stdin_that_differs_in_trailing_blanks_is_the_same():
    shown = ProblemTest(case=StdioCase(stdin="1\n", expected="1"), shown=True)
    again = ProblemTest(case=StdioCase(stdin="1", expected="1\n"), origin=Origin.REFERENCE)
    assert len(assemble(problem(shown, entry_point=None), [again], size=9).tests) == 1


def test_values_of_different_types_are_different_inputs():
    suite = assemble(problem(call(1, shown=True), call(True)), [made(1.0), made("1")], size=9)
    assert len(suite.tests) == 4


@pytest.mark.parametrize("rate, accepted", [(None, True), (0.5, True), (0.49, False), (0.0, False), (1.0, True)])
def test_a_suite_under_the_bar_is_refused_with_a_reason(rate, accepted):
    suite = judge_quality(assemble(PLAIN, [], 5), rate, 0.5)
    assert (suite.accepted, suite.kill_rate) == (accepted, rate)
    assert bool(suite.reason) == (not accepted)


def test_every_origin_is_counted_and_refused_suites_are_not():
    suites = [
        Suite(problem_id="a", tests=(call(1), made(2), made(3))),
        Suite(problem_id="b", tests=(call(1),), accepted=False),
    ]
    assert count_by_origin(suites) == {"given": 1, "reference": 2, "generated": 0, "consensus": 0}
