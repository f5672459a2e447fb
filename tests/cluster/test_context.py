"""What the stages of a run share: which problems belong to a round."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from cluster.config import load
from cluster.context import RunContext
from learners.loop import FitSettings
from reasoning.problems import bundled


def context(state, **search):
    config = load("tiny", [f"search.{k}={v}" for k, v in search.items()])
    nothing = SimpleNamespace()
    return RunContext(
        config=config,
        dir=nothing,
        model=nothing,
        tokens=nothing,
        problems=bundled(),
        demonstrations=[],
        demonstration_problems=[],
        workers=nothing,
        display=nothing,
        state=state,
    )


def ids(problems):
    return [p.id for p in problems]


@pytest.mark.parametrize("size", [1, 12, 40, 79, 500])
def test_rounds_take_all_training_problems_in_turn(size):
    run = context({}, problems=size)
    size = min(size, len(run.train))
    taken = [i for round_ in range(1, 6) for i in ids(run.train_of(round_))]
    assert len(taken) == 5 * size
    assert set(taken[: len(run.train)]) <= set(ids(run.train))
    assert len(set(taken)) == min(5 * size, len(run.train))
    assert ids(run.train_of(2, 1)) == taken[size : size + 1]


def test_a_round_keeps_its_problems_when_a_resume_changes_their_number():
    first = context({}, problems=12)
    before = ids(first.train_of(1))
    first.state["stages"] = {"1/tcg": {}}
    resumed = context(json.loads(json.dumps(first.state)), problems=4)
    assert ids(resumed.train_of(1)) == before
    assert len(resumed.train_of(2)) == 4
    assert not set(ids(resumed.train_of(2))) & set(before)


def test_a_round_that_has_not_begun_takes_the_new_number():
    first = context({}, problems=12)
    first.train_of(1)
    assert len(context(first.state, problems=4).train_of(1)) == 4


def test_what_a_learner_reports_carries_the_name_of_its_stage(monkeypatch):
    run = context({})
    logged, shown = [], {}

    class Learner:
        restarts = 0

        def fit(self, objective, data, settings, deadline, on_row, may_restart, **options):
            self.restarts += 1
            row = {
                "sft/loss": 0.5,
                "sft/grad_norm": float("nan"),
                "sft/step": 2,
                "sft/steps": 3,
                "sft/tokens_per_s": 9.0,
            }
            on_row(row)
            return [row]

    run.workers = SimpleNamespace(learner=Learner(), note_processes=lambda: 0)
    said = []
    run.display = SimpleNamespace(
        update=lambda done, total, **fields: shown.update(fields, done=done, total=total), message=said.append
    )
    monkeypatch.setattr(RunContext, "log", lambda _, *arguments: logged.append(arguments))
    run.fit("sft", [1, 2, 3], FitSettings(batch_size=1), 3, "tcg_sft")
    assert logged[0] == ({"tcg_sft/loss": 0.5, "tcg_sft/tokens_per_s": 9.0}, 3, {"learner/step": 1})
    assert logged[1:] == [({"alarm/learner_restarts": 1}, 3)]
    assert run.alarms == (f"round 3: {said[0]}",) and "died in sft" in said[0]
    assert (shown["done"], shown["total"], shown["loss"]) == (2, 3, 0.5)


def test_bounds_that_are_crossed_raise_an_alarm(monkeypatch):
    run = context({})
    logged, said = [], []
    run.display = SimpleNamespace(message=said.append)
    monkeypatch.setattr(RunContext, "log", lambda _, *arguments: logged.append(arguments))
    run.begin_stage("2/policy_rl")
    run.guard({"mismatch_kl": math.inf, "ess": 0.9, "entropy": math.nan}, 2)
    assert logged == [({"alarm/mismatch_kl": 1e9}, 2), ({"alarm/entropy": 1e9}, 2)]
    run.begin_stage("2/policy_rl")  # once more: what the attempt before raised no longer counts
    run.guard({"mismatch_kl": 0.5, "ess": 0.9}, 2)
    run.begin_stage("2/new_data")
    run.guard({"holdout_gap": 0.5}, 2)
    assert [says[:23] for says in run.alarms] == ["round 2: mismatch_kl is", "round 2: holdout_gap is"]
    assert "0.500 nats per token" in said[2]


def test_a_run_without_the_record_goes_on_where_it_was():
    whole = context({}, problems=12)
    whole.train_of(1)
    assert ids(context({"stages": {"1/tcg": {}}}, problems=12).train_of(2)) == ids(whole.train_of(2))
