"""Streaming calls: the bound, the deadline, and nothing left running after a failure. A fake stands for Ray."""

from types import SimpleNamespace

import pytest

from cluster import flow


class FakeRay:
    """References are numbers; each call of `wait` ends the one that is `lag`-th in line, or nothing while stuck."""

    def __init__(self, lag=0, stuck=False, failing=()):
        self.lag, self.stuck, self.failing = lag, stuck, set(failing)
        self.now = 0.0
        self.running, self.most, self.cancelled = [], 0, []
        self.asked = []

    def start(self, number):
        def call():
            self.running.append(number)
            self.most = max(self.most, len(self.running))
            return number

        return call

    def wait(self, waiting, num_returns, timeout):
        assert waiting == self.running
        self.asked.append(timeout)
        self.now += timeout if self.stuck else 0.1
        if self.stuck:
            return [], list(waiting)
        done = waiting[min(self.lag, len(waiting) - 1)]
        self.running.remove(done)
        return [done], [w for w in waiting if w != done]

    def get(self, reference):
        if reference in self.failing:
            raise RuntimeError(f"call {reference} failed")
        return reference * 10

    def cancel(self, reference, force):
        assert not force
        self.cancelled.append(reference)


def stream(monkeypatch, ray, count, in_flight, deadline=30.0, on_result=None):
    monkeypatch.setattr(flow, "ray", ray)
    monkeypatch.setattr(flow, "time", SimpleNamespace(monotonic=lambda: ray.now))
    results, ticks = [], []
    flow.stream(
        (ray.start(n) for n in range(count)),
        in_flight,
        deadline,
        "trees",
        on_result or results.append,
        lambda: ticks.append(ray.now),
    )
    return results, ticks


@pytest.mark.parametrize("in_flight", [1, 3, 50])
@pytest.mark.parametrize("lag", [0, 2])
def test_every_result_comes_once_and_the_bound_holds(monkeypatch, in_flight, lag):
    ray = FakeRay(lag)
    results, ticks = stream(monkeypatch, ray, 20, in_flight)
    assert sorted(results) == [n * 10 for n in range(20)]
    assert ray.most == min(20, in_flight)
    assert len(ticks) == 20
    assert max(ray.asked) <= 1.0
    assert ray.cancelled == []


def test_nothing_to_do(monkeypatch):
    assert stream(monkeypatch, FakeRay(), 0, 4) == ([], [])


def test_calls_that_never_end_are_given_up_and_cancelled(monkeypatch):
    ray = FakeRay(stuck=True)
    with pytest.raises(TimeoutError, match=r"trees: nothing came back for 30 s \(4 in flight\)"):
        stream(monkeypatch, ray, 9, 4)
    assert 30 < ray.now <= 32
    assert ray.cancelled == [0, 1, 2, 3]


def test_the_deadline_is_between_results_not_for_all(monkeypatch):
    ray = FakeRay()
    results, _ = stream(monkeypatch, ray, 100, 2, deadline=1.0)
    assert len(results) == 100
    assert ray.now > 5


def test_a_call_that_fails_ends_the_stream_and_the_others(monkeypatch):
    ray = FakeRay(failing=[3])
    with pytest.raises(RuntimeError, match="call 3 failed"):
        stream(monkeypatch, ray, 20, 4)
    assert ray.cancelled == [4, 5, 6]


def test_a_result_that_cannot_be_taken_ends_the_stream_too(monkeypatch):
    def refuse(result):
        raise KeyboardInterrupt

    ray = FakeRay()
    with pytest.raises(KeyboardInterrupt):
        stream(monkeypatch, ray, 20, 4, on_result=refuse)
    assert ray.cancelled == [1, 2, 3]
