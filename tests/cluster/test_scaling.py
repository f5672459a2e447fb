"""The size of the fleet follows who waits for whom, within bounds, and not too often."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling import Load, ScalePolicy, ScaleSettings

SETTINGS = ScaleSettings(least=1, most=8, every_s=60)
QUIET = Load(seconds=60, learner_waited_s=0, blocked_s=0, ended=10, evicted=0, size=4, serving=4)


def decided(now=60.0, settings=SETTINGS, **load):
    return ScalePolicy(settings, 0.0).decide(dataclasses.replace(QUIET, **load), now)


def test_all_is_left_as_it_is_where_nobody_waits():
    assert decided() is None


def test_a_learner_that_waits_wants_half_as_many_again():
    wish = decided(learner_waited_s=30)
    assert wish.target == 6 and wish.why == "the learner waited 50% of the time"
    assert decided(learner_waited_s=30, size=1, serving=1).target == 2
    assert decided(learner_waited_s=30, size=7, serving=7).target == 8


def test_nothing_more_is_wished_for_while_some_are_coming_up():
    assert decided(learner_waited_s=60, serving=3) is None


def test_workers_that_may_begin_nothing_are_too_many():
    wish = decided(blocked_s=45)
    assert wish.target == 3 and "nothing might begin for 75%" in wish.why
    assert decided(blocked_s=45, learner_waited_s=10) is None  # both wait: of the weights, not of each other
    assert decided(blocked_s=45, size=1, serving=1) is None


def test_work_that_is_too_old_is_a_reason_for_fewer_whatever_the_learner_does():
    wish = decided(evicted=5, learner_waited_s=30)
    assert wish.target == 3 and "50% of the work was too old" in wish.why
    assert decided(ended=0, evicted=0) is None


def test_a_change_is_given_time_to_show():
    policy = ScalePolicy(SETTINGS, 0.0)
    waits = dataclasses.replace(QUIET, learner_waited_s=60)
    assert policy.decide(waits, 59.9) is None
    assert policy.decide(waits, 60) is not None
    assert policy.decide(waits, 119) is None and policy.decide(waits, 120) is not None


def test_a_size_outside_the_bounds_comes_back_into_them():
    assert decided(size=12, serving=12).target == 8
    assert decided(size=0, serving=0).target == 1


def test_bounds_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"least: got 3; use a whole number from 0 to most \(2\)"):
        ScaleSettings(least=3, most=2)


@given(
    st.integers(0, 4), st.integers(0, 6), st.integers(0, 12), st.integers(0, 12),
    st.floats(0, 60), st.floats(0, 60), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip
def test_every_wish_is_within_bounds_and_a_change(least, more, size, serving, waited, blocked, ended, evicted):
    settings = ScaleSettings(least=least, most=least + more, every_s=60)
    load = Load(60, waited, blocked, max(ended, evicted), evicted, size, serving)
    wish = ScalePolicy(settings, 0.0).decide(load, 60)
    assert wish is None or (settings.least <= wish.target <= settings.most and wish.target != size and wish.why)
