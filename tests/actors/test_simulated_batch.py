"""The batch of the simulated engine: exact against a token-by-token reference."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_bench import BASE, IDEA, PER, PREFILL, engine, now, timed

from actors.simulation import (
    run_virtual,
)


def reference(slots, requests, end):
    """Token by token. `requests`: (arrival, tokens, cancelled at or None, prompt tokens). Returns per request
    (when it ended, tokens), then busy seconds and occupancy up to `end`."""
    waiting, running, results = [], [], [None] * len(requests)
    tokens = [0] * len(requests)
    events = [(r[0], 1, i) for i, r in enumerate(requests)] + [
        (r[2], 0, i) for i, r in enumerate(requests) if r[2] is not None
    ]
    events.sort()
    clock = busy = occupancy = 0.0
    step_end, fresh = None, []

    def pass_time(until):
        nonlocal clock, busy, occupancy
        busy += (until - clock) * bool(running)
        occupancy += (until - clock) * len(running) / slots
        clock = until

    while clock < end:
        # What happens at this instant: first the tokens of a step that ends, then cancellations and arrivals.
        if step_end == clock:
            for i in list(running):
                tokens[i] += 1
                if tokens[i] == requests[i][1]:
                    running.remove(i)
                    results[i] = (clock, tokens[i])
            step_end = None
        while events and events[0][0] == clock:
            _, arrives, i = events.pop(0)
            if arrives:
                waiting.append(i)
            elif results[i] is None:
                (waiting if i in waiting else running).remove(i)
                results[i] = (clock, tokens[i])
        if step_end is None:
            fresh = waiting[: slots - len(running)]
            waiting = waiting[len(fresh) :]
            running += fresh
            if running:
                prefill = PREFILL * sum(requests[i][3] for i in fresh)
                step_end = clock + BASE + PER * len(running) + prefill
        pass_time(min([end, *([step_end] if step_end else []), *[e[0] for e in events[:1]]]))
    return results, busy, occupancy


def simulated(slots, requests, end):
    async def scenario():
        sim = engine([r[1] for r in requests], max_num_seqs=slots, prefill_s=PREFILL)
        results = [None] * len(requests)

        async def one(i):
            try:
                sample = await sim.draw((i,) * requests[i][3], IDEA)
                results[i] = (now(), len(sample.token_ids))
            except asyncio.CancelledError:
                results[i] = (now(), None)

        events = [(r[0], 1, i) for i, r in enumerate(requests)] + [
            (r[2], 0, i) for i, r in enumerate(requests) if r[2] is not None
        ]
        tasks = {}
        for when, arrives, i in sorted(events):
            await asyncio.sleep(when - now())
            if arrives:
                tasks[i] = asyncio.create_task(one(i))
            else:
                tasks[i].cancel()
        await asyncio.gather(*tasks.values())
        await asyncio.sleep(end - now())
        assert (sim.running, sim.waiting) == (0, 0)
        return results, sim

    return run_virtual(scenario())


# In units of a fraction of a step, so that some events fall on ends of steps, and many at one instant.
INSTANTS = st.integers(0, 200).map(lambda n: n * PER * 8)
LEAVES = st.none() | st.integers(1, 100).map(lambda n: n * PER * 4)
REQUESTS = st.lists(
    st.tuples(INSTANTS, st.integers(1, 12), LEAVES, st.integers(0, 15)),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5), REQUESTS)
def test_the_batch_is_exact(slots, drawn):
    requests = sorted(((a, n, None if c is None else a + c, p) for a, n, c, p in drawn), key=lambda r: r[0])
    end = 4.0
    expected, busy, occupancy = reference(slots, requests, end)
    found, sim = simulated(slots, requests, end)
    for request, (when, tokens), (found_when, found_tokens) in zip(requests, expected, found, strict=True):
        assert found_when == pytest.approx(when, abs=1e-9)
        if found_tokens is None:
            assert when == request[2]
        else:
            assert found_tokens == tokens == request[1]
    delivered = sum(t for t in (f[1] for f in found) if t is not None)
    assert sim.sampled_tokens == delivered
    assert sim.sampled_tokens + sim.wasted_tokens == sum(e[1] for e in expected)
    assert sim.busy_s == pytest.approx(busy, abs=1e-7)
    assert sim.occupancy_s == pytest.approx(occupancy, abs=1e-7)


def test_a_step_costs_more_with_more_sequences():
    async def scenario():
        sim = engine(max_num_seqs=8)
        alone = now()
        await sim.draw((1,), IDEA)
        alone, together = now() - alone, now()
        await asyncio.gather(*[sim.draw((1,), IDEA) for _ in range(8)])
        return alone, now() - together, sim

    alone, together, sim = run_virtual(scenario())
    assert alone == pytest.approx(10 * (BASE + PER))
    assert together == pytest.approx(10 * (BASE + 8 * PER))
    assert sim.busy_s == pytest.approx(alone + together)
    assert sim.occupancy_s == pytest.approx(alone / 8 + together)


def test_what_arrives_in_a_step_waits_for_the_next():
    async def scenario():
        sim = engine([2, 1], max_num_seqs=8)
        first = asyncio.create_task(timed(sim.draw((1,), IDEA)))
        await asyncio.sleep(BASE / 2)
        second = asyncio.create_task(timed(sim.draw((1,), IDEA)))
        await asyncio.sleep(0)
        assert (sim.running, sim.waiting) == (1, 1)
        return (await first)[1], (await second)[1]

    end = (BASE + PER) + (BASE + 2 * PER)
    assert run_virtual(scenario()) == (pytest.approx(end), pytest.approx(end))


def test_first_come_first_served():
    async def scenario():
        rng = random.Random(0)
        sim = engine([rng.randint(1, 30) for _ in range(60)], max_num_seqs=1)
        ended = []

        async def one(n):
            await sim.draw((n,), IDEA)
            ended.append(n)

        tasks = []
        for n in range(60):
            tasks.append(asyncio.create_task(one(n)))
            await asyncio.sleep(rng.random() * 0.01)
        assert sim.waiting > 20
        await asyncio.gather(*tasks)
        return ended

    assert run_virtual(scenario()) == list(range(60))
