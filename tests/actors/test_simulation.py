"""The simulated engine and sandbox: ends, failures, versions, caches, texts, queues."""

import asyncio
import math
import random
from collections import Counter
from statistics import mean

import pytest
from sim_bench import BASE, CASES, CODE, IDEA, PER, PREFILL, engine, now, timed

from actors.sampling import Draw, EngineDeadError, EngineError
from actors.simulation import (
    IDEA_TOKEN,
    MEAN_TOKENS,
    PrefixCache,
    SimEngine,
    SimPolicy,
    SimSandbox,
    lognormal_lengths,
    passes,
    run_virtual,
)
from reasoning.records import Action
from reasoning.steps import STOPS, read_sample
from sandbox import Submission, Verdict

# --- cancellation, death, failures ---


def test_cancelling_a_draw_frees_its_slot_and_counts_its_tokens_as_wasted():
    async def scenario():
        sim = engine([100, 4], max_num_seqs=1)
        first = asyncio.create_task(sim.draw((1,), IDEA))
        second = asyncio.create_task(sim.draw((2,), IDEA))
        await asyncio.sleep(7.5 * (BASE + PER))
        assert (sim.running, sim.waiting) == (1, 1)
        first.cancel()
        await asyncio.wait([first])
        assert (sim.running, sim.wasted_tokens) == (0, 7)
        await second
        assert now() == pytest.approx((8 + 4) * (BASE + PER))
        return sim

    sim = run_virtual(scenario())
    assert (sim.sampled_tokens, sim.wasted_tokens, sim.requests) == (4, 7, 2)


def test_cancelling_a_request_that_waits_costs_nothing():
    async def scenario():
        sim = engine(max_num_seqs=1)
        first = asyncio.create_task(sim.draw((1,), IDEA))
        second = asyncio.create_task(sim.draw((2,), IDEA))
        await asyncio.sleep(BASE)
        second.cancel()
        await first
        return sim

    sim = run_virtual(scenario())
    assert (sim.sampled_tokens, sim.wasted_tokens, sim.waiting) == (10, 0, 0)


def test_a_request_cancelled_as_it_is_admitted_leaves_slot_and_step_to_the_next():
    async def scenario():
        sim = engine([1, 1, 1], max_num_seqs=1, prefill_s=PREFILL)
        first, second, third = (asyncio.create_task(sim.draw((n,) * 12, IDEA)) for n in range(3))
        await first
        assert (sim.running, sim.waiting) == (1, 1)
        second.cancel()
        await third
        return now(), sim.wasted_tokens

    assert run_virtual(scenario()) == (pytest.approx(2 * (BASE + PER + 12 * PREFILL)), 0)


def test_a_deadline_around_a_draw_aborts_it():
    async def scenario():
        sim = engine([10_000], max_num_seqs=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sim.draw((1,), IDEA), 1.0)
        return sim

    sim = run_virtual(scenario())
    assert sim.running == 0
    assert sim.wasted_tokens == int(1.0 / (BASE + PER))


def test_death_ends_every_request():
    async def scenario():
        sim = engine([50] * 9, max_num_seqs=2)
        tasks = [asyncio.create_task(timed(sim.draw((n,), IDEA))) for n in range(6)]
        tasks.append(asyncio.create_task(timed(sim.choose((1,), (5, 6)))))
        await asyncio.sleep(20.5 * (BASE + 2 * PER))
        died = now()
        sim.die()
        ended = await asyncio.gather(*tasks)
        assert all(type(error) is EngineDeadError and when == died for error, when in ended)
        await asyncio.sleep(1)
        for later in (sim.draw((1,), IDEA), sim.choose((1,), (5, 6))):
            with pytest.raises(EngineDeadError):
                await later
        return sim, died

    sim, died = run_virtual(scenario())
    assert (sim.running, sim.waiting, sim.sampled_tokens, sim.wasted_tokens) == (0, 0, 0, 40)
    assert sim.busy_s == pytest.approx(died)
    assert sim.dead


