"""Suites: which tests decide a reward, which are held out, when a suite is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.records import Origin, Problem, ProblemTest, Suite
from reasoning.suites import assemble, candidates, choose, judge_quality, split_given
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


def suite_of(problem, generated, size, wrong=()):
    tests = candidates(problem, generated)
    return assemble(problem, tests, choose(tests, wrong, size))


PLAIN = problem(*[call(n, shown=True) for n in (1, 2, 3)], *[call(n) for n in (4, 5, 6, 7, 8)])


def test_shown_then_generated_then_given_and_the_rest_is_held_out():
    suite = suite_of(PLAIN, [made(10), made(11)], size=7)
    assert args(suite.tests) == [1, 2, 3, 10, 11, 4, 5]
    assert args(suite.holdout) == [7, 8]
    assert (suite.problem_id, suite.accepted, suite.kill_rate) == ("p", True, None)


def test_without_generated_tests_the_given_ones_fill_in():
    suite = suite_of(PLAIN, [], size=20)
    assert args(suite.tests) == [1, 2, 3, 4, 5, 6]
    assert args(suite.holdout) == [7, 8]


@given(st.lists(st.integers(0, 15), max_size=12), st.integers(2, 12), st.integers(0, 3), st.integers(0, 9))
def test_no_test_is_in_twice_and_none_decides_that_is_held_out(generated, size, shown, hidden):
    if not shown + hidden:
        hidden = 1
    tests = [call(n, shown=True) for n in range(shown)] + [call(n) for n in range(shown, shown + hidden)]
    suite = suite_of(problem(*tests), [made(n) for n in generated], size)
    assert 1 <= len(suite.tests) <= size
    assert len(set(args(suite.tests))) == len(suite.tests)
    assert not set(args(suite.tests)) & set(args(suite.holdout))
    assert len(suite.holdout) <= hidden // 2
    assert not any(t.shown or t.origin is not Origin.GIVEN for t in suite.holdout)


def test_a_generated_copy_of_a_shown_test_is_left_out():
    suite = suite_of(PLAIN, [made(1)], size=20)
    assert args(suite.tests).count(1) == 1
    assert suite.tests[0].origin is Origin.GIVEN


def test_the_input_decides_what_is_the_same_test():
    # The expected text has what separates input and output in a prompt.
    shown = call(1, "a == b", shown=True)
    suite = suite_of(problem(shown, call(2)), [call(1, "a == c", Origin.REFERENCE)], size=9)
    assert args(suite.tests) == [1, 2]
    stdin = [ProblemTest(case=StdioCase(stdin=f"x\nOutput:\n{n}", expected=str(n))) for n in range(4)]
    assert len(suite_of(problem(*stdin, entry_point=None), [], size=9).tests) == 2
    assert len(suite_of(problem(*stdin, entry_point=None), [], size=9).holdout) == 2
    expressions = [ProblemTest(case=ExpressionCase(setup=f"x = {n}", expression="f(x)", expected=n)) for n in range(4)]
    assert len(suite_of(problem(*expressions), [], size=9).tests) == 2


def test_stdin_that_differs_in_trailing_blanks_is_the_same():
    shown = ProblemTest(case=StdioCase(stdin="1\n", expected="1"), shown=True)
    again = ProblemTest(case=StdioCase(stdin="1", expected="1\n"), origin=Origin.REFERENCE)
    assert len(suite_of(problem(shown, entry_point=None), [again], size=9).tests) == 1


def test_values_of_different_types_are_different_inputs():
    suite = suite_of(problem(call(1, shown=True), call(True)), [made(1.0), made("1")], size=9)
    assert len(suite.tests) == 4


@pytest.mark.parametrize("rate, accepted", [(None, True), (0.5, True), (0.49, False), (0.0, False), (1.0, True)])
def test_a_suite_under_the_bar_is_refused_with_a_reason(rate, accepted):
    suite = judge_quality(suite_of(PLAIN, [], 5), rate, 0.5)
    assert (suite.accepted, suite.kill_rate) == (accepted, rate)
    assert bool(suite.reason) == (not accepted)


def test_every_origin_is_counted_and_refused_suites_are_not():
    suites = [
        Suite(problem_id="a", tests=(call(1), made(2), made(3))),
        Suite(problem_id="b", tests=(call(1),), accepted=False),
    ]
    assert count_by_origin(suites) == {"given": 1, "reference": 2, "generated": 0, "consensus": 0}


def test_the_suite_holds_what_kills_and_the_shown_tests():
    tests = candidates(PLAIN, [made(n) for n in (10, 11, 12)])
    assert args(tests) == [1, 2, 3, 10, 11, 12, 4, 5, 6]
    wrong = [[True] * 9 for _ in range(3)]
    wrong[0][5] = wrong[1][5] = wrong[2][8] = wrong[1][4] = False
    assert args([tests[j] for j in choose(tests, wrong, 5)]) == [1, 2, 3, 12, 6]
    # What kills most comes first among what is not needed, and the order of the candidates decides between equals.
    assert args([tests[j] for j in choose(tests, wrong, 7)]) == [1, 2, 3, 12, 6, 11, 10]
    assert args([tests[j] for j in choose(tests, wrong, 2)]) == [1, 2]


def test_a_suite_is_filled_with_other_kinds_of_input_before_more_of_the_same():
    known = problem(call(3, shown=True))
    tests = candidates(known, [made(n) for n in (4, 5, 0, 6, -2, 7)])
    wrong = [[True, False, True, True, False, True, True], [True, False, True, True, True, True, True]]
    assert args([tests[j] for j in choose(tests, wrong, 2)]) == [3, 4]
    # Zero and below zero are new; 6 kills more than 5.
    assert args([tests[j] for j in choose(tests, wrong, 5)]) == [3, 4, 0, -2, 6]
    assert args([tests[j] for j in choose(tests, [], 4)]) == [3, 0, -2, 4]
    assert args([tests[j] for j in choose(tests, wrong, 5, fill=False)]) == [3, 4]
    # What one of them has asked is no longer new.
    below = candidates(known, [made(n) for n in (-4, -5, 0)])
    assert args([below[j] for j in choose(below, [], 3)]) == [3, -4, 0]


def test_nothing_is_made_from_what_is_held_out():
    usable, holdout = split_given(PLAIN)
    assert (args(usable), args(holdout)) == ([1, 2, 3, 4, 5, 6], [7, 8])
    assert split_given(problem(call(1))) == ((call(1),), ())
