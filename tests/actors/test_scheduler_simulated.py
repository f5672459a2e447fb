"""The scheduler on simulated engines: full engines, fairness, one end per sample, deaths, new weights, bounds."""

import asyncio
import random
import time
from collections import Counter
from statistics import mean

import pytest
from sim_bench import CASES, now

from actors.programs import ProgramJudge
from actors.scheduler import SearchJob, SearchScheduler
from actors.simulation import SimEngine, SimPolicy, SimSandbox, run_virtual
from reasoning.event_log import Abandoned, Asked, Begun, Told, decode
from reasoning.records import Problem, Suite
from reasoning.search import SearchSettings
from reasoning.steps import StepCodec
from sandbox import Limits

CODEC = StepCodec(lambda text: [ord(c) for c in text])
PROBLEM = Problem(id="p", question="q", entry_point="f", references=("x",), tests=CASES)
SUITE = Suite(problem_id="p", tests=CASES)


def job(number, log=None, **changes):
    settings = SearchSettings(**{"token_budget": 4000, "expansion_budget": 60, "seconds": 1e6, **changes})
    return SearchJob(f"t{number}", PROBLEM, tuple(range(number, number + 40)), SUITE, settings, number, log)


def fleet(engines, max_num_seqs=32, slots=64, max_trees=None, error_rate=0.0, **options):
    sims = [SimEngine(seed=n, max_num_seqs=max_num_seqs, **options) for n in range(engines)]
    sandbox = SimSandbox(slots=slots, error_rate=error_rate)
    made = SearchScheduler(
        sims,
        ProgramJudge(sandbox, Limits()),
        CODEC,
        outstanding=2 * max_num_seqs,
        max_trees=max_trees or 2 * max_num_seqs,
    )
    return made, sims, sandbox


def balanced(made, trees):
    """Every sample that was handed out ended in one way, and nothing is left."""
    stats = made.stats
    assert (made.outstanding, made.active) == (0, 0)
    assert stats.told == sum(t.samples for t in trees)
    assert stats.lost == sum(t.infra_errors for t in trees)
    assert stats.pruned == sum(t.pruned for t in trees)
    assert all(t.idle and all(n.in_flight == n.pending == 0 for n in t.nodes) for t in trees)


@pytest.mark.slow
def test_hundreds_of_trees_keep_every_engine_full():
    async def scenario():
        made, sims, _ = fleet(8)
        begun = now()
        found = asyncio.gather(*[made.search(job(n)) for n in range(480)])
        await asyncio.sleep(0.01)
        while made.waiting:
            await asyncio.sleep(0.05)
        # As long as problems wait, no engine lacks work.
        full = [sim.occupancy_s / (now() - begun) for sim in sims]
        trees = [f.tree for f in await found]
        return made, sims, trees, full

    started = time.monotonic()
    made, sims, trees, full = run_virtual(scenario())
    assert time.monotonic() - started < 40
    assert len(trees) == 480 and min(full) > 0.97
    balanced(made, trees)
    assert sum(s.sampled_tokens for s in sims) >= sum(t.tokens for t in trees)
    served = [s.requests for s in sims]
    assert max(served) < 1.25 * min(served)


def test_trees_of_an_engine_take_turns():
    async def scenario():
        made, _, _ = fleet(1, max_num_seqs=8, max_trees=6)
        found = asyncio.gather(*[made.search(job(n, enough_passing=999, token_budget=10**6)) for n in range(6)])
        counts = []
        while not found.done():
            await asyncio.sleep(0.2)
            at_work = [a.tree.expansions for lane in made._lanes for a in lane.trees if a.job.tree_id != "t5"]
            counts.append(at_work)
        await found
        return counts

    counts = run_virtual(scenario())
    # Expansions last unequally long, and a tree with few open states has to wait for its own; the sixth tree begins
    # when the others leave room.
    assert max(max(c) for c in counts if len(c) == 5) > 50
    assert all(max(c) - min(c) <= 20 for c in counts if len(c) == 5)


