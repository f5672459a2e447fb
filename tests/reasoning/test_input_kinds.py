"""What kinds of input a test asks with."""

import pytest

from reasoning.input_kinds import kinds
from reasoning.records import ProblemTest
from sandbox import AssertCase, CallCase, CheckerProgram, StdioCase


def of(*args, expected=0):
    return kinds(ProblemTest(case=CallCase(args=list(args), expected=expected)))


@pytest.mark.parametrize(
    "one, other",
    [
        ([], [1]),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ([1, 2], [1, 1]),
        ([1, 2], [0, 2]),
        ([1, 2], [-1, 2]),
        ([1, 2], (1, 2)),
        ([[1]], [[]]),
        (["a"], [""]),
        (0, 1),
        (1, -1),
        (1, 1.0),
        (True, False),
        (True, 1),
        (None, 0),
        ("", "a"),
        ("a", "ab"),
        ("a", " "),
        ({}, {1: 2}),
        (set(), {1}),
    ],
)
def test_values_at_an_edge_are_of_another_kind(one, other):
    assert of(one) != of(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ([1, 2, 3], [4, 5]),
        (5, 700),
        ("ab", "xyz"),
        ([None, 1], [None, 2]),
        ({1: 2}, {3: 4}),
        ([[1], [2]], [[3], [4]]),
    ],
)
def test_values_that_differ_in_size_alone_are_of_one_kind(one, other):
    assert of(one) == of(other)


def test_the_place_and_the_output_count():
    assert of([], [1]) != of([1], [])
    assert of(1, expected=True) != of(1, expected=False)
    named = ProblemTest(case=CallCase(args=[], kwargs={"x": 1}, expected=0))
    assert kinds(named) == frozenset({"x:int positive", "output:int zero"})


def test_what_a_program_reads_counts_by_its_words():
    def read(text, expected="1"):
        return kinds(ProblemTest(case=StdioCase(stdin=text, expected=expected)))

    assert read("3\n1 2 3\n") == read("2\n4 5\n")
    assert read("3\n1 2 3\n") != read("3\n1 0 3\n") and read("1\n") != read("1\n2\n") and read("1") != read("a")
    assert read("1.5") != read("-1.5") and read("1", "0") != read("1", "2") and read("") != read("1")


def test_code_has_no_kinds_and_a_checker_no_output():
    assert kinds(ProblemTest(case=AssertCase(code="assert f() == 1"))) == frozenset()
    checker = CheckerProgram(source="def check(i, e, a): return True")
    case = CallCase(args=[1], expected=2, comparator=checker)
    assert kinds(ProblemTest(case=case)) == frozenset({"0:int positive"})
