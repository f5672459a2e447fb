"""Rollout workers live, serve and end as the table says, in whatever order the news come."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.fleet import ENDED, STAYING, Fleet, FleetSettings, State

LIMITS = FleetSettings(start_s=100, suspect_s=10, drain_s=50, missed=2, sync_failures=2, deaths=3, deaths_s=1000)


def fleet(target=2, most=8, capacity=2, version=1):
    return Fleet(LIMITS, target=target, most=most, capacity=capacity, version=version)


def kinds(found):
    return Counter(order.kind for order in found)


def carried_out(made, now=0.0):
    """Everything that is ordered, done at once and well; returns the kinds."""
    seen = []
    while found := made.orders(now):
        for order in found:
            seen.append(order.kind)
            match order.kind:
                case "start":
                    made.starting(order, now, "node-a")
                    made.started(order.name, now)
                case "sync":
                    made.syncing(order.name)
                    made.synced(order.name, made.version, now)
                case "kill" | "retire":
                    made.died(order.name, now, order.why)
    return Counter(seen)


def test_a_member_serves_after_a_sync_and_not_before():
    made = fleet(target=1)
    (order,) = made.orders(0)
    assert order.kind == "start" and made.orders(0) == [order]
    made.starting(order, 0, "node-a")
    assert made.orders(5) == [] and made.assign("u") is None
    made.started(order.name, 20)
    assert kinds(made.orders(20)) == {"sync": 1} and made.assign("u") is None
    made.syncing(order.name)
    assert made.orders(21) == []
    made.synced(order.name, 1, 22)
    assert made.routable() == [order.name] and made.assign("u") == order.name
    assert [c.after for c in made.changes] == [State.PENDING, State.STALE, State.SERVING]


def test_newer_weights_make_everyone_stale_until_synced_and_work_goes_on():
    made = fleet()
    carried_out(made)
    assert made.assign("u")
    made.publish(2)
    assert made.room() == 0 and made.routable() == []
    assert kinds(made.orders(1)) == {"sync": 2}
    first, _ = made.members
    made.syncing(first)
    made.synced(first, 1, 2)  # the sync of the version before came through late
    assert made.routable() == []
    made.syncing(first)
    made.synced(first, 2, 3)
    assert made.routable() == [first] and sum(len(m.work) for m in made.members.values()) == 1
    with pytest.raises(ValueError, match="versions only rise"):
        made.publish(2)


def test_work_goes_to_who_has_least_and_only_so_much():
    made = fleet(target=2, capacity=2)
    carried_out(made)
    given = [made.assign(f"u{n}") for n in range(5)]
    assert Counter(given) == {"rollout-1": 2, "rollout-2": 2, None: 1}
    assert made.done(given[0], "u0") and not made.done(given[0], "u0") and not made.done("nobody", "u1")
    assert made.assign("u9") == given[0]


def test_work_that_has_to_be_alone_is():
    made = fleet(target=2, capacity=2)
    carried_out(made)
    for n in range(3):
        made.assign(f"u{n}")
    assert made.assign("alone", alone=True) is None
    # Who has least to do gets nothing more until it can take it.
    assert made.room() == 0 and made.assign("u3") is None
    made.done("rollout-2", "u1")
    assert made.assign("u3") is None
    assert made.assign("alone", alone=True) == "rollout-2"
    made.done("rollout-1", "u0")
    assert [made.assign("u3"), made.assign("u4")] == ["rollout-1", None]
    made.done("rollout-2", "alone")
    assert made.assign("u4") == "rollout-2"
    assert made.assign("another", alone=True) is None and made.room() == 0
    made.keep_for_nobody()
    assert made.room() == 1


def test_who_does_not_answer_gets_no_work_and_is_ended_in_the_end():
    made = fleet(target=1)
    carried_out(made)
    made.assign("u")
    made.missed("rollout-1", 5)
    assert made.routable()
    made.missed("rollout-1", 6)
    assert not made.routable() and made.orders(15.9) == []
    (order,) = made.orders(16)
    assert order.kind == "kill" and "no answer for 10 s" in order.why
    assert made.died("rollout-1", 16, order.why) == {"u"} and made.died("rollout-1", 17, "again") == set()
    assert kinds(made.orders(17)) == {"start": 1} and made.orders(17)[0].name == "rollout-2"


def test_who_answers_again_goes_on():
    made = fleet(target=1)
    carried_out(made)
    for now in (5, 6):
        made.missed("rollout-1", now)
    made.seen("rollout-1", 7)
    assert made.routable() == ["rollout-1"]
    for now in (8, 9):
        made.missed("rollout-1", now)
    made.publish(2)
    made.seen("rollout-1", 10)
    assert made.members["rollout-1"].state is State.STALE


def test_who_swaps_its_weights_is_not_missed():
    made = fleet(target=1)
    carried_out(made)
    made.publish(2)
    made.orders(0)
    made.syncing("rollout-1")
    for now in range(5):
        assert not made.missed("rollout-1", now)
    made.synced("rollout-1", 2, 6)
    assert made.routable()


def test_a_failed_sync_serves_nothing_and_a_second_one_ends_it():
    made = fleet(target=1)
    carried_out(made)
    made.assign("u")
    made.publish(2)
    made.orders(0)
    made.syncing("rollout-1")
    assert made.sync_failed("rollout-1", 1, "the probe differs") == set()
    assert not made.routable() and kinds(made.orders(1)) == {"sync": 1}
    made.syncing("rollout-1")
    assert made.sync_failed("rollout-1", 2, "the probe differs") == {"u"}
    assert made.members["rollout-1"].state is State.DEAD
    assert "2 syncs failed, the last: the probe differs" in made.members["rollout-1"].why


def test_who_does_not_come_up_is_ended_and_replaced():
    made = fleet(target=1)
    made.starting(made.orders(0)[0], 0)
    assert made.orders(99.9) == [] and kinds(made.orders(100)) == {"kill": 1}
    made.died("rollout-1", 100, "late")
    assert not made.started("rollout-1", 101) and kinds(made.orders(101)) == {"start": 1}


def test_nothing_is_started_for_ever_in_place_of_what_dies():
    made = fleet(target=1)
    for now in range(LIMITS.deaths):
        made.starting(made.orders(now)[0], now)
        made.died(f"rollout-{now + 1}", now, "no memory")
    assert made.orders(3) == [] and made.exhausted(3)
    assert not made.exhausted(1000) and kinds(made.orders(1000)) == {"start": 1}


def test_fewer_are_wished_for_and_the_least_useful_go_when_they_are_done():
    made = fleet(target=3)
    carried_out(made)
    busy = [made.assign(f"u{n}") for n in range(2)]
    made.wish(2)
    (order,) = made.orders(1)
    assert order.kind == "retire" and order.name not in busy
    made.died(order.name, 1, order.why)
    assert made.members[order.name].state is State.RETIRED
    made.wish(1)
    assert made.orders(2) == [] and len(made.routable()) == 1  # it finishes its work first
    leaving = next(m for m in made.members.values() if m.state is State.DRAINING)
    assert made.orders(2 + LIMITS.drain_s - 0.1) == []
    (order,) = made.orders(2 + LIMITS.drain_s)
    assert order.kind == "kill" and "its time is up with 1 at work" in order.why
    assert made.died(leaving.name, 60, order.why) and leaving.state is State.DEAD
    assert not made.exhausted(60) and made.orders(60) == []


def test_who_is_drained_is_done_when_its_work_is():
    made = fleet(target=1)
    carried_out(made)
    made.assign("u")
    made.wish(0)
    assert made.orders(1) == [] and made.assign("v") is None
    made.done("rollout-1", "u")
    assert kinds(made.orders(2)) == {"retire": 1}
    assert carried_out(made, 2) == {"retire": 1} and made.members["rollout-1"].state is State.RETIRED


def test_a_node_that_goes_takes_its_members_and_others_start_at_once():
    made = fleet(target=2)
    carried_out(made)
    made.members["rollout-2"].node = "node-b"
    made.assign("u")
    made.assign("v")
    assert made.drain_node("node-b", 10, 40, "the node is drained") == ["rollout-2"]
    assert kinds(made.orders(10)) == {"start": 1}
    made.starting(made.orders(10)[0], 10)
    assert made.orders(39.9) == [] and kinds(made.orders(40)) == {"kill": 1}
    # A nearer deadline counts, a later one does not.
    made.drain("rollout-2", 11, "again", 20)
    made.drain("rollout-2", 12, "again", 90)
    assert kinds(made.orders(20)) == {"kill": 1}


@pytest.mark.parametrize("target", [-1, 9])
def test_no_more_are_wished_for_than_there_may_be(target):
    with pytest.raises(ValueError, match=rf"rollouts: got {target}; use a whole number from 0 to 8"):
        fleet().wish(target)


def test_counts_name_every_state():
    made = fleet(target=2)
    carried_out(made)
    assert made.counts() == {**{state.value: 0 for state in State}, "serving": 2}


class Anything(RuleBasedStateMachine):
    """News in any order, also late and wrong ones."""

    @initialize(wished=st.integers(0, 4))
    def begin(self, wished):
        self.made, self.now, self.units = fleet(target=wished), 0.0, 0
        self.handed_back, self.ended, self.finished = Counter(), {}, set()

    def someone(self, data):
        return data.draw(st.sampled_from([*self.made.members, "nobody"]))

    def died(self, name, why):
        for unit in self.made.died(name, self.now, why):
            self.handed_back[unit] += 1

    @rule(seconds=st.sampled_from([1, 11, 60, 101]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(well=st.booleans())
    def carry_out(self, well):
        for order in self.made.orders(self.now):
            match order.kind:
                case "start":
                    self.made.starting(order, self.now, "node-a")
                    if well:
                        self.made.started(order.name, self.now)
                case "sync":
                    self.made.syncing(order.name)
                    if well:
                        self.made.synced(order.name, self.made.version, self.now)
                case _:
                    self.died(order.name, order.why)

    @rule(data=st.data(), what=st.sampled_from(["started", "seen", "missed", "syncing", "drain", "died"]))
    def news(self, data, what):
        name = self.someone(data)
        match what:
            case "syncing":
                self.made.syncing(name)
            case "died":
                self.died(name, "news")
            case "drain":
                self.made.drain(name, self.now, "news")
            case _:
                getattr(self.made, what)(name, self.now)

    @rule(data=st.data(), version=st.integers(1, 9), well=st.booleans())
    def sync(self, data, version, well):
        name = self.someone(data)
        if well:
            self.made.synced(name, version, self.now)
        else:
            for unit in self.made.sync_failed(name, self.now, "news"):
                self.handed_back[unit] += 1

    @rule()
    def publish(self):
        self.made.publish(self.made.version + 1)

    @rule(wished=st.integers(0, 8))
    def wish(self, wished):
        self.made.wish(wished)

    @rule()
    def assign_alone(self):
        name = self.made.assign(f"u{self.units + 1}", alone=True)
        if name is not None:
            self.units += 1
            assert self.made.members[name].work == {f"u{self.units}"}

    @precondition(lambda self: self.made.room() > 0)
    @rule()
    def assign(self):
        self.units += 1
        name = self.made.assign(f"u{self.units}")
        assert not self.made.members[name].alone
        member = self.made.members[name]
        assert member.state is State.SERVING and member.version == self.made.version and not member.syncing

    @rule(data=st.data())
    def done(self, data):
        working = [(m.name, unit) for m in self.made.members.values() for unit in sorted(m.work)]
        if working:
            name, unit = data.draw(st.sampled_from(working))
            assert self.made.done(name, unit)
            self.finished.add(unit)

    @invariant()
    def nothing_is_lost_or_doubled(self):
        if not hasattr(self, "made"):
            return
        held = [unit for member in self.made.members.values() for unit in member.work]
        assert len(held) == len(set(held))
        assert all(count == 1 for count in self.handed_back.values())
        assert len(held) + len(self.handed_back) + len(self.finished) == self.units
        assert all(len(m.work) <= (1 if m.alone else self.made.capacity) for m in self.made.members.values())

    @invariant()
    def the_ended_stay_so(self):
        for member in getattr(self, "made", fleet()).members.values():
            if member.name in self.ended:
                assert member.state is self.ended[member.name] and not member.work
            if member.state in ENDED:
                self.ended[member.name] = member.state

    @invariant()
    def no_more_are_started_than_are_wished_for(self):
        if hasattr(self, "made"):
            starts = kinds(self.made.orders(self.now))["start"]
            assert self.made.staying() + starts <= max(self.made.target, self.made.staying())
            assert self.made.staying() <= self.made.target  # `orders` has drained the others
            assert all(
                m.state in STAYING or m.state in ENDED or m.state is State.DRAINING for m in self.made.members.values()
            )


TestAnything = Anything.TestCase
