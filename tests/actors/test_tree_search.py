"""Tree search against a sampler and a judge that are not real: one end per sample, failures with a kind, budgets."""

import asyncio
import math
import random
from collections import Counter

import pytest

from actors.sampling import EngineError
from actors.tree_search import CHAIN_ATTEMPTS, TreeSearch
from reasoning.records import Action, Problem, ProblemTest, Sample, Suite
from reasoning.search import SearchSettings
from reasoning.steps import END, STOPS, StepCodec
from sandbox import CallCase, Limits, SuiteResult, Verdict

PROMPT = (1, 2, 3)
CASES = tuple(ProblemTest(case=CallCase(args=[n], expected=n)) for n in range(4))
PROBLEM = Problem(id="p", question="q", entry_point="f", references=("x",), tests=CASES)
SUITE = Suite(problem_id="p", tests=CASES)
CODEC = StepCodec(lambda text: [ord(c) for c in text])


class FakeSampler:
    """Draws pseudocode and programs by a seeded generator; may fail, and remembers what it was asked."""

    def __init__(self, fail=0.0, prefer=Action.CODE, seed=0, bad=0.0, error=EngineError, delay=0.0):
        self.rng = random.Random(seed)
        self.fail, self.prefer, self.bad, self.error, self.delay = fail, prefer, bad, error, delay
        self.draws, self.seeds, self.chosen = [], [], 0
        self.running = self.most = 0

    async def draw(self, prompt_ids, draw, seed=None):
        self.running += 1
        self.most = max(self.most, self.running)
        self.draws.append((tuple(prompt_ids), draw))
        self.seeds.append(seed)
        try:
            for _ in range(self.rng.randrange(3)):
                await asyncio.sleep(self.delay)
        finally:
            self.running -= 1
        if self.rng.random() < self.fail:
            raise self.error("lost")
        if self.rng.random() < self.bad:
            return Sample((7,) * 3, (-0.1,) * 3, "cut off", "length", ((0, 0, 3),))
        name = self.rng.randrange(50)
        code = draw.stop == STOPS[Action.CODE]
        text = f"def f(x):\n    return x + {name}\n```" if code else f"idea {name}\n{END}"
        return Sample((7, name), (-0.5, -0.25), text, "stop", ((0, 0, 2),))

    async def choose(self, prompt_ids, tokens):
        self.chosen += 1
        await asyncio.sleep(0)
        if self.rng.random() < self.fail:
            raise self.error("lost")
        _, by_action = CODEC.choice(2)
        assert list(tokens) == list(by_action.values())
        return {t: math.log(0.8 if t == by_action[self.prefer] else 0.2) for t in tokens}


class FakeJudge:
    """Programs whose number is even pass; each may be lost instead."""

    def __init__(self, lost=0.0, raises=0.0):
        self.rng = random.Random(1)
        self.lost, self.raises = lost, raises
        self.submissions = []

    async def __call__(self, submission):
        self.submissions.append(submission)
        await asyncio.sleep(0)
        if self.rng.random() < self.raises:
            raise ConnectionError("the worker is gone")
        total = len(submission.cases)
        if self.rng.random() < self.lost:
            return self.result(Verdict.SANDBOX_ERROR, False, 0, total)
        passed = total if int(submission.source.split()[-1]) % 2 == 0 else 1
        return self.result(Verdict.ACCEPTED if passed == total else Verdict.WRONG_ANSWER, True, passed, total)

    def result(self, verdict, compiles, passed, total):
        return SuiteResult.model_construct(verdict=verdict, compiles=compiles, passed=passed, total=total, cases=())


def config(**changes):
    return SearchSettings(**{"token_budget": 400, "expansion_budget": 20, "enough_passing": 99, **changes})


def searcher(sampler, judge):
    return TreeSearch(sampler, judge, CODEC, Limits())


def grow(sampler, judge, seed=0, **changes):
    search = searcher(sampler, judge)
    return asyncio.run(asyncio.wait_for(search.search("t", PROBLEM, PROMPT, SUITE, config(**changes), seed), 30))


def chain(sampler, judge, greedy=False, seed=0, **changes):
    return asyncio.run(searcher(sampler, judge).chain("c", PROBLEM, PROMPT, SUITE, config(**changes), seed, greedy))


def slots(tree):
    """Per expansion: slots that were handed out, and slots that were told."""
    begun = {e["id"]: e["count"] for e in tree.events if e["event"] == "begin"}
    told = Counter((e["id"], e["slot"]) for e in tree.events if e["event"] == "tell")
    return begun, told


