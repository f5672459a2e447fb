"""The stages of the generator without actors: what it is measured on, programs of the policy, suites that fail."""

import asyncio
import os
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from cluster import stage_tcg, tcg_generation
from cluster.config import load
from cluster.store import ProcessDataStore
from reasoning.records import Path, Problem, ProblemTest
from sandbox import CallCase

TESTS = (ProblemTest(case=CallCase(args=[1], expected=1)),)


def problem(name):
    return Problem(id=name, question="q", entry_point="f", references=("def f(x):\n    return x\n",), tests=TESTS)


def run(count=30, tmp_path=None, **tcg):
    problems = [problem(f"p/{n}") for n in range(count)]
    return SimpleNamespace(
        train=problems,
        config=load("tiny", [f"tcg.{name}={value}" for name, value in tcg.items()]),
        train_of=lambda round_: [problems[(5 * round_ + i) % count] for i in range(10)],
        state={},
        dir=SimpleNamespace(data=tmp_path, path=tmp_path),
        store=ProcessDataStore(tmp_path) if tmp_path else None,
        display=SimpleNamespace(update=lambda *a, **k: None),
        tick=lambda: None,
    )


def test_what_it_is_measured_on_is_taught_in_no_round(monkeypatch):
    told = []
    monkeypatch.setattr(
        stage_tcg, "train_generator", lambda run, round_, taught, unseen, *others: told.append((taught, unseen))
    )
    monkeypatch.setattr(stage_tcg, "sample_policy", lambda run, round_, problems: {})
    made = run()
    for round_ in range(1, 8):
        stage_tcg.tcg(made, round_)
    first = told[0][1]
    assert len(first) == load("tiny").tcg.measure_problems
    for taught, unseen in told:
        assert unseen == first and not {p.id for p in taught} & {p.id for p in unseen}
    assert {p.id for taught, _ in told for p in taught} | {p.id for p in first} == {p.id for p in made.train}


def test_without_sft_preferences_begin_with_the_generator_that_was_given(monkeypatch, tmp_path):
    made = run(9, tmp_path, sft_epochs=0, generator=tmp_path / "mine")
    done = []
    made.model, made.log = tmp_path / "base", lambda metrics, round_: None
    made.serve = lambda weights, round_: done.append(("serve", weights))
    made.workers = SimpleNamespace(learner=SimpleNamespace(release=lambda: None))
    measured = {"reference": {"accuracy": 0.5}}
    monkeypatch.setattr(stage_tcg, "measure", lambda run, problems, shard, modes: done.append(shard) or measured)
    for name, answer in {"materials": {}, "own_pairs": [], "dpo_pairs": ["a pair"]}.items():
        monkeypatch.setattr(stage_tcg.training, name, lambda *_, answer=answer: answer)

    def train_dpo(run, round_, model, pairs):
        done.append(("dpo", model))
        return [{"dpo/stopped": 0.0}]

    monkeypatch.setattr(stage_tcg.training, "train_dpo", train_dpo)
    result = stage_tcg.train_generator(made, 1, made.train[:5], made.train[5:], {}, [True])
    mine = tmp_path / "mine"
    assert done == [("serve", mine), "round-1-start", ("dpo", mine), "round-1-dpo"]
    assert (result["start"], result["dpo"]) == (measured, measured) and "sft" not in result
    assert "50 % at start" in result["note"]


@pytest.mark.parametrize("count, kept", [(1, 0), (2, 0), (3, 1), (9, 3), (60, 6)])
def test_a_third_at_most_is_kept_apart(count, kept):
    assert len(stage_tcg.kept_apart(run(count))) == kept


def path(problem_id, name, program):
    return Path(problem_id=problem_id, tree_id=name, prompt_ids=(1,), steps=(), program=program)


def test_programs_of_the_policy_are_the_latest_and_different(tmp_path):
    made = run(2, tmp_path)
    old = [path("p/0", f"old/{n}", f"def f(x):\n    return {n}\n") for n in range(9)]
    new = [
        path("p/0", "b", "def f(x):\n    return 99\n"),
        path("p/0", "a", "def f(x): return 99"),
        path("p/1", "c", None),
    ]
    for stamp, (shard, paths) in enumerate(
        (("round-1-search", old), ("samples-round-2", new), ("eval-after-round-1", old))
    ):
        file = made.store.write_paths(shard, paths)
        os.utime(file, (stamp, stamp))
    found = stage_tcg.policy_programs(made, made.train)
    assert list(found) == ["p/0"]
    assert found["p/0"] == ["def f(x): return 99", *(p.program for p in old[:7])]
    assert len(stage_tcg.policy_programs(run(2, tmp_path, policy_samples=64), made.train)["p/0"]) == 10


def build_with(error):
    class Maker:
        executions = SimpleNamespace()

        async def build_agreed(self, *arguments):
            raise error

    async def work():
        return await stage_tcg._build(Maker(), asyncio.Semaphore(1), problem("p"), [None], [], by_reference=False)

    return asyncio.run(work())


def test_a_suite_that_cannot_be_built_is_refused_and_says_why():
    suite = build_with(RecursionError("a b\nc"))
    assert not suite.accepted and suite.reason == "it could not be built: RecursionError: a b c"


def test_a_sandbox_that_is_gone_is_no_fault_of_a_problem():
    """It must not look as if every suite were bad."""
    with pytest.raises(ConnectionError):
        build_with(ConnectionError("the worker is gone"))

    async def work(_):
        raise ConnectionError("the worker is gone")

    with pytest.raises(ConnectionError):
        asyncio.run(tcg_generation.each(work, [problem("p")]))


def test_a_problem_that_nobody_can_work_with_is_left_out():
    async def work(one):
        if one.id == "p/1":
            raise ValueError("a number of thousands of digits")
        return one.id

    found = asyncio.run(tcg_generation.each(work, [problem(f"p/{n}") for n in range(3)]))
    assert found == {"p/0": "p/0", "p/2": "p/2"}


def test_a_suite_that_is_done_while_the_waiting_ends_is_taken():
    class Late(Future):
        def result(self, timeout=None):
            if timeout is not None:
                self.set_result("suite")
                raise TimeoutError
            return super().result()

    assert stage_tcg._suite_of(run(), {"p": Late()}, "p") == "suite"
