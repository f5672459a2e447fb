"""Rollout workers on a real Ray that come, die, hang and serve wrong weights: nothing is lost, nothing done twice."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter

import pytest

from cluster import rollout_fleet
from cluster.fleet import Fleet, FleetSettings, State
from cluster.rollout_fleet import RolloutFleet, Unit
from cluster.weight_sync import SyncFailed
from reasoning.errors import MachineError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = FleetSettings(start_s=30, suspect_s=1, drain_s=20, missed=2, sync_failures=2, deaths=6, deaths_s=600)
PROBE = [[1, 2, 3], [4, 5]]


@pytest.fixture(scope="module")
def pretend(local_ray):
    """The class of a worker that pretends to host an engine."""
    import ray

    @ray.remote(num_cpus=0, max_restarts=0, max_concurrency=64)
    class Pretend:
        def __init__(self, name, fault):
            self.name, self.fault, self.weights, self.version, self.told = name, fault, 0.0, 0, []

        async def start(self):
            if self.fault == "does not start":
                raise RuntimeError("no memory")
            return os.getpid()

        async def set_prompts(self, *args):
            self.told.append(args)

        async def counters(self):
            while self.fault == "hangs":
                await asyncio.sleep(1)
            return os.getpid()

        async def hang(self):
            self.fault = "hangs"

        async def update_weights(self, source, version):
            await asyncio.sleep(0.05)
            if self.fault != "keeps its weights":
                self.weights = float(source)
            self.version = version
            return 0.05

        async def score(self, sequences):
            return [[self.weights] * (len(ids) - 1) for ids in sequences]

        async def work(self, name, seconds):
            version = self.version
            while self.fault == "hangs":
                await asyncio.sleep(1)
            await asyncio.sleep(seconds)
            return name, self.name, version, os.getpid(), len(self.told)

        async def die(self):
            os._exit(1)

        async def shutdown(self):
            pass

    return Pretend


@pytest.fixture
def opened(pretend, monkeypatch):
    """Opens fleets whose probes are quick; `faults`: by name of the member. All are closed afterwards."""
    monkeypatch.setattr(rollout_fleet, "PROBE_EVERY_S", 0.3)
    monkeypatch.setattr(rollout_fleet, "PROBE_DEADLINE_S", 0.5)
    made = []

    def open_(target, faults=None, most=4, **more):
        settings = FleetSettings(**{**{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__}, **more})
        fleet = Fleet(settings, target=target, most=most, capacity=4)
        found = RolloutFleet(fleet, lambda name: pretend.remote(name, (faults or {}).get(name, "")), PROBE)
        found.set_everywhere("set_prompts", "shots")
        found.open()
        made.append(found)
        return found

    yield open_
    for one in made:
        one.close()
        assert not one._workers


def units(count, seconds=0.1):
    return [Unit(f"u{n}", "work", (f"u{n}", seconds)) for n in range(count)]


def streamed(fleet, work, on_tick=lambda done: None, **more):
    """Everything that came back."""
    done = []
    lost = fleet.stream(work, 4, 60, "a test", done.append, lambda: on_tick(done), **more)
    return done, lost


def once(each, count):
    return Counter(name for name, *_ in each) == {f"u{n}": 1 for n in range(count)}


def test_work_is_shared_and_done_once(opened):
    fleet = opened(2)
    fleet.wait(2, 30)
    done, lost = streamed(fleet, units(24))
    assert once(done, 24) and lost == []
    assert {who for _, who, *_ in done} == {"rollout-1", "rollout-2"}
    assert all(told == 1 for *_, told in done)


def test_what_a_killed_worker_was_at_is_done_by_others_and_it_is_replaced(opened):
    fleet = opened(2)
    fleet.wait(2, 30)
    fleet.publish("1.5", [[1.5, 1.5], [1.5]])
    killed = []

    def kill(done):
        if len(done) > 4 and not killed:
            killed.append(done[-1][1])
            os.kill(done[-1][3], signal.SIGKILL)

    done, lost = streamed(fleet, units(60), kill)
    assert once(done, 60) and lost == []
    fleet.wait(2, 30)
    assert fleet.fleet.members[killed[0]].state is State.DEAD
    done, _ = streamed(fleet, units(24))
    # The one that came in its place was told what all were told, and has the weights of now.
    assert {(version, told) for _, _, version, _, told in done} == {(1, 1)}
    assert "rollout-3" in {who for _, who, *_ in done}


def test_new_weights_reach_everyone_while_work_goes_on(opened):
    fleet = opened(3)
    fleet.wait(3, 30)
    reports = []

    def publish():
        for version in (1, 2):
            time.sleep(0.4)
            reports.append(fleet.publish(str(float(version)), [[float(version)] * 2, [float(version)]]))

    thread = threading.Thread(target=publish)
    thread.start()
    done, _ = streamed(fleet, units(90))
    thread.join()
    assert once(done, 90)
    assert [[(r.version, r.to_new) for r in one] for one in reports] == [[(1, 0.0)] * 3, [(2, 0.0)] * 3]
    assert all(r.to_old == pytest.approx(1.0) for one in reports for r in one)


def test_a_worker_that_keeps_its_weights_serves_nothing_and_is_replaced(opened):
    fleet = opened(2, {"rollout-2": "keeps its weights"})
    fleet.wait(2, 30)
    reports = fleet.publish("3.0", [[3.0, 3.0], [3.0]])
    assert len(reports) == 1
    assert fleet.fleet.members["rollout-2"].state is State.DEAD
    assert "2 syncs failed" in fleet.fleet.members["rollout-2"].why and "3.000" in fleet.fleet.members["rollout-2"].why
    fleet.wait(2, 30)
    done, _ = streamed(fleet, units(16))
    assert once(done, 16) and {version for _, _, version, *_ in done} == {1}


def test_weights_that_nobody_takes_stop_the_run(opened):
    fleet = opened(1, {"rollout-1": "keeps its weights"})
    fleet.wait(1, 30)
    with pytest.raises(SyncFailed, match=r"rollout-1, version 1: .*3\.000 nats"):
        fleet.publish("3.0", [[3.0, 3.0], [3.0]])


def test_a_worker_that_hangs_is_ended_and_its_work_done_elsewhere(opened):
    fleet = opened(2)
    fleet.wait(2, 30)
    hung = []

    def hang(done):
        if len(done) > 4 and not hung:
            hung.append("rollout-1")
            fleet._workers["rollout-1"].handle.hang.remote()

    done, lost = streamed(fleet, units(40), hang)
    assert once(done, 40) and lost == []
    assert "no answer for 1 s" in fleet.fleet.members["rollout-1"].why


def test_workers_come_and_go_in_the_middle(opened):
    fleet = opened(1)
    fleet.wait(1, 30)
    sizes, begun = [], []

    def change(done):
        if len(done) > 9 and not sizes:
            fleet.wish(3)
            sizes.append(3)
        if len({who for _, who, *_ in done}) == 3 and sizes == [3]:
            fleet.wish(1)
            sizes.append(1)

    def until_all_were_there():
        after = 0
        while after < 40 and len(begun) < 2000:
            after += sizes == [3, 1]
            begun.append(Unit(f"u{len(begun)}", "work", (f"u{len(begun)}", 0.05)))
            yield begun[-1]

    done, lost = streamed(fleet, until_all_were_there(), change)
    assert once(done, len(begun)) and lost == [] and sizes == [3, 1]
    deadline = time.monotonic() + 20
    while fleet.fleet.counts()["retired"] < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    counts = fleet.fleet.counts()
    assert (counts["serving"], counts["retired"], counts["dead"]) == (1, 2, 0)


def test_work_that_kills_whoever_takes_it_is_given_up(opened):
    fleet = opened(2)
    fleet.wait(2, 30)
    done, lost = streamed(fleet, [*units(10), Unit("poison", "die", ())], attempts=2)
    assert once(done, 10) and [unit.name for unit in lost] == ["poison"]


def test_a_fleet_of_which_nothing_comes_says_why(opened):
    fleet = opened(1, {f"rollout-{n}": "does not start" for n in range(1, 99)}, deaths=3)
    with pytest.raises(
        MachineError, match=r"no rollout worker is left: 3 dead; rollout-3: start: RuntimeError: no mem"
    ):
        fleet.wait(1, 30)
    with pytest.raises(MachineError, match="no rollout worker is left"):
        streamed(fleet, units(1))