# --- trees ---


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fail, lost, raises", [(0, 0, 0), (0.2, 0, 0), (0, 0.3, 0.2), (0.2, 0.2, 0.2)])
def test_every_slot_ends_once(seed, fail, lost, raises):
    sampler = FakeSampler(fail, seed=seed, bad=0.2)
    tree = grow(sampler, FakeJudge(lost, raises), seed)
    assert tree.idle
    begun, told = slots(tree)
    assert set(told.values()) <= {1}
    assert told.keys() == {(i, slot) for i, count in begun.items() for slot in range(count)}
    abandoned = [e["id"] for e in tree.events if e["event"] == "abandon"]
    assert not set(abandoned) & begun.keys()
    assert len(abandoned) + len(begun) == tree.expansions
    assert len(sampler.draws) == len(told)


def test_an_engine_that_is_dead_ends_the_tree_without_a_value():
    tree = grow(FakeSampler(fail=1.0), FakeJudge())
    assert tree.finished() == "too many infrastructure errors"
    assert (tree.root.visits, tree.root.sampled, tree.tokens) == (0, 0, 0)
    assert tree.paths() == []
    told = [e["outcome"] for e in tree.events if e["event"] == "tell"]
    assert told
    assert all(o["infra_error"] == "lost" and o["sample"] is None for o in told)


@pytest.mark.parametrize("judge", [FakeJudge(lost=1.0), FakeJudge(raises=1.0)], ids=["sandbox_error", "raises"])
def test_a_program_that_nobody_judged_has_no_value(judge):
    tree = grow(FakeSampler(), judge, expansion_budget=8)
    assert judge.submissions
    assert tree.infra_errors > 0
    assert all(node.value is None for node in tree.nodes)
    assert (tree.root.visits, tree.root.sampled) == (0, 0)


def test_lost_judgements_do_not_lower_values():
    tree = grow(FakeSampler(), FakeJudge(lost=0.5), token_budget=2000, expansion_budget=40)
    values = [node.value for node in tree.nodes if node.terminal]
    assert values
    assert all(v == 1.0 or v == pytest.approx(0.1 + 0.9 / 4) for v in values)
    assert tree.infra_errors > 0


def test_a_malformed_step_is_a_zero_and_is_not_judged():
    judge = FakeJudge()
    tree = grow(FakeSampler(bad=1.0), judge, expansion_budget=4)
    assert judge.submissions == []
    assert tree.infra_errors == 0
    assert {node.value for node in tree.nodes if node.terminal} == {0.0}


@pytest.mark.parametrize("leaves", [1, 2, 5])
def test_expansions_in_flight_are_bounded(leaves):
    sampler = FakeSampler(delay=0.001)
    tree = grow(sampler, FakeJudge(), leaves_in_flight=leaves, root_samples=6, samples=3)
    running, most = set(), 0
    ends = dict(slots(tree)[0])
    for event in tree.events:
        if event["event"] == "ask":
            running.add(event["id"])
        elif event["event"] == "tell":
            ends[event["id"]] -= 1
            if not ends[event["id"]]:
                running.remove(event["id"])
        most = max(most, len(running))
    assert most <= leaves
    assert sampler.most <= leaves * 6
    if leaves > 1:
        assert most > 1


@pytest.mark.parametrize("budget", [1, 5, 9])
def test_the_expansion_budget_is_exact(budget):
    tree = grow(FakeSampler(), FakeJudge(), expansion_budget=budget, token_budget=10_000)
    assert tree.expansions == budget
    assert tree.finished() == "expansion budget"


def test_the_token_budget_is_passed_by_what_was_in_flight_at_most():
    tree = grow(FakeSampler(), FakeJudge(), token_budget=100, expansion_budget=500, leaves_in_flight=2, samples=4)
    assert tree.finished() == "token budget"
    assert 100 <= tree.tokens < 100 + 2 * 4 * 2
    assert tree.tokens == 2 * len([e for e in tree.events if e["event"] == "tell"])


def test_enough_programs_end_the_tree():
    tree = grow(FakeSampler(), FakeJudge(), enough_passing=2, enough_failing=2, token_budget=10_000)
    assert tree.finished() == "enough passing and failing programs"
    assert tree.root.passed >= 2
    assert tree.root.sampled - tree.root.passed >= 2


def test_the_time_budget_ends_the_tree():
    sampler = FakeSampler(delay=0.05)
    tree = grow(sampler, FakeJudge(), seconds=0.05, token_budget=100_000, expansion_budget=1000)
    assert tree.idle
    assert tree.expansions < 50


