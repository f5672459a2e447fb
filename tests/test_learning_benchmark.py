"""What the benchmark of learning makes of finished runs."""

import json

import pytest

from benchmarks import learning


def run(after, seed=0):
    """A run whose held-out problems had these rates after RL, and 0.25 before."""
    rates = {name: {"held_out": dict.fromkeys(after, 0.25), "train": {}} for name in learning.STEPS}
    rates["after_rl"] = {"held_out": after, "train": {}}
    return {"rates": rates, "tokens_sampled": 1000 + seed}


def test_rates_of_a_problem_are_means_over_the_seeds():
    runs = [run({"a": 0.0, "b": 1.0}), run({"a": 0.5}, 1)]
    assert learning.by_problem(runs, "after_rl", "held_out") == {"a": 0.25, "b": 1.0}
    assert learning.by_problem(runs, "after_rl", "train") == {}


def test_an_arm_is_compared_with_itself_before_rl_and_with_the_flat_one_by_problem():
    flat = [run({"a": 0.25, "b": 0.75, "c": 1.0})]
    found = learning.summary({"dpo": [run({"a": 0.5, "b": 1.0})], "flat_grpo": flat})
    mine = found["dpo"]["held_out"]
    assert mine["before"] == [0.25] * 3 and mine["after_rl"][0] == 0.75
    assert mine["rl_less_sft"] == [0.5, 0.25, 0.75]
    assert mine["less_flat_grpo"] == [0.25] * 3  # of the problems that both have
    assert "less_flat_grpo" not in found["flat_grpo"]["held_out"]
    assert found["dpo"]["train"]["after_rl"] is None and found["dpo"]["tokens_sampled"] == [1000]


def test_a_finished_run_is_read(tmp_path):
    def stage(rate):
        return {"rates": {"a": rate}, "train_rates": {"t": rate / 2}}

    stages = {"0/eval before": stage(0.0), "1/eval sft": stage(0.2), "1/eval after": stage(0.4)}
    stages["1/policy_rl"] = {"steps": 3, "note": "3 steps", "kl": None}
    report = {"tokens_sampled": 7, "problems_solved": 2, "seconds_per_stage": {"search": 1.5, "prm": 2.0}}
    (tmp_path / "state.json").write_text(json.dumps({"stages": stages}))
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = learning.read(tmp_path)
    assert found["rates"]["after_sft"] == {"held_out": {"a": 0.2}, "train": {"t": 0.1}}
    assert (found["tokens_sampled"], found["seconds"], found["rl"]) == (7, 3.5, {"steps": 3})


def test_a_run_that_fails_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(learning.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="dpo, seed 3"):
        learning.trained("dpo", 3, tmp_path / "run", [])
