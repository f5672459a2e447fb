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


class Context(SimpleNamespace):
    @property
    def policy(self):
        return self.state["policy"]


def run(state):
    saved = []
    return Context(
        state=state,
        stop=Stop(),
        display=Display(),
        log=lambda *args: None,
        dir=SimpleNamespace(write_state=lambda s: saved.append(dict(s))),
        config=SimpleNamespace(rounds=1),
        begin_stage=lambda key: None,
        drop_snapshots=lambda: saved.append("dropped"),
        saved=saved,
    )


def test_a_finished_stage_is_recorded_and_not_repeated():
    context = run({})
    coordinator = Coordinator(context)
    coordinator.stage("prm", 1, lambda r, n: {"note": "fine"})
    # What a training would go on from goes when what came of it is safe.
    assert context.saved[-1] == "dropped" and context.saved[-2]["stages"]["1/prm"]["note"] == "fine"
    again = Coordinator(run(context.state))
    again.stage("prm", 1, lambda r, n: pytest.fail("ran twice"))
    assert ("skip_stage", "prm", "finished earlier") in again.run.display.calls


def test_a_stage_that_was_cut_off_begins_from_the_model_it_began_with():
    context = run({"policy": "checkpoints/before", "weight_version": 3, "learner_step": 5})

    def work(r, n):
        r.state["learner_step"] = 9
        r.state["policy"] = "checkpoints/half-trained"
        r.state["weight_version"] = 4
        raise Interrupted("SIGTERM")

    coordinator = Coordinator(context)
    with pytest.raises(Interrupted):
        coordinator.stage("policy_rl", 1, work)
    assert context.state["policy"] == "checkpoints/before"
    assert context.state["weight_version"] == 4  # versions only rise
    assert context.state["learner_step"] == 5  # its steps will be counted again
    assert "1/policy_rl" not in context.state["stages"]
    assert "dropped" not in context.saved
    coordinator.stage("policy_rl", 1, lambda r, n: {})
    assert context.state["stages"]["1/policy_rl"]["models"] == {"policy": "checkpoints/before"}


def test_no_stage_starts_after_a_signal():
    context = run({})
    context.stop.signal = "SIGINT"
    with pytest.raises(Interrupted):
        Coordinator(context).stage("tcg", 1, lambda r, n: pytest.fail("started"))


# --- rounds ---


@pytest.fixture
def train(monkeypatch):
    """Runs rounds in which nothing happens but that the policy changes and is measured to be `rates`; returns the
    context, with what was served."""

    def go(rates, rounds, state=None, rollback=0.2, patience=0):
        def learn(context, round_):
            context.state.update(policy=f"checkpoints/policy-round-{round_}", shots=0)
            return {}

        def evaluate(context, round_, name):
            policy = context.state.get("policy", "")
            return {"pass_at_1": rates[round_], "policy": policy, "shots": context.state["shots"]}

        monkeypatch.setattr("cluster.coordinator.ROUND", (("tcg", lambda *_: {}), ("policy_rl", learn)))
        monkeypatch.setattr("cluster.coordinator.evaluate", evaluate)
        context = run(state if state is not None else {"shots": 2})
        context.config = SimpleNamespace(rounds=rounds, patience=patience, eval=SimpleNamespace(rollback=rollback))
        context.served = []
        context.serve = lambda model, round_: context.served.append(model)
        context.tell_prompts = lambda: None
        context.alarm = lambda name, value, says, round_: context.display.message(says)
        Coordinator(context).go()
        return context

    return go


def test_the_policy_is_measured_between_sft_and_rl_where_it_is_asked_for(monkeypatch):
    done = []
    noted = [(name, lambda *_, name=name: done.append(name) or {}) for name in ("policy_sft", "policy_rl")]
    monkeypatch.setattr("cluster.coordinator.ROUND", tuple(noted))
    measured = {"pass_at_1": 0.5, "policy": "", "shots": 0}
    monkeypatch.setattr("cluster.coordinator.evaluate", lambda context, round_, name: done.append(name) or measured)
    for asked, extra in ((True, ["sft-round-1"]), (False, [])):
        done.clear()
        context = run({"shots": 0})
        context.config = SimpleNamespace(
            rounds=1, patience=0, eval=SimpleNamespace(rollback=1.0, after_sft=asked), seed=0
        )
        coordinator = Coordinator(context)
        coordinator.go()
        assert done == ["before", "policy_sft", *extra, "policy_rl", "after-round-1"]
        assert len(coordinator.names()) == len(done) + 1


def test_the_best_policy_is_remembered_and_small_losses_are_gone_on_from(train):
    context = train([0.1, 0.3, 0.2, 0.25], 3)
    assert context.state["best"]["policy"] == "checkpoints/policy-round-1"
    assert context.state["policy"] == "checkpoints/policy-round-3" and context.served == []


def test_a_round_that_makes_it_much_worse_is_undone(train):
    context = train([0.1, 0.5, 0.2], 2)
    assert context.state["policy"] == "checkpoints/policy-round-1" and context.state["shots"] == 0
    assert context.served == ["checkpoints/policy-round-1"]
    assert any(call[0] == "message" and "fell from 0.500 to 0.200" in call[1] for call in context.display.calls)


def test_the_model_of_the_start_may_be_the_best_with_its_demonstrations(train):
    context = train([0.6, 0.1], 1)
    assert (context.state["policy"], context.state["shots"], context.served) == ("", 2, [""])


def test_a_later_round_that_has_begun_is_not_undone_by_a_resume(train):
    context = train([0.1, 0.5, 0.2], 2, rollback=1.0)
    context.state["stages"]["3/tcg"] = {"seconds": 1.0}
    before = dict(context.state)
    again = train([0.1, 0.5, 0.2, 0.2], 2, state=context.state, rollback=0.2)
    assert again.served == [] and again.state["policy"] == before["policy"]


def test_training_ends_after_rounds_without_gain(train):
    context = train([0.1, 0.3, 0.2, 0.3, 0.9], 4, patience=2)
    assert "3/eval after" in context.state["stages"] and "4/tcg" not in context.state["stages"]
    assert "4/tcg" in train([0.1, 0.3, 0.2, 0.31, 0.9], 4, patience=2).state["stages"]