def test_a_share_of_requests_fails_and_can_be_tried_again():
    async def scenario():
        sim = engine(fail_rate=0.3, seed=4)
        ended = await asyncio.gather(*[timed(sim.draw((1,), IDEA, 7)) for _ in range(400)])
        return [type(e) for e, _ in ended], sim

    kinds, sim = run_virtual(scenario())
    assert 80 < kinds.count(EngineError) < 160
    assert EngineDeadError not in kinds
    assert sim.sampled_tokens == 10 * (400 - kinds.count(EngineError))
    assert 0 < sim.wasted_tokens <= 10 * kinds.count(EngineError)
    assert run_virtual(scenario())[0] == kinds


def test_an_engine_serves_one_loop():
    sim = engine()
    run_virtual(sim.draw((1,), IDEA))
    with pytest.raises(RuntimeError, match="one event loop"):
        run_virtual(sim.draw((1,), IDEA))


# --- versions ---


def test_a_sample_that_spans_an_update_shows_both_versions():
    async def scenario():
        sim = engine([10, 10], max_num_seqs=1, version=3)
        first = asyncio.create_task(sim.draw((1,), IDEA))
        second = asyncio.create_task(sim.draw((1,), IDEA))
        await asyncio.sleep(4.5 * (BASE + PER))
        sim.set_version(4)
        assert sim.version == 4
        return (await first).weight_spans, (await second).weight_spans

    # The step under way (the fifth) ends with the weights that it began with.
    assert run_virtual(scenario()) == (((3, 0, 5), (4, 5, 10)), ((4, 0, 10),))


def test_a_version_set_before_and_between_steps():
    async def scenario():
        sim = engine([10, 10], max_num_seqs=1)
        sim.set_version(1)
        first = asyncio.create_task(sim.draw((1,), IDEA))
        await asyncio.sleep(4 * (BASE + PER))
        sim.set_version(2)
        sim.set_version(3)
        await asyncio.sleep(2 * (BASE + PER))
        sim.set_version(3)
        spans = (await first).weight_spans
        sim.set_version(9)
        return spans, (await sim.draw((1,), IDEA)).weight_spans

    assert run_virtual(scenario()) == (((1, 0, 4), (3, 4, 10)), ((9, 0, 10),))


# --- prefix cache ---


def test_whole_blocks_of_a_prompt_are_cached_per_version():
    prompt = tuple(range(100, 150))  # three blocks and two tokens

    async def scenario():
        sim = engine()
        seen = []

        async def ask(ids):
            before = sim.cached_tokens
            await sim.draw(ids, IDEA)
            seen.append(sim.cached_tokens - before)

        await ask(prompt)
        await ask(prompt)
        await ask((*prompt[:20], 7, *prompt[21:]))
        await ask((7, *prompt[1:]))
        await ask(prompt[:32])  # its last token is computed in any case
        sim.set_version(1)
        await ask(prompt)
        await ask(prompt)
        return seen, sim

    seen, sim = run_virtual(scenario())
    assert seen == [0, 48, 16, 0, 16, 0, 48]
    assert sim.reusable_tokens == sim.cached_tokens
    assert sim.prompt_tokens == 6 * 50 + 32


def test_what_was_sampled_is_reused_by_the_step_after_it():
    async def scenario():
        sim = engine([33, 10])
        prompt = tuple(range(100, 116))
        sample = await sim.draw(prompt, IDEA)
        await sim.draw((*prompt, *sample.token_ids, 1, 2, 3), IDEA)
        return sim.cached_tokens

    assert run_virtual(scenario()) == 48


