"""The rollout worker: one engine and many trees on one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import ray

from actors.chains import Chains
from actors.engine import Engine, EngineSettings
from actors.programs import ProgramJudge
from actors.sampling import Draw, EngineError
from actors.sandbox_pool import RayPool
from actors.scheduler import SearchJob, SearchScheduler
from actors.tokens import Tokens
from reasoning.nodes import TreeReport
from reasoning.prompts import PolicyPrompts
from reasoning.records import Demonstration, Path, Problem, Sample, Suite
from reasoning.search import SearchSettings
from reasoning.steps import StepCodec
from sandbox import CachedBackend, Limits


@dataclass(frozen=True, slots=True)
class TreeResult:
    """A finished tree as it leaves the worker."""

    tree_id: str
    report: TreeReport
    paths: list[Path]


@dataclass(slots=True)
class Counters:
    """What a worker did so far; `engine_busy_s`: seconds with a request running; `programs`: sent to a sandbox;
    `cache_hits`: judged from memory."""

    sampled_tokens: int = 0
    requests: int = 0
    running: int = 0
    engine_busy_s: float = 0.0
    programs: int = 0
    cache_hits: int = 0
    trees: int = 0
    version: int = 0
    pids: list[int] = field(default_factory=list)


CONTROL_CALLS = 64


def concurrency(max_num_seqs: int, trees: int) -> int:
    """Calls that a worker must be able to hold at once, so that counters and new weights never queue behind samples.

    (A Ray concurrency group would do, but gives an async actor a second event loop; the engine lives on one.)
    """
    return 2 * max_num_seqs + trees + CONTROL_CALLS


@ray.remote(num_cpus=0, max_restarts=0)
class RolloutWorker:
    """Hosts an engine; searches trees, writes chains, draws texts, and takes new weights while it does."""

    def __init__(
        self, model: str, settings: EngineSettings, sandboxes: Sequence[Any], limits: Limits, cache_entries: int = 0
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Ray sets the thread count to the actor's num_cpus, which is 0; vLLM binds its own threads.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._tokens = Tokens.load(FilePath(model))
        self._engine = Engine(FilePath(model), settings)
        self._sandboxes = RayPool(sandboxes)
        self._cache = CachedBackend(self._sandboxes, cache_entries) if cache_entries else None
        codec = StepCodec(self._tokens.encode)
        judge = self._cache.judge if self._cache else self._sandboxes.judge
        programs = ProgramJudge(judge, limits)
        self._chains = Chains(self._engine, programs, codec)
        # Twice what the engine runs at a time: it never waits for this process to send the next request.
        outstanding = 2 * settings.max_num_seqs
        self._scheduler = SearchScheduler(
            [self._engine], programs, codec, outstanding=outstanding, max_trees=outstanding
        )
        self._prompts: PolicyPrompts | None = None
        self._trees = 0
        self._gate = asyncio.Semaphore(4 * settings.max_num_seqs)

    async def start(self) -> float:
        """Start the engine; returns seconds."""
        return await self._engine.start()

    async def set_prompts(
        self, demonstrations: Sequence[Demonstration], problems: Sequence[Problem], shots: int
    ) -> None:
        """Which demonstrations stand before a question from now on."""
        self._prompts = PolicyPrompts(self._tokens.encode_chat, demonstrations, {p.id: p for p in problems}, shots)

    async def set_reward_model(self, handle: Any | None) -> None:
        """The PRM that scores pseudocode steps, or None."""
        if handle is None:
            self._scheduler.scorer = None
            return

        async def score(ids: Sequence[int]) -> float:
            return float(await asyncio.wait_for(handle.score.remote(tuple(ids)), 120))

        self._scheduler.scorer = score

    async def search(
        self, tree_id: str, problem: Problem, suite: Suite, settings: SearchSettings, seed: int, log: str | None = None
    ) -> TreeResult:
        """Search one problem; see `SearchScheduler.search`. `log`: the file of its events, on this node."""
        job = SearchJob(
            tree_id, problem, self._prompt(problem), suite, settings, seed, FilePath(log) if log is not None else None
        )
        found = await self._scheduler.search(job)
        self._trees += 1
        return TreeResult(tree_id, found.tree.report(found.reason, found.seconds), found.tree.paths())

    async def chain(
        self, chain_id: str, problem: Problem, suite: Suite, settings: SearchSettings, seed: int, greedy: bool = False
    ) -> Path | None:
        """The policy alone on one problem; see `Chains.chain`."""
        async with self._gate:
            return await self._chains.chain(chain_id, problem, self._prompt(problem), suite, settings, seed, greedy)

    async def draw_samples(
        self, name: str, prompts: Sequence[Sequence[int]], draw: Draw, seed: int
    ) -> tuple[str, list[Sample | None]]:
        """`name` and one sample per prompt (for the test case generator); None where the engine failed on it."""

        async def one(index: int, ids: Sequence[int]) -> Sample | None:
            async with self._gate:
                try:
                    return await self._engine.draw(ids, draw, seed + index)
                except EngineError:
                    return None

        return name, list(await asyncio.gather(*[one(i, ids) for i, ids in enumerate(prompts)]))

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token after the first, for the probe of a weight sync."""
        return list(await asyncio.gather(*[self._engine.score(ids) for ids in sequences]))

    async def update_weights(self, path: str, version: int) -> float:
        """New weights while requests run; returns seconds from pause to resume."""
        return await self._engine.update_weights(FilePath(path), version)

    async def counters(self) -> Counters:
        import psutil

        me = psutil.Process()
        return Counters(
            sampled_tokens=self._engine.sampled_tokens,
            requests=self._engine.requests,
            running=self._engine.running,
            engine_busy_s=self._engine.seconds_busy(),
            programs=self._sandboxes.programs,
            cache_hits=self._cache.hits if self._cache else 0,
            trees=self._trees,
            version=self._engine.version,
            pids=[me.pid, *[p.pid for p in me.children(recursive=True)]],
        )

    async def shutdown(self) -> None:
        await (self._cache or self._sandboxes).aclose()
        await self._engine.shutdown()

    def _prompt(self, problem: Problem) -> tuple[int, ...]:
        if self._prompts is None:
            raise RuntimeError("set_prompts was not called")
        return self._prompts.ids(problem)
