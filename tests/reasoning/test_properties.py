"""What a question's words and the given tests say in common of all inputs: what is believed, refused and mended."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.inputs import new_arguments
from reasoning.properties import broken, counts_of, in_order, mended, miscounted, properties_of


def lacks(question, known, args):
    """What of the properties that are read the arguments lack; what they are made of apart."""
    return broken(args, [p for p in properties_of(question, known) if "same types" not in p.name])


SORTED = [
    "find the element that appears only once in a sorted array.",
    "the median of two sorted lists of same size",
    "`nums` is given in ascending order: an increasing sequence of numbers",
    "a non-decreasing list",
    "Given a sorted integer array arr, ...",
    "a list of integers sorted in ascending order and an integer x",
    "a list nums of distinct integers sorted in non-decreasing order",
    "You get a list. nums is sorted.",
    "The list a is sorted.",
    "The array is in increasing order.",
    "a list of numbers in ascending order",
    "takes a list `numbers` that is already sorted",
    "The input list is guaranteed to be sorted.",
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
    ("n is a positive integer", [(3,)], (-2,), (2,)),
    ("a list of positive numbers", [([1, 2], -1)], ([1, -2], 5), ([1, 2], 5)),
    ("an array of non-negative integers", [([0, 2],)], ([-1],), ([1],)),
    ("a whole number", [(0,)], (-4,), (4,)),
    ("Find the nth octagonal number", [(1,), (2,)], (-3,), (3,)),
    ("the volume of a sphere", [(1.5, 2), (1, 1)], (1.5, -2), (1.5, 2)),
    ("Given an array of distinct elements", [([1, 2],), (["a", "b"],)], ([3, 3, 4],), ([3, 4],)),
    ("The given array will not contain duplicate values", [([[1], [2]],), ([[3], [1]],)], ([[3], [3]],), ([[3]],)),
    ("a lowercase string", [("ab c",), ("d",)], ("aB",), ("ab",)),
    ("strings of upper case letters", [(["A", "BC"],), (["D"],)], (["A", "b"],), (["A", "B"],)),
    ("list nums of distinct integers", [([1, 2],), ([4, 3],)], ([3, 3],), ([3],)),
    ("a permutation of 1..n", [([2, 1],)], ([5, 9, 2],), ([2, 3, 1],)),
    ("tuples of the same length", [((1, 2), (3, 4))], ((1,), (3, 4)), ((1,), (3,))),
    ("replace a character", [("ab", "a"), ("b", "c")], ("ab", "cd"), ("ab", "c")),
]


@pytest.mark.parametrize(("question", "known", "bad", "good"), WORDS)
def test_words_count_where_the_given_tests_agree_and_inputs_are_mended(question, known, bad, good):
    properties = properties_of(question, known)
    assert broken(bad, properties) and broken(good, properties) is None
    assert mended(bad, properties) == good
    against = [*known, bad]
    assert broken(bad, properties_of(question, against)) is None


def test_without_the_words_few_given_tests_say_nothing():
    for _, known, bad, _ in WORDS:
        assert lacks("Do it.", known, bad) is None


NOT_OF_THE_INPUT = [
    ("mapping each unique tuple to the number of times it occurs", [([1, 2],), ([3],)], ([1, 1],)),
    ("whether they have at least one common element", [([1], [1]), ([2], [3])], ([], [1])),
    ("Return True if the elements are all distinct", [([1, 2],), ([3, 4],)], ([1, 1],)),
    ("Check whether a number is positive", [(1,), (2,)], (-1,)),
    ("common elements without duplicates", [([1, 2],), ([3, 4],)], ([1, 1],)),
    ("Convert a string to lowercase", [("ab",), ("c",)], ("A",)),
    ("Return the positive numbers", [([1, 2],), ([3],)], ([-1],)),
    ("Return the nth word; an empty list if n is less than 1", [(1,), (2,)], (-1,)),
    ("Check whether two strings are anagrams", [("abc", "cab"), ("ab", "ba")], ("a", "ab")),
    ("how many times a substring is in a string", [("xyx", "x"), ("ab", "b")], ("xyx", "xy")),
    ("the sum of a list", [([1, 2],), ([4, 5],)], ([1],)),
]


@pytest.mark.parametrize(("question", "known", "free"), NOT_OF_THE_INPUT)
def test_words_about_the_result_bind_no_input(question, known, free):
    assert lacks(question, known, free) is None


def test_non_empty_refuses_and_cannot_be_mended():
    properties = properties_of("a non-empty list", [([1],)])
    assert broken(([],), properties) == "argument 1 is not empty"
    assert mended(([],), properties) == ([],)


def test_what_every_given_test_shows_needs_no_words():
    counted = [([4, 5, 6], 3), ([7, 7], 2)]
    assert lacks("Do it.", counted, ([4, 5], 3)) == "argument 2 is the length of argument 1"
    assert mended(([4, 5], 3), properties_of("Do it.", counted)) == ([4, 5], 2)
    # The same length each time may be chance, and so may a truth value that is one.
    assert lacks("Do it.", [([4, 5, 6], 3), ([7, 7, 7], 3)], ([4], 3)) is None
    assert lacks("Do it.", [([4], True), ([], False)], ([4, 5], True)) is None
    beside = [("ab", "cd"), ("a", "b"), ("c", "d")]
    assert lacks("Do it.", beside, ("a", "bc")) == "arguments 1 and 2 are of one length"
    assert lacks("Do it.", [beside[0], *beside[:1], *beside[:1]], ("a", "bc")) is None
    assert lacks("Do it.", [((1, 2),), ((0, 1),)], ((1,),)) == "argument 1 is always a pair"


def test_numbers_stay_above_zero_after_three_tests_where_signs_do_not_matter():
    known = [(3, [-1]), (1, [2]), (0, [])]
    assert lacks("Do it.", known, (-1, [])) == "argument 1 is never below zero"
    assert mended((-4, [-4]), properties_of("Do it.", known)) == (4, [-4])
    assert lacks("Do it.", known[:2], (-1, [])) is None
    for question in ("negative ones too", "keep the sign", "None if n is below zero", "the absolute value"):
        assert lacks(question, known, (-1, [])) is None
    # Another argument is below zero: these are numbers of all kinds.
    assert lacks("Do it.", [(1, -2), (2, 3), (3, 4), (4, 5)], (-1, 2)) is None
    assert lacks("a non-negative n", known, (-1, [])) is not None


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
    # One given test names its arguments.
    assert lacks("a sorted list", [(), ([1, 2],)], ([2, 1],)) == "argument 1 is sorted"


def test_equal_items_are_one_and_the_same():
    known = [([1, 2.5],), ([3, 4],)]
    assert lacks("an array of unique numbers", known, ([1, 1.0],)) == "argument 1 has no item twice"


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


def test_a_text_of_letters_is_given_no_digits():
    known = [("ab",), ("xyz",)]
    for question in ("s consists of lowercase English letters", "s contains only letters"):
        assert lacks(question, known, ("a1",)) == "argument 1 is of letters"
        assert lacks(question, [*known, ("a b",)], ("a1",)) is None
    assert lacks("count the letters", known, ("a1",)) is None


def test_what_the_first_number_of_a_text_counts_stays_so():
    words, lines = ["3\n1 2 3\n", "1\n7\n"], ["2\na\nb\n", "1\nc\n"]
    assert (counts_of(words), counts_of(lines)) == ({"words"}, {"lines"})
    assert miscounted("2\n1 2 3\n", counts_of(words)) and not miscounted("2\n1 2\n", counts_of(words))
    assert miscounted("2\na\n", counts_of(lines)) and not miscounted("3\na\nb\nc", counts_of(lines))
    assert miscounted("x\n1", counts_of(words)) and miscounted("", counts_of(words))
    # The same each time may be chance; so may one text.
    assert counts_of(["3\n1 2 3", "3\n4 5 6"]) == counts_of(["3\n1 2 3"]) == counts_of([]) == frozenset()
    assert counts_of(["3\n1 2 3", "2\n4 5 6"]) == frozenset()
    assert not miscounted("anything", frozenset())
