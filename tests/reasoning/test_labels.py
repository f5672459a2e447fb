"""PRM targets and D+."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_paths import path, step
from pydantic import ValidationError

from reasoning.labels import (
    hard_label,
    held_out,
    label_counts,
    mean_target,
    pass_rate,
    soft_label,
    solved_paths,
    step_labels,
)
from reasoning.records import Action, StepLabel

DEFINE, REFINE, CODE = Action.DEFINE, Action.REFINE, Action.CODE


def test_soft_label_golden():
    assert soft_label(0, 0) == (0.5, 0.0)
    assert soft_label(0, 1) == (0.25, 0.125)
    assert soft_label(4, 4) == (0.9, 0.5)
    assert soft_label(8, 16) == (0.5, 1.0)


def test_hard_label_golden():
    assert hard_label(1, 8) == (1.0, 1.0)
    assert hard_label(0, 8) == (0.0, 1.0)
    assert hard_label(20, 20) == (1.0, 1.0)
    assert hard_label(7, 7)[1] == 0.0
    assert hard_label(0, 0)[1] == 0.0


@pytest.mark.parametrize("label", [soft_label, hard_label])
@pytest.mark.parametrize("passed, sampled", [(-1, 3), (4, 3), (-1, 9)])
def test_labels_refuse(label, passed, sampled):
    with pytest.raises(ValueError, match="passed, sampled"):
        label(passed, sampled)


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_hard_label_says_whether_anything_passed_where_enough_was_sampled(passed, failed):
    target, weight = hard_label(passed, passed + failed)
    assert weight == (passed + failed >= 8)
    if weight:
        assert target == (passed > 0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_soft_labels_are_inside_and_counts_come_back(passed, failed):
    sampled = passed + failed
    target, weight = soft_label(passed, sampled)
    assert 0 < target < 1
    assert 0 <= weight <= 1
    good, bad = label_counts(target, weight)
    assert good >= 0
    assert bad >= 0
    assert good + bad == pytest.approx(min(8, sampled))
    if sampled <= 8:
        assert good == pytest.approx(passed, abs=1e-9)
    elif passed in (0, sampled):
        assert good == pytest.approx(8 if passed else 0)


@given(st.integers(1, 40), st.integers(0, 40))
def test_more_passing_means_a_higher_target(sampled, passed):
    if passed < sampled:
        assert soft_label(passed, sampled)[0] < soft_label(passed + 1, sampled)[0]


def test_labels_stand_at_the_last_token_of_each_step():
    steps = (step(DEFINE, [3, 4], (8, 9), 2, 4), step(CODE, [5], (7,), 4, 4))
    (label,) = step_labels([path(steps=steps, prompt=(1, 2))])
    assert label.token_ids == (1, 2, 8, 9, 3, 4, 7, 5)
    assert label.ends == (5, 7)
    assert [label.token_ids[end] for end in label.ends] == [4, 5]
    assert label.targets == pytest.approx((0.5, 0.9))
    assert label.weights == (0.5, 0.5)


def test_hard_labels_of_paths():
    shared = step(DEFINE, [3, 4], passed=1, sampled=8)
    paths = [path(steps=(shared, step(CODE, [n], passed=0, sampled=n))) for n in (7, 8)]
    labels = step_labels(paths, kind="hard")
    assert [x.weights for x in labels] == [(1.0, 0.0), (0.0, 1.0)]
    assert [x.targets[0] for x in labels] == [1.0, 1.0]
    assert labels[1].targets[1] == 0.0
    assert [(x.token_ids, x.ends) for x in labels] == [(x.token_ids, x.ends) for x in step_labels(paths)]
    assert step_labels([path(steps=(step(DEFINE, [3], passed=7, sampled=7),))], kind="hard") == []


def test_another_kind_of_label_is_refused():
    with pytest.raises(ValueError, match="kind: got 'firm'"):
        step_labels([], kind="firm")


def test_a_shared_step_counts_once_per_tree():
    shared = step(DEFINE, [3, 4], passed=1, sampled=2)
    one = path(steps=(shared, step(CODE, [5], passed=1, sampled=1)))
    two = path(steps=(shared, step(CODE, [6], passed=0, sampled=1)))
    labels = step_labels([one, two])
    assert [x.weights for x in labels] == [(0.25, 0.125), (0.0, 0.125)]
    other_tree = two.model_copy(update={"tree_id": "u"})
    assert [x.weights for x in step_labels([one, other_tree])] == [(0.25, 0.125), (0.25, 0.125)]


def test_the_same_text_after_another_prefix_is_another_state():
    last = step(CODE, [6], passed=1, sampled=1)
    labels = step_labels(
        [path(steps=(step(DEFINE, [n], passed=0, sampled=1), step(REFINE, [5]), last)) for n in (3, 4)]
    )
    assert [x.weights for x in labels] == [(0.125, 0.0, 0.125)] * 2


def test_a_path_that_tells_nothing_has_no_label():
    assert step_labels([path()]) == []
    known = path(steps=(step(DEFINE, [3], passed=1, sampled=1),))
    assert len(step_labels([known, known])) == 1


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_the_split_is_by_problem_and_grows_with_the_share(problem, a, b):
    low, high = min(a, b), max(a, b)
    assert not held_out(problem, 0.0)
    assert held_out(problem, 1.0)
    assert held_out(problem, high) or not held_out(problem, low)


def test_the_share_of_held_out_problems():
    assert sum(held_out(f"mbpp/{i}", 0.25) for i in range(2000)) == pytest.approx(500, abs=80)


def test_d_plus_is_solved_distinct_short_and_few():
    long = path(program="a", steps=(step(DEFINE, range(9)), step(CODE, [5])), tree="long")
    short = path(program="a", tree="short")
    other = path(program="b", tree="other", steps=(step(DEFINE, [1]), step(CODE, range(8))))
    wrong = path(program="c", value=0.5)
    lost = path(program="d", value=None)
    elsewhere = path(problem="q", program="a")
    everything = [long, wrong, other, lost, short, elsewhere]
    assert solved_paths(everything, 9) == [short, other, elsewhere]
    assert solved_paths(everything, 1) == [short, elsewhere]
    assert solved_paths([wrong, lost], 9) == []


def test_programs_of_d_plus_differ_in_more_than_layout():
    one = path(program="x = 1\n")
    same = path(program="x=1  # note\n", steps=(step(DEFINE, [1]), step(CODE, range(8))))
    other = path(program="x = 2\n", steps=(step(DEFINE, [1]), step(CODE, range(9))))
    elsewhere = path(problem="q", program="x=1\n")
    assert solved_paths([other, same, one, elsewhere], 9) == [one, other, elsewhere]
    assert solved_paths([other, same], 9) == [same, other]


def test_d_plus_has_no_incomplete_paths():
    accepted = path()
    unfinished = accepted.model_copy(update={"value": None, "tree_id": "unfinished"})
    without_program = accepted.model_copy(update={"program": None, "tree_id": "malformed"})
    assert solved_paths([unfinished, without_program, accepted], 9) == [accepted]


def test_pass_rate_counts_complete_paths():
    assert pass_rate([path(), path(value=0.4), path(value=0.0), path(value=None)]) == pytest.approx(1 / 3)
    assert pass_rate([path(value=None)]) == 0.0
    assert pass_rate([]) == 0.0


def test_the_mean_target_is_weighted():
    steps = (step(DEFINE, [3], passed=0, sampled=8), step(CODE, [5], passed=1, sampled=1))
    (label,) = step_labels([path(steps=steps)])
    assert mean_target([label]) == pytest.approx((0.5 / 9 * 1 + 0.75 * 0.125) / 1.125)
    assert mean_target([]) == 0.5


GOOD = {"problem_id": "p", "token_ids": (1, 2, 3), "ends": (0, 2), "targets": (0.0, 1.0), "weights": (1.0, 0.0)}


@pytest.mark.parametrize(
    "field, value",
    [
        ("targets", (0.5, 1.1)),
        ("targets", (-0.1, 0.5)),
        ("targets", (0.5, float("nan"))),
        ("targets", (0.5,)),
        ("weights", (1.0, -1.0)),
        ("weights", (1.0, float("inf"))),
        ("weights", ()),
        ("ends", (0, 3)),
        ("ends", (-1, 2)),
        ("ends", (0,)),
    ],
)
def test_a_label_that_can_be_none_is_refused(field, value):
    assert StepLabel(**GOOD)
    with pytest.raises(ValidationError):
        StepLabel(**{**GOOD, field: value})