def test_a_cache_hit_saves_the_prefill():
    async def scenario():
        sim = engine([1, 1], prefill_s=0.01)
        prompt = tuple(range(33))
        times = []
        for _ in range(2):
            started = now()
            await sim.draw(prompt, IDEA)
            times.append(now() - started - BASE - PER)
        return times

    assert run_virtual(scenario()) == [pytest.approx(0.33), pytest.approx(0.01)]


def test_a_full_cache_forgets_but_counts_what_could_have_been_reused():
    async def scenario():
        sim = engine(cache=PrefixCache(capacity=4))
        for start in (0, 1000, 0):
            await sim.draw(tuple(range(start, start + 65)), IDEA)
        return sim.cached_tokens, sim.reusable_tokens

    assert run_virtual(scenario()) == (0, 64)


def test_engines_can_share_what_counts_as_reusable():
    async def scenario():
        seen = set()
        sims = [engine(cache=PrefixCache(seen=seen)) for _ in range(2)]
        for sim in sims:
            await sim.draw(tuple(range(40)), IDEA)
        return [(sim.cached_tokens, sim.reusable_tokens) for sim in sims]

    assert run_virtual(scenario()) == [(0, 0), (0, 32)]


# --- what is written ---


def draws(sim, seeds, prompt=(1, 2, 3), draw=IDEA):
    async def scenario():
        return await asyncio.gather(*[sim.draw(prompt, draw, seed) for seed in seeds])

    return run_virtual(scenario())


def test_a_seeded_draw_depends_on_its_seed_alone():
    first = draws(SimEngine(seed=1), [11, 12, 13])
    second = draws(SimEngine(seed=2, max_num_seqs=1), [13, 99, 11])
    assert first[0] == second[2]
    assert first[2] == second[0]
    assert first[0] != first[1]


def test_a_draw_without_a_seed_depends_on_engine_and_number():
    first, again, other = (draws(SimEngine(seed=s), [None] * 5) for s in (1, 1, 2))
    assert first == again
    assert len({s.token_ids for s in first + other}) == 10


def test_greedy_draws_and_choices_depend_on_the_prompt_alone():
    greedy = Draw(200, stop=STOPS[Action.DEFINE], greedy=True)
    assert len(set(draws(SimEngine(seed=1), [1, 2, None], draw=greedy))) == 1
    assert draws(SimEngine(), [1], draw=greedy) != draws(SimEngine(), [1], (9,), greedy)

    async def choices(sim):
        return [await sim.choose(ids, (50, 60)) for ids in ((1,), (2,), (1,))], now()

    found, when = run_virtual(choices(SimEngine(base_s=BASE, per_sequence_s=PER)))
    assert found[0] == found[2] != found[1]
    assert all(set(c) == {50, 60} and sum(map(math.exp, c.values())) == pytest.approx(1) for c in found)
    assert when == pytest.approx(3 * (BASE + PER))


@pytest.mark.parametrize("draw, action", [(IDEA, Action.DEFINE), (CODE, Action.CODE)])
def test_samples_are_steps_of_the_grammar(draw, action):
    samples = draws(SimEngine(SimPolicy(malformed=0.2)), range(500), draw=draw)
    read = [read_sample(action, s.text, truncated=s.finish == "length")[0] for s in samples]
    assert 60 < read.count(None) < 140
    assert all(len(s.logprobs) == len(s.token_ids) for s in samples)
    assert mean(len(s.token_ids) for s in samples) == pytest.approx(MEAN_TOKENS[action], rel=0.1)
    assert 10 < len({step.text for step in read if step}) <= 50


def test_the_length_limit_cuts_a_step_off():
    sim = SimEngine(SimPolicy(length=lambda rng, action: 30, malformed=0.0))
    exact, cut = (
        draws(sim if n == 30 else SimEngine(sim.policy), [1], draw=Draw(n, stop=IDEA.stop))[0] for n in (30, 29)
    )
    assert (exact.finish, len(exact.token_ids)) == ("stop", 30)
    assert (cut.finish, len(cut.token_ids)) == ("length", 29)
    assert cut.text == exact.text.splitlines()[0]


