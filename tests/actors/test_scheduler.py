"""The scheduler with a sampler and a judge that are not real: one end per sample, failures with a kind, budgets."""

import asyncio
import dataclasses
import math
import random
import time
from collections import Counter

import pytest
from search_fakes import CASES, CODEC, FakeJudge, FakeSampler, grow, job, logged, scheduler

from actors.sampling import EngineDeadError
from reasoning.event_log import Abandoned, Asked, Begun, Ended, Told, decode
from reasoning.nodes import BROKEN_OFF
from reasoning.records import Action
from reasoning.steps import STOPS
from reasoning.tree import SearchTree


def slots(events):
    """Per expansion: slots that were handed out and begun, and how often each slot was told."""
    asked = {e.id: e.count for e in events if isinstance(e, Asked)}
    begun = {e.id: asked[e.id] for e in events if isinstance(e, Begun)}
    told = Counter((e.id, e.slot) for e in events if isinstance(e, Told))
    return begun, told


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fail, lost, raises", [(0, 0, 0), (0.2, 0, 0), (0, 0.3, 0.2), (0.2, 0.2, 0.2)])
def test_every_slot_ends_once(tmp_path, seed, fail, lost, raises):
    sampler = FakeSampler(fail, seed=seed, bad=0.2)
    found, events = logged(tmp_path, sampler, FakeJudge(lost, raises), seed)
    tree = found.tree
    assert tree.idle
    begun, told = slots(events)
    assert set(told.values()) <= {1}
    assert told.keys() == {(i, slot) for i, count in begun.items() for slot in range(count)}
    abandoned = [e.id for e in events if isinstance(e, Abandoned)]
    assert not set(abandoned) & begun.keys()
    assert len(abandoned) + len(begun) == tree.expansions
    assert len(sampler.draws) == len(told)
    assert isinstance(events[-1], Ended) and events[-1].reason == found.reason
    assert [n.statistics() for n in SearchTree.replay(events).nodes] == [n.statistics() for n in tree.nodes]


def test_an_engine_that_fails_always_ends_the_tree_without_a_value(tmp_path):
    found, events = logged(tmp_path, FakeSampler(fail=1.0), FakeJudge(), expansion_budget=99)
    tree = found.tree
    assert found.reason == "too many infrastructure errors"
    assert (tree.root.visits, tree.root.sampled, tree.tokens) == (0, 0, 0)
    assert tree.paths() == []
    told = [e.outcome for e in events if isinstance(e, Told)]
    assert told
    assert all(o.infra_error == "lost" and o.sample is None for o in told)


@pytest.mark.parametrize("judge", [FakeJudge(lost=1.0), FakeJudge(raises=1.0)], ids=["sandbox_error", "raises"])
def test_a_program_that_nobody_judged_has_no_value(judge):
    tree = grow(FakeSampler(), judge, expansion_budget=8).tree
    assert judge.submissions
    assert tree.infra_errors > 0
    assert all(node.value is None for node in tree.nodes)
    assert (tree.root.visits, tree.root.sampled) == (0, 0)


def test_lost_judgements_do_not_lower_values():
    tree = grow(FakeSampler(), FakeJudge(lost=0.5), token_budget=2000, expansion_budget=40).tree
    values = [node.value for node in tree.nodes if node.terminal]
    assert values
    assert all(v == 1.0 or v == pytest.approx(0.1 + 0.9 / 4) for v in values)
    assert tree.infra_errors > 0


def test_a_malformed_step_is_a_zero_and_is_not_judged():
    judge = FakeJudge()
    tree = grow(FakeSampler(bad=1.0), judge, expansion_budget=4).tree
    assert judge.submissions == []
    assert tree.infra_errors == 0
    assert {node.value for node in tree.nodes if node.terminal} == {0.0}


@pytest.mark.parametrize("leaves", [1, 2, 5])
def test_expansions_in_flight_are_bounded(tmp_path, leaves):
    sampler = FakeSampler(delay=0.001)
    _, events = logged(tmp_path, sampler, FakeJudge(), leaves_in_flight=leaves, root_samples=6, samples=3)
    running, most = set(), 0
    ends = dict(slots(events)[0])
    for event in events:
        if isinstance(event, Asked):
            running.add(event.id)
        elif isinstance(event, Told):
            ends[event.id] -= 1
            if not ends[event.id]:
                running.remove(event.id)
        most = max(most, len(running))
    assert most <= leaves
    assert sampler.most <= leaves * 6
    if leaves > 1:
        assert most > 1


@pytest.mark.parametrize("budget", [1, 5, 9])
def test_the_expansion_budget_is_exact(budget):
    found = grow(FakeSampler(), FakeJudge(), expansion_budget=budget, token_budget=10_000)
    assert found.tree.expansions == budget
    assert found.reason == "expansion budget"


