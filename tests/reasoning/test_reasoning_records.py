"""Records: JSON round trips, and what they refuse."""

import math

import pytest
from hypothesis import given
from made_paths import path
from made_records import paths
from pydantic import ValidationError

from reasoning.advantages import CreditSettings, credit_paths
from reasoning.errors import InputError
from reasoning.labels import step_labels
from reasoning.problems import bundled, demonstrations
from reasoning.records import Origin, Path, Problem, ProblemTest, Suite, TextPair, mean
from sandbox import CallCase, CloseValue, ExpressionCase, FloatComparator, StdioCase, UnorderedValue


def again(record):
    return type(record).model_validate_json(record.model_dump_json())


@given(paths)
def test_paths(made):
    assert again(made) == made


def test_bundled_problems_and_demonstrations():
    for record in [*bundled(), *demonstrations()]:
        assert again(record) == record


CASES = [
    CallCase(
        args=[(1, {2}), {3: b"x"}], kwargs={"k": {"$odd": 1}}, expected=frozenset({1}), comparator=UnorderedValue()
    ),
    CallCase(args=[1 << 80, math.inf, 1j], expected=[None, True, "\ud800"], comparator=CloseValue(rel_tol=0.1)),
    ExpressionCase(setup="import math", expression="f(1)", expected={"a": (1,)}),
    StdioCase(stdin="é\u2028\n", expected="\x00", comparator=FloatComparator()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kind)
def test_tests_with_values_of_any_type(case):
    test = ProblemTest(case=case, origin=Origin.CONSENSUS, shown=True)
    read = again(test)
    assert read == test
    assert repr(read) == repr(test)
    suite = Suite(problem_id="p", tests=(test,), holdout=(test,), kill_rate=0.5, accepted=False, reason="weak")
    assert repr(again(suite)) == repr(suite)


def test_labels_trajectories_and_pairs():
    made = [path(value=1.0), path(value=0.0)]
    for record in [*step_labels(made), *credit_paths(made, {}, CreditSettings())]:
        assert again(record) == record
    pair = TextPair(problem_id="p", prompt="a", chosen="b", rejected="c")
    assert again(pair) == pair


def test_records_are_immutable_and_refuse_unknown_fields():
    made = path()
    with pytest.raises(ValidationError, match="frozen"):
        made.value = 0.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Path.model_validate({**made.model_dump(), "bogus": 1})


def test_a_lost_path_is_neither_complete_nor_solved():
    assert path(value=1.0).complete
    assert path(value=1.0).solved
    assert path(value=0.0).complete
    assert not path(value=0.0).solved
    assert not path(value=None).complete
    assert not path(value=None).solved


@pytest.mark.parametrize(
    "change", [{"id": ""}, {"question": ""}, {"references": ("x", 1)}, {"tests": ()}, {"split": "dev"}]
)
def test_problems_that_are_none(change):
    with pytest.raises(ValidationError):
        Problem.model_validate({**bundled()[0].model_dump(), **change})


def test_mean():
    assert mean([]) == 0.0
    assert mean([], 0.5) == 0.5
    assert mean([1, 2]) == 1.5


def test_the_error_for_bad_input_says_field_value_and_a_legal_one():
    assert str(InputError("seed", -1, "0 or more")) == "seed: got -1; use 0 or more"
    assert str(InputError("seed", "x", "a number", "is text")) == "seed: got 'x': is text; use a number"