def test_lengths_have_the_means_asked_for():
    length, rng = lognormal_lengths({Action.CODE: 200.0}, 0.8), random.Random(0)
    assert mean(length(rng, Action.CODE) for _ in range(20_000)) == pytest.approx(200, rel=0.03)


def test_some_ideas_lead_to_right_programs_more_often():
    policy = SimPolicy(malformed=0.0)
    chains = [(5, 6, IDEA_TOKEN + n, 7) for n in range(policy.ideas)]
    qualities = [policy.quality(chain) for chain in chains]
    assert max(qualities) > 2 * min(qualities)
    best = chains[qualities.index(max(qualities))]
    samples = draws(SimEngine(policy, max_num_seqs=1000), range(1000), best, CODE)
    share = mean(passes(int(s.text.split()[-2])) for s in samples)
    assert share == pytest.approx(max(qualities), abs=0.06)
    assert policy.quality((5, 7, *best[2:])) != policy.quality(best)  # another problem
    assert policy.quality((*best, IDEA_TOKEN)) != policy.quality(best)  # refined
    assert policy.quality((*best, 8, 9)) == policy.quality(best)  # headers


# --- sandbox ---


def submission(number):
    source = f"def f(x):\n    return x + {number}\n"
    return Submission(source=source, entry_point="f", cases=[t.case for t in CASES])


def test_submissions_queue_for_workers_in_order():
    async def scenario():
        judge = SimSandbox(slots=2, latency=lambda rng: 1.0)
        ends = []

        async def one(n):
            await judge(submission(n))
            ends.append((n, now()))

        tasks = [asyncio.create_task(one(n)) for n in range(5)]
        await asyncio.sleep(0.5)
        assert (judge.running, judge.waiting) == (2, 3)
        await asyncio.gather(*tasks)
        return ends, judge

    ends, judge = run_virtual(scenario())
    assert ends == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3)]
    assert (judge.judged, judge.busy_s, judge.most_waiting, judge.running) == (5, 5, 3, 0)


@pytest.mark.parametrize("when", [0.5, 1.0, 1.5])
def test_a_cancelled_submission_leaves_its_place(when):
    async def scenario():
        judge = SimSandbox(slots=1, latency=lambda rng: 1.0)
        tasks = [asyncio.create_task(judge(submission(n))) for n in range(4)]
        await asyncio.sleep(when)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert (judge.running, judge.waiting) == (0, 0)
        return now(), judge.judged

    assert run_virtual(scenario()) == (3 + max(0.0, when - 1), 3)


def test_verdicts_agree_with_what_the_policy_wrote():
    async def scenario():
        judge = SimSandbox()
        results = [await judge(submission(n)) for n in range(20)]
        broken = await judge(Submission(source="def", entry_point="f", cases=[t.case for t in CASES]))
        return results, broken

    results, broken = run_virtual(scenario())
    for number, result in enumerate(results):
        assert result.compiles
        assert result.total == 4
        assert (result.verdict is Verdict.ACCEPTED) == passes(number) == (result.passed == 4)
    assert (broken.verdict, broken.compiles, broken.passed) == (Verdict.COMPILE_ERROR, False, 0)


def test_a_share_of_results_is_lost():
    async def scenario():
        judge = SimSandbox(slots=4, error_rate=0.25, seed=3)
        results = await asyncio.gather(*[judge(submission(0)) for _ in range(400)])
        return Counter(r.verdict for r in results), now()

    counts, seconds = run_virtual(scenario())
    assert set(counts) == {Verdict.SANDBOX_ERROR, Verdict.ACCEPTED}
    assert 70 < counts[Verdict.SANDBOX_ERROR] < 130
    assert seconds == pytest.approx(0.03 * 400 / 4, rel=0.1)
    assert run_virtual(scenario()) == (counts, seconds)
