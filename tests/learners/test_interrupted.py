"""Real ranks that are ended in the middle of a training: what goes on from a snapshot is what would have been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_learning import examples, settings, spec
from safetensors.torch import load_file

from learners.adapters import Lora

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
"""With their snapshots more than a second's work, after which the group looks for the first time."""


class Stopped(Exception):
    pass


def kept_steps(tmp_path, **more):
    return settings(epochs=STEPS, snapshots=str(tmp_path / "snapshots"), **{"snapshot_s": 0.0, **more})


def fitted(group, spec_, fit, file, on_row=lambda row: None):
    """Train; returns the losses that were told of, and the weights."""
    rows = []

    def tell(row):
        rows.append(row)
        on_row(row)

    group.load(spec_, seed=0)
    history = group.fit("sft", examples(), fit, 180, tell)
    assert [row["sft/step"] for row in rows] == list(range(1, STEPS + 1)), "every step is told of once"
    assert len(history) == STEPS
    group.publish(file)
    return [row["sft/loss"] for row in rows], load_file(file)


def assert_equal(one, other):
    assert one[0] == other[0]
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


@pytest.mark.parametrize(
    ("world", "zero", "dtype", "lora"),
    [(2, 2, "float32", None), (2, 3, "bfloat16", None), (1, 2, "bfloat16", Lora(2, 4.0))],
)
def test_a_rank_that_is_killed_costs_nothing_but_time(local_ray, tiny, tmp_path, world, zero, dtype, lora):
    import ray

    from learners.group import LearnerGroup

    what = spec(tiny, zero=zero, dtype=dtype, lora=lora)
    group = LearnerGroup(world, 1)
    try:
        whole = fitted(group, what, settings(epochs=STEPS), tmp_path / "whole.safetensors")
        killed = []

        def kill(row):
            if not killed:
                killed.append(ray.get(group.ranks[-1].pid.remote(), timeout=30))
                os.kill(killed[0], signal.SIGKILL)

        again = fitted(group, what, kept_steps(tmp_path), tmp_path / "again.safetensors", kill)
        assert (killed != [], group.restarts) == (True, 1)
        assert_equal(whole, again)
    finally:
        group.close()


def test_a_new_process_goes_on_where_the_old_one_was_ended(local_ray, tiny, tmp_path):
    from learners.group import LearnerGroup

    def stop(row):
        raise Stopped

    group = LearnerGroup(1, 1)
    try:
        whole = fitted(group, spec(tiny), settings(epochs=STEPS), tmp_path / "whole.safetensors")
        with pytest.raises(Stopped):
            fitted(group, spec(tiny), kept_steps(tmp_path), tmp_path / "none", stop)
    finally:
        for rank in group.ranks:
            import ray

            ray.kill(rank, no_restart=True)
    group = LearnerGroup(1, 1)
    try:
        assert_equal(whole, fitted(group, spec(tiny), kept_steps(tmp_path), tmp_path / "again.safetensors"))
    finally:
        group.close()


def test_a_rank_that_dies_again_and_again_ends_the_training(local_ray, tiny, tmp_path):
    import ray

    from learners.group import RESTARTS, LearnerGroup

    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny), seed=0)

        def kill(row):
            os.kill(ray.get(group.ranks[0].pid.remote(), timeout=30), signal.SIGKILL)

        # Nothing is kept, so that the first row that is told of is a new one each time.
        with pytest.raises((ray.exceptions.RayActorError, ray.exceptions.RayTaskError)):
            group.fit("sft", examples(40), settings(epochs=300, micro_tokens=4000), 180, kill)
        assert group.restarts == RESTARTS
    finally:
        group.close()


def test_the_batch_of_a_loss_that_is_no_number_can_be_looked_into(local_ray, tiny, tmp_path):
    import ray

    from learners.batches import PreferenceExample
    from learners.group import LearnerGroup

    made = examples()
    pairs = [PreferenceExample(made[i], made[i + 1], (-5.0, -6.0)) for i in range(4)]
    pairs.append(PreferenceExample(made[5], made[6], (float("nan"), 0.0)))
    group = LearnerGroup(1, 1)
    try:
        group.load(spec(tiny), seed=0)
        fit = settings(batch_size=5, epochs=1, bad_batches=str(tmp_path / "bad"))
        with pytest.raises(ray.exceptions.RayTaskError, match=r"loss is nan in optimizer step 1.*dpo-rank-0\.pt"):
            group.fit("dpo", pairs, fit, 120, lambda row: None, beta=0.1)
    finally:
        group.close()
    (file,) = (tmp_path / "bad").iterdir()
    kept = torch.load(file, weights_only=False)
    assert len(kept["items"]) == 5
    assert kept["options"] == {"beta": 0.1}
    assert kept["weights"]
    command = [sys.executable, "-P", "-m", "learners.replay"]
    again = subprocess.run([*command, file], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert again.returncode == 1, again.stderr
    assert "replay: loss is nan in optimizer step 1" in again.stderr
    none = subprocess.run(
        [*command, tmp_path / "x"], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert none.returncode == 2
    assert "use a file of RUN/logs/bad-batches" in none.stderr