def test_prompts_are_the_sampled_ids_and_draws_follow_the_settings():
    sampler = FakeSampler()
    tree = grow(sampler, FakeJudge(), step_tokens=40, code_tokens=60, temperature=0.7, top_p=0.9)
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

    search = searcher(FakeSampler(), FakeJudge())
    search.scorer = score
    tree = asyncio.run(search.search("t", PROBLEM, PROMPT, SUITE, config(rollout_weight=0.5), 0))
    scored = [n for n in tree.nodes if n.score is not None]
    assert scored
    assert all(n.action is not Action.CODE and n.score == 0.75 for n in scored)
    assert {tree.prompt_for(n.id) for n in scored} <= set(seen)
    seen.clear()
    asyncio.run(search.search("t", PROBLEM, PROMPT, SUITE, config(rollout_weight=1.0), 0))
    assert seen == []


def test_a_scorer_that_fails_ends_the_slot():
    async def score(ids):
        raise ConnectionError("gone")

    search = searcher(FakeSampler(), FakeJudge())
    search.scorer = score
    tree = asyncio.run(search.search("t", PROBLEM, PROMPT, SUITE, config(rollout_weight=0.5), 0))
    assert tree.idle
    assert tree.root.visits == 0
    assert tree.finished() == "too many infrastructure errors"


def test_many_trees_on_one_loop_do_not_mix():
    search = searcher(FakeSampler(), FakeJudge())

    async def all_of_them():
        return await asyncio.gather(*[search.search(f"t{i}", PROBLEM, (i,), SUITE, config(), i) for i in range(20)])

    trees = asyncio.run(all_of_them())
    assert [t.id for t in trees] == [f"t{i}" for i in range(20)]
    assert all(t.idle and t.finished() for t in trees)
    assert all(p.prompt_ids == (i,) and p.tree_id == f"t{i}" for i, t in enumerate(trees) for p in t.paths())


def test_cancelling_a_search_cancels_its_samples():
    sampler = FakeSampler(delay=10)

    async def cancel():
        task = asyncio.create_task(searcher(sampler, FakeJudge()).search("t", PROBLEM, PROMPT, SUITE, config(), 0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(cancel()) == 1
    assert sampler.running == 0


# --- chains ---


@pytest.mark.parametrize("prefer, actions", [(Action.CODE, [1, 3]), (Action.REFINE, [1, 2, 2, 3])])
def test_a_greedy_chain_takes_the_likelier_action(prefer, actions):
    sampler = FakeSampler(prefer=prefer)
    path = chain(sampler, FakeJudge(), greedy=True)
    assert [int(s.action) for s in path.steps] == actions
    assert all(draw.greedy for _, draw in sampler.draws)
    assert set(sampler.seeds) == {None}
    assert sampler.chosen == (1 if prefer is Action.CODE else 2)


def test_a_sampled_chain_draws_its_actions():
    counts = Counter(len(chain(FakeSampler(seed=s), FakeJudge(), seed=s).steps) for s in range(60))
    assert counts[2] > counts[3] > 0


def test_a_chain_is_a_whole_path():
    path = chain(FakeSampler(), FakeJudge(), temperature=0.6)
    assert path.complete
    assert (path.problem_id, path.tree_id, path.prompt_ids, path.temperature) == ("p", "c", PROMPT, 0.6)
    assert path.verdict in (Verdict.ACCEPTED, Verdict.WRONG_ANSWER)
    assert path.tests_total == 4
    assert path.value == pytest.approx(0.1 + 0.9 * path.tests_passed / 4)
    assert path.program == path.steps[-1].text.removeprefix("```python\n").removesuffix("```")
    assert [s.header_ids for s in path.steps] == [
        CODEC.header_ids(n, s.action) for n, s in enumerate(path.steps, start=1)
    ]


def test_a_malformed_chain_is_a_zero():
    judge = FakeJudge()
    path = chain(FakeSampler(bad=1.0), judge)
    assert (path.value, path.program, path.verdict, path.compiles) == (0.0, None, None, False)
    assert len(path.steps) == 1
    assert path.complete
    assert not path.solved
    assert judge.submissions == []


def test_a_chain_lost_on_every_attempt_is_none_and_no_zero():
    sampler = FakeSampler(fail=1.0)
    assert chain(sampler, FakeJudge()) is None
    assert len(sampler.draws) == CHAIN_ATTEMPTS
    judge = FakeJudge(lost=1.0)
    assert chain(FakeSampler(), judge) is None
    assert len(judge.submissions) == CHAIN_ATTEMPTS


def test_a_chain_is_tried_again_with_another_seed():
    found = [chain(FakeSampler(fail=0.3, seed=s), FakeJudge(lost=0.3), seed=s) for s in range(30)]
    kept = [p for p in found if p is not None]
    assert len(kept) > 15
    assert all(p.value == 1.0 or p.value == pytest.approx(0.1 + 0.9 / 4) for p in kept)


def test_a_judge_that_raises_is_infrastructure_for_a_chain_too():
    judge = FakeJudge(raises=1.0)
    assert chain(FakeSampler(), judge) is None
    assert len(judge.submissions) == CHAIN_ATTEMPTS
