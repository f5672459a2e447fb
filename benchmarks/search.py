"""Tree search against flat generation and against the published pattern, on the real CPU engine and in simulation.

    search       trees under PUCT at the rollout worker's settings, 32 at a time, from a stream of problems: all of the
                 bundled training problems
    flat         the same prompts on the same engine, every sample as long as it was in the search, twice what the
                 engine runs at a time: what the engine can do
    sequential   the published pattern: one tree, three samples, one expansion after the other

`eta_search`: sampled tokens/s of search over flat, from the first request to the last, the ends of the last trees
included. `occupancy`: mean share of the engine's places that were taken, by vLLM's own count of running sequences.
`cache_efficiency`: prompt tokens taken from the prefix cache over those in whole blocks of requests that had begun
earlier. `useful_tokens`: tokens of samples that became part of a tree over all that the engine
made for samples, those of requests that were given up included; `useful_tokens_stopping` is the same in simulation with
trees that stop on 2 passing and 2 failing programs. `host_gap`: share of
the engine's places left empty while problems were still waiting. `vs_sequential`: sampled tokens/s of search over
sequential. The simulated engine needs 4 ms + 24 us per sequence for a step.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.programs import ProgramJudge
from actors.sampling import Draw
from actors.scheduler import SearchJob, SearchScheduler
from actors.simulated_batch import PrefixCache
from actors.simulation import SimEngine, SimPolicy, SimSandbox, run_virtual
from benchmarks._engine import LIMITS, MODEL, Bench, bench, quiet
from benchmarks._results import keep, machine
from reasoning.event_log import encode
from reasoning.nodes import Judgement, Outcome
from reasoning.problems import bundled
from reasoning.records import Action, Problem, Sample, Suite
from reasoning.search import SearchSettings
from reasoning.steps import END, StepCodec
from reasoning.tree import SearchTree
from sandbox import Verdict
from sandbox.bench import as_text
from sandbox.cache import forget_keys

MAX_NUM_SEQS = 32
TREES = 32
ROUNDS, QUICK_ROUNDS = 5, 1
CPU_BLOCK_TOKENS = 128  # vLLM's on CPU
STOPPING = {"enough_passing": 2, "enough_failing": 2}
SIM_SEQS, SIM_TREES, SIM_PROBLEMS = 256, 128, 512
RATIOS = (
    "eta_search", "eta_search_simulated", "occupancy", "cache_efficiency", "useful_tokens", "host_gap",
    "vs_sequential", "vs_sequential_simulated",
)  # fmt: skip


@dataclass(slots=True)
class Request:
    """One request as it was made: clock seconds, token ids in, tokens out (0: aborted, or a choice of an action)."""

    prompt: tuple[int, ...]
    began: float
    ended: float = 0.0
    sampled: tuple[int, ...] = ()
    choice: bool = False


@dataclass
class Recorder:
    """A sampler that notes what is asked of the one behind it."""

    sampler: Any
    requests: list[Request] = field(default_factory=list)

    async def draw(self, prompt_ids: Sequence[int], draw: Draw, seed: int | None = None) -> Sample:
        request = self._begin(prompt_ids)
        try:
            sample: Sample = await self.sampler.draw(prompt_ids, draw, seed)
            request.sampled = sample.token_ids
            return sample
        finally:
            request.ended = asyncio.get_running_loop().time()

    async def choose(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        request = self._begin(prompt_ids)
        request.choice = True
        try:
            found: dict[int, float] = await self.sampler.choose(prompt_ids, tokens)
            return found
        finally:
            request.ended = asyncio.get_running_loop().time()

    def _begin(self, prompt_ids: Sequence[int]) -> Request:
        self.requests.append(Request(tuple(prompt_ids), asyncio.get_running_loop().time()))
        return self.requests[-1]


@dataclass
class Steps:
    """How many sequences the engine ran in each of its steps, and all tokens that it made, as vLLM itself says."""

    seen: list[tuple[float, int]] = field(default_factory=list)
    made: int = 0

    def __call__(self, running: int, made: int) -> None:
        self.seen.append((asyncio.get_running_loop().time(), running))
        self.made += made

    def occupancy(self, places: int, begin: float, end: float) -> float:
        """Mean share of `places` that was taken between two times."""
        area, at = 0.0, begin
        for when, running in self.seen:
            if begin < when <= end:
                area += min(running, places) * (when - at)
                at = when
        return area / places / (end - begin)


def reusable_tokens(requests: Sequence[Request], block_tokens: int) -> int:
    """Prompt tokens in whole blocks of prompts that were asked for earlier, and of samples that had ended."""
    cache, total = PrefixCache(block_tokens=block_tokens), 0
    ends = [(r.ended, 0, n) for n, r in enumerate(requests)]
    for _, begins, n in sorted(ends + [(r.began, 1, n) for n, r in enumerate(requests)]):
        request = requests[n]
        if begins:
            total += cache.look_up(request.prompt, 0)[1]
        cache.insert(request.prompt if begins else (*request.prompt, *request.sampled[:-1]), 0)
    return total


async def grown(scheduler: SearchScheduler, jobs: Sequence[SearchJob]) -> tuple[list[SearchTree], float, float, float]:
    """All trees, and when the first began, when no problem waited any more, and when the last ended."""
    clock = asyncio.get_running_loop().time
    begin, emptied = clock(), 0.0
    searches = asyncio.gather(*map(scheduler.search, jobs))
    while not searches.done():
        await asyncio.sleep(0.02)
        if not emptied and not scheduler.waiting:
            emptied = clock()
    return [found.tree for found in await searches], begin, emptied or clock(), clock()


# --- the real engine ---


class Real:
    """One engine, its prompts and a sandbox."""

    def __init__(self, real: Bench, steps: Steps) -> None:
        self.real, self.engine, self.steps = real, real.engine, steps
        self.problems = [p for p in bundled() if p.split == "train"]
        self._salts = itertools.count(1)

    def fresh_cache(self) -> None:
        """Nothing that was computed before is found from now on."""
        self.engine.version = next(self._salts)

    def jobs(self, count: int | None, settings: SearchSettings, name: str) -> list[SearchJob]:
        """The first `count` problems, or all."""
        return [self.real.job(p, settings, name, n) for n, p in enumerate(self.problems[:count])]

    async def search(self, jobs: list[SearchJob], trees: int) -> dict[str, Any]:
        """Search; everything that is to be known of it."""
        self.fresh_cache()
        self.steps.seen.clear()
        recorder = Recorder(self.engine)
        programs = ProgramJudge(self.real.pool.judge, LIMITS)
        scheduler = SearchScheduler(
            [recorder], programs, self.real.codec, outstanding=2 * MAX_NUM_SEQS, max_trees=trees
        )
        made, cached, cpu = self.steps.made, self.engine.cached_tokens, time.process_time()
        found, begin, emptied, end = await grown(scheduler, jobs)
        requests, seconds = recorder.requests, end - begin
        drawn = sum(len(r.sampled) for r in requests)
        return {
            "requests": requests,
            "seconds": seconds,
            "tokens_per_s": drawn / seconds,
            "occupancy": self.steps.occupancy(MAX_NUM_SEQS, begin, end),
            "host_gap": 1 - self.steps.occupancy(MAX_NUM_SEQS, begin, emptied),
            "cache_efficiency": (self.engine.cached_tokens - cached)
            / max(1, reusable_tokens(requests, CPU_BLOCK_TOKENS)),
            # A choice of an action is a token too, but no sample.
            "useful_tokens": sum(t.tokens for t in found)
            / max(1, self.steps.made - made - sum(r.choice for r in requests)),
            "host_share": (time.process_time() - cpu) / seconds,
            "tree_share": scheduler.stats.host_s / seconds,
            "solved_per_minute": 60 * sum(t.root.passed > 0 for t in found) / seconds,
            "mean_tokens": drawn / max(1, sum(not r.choice for r in requests)),
        }

    async def flat(self, requests: Sequence[Request]) -> float:
        """Tokens/s of the same samples without search."""
        self.fresh_cache()
        places = asyncio.Semaphore(2 * MAX_NUM_SEQS)

        async def one(request: Request) -> int:
            async with places:
                return await self.engine.fill(request.prompt, len(request.sampled), 0.8)

        begin = time.monotonic()
        counts = await asyncio.gather(*[one(r) for r in requests if r.sampled])
        return sum(counts) / (time.monotonic() - begin)


async def on_engine(quick: bool) -> dict[str, list[float]]:
    """Every figure of every round."""
    problems, budget, alone = (8, 64, 1) if quick else (None, 200, 2)
    settings = SearchSettings(token_budget=budget, enough_passing=999)
    figures: dict[str, list[float]] = {}
    steps = Steps()
    async with bench(MAX_NUM_SEQS, steps) as started:
        real = Real(started, steps)
        # The engine makes a kernel for every new shape of a batch: that is no part of anybody's speed.
        await real.search(real.jobs(4 if quick else problems, settings, "warm-up"), TREES)
        for n in range(QUICK_ROUNDS if quick else ROUNDS):
            progress(f"round {n + 1}")
            found = await real.search(real.jobs(problems, settings, f"round {n}"), TREES)
            flat = await real.flat(found.pop("requests"))
            one = await real.search(real.jobs(alone, settings.with_policy("faithful"), f"alone {n}"), 1)
            found |= {
                "eta_search": found["tokens_per_s"] / flat,
                "vs_sequential": found["tokens_per_s"] / one["tokens_per_s"],
                "flat_tokens_per_s": flat,
                "sequential_tokens_per_s": one["tokens_per_s"],
                "sequential_solved_per_minute": one["solved_per_minute"],
            }
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
    return figures


# --- the simulated engine ---


def simulated(seed: int, problems: int) -> dict[str, float]:
    """Search, flat and sequential on an engine that is simulated."""
    codec = StepCodec(lambda text: [ord(c) for c in text])
    problem = Problem.model_validate(bundled()[0].model_dump())
    suite = Suite(problem_id=problem.id, tests=problem.tests)
    settings = SearchSettings(token_budget=2000, enough_passing=999, seconds=1e9)

    def jobs(count: int, settings: SearchSettings) -> list[SearchJob]:
        prompts = [tuple(range(1000 * n, 1000 * n + 300)) for n in range(count)]
        return [SearchJob(f"t{n}", problem, prompts[n], suite, settings, seed + n) for n in range(count)]

    async def search(count: int, trees: int, settings: SearchSettings) -> tuple[Recorder, float, float, float]:
        engine = SimEngine(seed=seed, max_num_seqs=SIM_SEQS)
        recorder = Recorder(engine)
        scheduler = SearchScheduler(
            [recorder], ProgramJudge(SimSandbox(slots=256), LIMITS), codec, outstanding=2 * SIM_SEQS, max_trees=trees
        )
        found, begin, _, end = await grown(scheduler, jobs(count, settings))
        made = engine.sampled_tokens + engine.wasted_tokens - sum(r.choice for r in recorder.requests)
        useful = sum(t.tokens for t in found) / made
        return (
            recorder,
            sum(len(r.sampled) for r in recorder.requests) / (end - begin),
            engine.occupancy_s / end,
            useful,
        )

    async def flat(requests: Sequence[Request]) -> float:
        lengths = iter([len(r.sampled) for r in requests if r.sampled])
        engine = SimEngine(SimPolicy(length=lambda rng, action: next(lengths), malformed=0.0), max_num_seqs=SIM_SEQS)
        begin = asyncio.get_running_loop().time()
        samples = await asyncio.gather(*[engine.draw(r.prompt, Draw(10**6)) for r in requests if r.sampled])
        return sum(len(s.token_ids) for s in samples) / (asyncio.get_running_loop().time() - begin)

    async def work() -> dict[str, float]:
        recorder, speed, taken, _ = await search(problems, SIM_TREES, settings)
        _, alone, _, _ = await search(2, 1, settings.with_policy("faithful"))
        *_, useful = await search(problems, SIM_TREES, settings.model_copy(update=STOPPING))
        return {
            "eta_search_simulated": speed / await flat(recorder.requests),
            "vs_sequential_simulated": speed / alone,
            "occupancy_simulated": taken,
            "useful_tokens_stopping": useful,
            "tokens_per_s_simulated": speed,
        }

    return run_virtual(work(), deadline_s=300)


# --- the trees themselves ---


def host_cost(trees: int, nodes: int) -> float:
    """Microseconds of Python to ask for one sample and to tell of it, its log line included; the trees take turns."""
    made = [bare_tree(n) for n in range(trees)]
    rng = random.Random(0)
    spent, samples = 0.0, 0
    for tree in itertools.cycle(made):
        if samples >= trees * nodes:
            return 1e6 * spent / samples
        began = time.perf_counter()
        expansion = tree.ask()
        assert expansion is not None  # nothing is in flight, so there is always something to do
        actions = tree.begin(expansion.id, {2: 0.6, 3: 0.4} if expansion.depth else None)
        spent += time.perf_counter() - began
        for slot, action in enumerate(actions):
            samples += 1
            outcome = made_outcome(rng, action, samples)
            began = time.perf_counter()
            tree.tell(expansion.id, slot, outcome)
            spent += time.perf_counter() - began
    raise AssertionError("there is at least one tree")


def median_cost(rounds: int, trees: int, nodes: int) -> float:
    """`host_cost` in the median of some rounds."""
    return round(statistics.median(host_cost(trees, nodes) for _ in range(rounds)), 1)


def bytes_per_node(nodes: int) -> float:
    """Memory of a node with its tokens, text and program, without its log."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tree, rng = bare_tree(0), random.Random(0)
    while len(tree.nodes) < nodes:
        expansion = tree.ask()
        assert expansion is not None
        for slot, action in enumerate(tree.begin(expansion.id, {2: 0.6, 3: 0.4} if expansion.depth else None)):
            tree.tell(expansion.id, slot, made_outcome(rng, action, len(tree.nodes)))
    forget_keys()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(tree.nodes)


