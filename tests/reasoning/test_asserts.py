"""Assert statements as cases: what becomes a value to compare, and what stays test code."""

# ruff: noqa: E501 - tables and programs keep one entry per line

import pytest

from reasoning.asserts import AssertError, convert_assert, convert_check, imports_of
from sandbox import AssertCase, CallCase, CloseValue, ExpressionCase, UnorderedValue


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        ("assert f(1) == 2", CallCase, 2),
        ("assert f(1) == 2, 'a message'", CallCase, 2),
        ("assert 2 == f(1)", CallCase, 2),
        ("assert f([1, (2,)], k={3}) == {'a': {1}}", CallCase, {"a": {1}}),
        ("assert f(1) == set([1, 2])", CallCase, {1, 2}),
        ("assert f(1) == set()", CallCase, set()),
        ("assert f(1) == -2.5", CallCase, -2.5),
        ("assert f(1) == 3 * 4 + 0.5", CallCase, 12.5),
        ("assert f(14 * 14, 1.0 / 4) == 1", CallCase, 1),
        ("assert f(1) is None", CallCase, None),
        ("assert f(1)", CallCase, True),
        ("assert not f(1)", CallCase, False),
        ("assert set(f(1)) == {1}", CallCase, {1}),
        ("assert sorted(f(1)) == [1, 2]", CallCase, [1, 2]),
        ("assert set(f(1)) == [1]", ExpressionCase, [1]),
        ("assert int(f(1)) == 2", ExpressionCase, 2),
        ("assert f(g(1)) == 2", ExpressionCase, 2),
        ("assert f(*[1]) == 2", ExpressionCase, 2),
        ("assert f(**{'a': 1}) == 2", ExpressionCase, 2),
        ("assert f(1 / 0) == 2", ExpressionCase, 2),
    ],
)
def test_asserts_become_cases(text, kind, expected):
    case = convert_assert(text, "f")
    assert type(case) is kind
    assert case.expected == expected
    assert case.comparator.accepts(expected, case.expected)


def test_arguments_are_values():
    case = convert_assert("assert f(14 * 14, -1.5, k=[2]) == 1", "f")
    assert (case.args, case.kwargs) == ([196, -1.5], {"k": [2]})


def test_what_equality_of_an_assert_means():
    assert convert_assert("assert f(1) == False", "f").comparator.accepts(0, False)
    assert not convert_assert("assert f(1) == [1]", "f").comparator.accepts((1,), [1])


@pytest.mark.parametrize("text", ["assert f(1)", "assert f(g(1))"])
def test_an_assert_without_a_comparison_is_about_truth(text):
    for case, right, wrong in (
        (convert_assert(text, "f"), [True, 1, "yes", [0]], [False, None, 0, "", []]),
        (convert_assert(text.replace("assert ", "assert not (") + ")", "f"), [False, None, 0, ""], [True, 1, "no"]),
    ):
        assert all(case.comparator.accepts(value, case.expected) for value in right)
        assert not any(case.comparator.accepts(value, case.expected) for value in wrong)


@pytest.mark.parametrize(
    "text, right, wrong",
    [
        ("assert set(f(1)) == {1, 2}", [[2, 1, 1], (1, 2), {1, 2}], [[1], [1, 3], [1, 2, 3]]),
        ("assert sorted(f(1)) == [1, 2, 2]", [[2, 1, 2], (2, 2, 1)], [[1, 2], [1, 1, 2]]),
        ("assert abs(f(1) - 2.0) < 1e-3", [2.0009, 2], [2.0011, 1.998]),
        ("assert math.fabs(2.0 - f(1)) <= 1e-3", [1.9995], [2.5]),
    ],
)
def test_how_a_test_looks_at_an_answer(text, right, wrong):
    case = convert_assert(text, "f")
    assert isinstance(case, CallCase)
    assert all(case.comparator.accepts(value, case.expected) for value in right)
    assert not any(case.comparator.accepts(value, case.expected) for value in wrong)
    assert isinstance(case.comparator, UnorderedValue | CloseValue)


def test_isclose_keeps_its_tolerances():
    case = convert_assert("assert math.isclose(f(1), 2.0, rel_tol=0.001)", "f", "import math")
    assert isinstance(case, CallCase)
    assert case.comparator.accepts(2.0019, 2.0)
    assert not case.comparator.accepts(2.0021, 2.0)


def test_setup_makes_an_expression_unless_it_only_imports():
    case = convert_assert("assert f(1) == 2", "f", "x = 1")
    assert isinstance(case, ExpressionCase)
    assert (case.setup, case.expression) == ("x = 1", "f(1)")
    assert isinstance(convert_assert("assert f(1) == 2", "f", "import math"), CallCase)
    assert isinstance(convert_assert("assert f(math.pi) == 2", "f", "import math"), ExpressionCase)


@pytest.mark.parametrize(
    "text",
    [
        "assert f(1) == g(2)",
        "assert f(1) > 2",
        "assert f(1) < f(2)",
        "assert abs(f(1)) < 3",
        "assert 1 in f(1)",
        "assert (f(1) == 1) == True",
        "assert f(1) == 2 and f(2) == 4",
        "assert bool(f(1) == 2)",
        "assert 1 <= f(1) <= 3",
        "assert all(f(x) == x for x in [1])",
        "assert (lambda v: v == 2)(f(1))",
        "assert not f(1) != 2",
        "assert sorted(f(1)) == [2, 1]",
    ],
)
def test_comparisons_without_a_comparator_stay_test_code(text):
    case = convert_assert(text, "f", "import math")
    assert isinstance(case, AssertCase)
    assert case.code == f"import math\n{text}\n"
    assert case.entry_point == "f"


@pytest.mark.parametrize(
    "text", ["f(1) == 2", "assert f(1) ==", "x = 1", "", "assert f(1) == 1; assert f(2) == 2", "assert f(...)"]
)
def test_what_is_no_assert_is_refused(text):
    with pytest.raises(AssertError, match="test"):
        convert_assert(text, "f")


def test_check_functions():
    plain = "def check(candidate):\n    'doc'\n    assert candidate(1) == 2, 'm'\n    assert abs(candidate(2) - 4) < 1e-6\n    assert True\n"
    cases = convert_check(plain, "f")
    assert [type(case) for case in cases] == [CallCase, CallCase]
    assert [case.args for case in cases] == [[1], [2]]
    loop = "import random\ndef check(candidate):\n    for i in range(3):\n        assert candidate(i) == i\n"
    (case,) = convert_check(loop, "f")
    assert isinstance(case, AssertCase)
    assert case.code.endswith("check(candidate)\n")
    assert case.entry_point == "f"
    for bad in ("def test(c): pass", "def check(candidate): pass", "def check(", "x = 1"):
        with pytest.raises(AssertError):
            convert_check(bad, "f")


def test_identity_is_stricter_than_equality():
    assert not convert_assert("assert f(1) is True", "f").comparator.accepts(1, True)
    assert convert_assert("assert f(1) == True", "f").comparator.accepts(1, True)


@pytest.mark.parametrize("more", ["assert False", "def check(candidate): assert False", "set = list"])
def test_a_check_that_is_not_all_of_the_test_stays_test_code(more):
    (case,) = convert_check(f"def check(candidate):\n    assert candidate(1) == 2\n{more}\n", "f")
    assert isinstance(case, AssertCase)


def test_imports_of_a_program():
    assert (
        imports_of("import sys\nfrom math import pi\nx = 1\ndef f():\n    import os\n")
        == "import sys\nfrom math import pi"
    )
