"""The benchmark of suites: what it makes of tasks of several functions, and how verdicts are joined."""

import pytest

from benchmarks.suites import all_of, functions_of, rates

TASK = {
    "task": 7,
    "description": "Task: two functions",
    "prelude": "days = (('May', 15),)\n",
    "tests": [["first(days)", "'May'"], ["count('May', days)", "1"], ["count('June', [])", "0"]],
}


def test_every_function_of_a_task_is_a_problem_with_its_own_tests():
    first, count = functions_of(TASK, "reference")
    assert (first.entry_point, count.entry_point) == ("first", "count")
    assert [list(t.case.args) for t in first.tests] == [[(("May", 15),)]]
    assert [t.case.expected for t in count.tests] == [1, 0]
    assert first.id != count.id


def test_a_test_that_is_no_call_is_refused():
    with pytest.raises(ValueError, match="use a call of a function"):
        functions_of({**TASK, "tests": [["1 + 1", "2"]]}, "reference")


def test_a_program_is_accepted_where_all_accept_it():
    assert all_of([True, True, None], [True, False, True]) == [True, False, None]
    assert all_of([None], [False]) == [False]


def test_rates_count_what_is_known():
    accepts, refuses = rates([False, False, True, None, True], [True, False, False, True, None])
    assert (accepts, refuses) == ((1, 2), (1, 1))