def bare_tree(number: int) -> SearchTree:
    """A tree without limits."""
    headers = {(step, action): tuple(range(14)) for step in range(1, 5) for action in Action}
    settings = SearchSettings(token_budget=10**9, expansion_budget=10**6, enough_passing=10**9)
    return SearchTree(f"t{number}", "p", range(300), headers, settings, number, lambda event: [encode(event)].clear())


def made_outcome(rng: random.Random, action: Action, number: int) -> Outcome:
    """A sample of 60 tokens as a policy would draw it; all of them different."""
    ids = tuple(rng.randrange(49_000) for _ in range(60))
    logprobs = tuple(-rng.random() for _ in ids)
    if action is not Action.CODE:
        text = f"Go over the items, keep those above {number}, add them up and return the sum.\n{END}"
        return Outcome(Sample(ids, logprobs, text, "stop", ((0, 0, 60),)))
    text = f"def f(items):\n    total = {number}\n    for x in items:\n        if x > 0: total += x\n    return total"
    passed = rng.randrange(5)
    verdict = Verdict.ACCEPTED if passed == 4 else Verdict.WRONG_ANSWER
    return Outcome(Sample(ids, logprobs, f"{text}\n```", "stop", ((0, 0, 60),)), Judgement(verdict, True, passed, 4))


