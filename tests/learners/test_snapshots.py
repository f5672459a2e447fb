"""Snapshots of a training: which one is the latest, whatever happened meanwhile."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learners.snapshots import CURSOR, Cursor, Snapshots

WRITER = """
import hashlib, os, sys
from pathlib import Path
from learners.snapshots import Cursor, Snapshots

kept = Snapshots(Path(sys.argv[1]), "d")
found = kept.latest()
step = found[1].step if found else 0
print(step, flush=True)
while True:
    step += 1
    kept.begin(step)
    for rank in range(2):
        data = os.urandom(200_000)
        (kept.scratch(step) / f"{rank}.bin").write_bytes(data + hashlib.sha256(data).digest())
    kept.publish(Cursor(step, [{"loss": float(n)} for n in range(step)]))
"""


def publish(kept, step, data=b"x"):
    kept.begin(step)
    (kept.scratch(step) / "rank-0").write_bytes(data)
    kept.publish(Cursor(step, [{"loss": float("nan")}] * step))


def test_there_is_no_latest_before_the_first(tmp_path):
    assert Snapshots(tmp_path / "none", "d").latest() is None


def test_the_latest_is_the_one_published_last_and_the_only_one(tmp_path):
    kept = Snapshots(tmp_path / "s", "d")
    publish(kept, 9)
    publish(kept, 10, b"later")
    folder, cursor = kept.latest()
    assert (folder / "rank-0").read_bytes() == b"later"
    assert (cursor.step, len(cursor.rows)) == (10, 10)
    assert len(list((tmp_path / "s").iterdir())) == 1


def test_what_was_not_published_is_not_the_latest(tmp_path):
    kept = Snapshots(tmp_path / "s", "d")
    publish(kept, 2)
    kept.begin(5)
    (kept.scratch(5) / CURSOR).write_text(json.dumps({"digest": "d", "step": 5, "rows": []}))
    assert kept.latest()[1].step == 2
    publish(kept, 5)
    assert kept.latest()[1].step == 5


def test_another_training_has_no_snapshot_here_and_the_old_ones_go(tmp_path):
    publish(Snapshots(tmp_path, "one"), 7)
    other = Snapshots(tmp_path, "other")
    assert other.latest() is None
    publish(other, 3)
    assert other.latest()[1].step == 3
    assert Snapshots(tmp_path, "one").latest() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "d"}', '{"digest": "d", "step": "x", "rows": []}'])
def test_a_snapshot_that_cannot_be_read_is_none(tmp_path, text):
    kept = Snapshots(tmp_path, "d")
    publish(kept, 4)
    (tmp_path / "step-00000004" / CURSOR).write_text(text)
    assert kept.latest() is None
    publish(kept, 4, b"again")
    assert (kept.latest()[0] / "rank-0").read_bytes() == b"again"


def test_a_snapshot_that_is_being_deleted_is_none(tmp_path, monkeypatch):
    kept = Snapshots(tmp_path, "d")
    publish(kept, 1)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    kept.begin(2)
    with pytest.raises(KeyboardInterrupt):
        kept.publish(Cursor(2, []))
    assert kept.latest()[1].step == 2
    assert not (tmp_path / "step-00000001" / CURSOR).exists()


def test_what_a_kill_left_half_written_makes_room_for_the_next(tmp_path):
    kept = Snapshots(tmp_path, "d")
    kept.begin(3)
    kept.begin(7)
    assert [p.name for p in tmp_path.iterdir()] == [kept.scratch(7).name]


def test_a_kill_at_any_moment_leaves_a_latest_that_is_whole(tmp_path):
    """kill -9, 20 times; every process goes on from what it finds, and never from less than the one before had."""
    import hashlib

    root = Path(__file__).resolve().parents[2]
    rng, last = random.Random(0), 0
    for _ in range(20):
        command = [sys.executable, "-P", "-c", WRITER, str(tmp_path / "s")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
        ) as writer:
            try:
                assert int(writer.stdout.readline()) >= last
                time.sleep(rng.uniform(0.0, 0.03))
            finally:
                writer.send_signal(signal.SIGKILL)
                writer.wait(10)
        found = Snapshots(tmp_path / "s", "d").latest()
        if found is None:
            assert last == 0
            continue
        folder, cursor = found
        assert cursor.step >= last
        assert len(cursor.rows) == cursor.step
        for rank in range(2):
            data = (folder / f"{rank}.bin").read_bytes()
            assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        last = cursor.step
    assert last > 0, "no process came to its first snapshot"
