"""What a question's words and the given tests say in common of all inputs: what is believed, refused and mended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.inputs import new_arguments
from reasoning.properties import broken, in_order, mended, properties_of


def lacks(question, known, args):
    """What of the properties that are read the arguments lack; what they are made of apart."""
    found = broken(args, properties_of(question, known))
    return found if found is None or "same types" not in found else None


SORTED = [
    "find the element that appears only once in a sorted array.",
    "the median of two sorted lists of same size",
    "`nums` is given in ascending order: an increasing sequence of numbers",
    "a non-decreasing list",
    "Given a sorted integer array arr, ...",
]
UNSORTED = [
    "Return the list in sorted order.",
    "Sort an array.",
    "Return the sum of the list.",
    "the list, sorted.",
    "",
]


@pytest.mark.parametrize("question", SORTED)
def test_what_is_to_be_sorted_is_read_where_the_given_tests_are(question):
    known = [([1, 2, 2], 5), ([], 3), ([0, 9], 1)]
    assert lacks(question, known, ([2, 1], 5)) == "argument 1 is sorted"
    assert lacks(question, known, ([1, 2], 5)) is None
    assert mended(([3, 1, 2], 5), properties_of(question, known)) == ([1, 2, 3], 5)
    assert lacks(question, [([1, 2], 5), ([2, 1], 5)], ([2, 1], 5)) is None
    # One item is in order whatever is asked for; what cannot be compared is in none.
    assert lacks(question, [([1],), ([],)], ([2, 1],)) is None
    assert lacks(question, [([1, "a"],)], (["a", 1],)) is None


@pytest.mark.parametrize("question", UNSORTED)
def test_what_is_not_said_to_be_sorted_is_free(question):
    assert lacks(question, [([1, 2, 3],), ([4, 5],)], ([2, 1],)) is None


WORDS = [
    ("a positive integer n", [(3,)], (0,), (1,)),
    ("a list of positive numbers", [([1, 2], -1)], ([1, -2], 5), ([1, 2], 5)),
    ("an array of non-negative integers", [([0, 2],)], ([-1],), ([1],)),
    ("a natural number", [(0,)], (-4,), (4,)),
    ("Find the nth octagonal number", [(1,)], (-3,), (3,)),
    ("the volume of a sphere", [(1.5, 2)], (1.5, -2), (1.5, 2)),
    ("Given a list without duplicates", [([1, 2],)], ([3, 3, 4],), ([3, 4],)),
    ("all elements are distinct", [([1, 2],)], ([3, 3],), ([3],)),
    ("a lowercase string", [("ab c",)], ("aB",), ("ab",)),
    ("strings of upper case letters", [(["A", "BC"],)], (["A", "b"],), (["A", "B"],)),
    ("tuples of the same length", [((1, 2), (3, 4))], ((1,), (3, 4)), ((1,), (3,))),
]


@pytest.mark.parametrize(("question", "known", "bad", "good"), WORDS)
def test_words_count_where_the_given_tests_agree_and_inputs_are_mended(question, known, bad, good):
    properties = properties_of(question, known)
    assert broken(bad, properties) and broken(good, properties) is None
    assert mended(bad, properties) == good
    against = [*known, bad]
    assert broken(bad, properties_of(question, against)) is None


def test_without_the_words_one_given_test_says_nothing_but_types():
    for _, known, bad, _ in WORDS:
        assert lacks("Do it.", known, bad) is None


def test_non_empty_refuses_and_cannot_be_mended():
    properties = properties_of("a non-empty list", [([1],)])
    assert broken(([],), properties) == "argument 1 is not empty"
    assert mended(([],), properties) == ([],)


def test_what_every_given_test_shows_needs_no_words():
    counted = [([4, 5, 6], 3), ([7, 7], 2)]
    assert lacks("Do it.", counted, ([4, 5], 3)) == "argument 2 is the length of argument 1"
    assert mended(([4, 5], 3), properties_of("Do it.", counted)) == ([4, 5], 2)
    assert (
        lacks("Do it.", [([4, 5, 6], 3), ([7, 7, 7], 3)], ([4], 3)) is None
    )  # the same length each time may be chance
    beside = [([1, 2], "ab"), ([1], "c")]
    assert mended(([1, 2], "a"), properties_of("Do it.", beside)) == ([1], "a")
    signs = [(3,), (1,), (0,)]
    assert lacks("Do it.", signs, (-1,)) == "argument 1 is never below zero"
    assert lacks("Do it.", signs[:2], (-1,)) is None
    assert lacks("Do it.", [("a",), ("b",)], ("ab",)) == "argument 1 is always one character"
    assert lacks("Do it.", [((1, 2),), ((0, 1),)], ((1,),)) == "argument 1 is always a pair"


def test_a_table_keeps_its_form():
    known = [([[1, 2], [3, 4]],)]
    properties = properties_of("Sum a matrix", known)
    assert broken(([[1], [2, 3]],), properties) == "argument 1 has rows of one length"
    assert broken(([[1, 2, 3], [4, 5, 6]],), properties) is None


def test_lists_keep_the_types_of_their_items():
    properties = properties_of("Do it.", [([["a"], ["b", "c"]], {"k": 1}), ([], {})])
    assert broken((["a"], {}), properties) == "argument 1 is made of the same types"
    assert broken(([["a", 1]], {}), properties) == "argument 1 is made of the same types"
    assert broken(([], {"k": "v"}), properties) == "argument 2 is made of the same types"
    assert broken(([], {2: 1}), properties) == "argument 2 is made of the same types"
    assert broken(([["c"], []], {"z": 2}), properties) is None
    # Nothing was seen in it; a whole number is a number.
    assert broken(([0],), properties_of("Do it.", [([],)])) is None
    assert broken(([0],), properties_of("Do it.", [([1.5],)])) is None


def test_nothing_given_says_nothing():
    assert properties_of("a sorted list of positive numbers", []) == []
    assert properties_of("a sorted list", [()]) == []


QUESTIONS = ["", *SORTED, *(question for question, *_ in WORDS), "a non-empty matrix"]
VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text("abAB", max_size=3) | st.floats(-9, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(st.sampled_from(QUESTIONS), st.lists(st.lists(VALUES, max_size=3).map(tuple), max_size=4), st.data())
def test_given_inputs_have_what_is_read_from_them_and_mending_changes_nothing_that_is_right(question, known, data):
    properties = properties_of(question, known)
    for args in known:
        assert broken(args, properties) is None
        assert mended(args, properties) == args
    other = data.draw(st.lists(VALUES, max_size=3).map(tuple))
    assert len(mended(other, properties)) == len(other)


@given(st.sampled_from(QUESTIONS), st.integers(0, 99))
def test_new_inputs_have_all_properties(question, seed):
    known = [([1, 2, 5], 3, "ab"), ([4, 6], 2, "b"), ([7], 1, "")]
    properties = properties_of(question, known)
    made = new_arguments(known, 12, seed, properties)
    assert len(made) == 12 and len(set(map(repr, made))) == 12
    assert all(broken(args, properties) is None and len(args[0]) == args[1] for args in made)


def test_in_order():
    assert in_order([1, 1, 2]) and in_order(()) and not in_order([2, 1]) and not in_order([1, "a"]) and not in_order(3)
