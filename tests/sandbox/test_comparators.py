"""The rows of the judging tables, and properties of the comparators."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import CloseValue, ExactValue, FloatComparator, TokenComparator, UnorderedValue

TOKEN_ROWS = [
    ("1 missing final newline", "a\nb", "a\nb\n", True),
    ("1 extra final newlines", "a\nb\n\n\n", "a\nb", True),
    ("2 trailing spaces", "a  \nb\t", "a\nb", True),
    ("3 leading spaces", "  a\nb", "a\nb", True),
    ("4 repeated blanks", "1  2\t3", "1 2 3", True),
    ("5 CRLF", "a\r\nb\r\n", "a\nb\n", True),
    ("6 blank line in the middle", "a\n\nb", "a\nb", True),
    ("7 line structure", "1 2", "1\n2", False),
    ("8 lines in another order", "b\na", "a\nb", False),
    ("9 tokens in another order", "2 1", "1 2", False),
    ("10 duplicates", "YES NO", "YES NO YES NO", False),
    ("11 case", "yes", "YES", False),
    ("12 float slightly off", "0.3333333", "0.3333334", False),
    ("13 float off", "0.3333", "0.3334", False),
    ("14 1.0 for 1", "1.0", "1", False),
    ("14 007", "007", "7", False),
    ("15 long integers", "100000000000000001", "100000000000000000", False),
    ("16 nan as text", "nan", "nan", True),
    ("16 inf as text", "inf", "inf", True),
    ("17 negative zero", "-0.0", "0.0", False),
    ("18 empty and newline", "", "\n", True),
    ("18 empty and something", "", "1", False),
    ("19 no-break space", "1\u00a02", "1 2", False),
    ("20 words and floats", "ans 0.3333333", "ans 0.3333334", False),
    ("29 byte order mark", "\ufeffa", "a", False),
    ("29 NUL", "a\0", "a", False),
    ("28 everything", "a b c", "a", False),
]
FLOAT_ROWS = [
    ("12", "0.3333333", "0.3333334", True),
    ("13", "0.3333", "0.3334", False),
    ("14 1.0 for 1", "1.0", "1", True),
    ("14 1e3", "1e3", "1000.0", True),
    ("14 +5", "+5", "5", True),
    ("15", "100000000000000001", "100000000000000000", False),
    ("16 nan", "nan", "nan", False),
    ("16 inf", "inf", "inf", True),
    ("17", "-0.0", "0.0", True),
    ("20", "ans 0.33333333", "ans 0.33333334", True),
    ("words", "yes 1.0", "no 1.0", False),
    ("lines", "1.0 2.0", "1.0\n2.0", False),
    ("underscores are no numbers", "1_0", "10", False),
    ("hex is no number", "0x10", "16", False),
    ("huge exponents", "1e99999", "inf", True),
]
NAN = float("nan")
EXACT_ROWS: list[tuple[str, Any, Any, bool]] = [
    ("21", (1, 2), [1, 2], False),
    ("22", [(1, 2)], [[1, 2]], False),
    ("23", [1, 2], [[1, 2]], False),
    ("24", 1, [1, 2], False),
    ("25 set for list", {1, 2}, [1, 2], False),
    ("25 order", [2, 1], [1, 2], False),
    ("27", {1: 2}, {"1": 2}, False),
    ("28 None", None, None, True),
    ("28 None for []", None, [], False),
    ("28 None for 0", None, 0, False),
    ("28 None for False", None, False, False),
    ("29 False for 0", False, 0, False),
    ("29 1 for True", 1, True, False),
    ("29 True in a list", [True], [1], False),
    ("29 True in a set", {True}, {1}, False),
    ("29 True as key", {True: 1}, {1: 1}, False),
    ("29 1.0 for 1", 1.0, 1, True),
    ("29 1 for 1.0", 1, 1.0, True),
    ("30", 0.1 + 0.2, 0.3, True),
    ("30 an int is exact", 1.0000000001, 1, False),
    ("30 too far", 0.3001, 0.3, False),
    ("31", [[1.0 + 1e-9]], [[1.0]], True),
    ("31 in a dict", {"a": 0.1 + 0.2}, {"a": 0.3}, True),
    ("31 in a set", {0.1 + 0.2}, {0.3}, True),
    ("31 as a key", {0.1 + 0.2: 1}, {0.3: 1}, True),
    ("32 nan", NAN, NAN, True),
    ("32 nan in a list", [NAN], [NAN], True),
    ("32 nan for a number", NAN, 1.0, False),
    ("32 a number for nan", 1.0, NAN, False),
    ("32 inf", float("inf"), float("inf"), True),
    ("32 signs of inf", float("inf"), float("-inf"), False),
    ("strings", "a", "b", False),
    ("bytes and text", b"a", "a", False),
    ("sets", {1, 2}, {2, 1}, True),
    ("frozenset for set", frozenset({1}), {1}, True),
    ("smaller set", {1}, {1, 2}, False),
    ("dict order", {"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ("missing key", {"a": 1}, {"a": 1, "b": 2}, False),
    ("huge int for float", 10**400, 1.0, False),
    ("complex", 1 + 2j, 1 + 2.0000000001j, True),
    ("long ints", 100000000000000001, 100000000000000000, False),
]


@pytest.mark.parametrize(
    ("name", "output", "expected", "right"), TOKEN_ROWS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_token_rows(name: str, output: str, expected: str, right: bool) -> None:
    assert TokenComparator().accepts(output.encode(), expected) is right


@pytest.mark.parametrize(
    ("name", "output", "expected", "right"), FLOAT_ROWS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_float_rows(name: str, output: str, expected: str, right: bool) -> None:
    assert FloatComparator().accepts(output.encode(), expected) is right


@pytest.mark.parametrize(
    ("name", "returned", "expected", "right"), EXACT_ROWS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_value_rows(name: str, returned: Any, expected: Any, right: bool) -> None:
    assert ExactValue().accepts(returned, expected) is right


def test_options() -> None:
    assert TokenComparator(ignore_case=True).accepts(b"yes", "YES")
    assert TokenComparator(unordered_lines=True).accepts(b"b\na", "a\nb")
    assert not TokenComparator(unordered_lines=True).accepts(b"b\nb", "a\nb")
    assert ExactValue(sequence_kind="any").accepts((1, [2]), [1, (2,)])
    assert ExactValue(bool_is_int=True).accepts([True], [1])
    assert not ExactValue(rel_tol=0, abs_tol=0).accepts(0.1 + 0.2, 0.3)
    assert CloseValue(rel_tol=0.1).accepts([100, 5], [105, 5])
    assert CloseValue(abs_tol=0.01).accepts(3.001, 3) and not CloseValue().accepts(3.001, 3)
    assert not CloseValue().accepts(True, 1)
    assert UnorderedValue().accepts({2, 1}, [1, 2]) and UnorderedValue().accepts([[2], [1]], [[1], [2]])
    assert not UnorderedValue().accepts([1, 1, 2], {1, 2}) and not UnorderedValue().accepts([1, 1, 2], [1, 2, 2])
    assert UnorderedValue().accepts([0.1 + 0.2, 1], [1, 0.3])
    assert not UnorderedValue().accepts([True], [1])


def test_output_that_is_not_utf8() -> None:
    assert not TokenComparator().accepts(b"\xff", "a")
    assert not TokenComparator(ignore_case=True).accepts(b"\xff", "a")
    assert not FloatComparator().accepts(b"\xff 1", "a 1")


numbers = st.integers() | st.floats(allow_nan=True) | st.booleans() | st.text(max_size=3) | st.none()
trees = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple), max_leaves=8
)


@given(trees)
@settings(max_examples=200, deadline=None)
def test_every_value_is_itself(value: Any) -> None:
    for comparator in (ExactValue(), ExactValue(rel_tol=0, abs_tol=0), CloseValue(), UnorderedValue()):
        assert comparator.accepts(value, value)


@given(trees, trees)
@settings(max_examples=300, deadline=None)
def test_close_and_unordered_are_no_stricter_than_exact(a: Any, b: Any) -> None:
    if ExactValue(rel_tol=0, abs_tol=0).accepts(a, b):
        assert ExactValue().accepts(a, b) and CloseValue().accepts(a, b) and UnorderedValue().accepts(a, b)


@given(st.lists(st.integers() | st.booleans() | st.floats(allow_nan=False), max_size=6), st.randoms())
@settings(max_examples=200, deadline=None)
def test_unordered_accepts_every_order(items: list[Any], random: Any) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert UnorderedValue().accepts(shuffled, items)
    assert not UnorderedValue().accepts([*shuffled, "more"], items)


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_output_equal_to_expected_is_right(text: str) -> None:
    assert TokenComparator().accepts(text.encode(), text)
    assert TokenComparator().accepts((text + "\n\n").encode(), text)


@pytest.mark.slow
def test_answers_made_to_collide_cost_no_time() -> None:
    """All multiples of the period have one hash, and so have all numbers of a kind; the answer is hostile."""
    period = 2**61 - 1
    multiples = [n * period for n in range(1, 30_000)]
    powers = [[2.0 ** (61 * (number >> 4 * place & 15) - 488) for place in range(4)] for number in range(2**15)]
    twins = [[-1 - (number >> bit & 1) for bit in range(15)] for number in range(2**15)]
    for items in (multiples, powers, twins):
        started = time.perf_counter()
        assert not UnorderedValue(ignore_repeats=True).accepts(items, {1, 2})
        assert not UnorderedValue().accepts(items, [0] * len(items))
        assert not ExactValue().accepts([{("k", n): 1 for n in range(9)}, items], [{("k", n): 1 for n in range(9)}, []])
        assert time.perf_counter() - started < 3


def test_zero_has_no_sign_among_unordered_items() -> None:
    zeros, other = [0.0] * 5000, [-0.0] * 5000  # too many for a comparison of every pair
    assert UnorderedValue().accepts(zeros, other)


@pytest.mark.parametrize(
    "token", ["1" * 60_000 + "e", "1" * 30_000 + "." + "1" * 30_000 + "x", "." * 60_000, "1e" * 30_000]
)
def test_an_output_that_is_almost_a_number_costs_no_time(token: str) -> None:
    started = time.perf_counter()
    assert not FloatComparator().accepts(token.encode(), "1.5")
    assert not TokenComparator(decimal=True).accepts(token.encode(), "1.5")
    assert time.perf_counter() - started < 0.5


def rows(count: int, off: float) -> list[Any]:
    return [[n + 0.5 + off, [n * 1.25 + off, f"row {n}"]] for n in range(count)]


@pytest.mark.parametrize(
    "arranged", [list, lambda items: items[::-1], lambda items: sorted(items, key=lambda r: -r[1][0])]
)
def test_nearly_equal_items_in_any_order_cost_no_time(arranged: Any) -> None:
    started = time.process_time()
    assert UnorderedValue().accepts(arranged(rows(2000, 1e-9)), rows(2000, 0.0))
    assert not UnorderedValue().accepts(arranged(rows(2000, 1e-2)), rows(2000, 0.0))
    same = [[1.0 + n * 1e-10, "x"] for n in range(2000)]
    assert UnorderedValue().accepts(same[::-1], [[1.0, "x"]] * 2000)
    assert not UnorderedValue(rel_tol=1e-12, abs_tol=0).accepts(same, [[5.0 + n * 1e-9, "x"] for n in range(2000)])
    assert time.process_time() - started < 3


mixed = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2)
items_of = st.recursive(
    mixed,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.sets(mixed, max_size=2),
    max_leaves=6,
)  # fmt: skip


@given(st.lists(items_of, max_size=6), st.randoms())
@settings(max_examples=200, deadline=None)
def test_anything_pairs_with_itself_in_any_order(items: list[Any], random: Any) -> None:
    nudged = [item + 1e-10 if type(item) is float else item for item in items]
    random.shuffle(nudged)
    assert UnorderedValue().accepts(nudged, items)


def _nested(depth: int, offset: float) -> frozenset[Any]:
    if depth == 0:
        return frozenset(float(i) + offset for i in range(6))
    return frozenset(_nested(depth - 1, offset + i * 1e-7) for i in range(6))


NEAR = [1.0 + i * 1e-9 for i in range(2000)]
IN_VAIN = [
    (
        [frozenset({x + j for j in range(50)}) for x in NEAR],
        [frozenset({x + j + j // 49 for j in range(50)}) for x in NEAR],
    ),
    ([[[x] * 100, 1] for x in NEAR], [[[x + 5e-10] * 100, 2] for x in NEAR]),
    ([("x" * 4000, x, 1) for x in NEAR], [("x" * 4000, x, 2) for x in NEAR]),
    ({x: [0.0] * 100 + [1] for x in NEAR}, {x + 5e-10: [0.0] * 100 + [2] for x in NEAR}),
    ({_nested(4, 0.0)}, {_nested(4, 3e-8)}),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(IN_VAIN)))
def test_answers_made_to_be_compared_in_vain_take_moments(number: int) -> None:
    """Items that differ in their last part alone would be tried against each other, all of them, at every depth."""
    returned, expected = IN_VAIN[number]
    started = time.process_time()
    for rules in (UnorderedValue(), ExactValue(), CloseValue()):
        assert not rules.accepts(returned, expected)
        assert rules.accepts(returned, returned)
    assert time.process_time() - started < 8  # without a bound: minutes


def test_a_search_leaves_no_bound_on_what_needs_none() -> None:
    pairs = {1.0: 2.0}, {1.0 + 1e-9: 2.0}
    long = list(range(300_000))
    assert ExactValue().accepts([pairs[0], long], [pairs[1], long])
    assert ExactValue(wrapped=True).accepts(long, [long])