def test_the_token_budget_is_hardly_passed():
    found = grow(FakeSampler(), FakeJudge(), token_budget=100, expansion_budget=500, leaves_in_flight=4, step_tokens=8)
    assert found.reason == "token budget"
    assert 100 <= found.tree.tokens <= 102  # a sample has two tokens


def test_enough_programs_end_the_tree_and_what_it_had_running():
    sampler = FakeSampler(delay=0.01)
    found = grow(sampler, FakeJudge(), enough_passing=2, enough_failing=2, token_budget=10_000, leaves_in_flight=6)
    assert found.reason == "enough passing and failing programs"
    assert found.tree.root.passed >= 2
    assert found.tree.root.sampled - found.tree.root.passed >= 2
    assert found.tree.pruned > 0 and found.tree.infra_errors == 0
    assert found.tree.idle and sampler.running == 0


def test_the_time_budget_ends_the_tree_whatever_runs():
    sampler = FakeSampler(delay=5)
    started = time.monotonic()
    found = grow(sampler, FakeJudge(), seconds=0.1, token_budget=100_000, expansion_budget=1000)
    assert time.monotonic() - started < 2
    assert found.reason == "time budget" and found.tree.idle and sampler.running == 0


def test_prompts_are_the_sampled_ids_and_draws_follow_the_settings():
    sampler = FakeSampler()
    tree = grow(sampler, FakeJudge(), step_tokens=40, code_tokens=60, temperature=0.7, top_p=0.9).tree
    states = {tree.prompt_for(node.id) for node in tree.nodes}
    for prompt, draw in sampler.draws:
        action = Action.CODE if draw.stop == STOPS[Action.CODE] else Action.DEFINE
        headers = {CODEC.header_ids(n, a) for n in range(1, 5) for a in Action}
        assert any(prompt[: len(prompt) - len(h)] in states and prompt[len(prompt) - len(h) :] == h for h in headers)
        assert draw.max_tokens == (60 if action is Action.CODE else 40)
        assert (draw.temperature, draw.top_p, draw.greedy) == (0.7, 0.9, False)
    assert len(set(sampler.seeds)) == len(sampler.seeds)
    assert max(node.depth for node in tree.nodes) <= 4


def test_programs_are_judged_once_per_tree_on_the_suite():
    judge = FakeJudge()
    grow(FakeSampler(), judge, token_budget=3000, expansion_budget=60)
    assert judge.submissions
    for submission in judge.submissions:
        assert submission.entry_point == "f"
        assert tuple(submission.cases) == tuple(t.case for t in CASES)
    # Programs drawn at the same moment may both be sent.
    assert max(Counter(s.source for s in judge.submissions).values()) <= 4


def test_the_scorer_values_pseudocode_only():
    seen = []

    async def score(ids):
        seen.append(tuple(ids))
        return 0.75

    tree = grow(FakeSampler(), FakeJudge(), scorer=score, rollout_weight=0.5).tree
    scored = [n for n in tree.nodes if n.score is not None]
    assert scored
    assert all(n.action is not Action.CODE and n.score == 0.75 for n in scored)
    assert {tree.prompt_for(n.id) for n in scored} <= set(seen)
    seen.clear()
    grow(FakeSampler(), FakeJudge(), scorer=score, rollout_weight=1.0)
    assert seen == []


@pytest.mark.parametrize("answer", ["gone", math.nan, math.inf, None])
def test_a_scorer_that_fails_leaves_the_steps_without_a_score(tmp_path, answer):
    async def score(ids):
        if answer == "gone":
            raise ConnectionError("gone")
        return answer

    found = grow(FakeSampler(), FakeJudge(), scorer=score, rollout_weight=0.5, log=tmp_path / "t.jsonl")
    assert found.tree.idle and found.tree.root.visits > 0
    assert all(node.score is None for node in found.tree.nodes)
    assert (found.tree.unscored > 0) == (answer == "gone") and found.tree.infra_errors == 0
    assert SearchTree.replay(decode((tmp_path / "t.jsonl").read_bytes())).paths() == found.tree.paths()


def test_many_trees_on_one_loop_do_not_mix():
    made = []

    async def all_of_them():
        made.append(scheduler(FakeSampler(), FakeJudge()))
        return await asyncio.gather(*[made[0].search(job(f"t{i}", i, (i,))) for i in range(20)])

    trees = [found.tree for found in asyncio.run(all_of_them())]
    assert [t.id for t in trees] == [f"t{i}" for i in range(20)]
    assert all(t.idle and t.finished() for t in trees)
    assert all(p.prompt_ids == (i,) and p.tree_id == f"t{i}" for i, t in enumerate(trees) for p in t.paths())
    assert (made[0].outstanding, made[0].active) == (0, 0)


