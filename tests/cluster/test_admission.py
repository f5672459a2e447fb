"""Staleness and samples stay in their bounds whatever happens in whatever order, and every unit ends once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from cluster.admission import Admission, End, Ticket


def made(batch=2, max_staleness=0, most_running=99, **more):
    return Admission(batch, max_staleness, most_running=most_running, **more)


def begun(admission, count):
    return [admission.admit(f"u{len(admission._known)}") for _ in range(count)]


@pytest.mark.parametrize(
    ("field", "values"),
    [("batch", (0, 1)), ("max_staleness", (-1, 0)), ("most_running", (0, 1)), ("attempts", (0, 1))],
)
def test_bounds_that_make_no_sense_are_refused(field, values):
    bad, least = values
    with pytest.raises(ValueError, match=rf"{field}: got {bad}; use a whole number from {least} on"):
        made(**{field: bad})
    made(**{field: least})


def test_synchronous_training_begins_nothing_while_the_learner_learns():
    a = made(batch=2)
    first, second = begun(a, 2)
    assert a.room() == 0
    with pytest.raises(RuntimeError, match="no unit may begin now"):
        a.admit("more")
    assert a.finish(second, "b") and a.select() == []
    assert a.finish(first, "a")
    assert a.select() == [(first, "a"), (second, "b")]
    assert a.room() == 0
    assert a.publish(1) == [] and a.room() == 2
    assert a.staleness == {0: 2}


def test_asynchronous_training_goes_on_meanwhile():
    a = made(batch=2, max_staleness=1)
    units = begun(a, 4)
    assert a.room() == 0
    for unit in units[:2]:
        a.finish(unit, unit.unit)
    assert len(a.select()) == 2 and a.room() == 0  # the other two are the next batch
    a.publish(1)
    assert a.room() == 2
    newer = begun(a, 2)
    for unit in (*newer, *units[2:]):
        a.finish(unit, unit.unit)
    # The older ones come first, though they were the last to end.
    assert [ticket for ticket, _ in a.select()] == units[2:]
    assert a.staleness == {0: 2, 1: 2}


def test_what_is_too_old_is_evicted_and_makes_room():
    a = made(batch=1, max_staleness=1)
    slow, quick = begun(a, 2)
    a.finish(quick, "")
    a.select()
    assert a.publish(1) == []
    (waiting,) = begun(a, 1)
    a.finish(waiting, "")
    a.select()
    assert a.publish(2) == [slow]
    assert not a.finish(slow, "late") and a.fail(slow) is None and not a.drop(slow)
    assert a.ends == {End.USED: 2, End.EVICTED: 1} and a.room() == 2


def test_a_lost_attempt_is_tried_again_with_the_weights_of_now():
    a = made(batch=1, max_staleness=2, attempts=2)
    first, other = begun(a, 2)
    a.finish(other, "")
    a.select()
    a.publish(2)
    again = a.fail(first)
    assert again == Ticket("u0", 2, 2)
    assert not a.finish(first, "the first attempt, late after all") and a.fail(first) is None
    assert a.fail(again) is None and a.ends[End.LOST] == 1
    with pytest.raises(ValueError, match="'u0' again"):
        a.admit("u0")


def test_what_teaches_nothing_makes_room_for_another():
    a = made(batch=2)
    one, two = begun(a, 2)
    assert a.drop(one) and not a.drop(one) and a.room() == 1
    a.finish(two, "")
    assert a.select() == [] and len(a.select(whole=False)) == 1


def test_versions_only_rise():
    with pytest.raises(ValueError, match="versions only rise"):
        made(version=3).publish(3)


def test_no_more_run_at_a_time_than_may():
    a = made(batch=8, most_running=3)
    units = begun(a, 3)
    assert a.room() == 0
    a.finish(units[0], "")
    assert a.room() == 1


def test_what_was_open_begins_again_after_a_restart():
    a = made(batch=4, attempts=2)
    one, two, three = begun(a, 3)
    a.finish(one, "in memory only")
    a.fail(two)
    assert a.open_units() == {"u0": 1, "u1": 2, "u2": 1}
    b = made(batch=4, attempts=2, version=7)
    assert b.resume(a.open_units()) == [Ticket("u0", 2, 7), Ticket("u1", 3, 7), Ticket("u2", 2, 7)]
    assert b.room() == 1 and b.fail(Ticket("u1", 3, 7)) == Ticket("u1", 4, 7)
    assert not b.finish(three, "of the process before")
    with pytest.raises(ValueError, match="resume before anything else"):
        b.resume({})


class Anything(RuleBasedStateMachine):
    """Whatever is called in whatever order."""

    tickets = Bundle("tickets")

    @initialize(batch=st.integers(1, 4), stale=st.integers(0, 3), most=st.integers(1, 12), attempts=st.integers(1, 3))
    def begin(self, batch, stale, most, attempts):
        self.a = Admission(batch, stale, most_running=most, attempts=attempts)
        self.most, self.names, self.ended = most, 0, Counter()
        self.learning = False

    @precondition(lambda self: self.a.room() > 0)
    @rule(target=tickets)
    def admit(self):
        self.names += 1
        return self.a.admit(f"u{self.names}")

    @rule(ticket=tickets)
    def finish(self, ticket):
        self.a.finish(ticket, ticket.unit)

    @rule(target=tickets, ticket=consumes(tickets))
    def fail(self, ticket):
        return self.a.fail(ticket) or ticket

    @rule(ticket=tickets)
    def drop(self, ticket):
        self.a.drop(ticket)

    @precondition(lambda self: not self.learning)
    @rule(whole=st.booleans())
    def select(self, whole):
        taken = self.a.select(whole)
        assert len(taken) <= self.a.batch and (not whole or len(taken) in (0, self.a.batch))
        for ticket, result in taken:
            assert result == ticket.unit
            assert 0 <= self.a.version - ticket.version <= self.a.max_staleness
        self.learning = bool(taken)

    @precondition(lambda self: self.learning)
    @rule(by=st.integers(1, 2))
    def publish(self, by):
        self.a.publish(self.a.version + by)
        self.learning = False

    @invariant()
    def every_unit_is_open_or_ended_once(self):
        if hasattr(self, "a"):
            assert len(self.a.open_units()) + self.a.ends.total() == self.names
            assert self.a.running <= self.most
            assert len(self.a.open_units()) <= (1 + self.a.max_staleness) * self.a.batch
            assert self.a.running + self.a.ready == len(self.a.open_units())


TestAnything = Anything.TestCase


@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 30))
def test_in_order_nothing_is_ever_too_old_and_the_learner_never_waits_for_room(batch, stale, steps):
    """Units that end in the order of their beginning: the bound on what begins is enough, nothing is evicted."""
    a = made(batch=batch, max_staleness=stale, most_running=1000)
    waiting = []
    for version in range(1, steps + 1):
        waiting += begun(a, a.room())
        while a.ready < batch:
            a.finish(waiting.pop(0), "")
        assert len(a.select()) == batch
        waiting += begun(a, a.room())
        a.publish(version)
    assert a.ends == {End.USED: batch * steps}
    assert max(a.staleness) <= stale
    assert max(a.staleness) == min(stale, steps - 1)


def test_cancelling_ends_everything():
    a = made(batch=3)
    one, two, _ = begun(a, 3)
    a.finish(one, "")
    assert len(a.cancel()) == 2 and a.ends[End.CANCELLED] == 3 and not a.finish(two, "")
    assert a.describe() == {
        "version": 0, "running": 0, "ready": 0, "room": 3,
        "used": 0, "dropped": 0, "evicted": 0, "lost": 0, "cancelled": 3,
    }  # fmt: skip