def test_every_expansion_ends_in_exactly_one_way(tmp_path):
    async def scenario():
        made, sims, _ = fleet(4, fail_rate=0.05, error_rate=0.1)
        logs = [tmp_path / f"{n}.jsonl" for n in range(60)]
        jobs = [job(n, log, enough_passing=2, enough_failing=2) for n, log in enumerate(logs)]

        async def deaths():
            for at, sim in ((3.0, sims[0]), (5.0, sims[2])):
                await asyncio.sleep(at)
                sim.die()

        killer = asyncio.create_task(deaths())
        found = await asyncio.gather(*map(made.search, jobs))
        killer.cancel()
        return made, [f.tree for f in found], logs

    made, trees, logs = run_virtual(scenario())
    balanced(made, trees)
    ends = Counter()
    for log in logs:
        events = decode(log.read_bytes())
        asked = {e.id: e.count for e in events if isinstance(e, Asked)}
        begun = {e.id for e in events if isinstance(e, Begun)}
        told = Counter((e.id, e.slot) for e in events if isinstance(e, Told))
        given_up = Counter(e.id for e in events if isinstance(e, Abandoned))
        assert set(told.values()) <= {1} and set(given_up.values()) <= {1}
        assert not begun & given_up.keys() and begun | given_up.keys() == asked.keys()
        assert Counter(i for i, _ in told) == Counter({i: asked[i] for i in begun})
        for event in events:
            if isinstance(event, Told):
                o = event.outcome
                ends["pruned" if o.pruned else "lost" if o.sample is None else "told"] += 1
    assert ends["pruned"] > 0 and ends["lost"] > 0 and ends["told"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_nothing_leaks_when_engines_die(seed):
    rng = random.Random(seed)

    async def scenario():
        made, sims, _ = fleet(8)
        before = len(asyncio.all_tasks())
        found = asyncio.gather(*[made.search(job(n)) for n in range(200)], return_exceptions=True)
        for sim in rng.sample(sims, 6):
            await asyncio.sleep(rng.random() * 2)
            sim.die()
        results = await found
        await asyncio.sleep(1)
        return made, sims, results, len(asyncio.all_tasks()) - before

    made, sims, results, tasks = run_virtual(scenario())
    assert not [r for r in results if isinstance(r, BaseException)]
    balanced(made, [r.tree for r in results])
    assert tasks == 0
    assert all(sim.running == sim.waiting == 0 for sim in sims)
    reasons = Counter(r.reason for r in results)
    assert reasons["too many infrastructure errors"] == 0


def test_new_weights_in_flight_lose_no_sample_and_every_token_has_its_version():
    async def scenario():
        made, sims, _ = fleet(2)

        async def updates():
            for version in range(1, 100):
                await asyncio.sleep(1.0)
                for sim in sims:
                    sim.set_version(version)

        updating = asyncio.create_task(updates())
        found = await asyncio.gather(*[made.search(job(n)) for n in range(80)])
        updating.cancel()
        return made, [f.tree for f in found]

    made, trees = run_virtual(scenario())
    balanced(made, trees)
    assert made.stats.lost == 0
    spans = [n.weight_spans for t in trees for n in t.nodes[1:]]
    for tree in trees:
        for node in tree.nodes[1:]:
            covered = [i for _, a, b in node.weight_spans for i in range(a, b)]
            assert covered == list(range(len(node.token_ids)))
            versions = [v for v, _, _ in node.weight_spans]
            assert versions == sorted(versions)
    assert mean(len(s) > 1 for s in spans) > 0.05
    assert len({v for s in spans for v, _, _ in s}) > 3


def test_slow_judging_leaves_the_engine_full_until_the_trees_run_out():
    """A sandbox that is far too slow holds trees up, not the engine's places."""

    async def scenario():
        made, sims, sandbox = fleet(1, max_num_seqs=16, slots=2, max_trees=200)
        sandbox._latency = lambda rng: 0.5
        begun = now()
        found = asyncio.gather(*[made.search(job(n, token_budget=400)) for n in range(200)])
        await asyncio.sleep(0.01)
        while made.waiting:
            await asyncio.sleep(0.01)
        full = sims[0].occupancy_s / (now() - begun)
        await found
        return full, sandbox.most_waiting

    full, waiting = run_virtual(scenario())
    assert full > 0.95 and waiting > 20


def test_memory_is_bounded_by_the_trees_at_work():
    most = Counter()

    async def scenario():
        made, _, _ = fleet(2, max_num_seqs=16, max_trees=12)
        found = asyncio.gather(*[made.search(job(n, token_budget=800)) for n in range(300)])
        while not found.done():
            await asyncio.sleep(0.05)
            most["trees"] = max(most["trees"], made.active)
            most["tasks"] = max(most["tasks"], len(asyncio.all_tasks()))
            most["outstanding"] = max(most["outstanding"], made.outstanding)
        await found

    run_virtual(scenario())
    assert most["trees"] <= 24
    assert most["outstanding"] <= 2 * (32 + 3)
    # One per call that waits, and per expansion and sample of the trees at work.
    assert most["tasks"] <= 300 + 10 + 24 * 4 * 5


def test_the_time_budget_follows_the_clock_of_the_loop():
    async def scenario():
        made, sims, _ = fleet(1, max_num_seqs=4)
        begun = now()
        found = await made.search(job(0, seconds=2.5, token_budget=10**6, expansion_budget=10**6, enough_passing=999))
        return found, now() - begun, sims[0]

    found, seconds, sim = run_virtual(scenario())
    assert found.reason == "time budget" and seconds == pytest.approx(2.5, abs=0.01)
    assert found.tree.pruned > 0 and sim.running == 0 and sim.wasted_tokens > 0


@pytest.mark.parametrize("policy", ["puct", "uct", "gumbel", "faithful", "best-of-n", "beam"])
def test_every_policy_runs_to_its_budget(policy):
    async def scenario():
        made, _, _ = fleet(1, policy=SimPolicy(seed=3, pass_rate=0.05))
        jobs = []
        for n in range(40):
            made_job = job(n, token_budget=1500, expansion_budget=10_000, enough_passing=999)
            settings = made_job.settings.with_policy(policy)
            jobs.append(SearchJob(made_job.tree_id, PROBLEM, made_job.prompt_ids, SUITE, settings, made_job.seed))
        return [await asyncio.gather(*map(made.search, jobs)), made]

    found, made = run_virtual(scenario())
    balanced(made, [f.tree for f in found])
    assert {f.reason for f in found} == {"token budget"}
    # Lengths are known afterwards: a budget is passed by a tenth at most, whatever the policy.
    assert all(1500 <= f.tree.tokens < 1500 + 600 for f in found)
    assert mean(f.tree.tokens for f in found) < 1500 * 1.1