@pytest.mark.parametrize("outstanding, max_trees", [(8, 64), (40, 3)])
def test_engine_and_trees_have_bounds_and_waiting_problems_are_begun_in_order(outstanding, max_trees):
    sampler, most = FakeSampler(delay=0.002), []

    async def work():
        made = scheduler(sampler, FakeJudge(), outstanding, max_trees)
        begun = []

        async def one(i):
            found = await made.search(job(f"t{i}", i, token_budget=64))
            begun.append(i)
            return found

        async def watch():
            while True:
                most.append(made.active)
                await asyncio.sleep(0.001)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*map(one, range(30)))
        watcher.cancel()
        return made.stats, begun

    stats, order = asyncio.run(work())
    # An expansion is handed out whole: it may pass the bound by its other samples.
    assert stats.most_outstanding <= outstanding + 3
    assert sampler.most <= outstanding + 3
    assert max(most) <= max_trees
    assert all(abs(i - place) < 16 for place, i in enumerate(order))


def test_cancelling_a_search_cancels_its_samples():
    sampler = FakeSampler(delay=10)

    async def cancel():
        made = scheduler(sampler, FakeJudge())
        task = asyncio.create_task(made.search(job()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks()), made.outstanding, made.active

    assert asyncio.run(cancel()) == (1, 0, 0)
    assert sampler.running == 0


class Mortal(FakeSampler):
    """Answers for a while, then never again."""

    def __init__(self, answers, **options):
        super().__init__(**options)
        self.answers = answers

    def _answer(self):
        self.answers -= 1
        if self.answers < 0:
            raise EngineDeadError("gone")

    async def draw(self, prompt_ids, draw, seed=None):
        sample = await super().draw(prompt_ids, draw, seed)
        self._answer()
        return sample

    async def choose(self, prompt_ids, tokens):
        self._answer()
        return await super().choose(prompt_ids, tokens)


def test_the_trees_of_a_dead_engine_go_on_with_another():
    engines = [Mortal(40), FakeSampler(seed=1)]

    async def work():
        made = scheduler(engines, FakeJudge(), outstanding=16)
        found = await asyncio.gather(*[made.search(job(f"t{i}", i)) for i in range(8)])
        return found, made.outstanding, made.active

    found, outstanding, active = asyncio.run(work())
    assert all(f.reason != "too many infrastructure errors" and f.tree.idle for f in found)
    assert any(f.tree.infra_errors for f in found)
    assert (outstanding, active) == (0, 0)
    asked = len(engines[0].draws)
    assert asked < 40 + 2 * 16  # nothing was sent to it after its end was noticed


def test_searches_fail_when_no_engine_is_left():
    async def work():
        made = scheduler([Mortal(20), Mortal(30)], FakeJudge(), outstanding=16, max_trees=2)
        found = await asyncio.gather(*[made.search(job(f"t{i}", i)) for i in range(12)], return_exceptions=True)
        await asyncio.sleep(0.05)
        return found, made.outstanding, made.active, len(asyncio.all_tasks())

    found, *left = asyncio.run(asyncio.wait_for(work(), 20))
    assert all(isinstance(f, EngineDeadError) for f in found)
    assert left == [0, 0, 2]  # this coroutine, and the one that waits for it


# --- logs ---


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_tokens_of_samples_that_nobody_could_judge_count(share):
    class Unsure(FakeJudge):
        async def __call__(self, submission):
            if random.Random(submission.source).random() < share:
                raise ConnectionError("gone")
            return await super().__call__(submission)

    sampler = FakeSampler()
    found = grow(sampler, Unsure(), token_budget=150)
    assert found.tree.infra_errors > 0
    assert found.tree.tokens <= 150 + 30


def test_a_log_probability_that_is_no_number_loses_the_sample(tmp_path):
    class Odd(FakeSampler):
        async def draw(self, *arguments):
            sample = await super().draw(*arguments)
            return dataclasses.replace(sample, logprobs=(-math.inf, *sample.logprobs[1:]))

    found, events = logged(tmp_path, Odd(), FakeJudge())
    assert found.reason == BROKEN_OFF and found.tree.root.visits == 0
    assert SearchTree.replay(events).infra_errors == found.tree.infra_errors


@pytest.mark.parametrize("answer", [math.nan, math.inf, KeyError("gone")], ids=str)
def test_a_choice_that_is_no_probability_loses_the_expansion(tmp_path, answer):
    class Odd(FakeSampler):
        async def choose(self, prompt_ids, tokens):
            if self.rng.random() < 0.5:
                return await super().choose(prompt_ids, tokens)
            if isinstance(answer, KeyError):
                raise answer
            return dict.fromkeys(tokens, answer)

    found, events = logged(tmp_path, Odd(), FakeJudge())
    assert found.tree.infra_errors > 0 and found.tree.root.visits > 0
    assert SearchTree.replay(events).paths() == found.tree.paths()
