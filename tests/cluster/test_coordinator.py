"""The coordinator's bookkeeping, without any actor: what is done is not done again, what failed begins anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.coordinator import Coordinator
from cluster.stop import Interrupted, Stop


class Display:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args))


def run(state):
    saved = []
    return SimpleNamespace(
        state=state,
        stop=Stop(),
        display=Display(),
        log=lambda *args: None,
        dir=SimpleNamespace(write_state=lambda s: saved.append(dict(s))),
        config=SimpleNamespace(rounds=1),
        saved=saved,
    )


def test_a_finished_stage_is_recorded_and_not_repeated():
    context = run({})
    coordinator = Coordinator(context)
    coordinator.stage("prm", 1, lambda r, n: {"note": "fine"})
    assert context.saved[-1]["stages"]["1/prm"]["note"] == "fine"
    again = Coordinator(run(context.state))
    again.stage("prm", 1, lambda r, n: pytest.fail("ran twice"))
    assert ("skip_stage", "prm", "finished earlier") in again.run.display.calls


def test_a_stage_that_was_cut_off_begins_from_the_model_it_began_with():
    context = run({"policy": "checkpoints/before", "weight_version": 3})

    def work(r, n):
        r.state["policy"] = "checkpoints/half-trained"
        r.state["weight_version"] = 4
        raise Interrupted("SIGTERM")

    coordinator = Coordinator(context)
    with pytest.raises(Interrupted):
        coordinator.stage("policy_rl", 1, work)
    assert context.state["policy"] == "checkpoints/before"
    assert context.state["weight_version"] == 4  # versions only rise
    assert "1/policy_rl" not in context.state["stages"]


def test_no_stage_starts_after_a_signal():
    context = run({})
    context.stop.signal = "SIGINT"
    with pytest.raises(Interrupted):
        Coordinator(context).stage("tcg", 1, lambda r, n: pytest.fail("started"))