def progress(what: str) -> None:
    """A line on stderr: whole runs take minutes."""
    print(f"search: {what}", file=sys.stderr, flush=True)


def measured(quick: bool) -> dict[str, Any]:
    """Every figure, in one run."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found = asyncio.run(on_engine(quick))
    progress("simulation")
    for n in range(rounds):
        for name, value in simulated(1000 * n, SIM_PROBLEMS // 8 if quick else SIM_PROBLEMS).items():
            found.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "ratios": {name: round(medians.pop(name), 3) for name in RATIOS},
        "figures": {name: round(value, 3) for name, value in medians.items()},
        "range": {name: [round(min(v), 3), round(max(v), 3)] for name, v in found.items()},
        "host": {
            "us_per_sample_10000_nodes": median_cost(rounds, 1, 2_000 if quick else 10_000),
            "us_per_sample_1000_trees": median_cost(rounds, 1_000, 8 if quick else 100),
            "bytes_per_node": round(bytes_per_node(2_000)),
        },
        "rounds": rounds,
        "engine": {"model": MODEL, "max_num_seqs": MAX_NUM_SEQS, "trees": TREES},
    }


def main() -> int:
    """Measure, print, and keep a full result."""
    parser = argparse.ArgumentParser(prog="./o1coder bench search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    quiet()
    started = time.monotonic()
    found = {"machine": machine(), **measured(options.quick)}
    found["seconds"] = round(time.monotonic() - started, 1)
    if not options.quick:
        keep("search", found)
    print(json.dumps(found) if options.json else as_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
