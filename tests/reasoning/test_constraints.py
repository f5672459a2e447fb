"""Limits that questions state: what is read, what is not, and which inputs break them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.constraints import Limit, envelope, limits_of, numbers_in, parameters, violated

READ = {
    "where 1 <= n <= 10^5.": [Limit("n", "value", 1, 1e5)],
    "1 ≤ n ≤ 100 000": [Limit("n", "value", 1, 100)],  # a space ends a number
    "$1 \\le n \\leq 2 \\cdot 10^{5}$": [Limit("n", "value", 1, 2e5)],
    "0 < a, b < 100": [Limit("a", "value", 1, 99), Limit("b", "value", 1, 99)],
    "1 <= len(s) <= 20": [Limit("s", "length", 1, 20)],
    "|s| <= 20 and 1 <= nums.length": [Limit("s", "length", None, 20), Limit("nums", "length", 1, None)],
    "-10**9 <= nums[i] <= 10**9": [Limit("nums", "item", -1e9, 1e9)],
    "`a_i` >= 0": [Limit("a", "item", 0, None)],
    "(1 ≤ a_{i} ≤ 1,000)": [Limit("a", "item", 1, 1000)],
    "0.5 < x < 1.5": [Limit("x", "value", 0.5, 1.5)],
    "k >= -3": [Limit("k", "value", -3, None)],
    "5 >= k": [Limit("k", "value", None, 5)],
    "Return the sum of n numbers; if x is 3, do nothing.": [],
    "The answer is n < m.": [],
    "5 <= n <= 3": [],
    "for i in range(3): x <= y": [],
    "": [],
}


@pytest.mark.parametrize("question", READ)
def test_what_is_read(question):
    assert limits_of(question) == READ[question]


@given(st.text(alphabet="1 <=>n^10a_i,[]().len|\\${}*-≤", max_size=60))
def test_no_text_is_an_error(text):
    for limit in limits_of(text):
        assert limit.low is not None or limit.high is not None
        assert limit.low is None or limit.high is None or limit.low <= limit.high
        assert not any(x is not None and math.isnan(x) for x in (limit.low, limit.high))


def test_what_breaks_a_limit():
    limits = limits_of("1 <= n <= 5, 1 <= len(items) <= 3, 0 <= items[i] <= 9")
    names = ("n", "items", "other")
    legal = [(1, [0]), (5, [9, 9, 9]), (3, [[1, 2], [9]]), (True, (0,)), ("n", [1])]
    assert [violated((*args, -99), names, limits) for args in legal] == [None] * 5
    assert violated((0, [1], 0), names, limits).name == "n"
    assert violated((6, [1], 0), names, limits).kind == "value"
    assert violated((1, [], 0), names, limits).kind == "length"
    assert violated((1, [1, 2, 3, 4], 0), names, limits).kind == "length"
    assert violated((1, [[1], [10]], 0), names, limits).kind == "item"
    assert violated((0,), (), limits) is None


def test_parameters_are_those_of_the_entry_point():
    source = "def g(x):\n    pass\n\nclass Solution:\n    def f(self, nums, /, k=2, *rest, flag):\n        pass\n"
    assert parameters(source, "f") == ("nums", "k")
    assert parameters(source, "g") == ("x",)
    assert parameters(source, "h") == parameters("def (", "f") == ()


def test_all_numbers_that_a_program_reads_are_between_the_widest_bounds():
    limits = limits_of("The first line has n, 1 <= n <= 100. Then 1 <= a_i <= 1000; 1 <= len(s) <= 5.")
    assert envelope(limits, ["2\n5 1000\n"]) == (1, 1000)
    # A bound that a given text breaks was read wrongly, and one that is open says nothing.
    assert envelope(limits, ["2\n0 5\n"]) == (-math.inf, 1000)
    assert envelope(limits_of("n >= 1 and 2 <= k <= 9"), ["5"]) == (1, math.inf)
    assert envelope([], ["5"]) == (-math.inf, math.inf)


def test_words_that_are_numbers():
    assert numbers_in("3 -4 x 2.5 1e5 7a --1") == [3, -4, 2.5]
