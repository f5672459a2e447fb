"""The pure part of the weight sync: when a probe proves that weights arrived, and where they are handed over."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import weight_sync
from cluster.weight_sync import FIRST_TOLERANCE, judge_probe, mean_difference, transfer_dir

nats = st.floats(0, 20)


def test_mean_difference_is_over_tokens_not_sequences():
    assert mean_difference([[0.0], [1.0, 1.0, 1.0]], [[1.0], [1.0, 1.0, 1.0]]) == pytest.approx(0.25)
    assert mean_difference([[-1.0, -2.0]], [[-2.0, -1.0]]) == pytest.approx(1.0)
    assert mean_difference([], []) == 0.0


@pytest.mark.parametrize("a, b", [([[1.0]], []), ([[1.0]], [[1.0, 2.0]]), ([[1.0], []], [[1.0]])])
def test_other_shapes_are_refused(a, b):
    with pytest.raises(ValueError):
        mean_difference(a, b)


@pytest.mark.parametrize(
    "new, old, moved, passes",
    [
        (0.05, 0.04, 0.02, True),  # a small step: the two cannot be told apart
        (0.05, 0.5, 0.5, True),  # arrived
        (0.5, 0.05, 0.5, False),  # stale
        (0.14, 0.13, 0.2, False),  # within tolerance, but nearer the old ones
        (0.14, 0.14, 0.2, False),
        (2.0, 2.0, 0.01, False),  # neither
        (0.0, 0.0, 0.0, True),
        (FIRST_TOLERANCE, 1.0, 1.0, True),
    ],
)
def test_probe_golden(new, old, moved, passes):
    assert (judge_probe(new, old, moved, FIRST_TOLERANCE) == "") == passes


@given(nats, nats, st.floats(0.01, 1))
def test_an_engine_that_kept_its_weights_fails_where_that_can_be_seen(moved, noise, tolerance):
    stale = judge_probe(new=moved, old=0.0, moved=moved, tolerance=tolerance)
    assert bool(stale) == (moved > tolerance)
    arrived = judge_probe(new=0.0, old=moved, moved=moved, tolerance=tolerance)
    assert arrived == ""
    assert bool(judge_probe(noise, noise, 0.0, tolerance)) == (noise > tolerance)


def test_the_reason_names_the_difference():
    reason = judge_probe(5.0, 0.0, 5.0, 0.15)
    assert "5.000" in reason
    assert "0.150" in reason


def test_the_hand_over_place(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_sync.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    fallback = tmp_path / "run" / "transfer"
    assert transfer_dir("test-no-room", 51, fallback) == fallback
    assert fallback.is_dir()
    monkeypatch.setattr(weight_sync.os, "access", lambda *_: False)
    assert transfer_dir("test-no-access", 1, fallback) == fallback


# --- publishing, with engines that are not real ---


class FakeEngine:
    """Says `scores` of its present weights; may ignore what is published, or mislabel it."""

    def __init__(self, scores, after, version=None, ignores=False):
        self.scores, self.after, self.version, self.ignores = scores, after, version, ignores
        self.serves = 0
        for name in ("update_weights", "counters", "score"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _update_weights(self, path, version):
        self.serves = version if self.version is None else self.version
        if not self.ignores:
            self.scores = self.after
        return 0.5

    def _counters(self):
        return SimpleNamespace(version=self.serves)

    def _score(self, probe):
        assert probe == [[1, 2, 3]]
        return self.scores


OLD, NEW = [[-1.0, -2.0]], [[-3.0, -1.0]]


@pytest.fixture
def sync(monkeypatch):
    monkeypatch.setattr(weight_sync.ray, "get", lambda value, timeout: value)
    return lambda *engines: weight_sync.WeightSync(engines, [(1, 2, 3)])


def test_publishing(sync, tmp_path):
    made = sync(FakeEngine(OLD, NEW), FakeEngine(OLD, [[-3.1, -1.0]]))
    assert made.current_scores() == OLD
    report = made.publish(tmp_path, NEW)
    assert (report.version, report.seconds, made.version) == (1, 0.5, 1)
    assert report.to_new == pytest.approx(0.05)
    assert report.to_old == pytest.approx(1.5)
    assert made.current_scores() == NEW


def test_publishing_the_same_weights_again(sync, tmp_path):
    made = sync(FakeEngine(OLD, OLD))
    assert [made.publish(tmp_path, OLD).version for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "engine, says",
    [
        (FakeEngine(OLD, NEW, ignores=True), "engine 1, version 1: the engine is 1.500 nats per token away"),
        (FakeEngine(OLD, [[-9.0, -9.0]]), "engine 1, version 1"),
        (FakeEngine(OLD, NEW, version=7), "engine 1 serves version 7 after version 1"),
    ],
    ids=["kept the old", "took others", "other version"],
)
def test_an_engine_that_did_not_take_the_weights_is_named(sync, tmp_path, engine, says):
    made = sync(FakeEngine(OLD, NEW), engine)
    with pytest.raises(weight_sync.SyncFailed, match=says):
        made.publish(tmp_path, NEW)
    assert made.version == 0
    assert made.current_scores() == OLD
