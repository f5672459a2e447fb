"""A real CPU engine, a sandbox and the policy's prompts, as the benchmarks of the search use them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.scheduler import SearchJob
from reasoning.problems import bundled, demonstrations
from reasoning.prompts import PolicyPrompts
from reasoning.records import Problem, Suite
from reasoning.search import SearchSettings
from reasoning.steps import StepCodec
from sandbox import Limits, LocalPool

MODEL = "smollm2-135m"
LIMITS = Limits(cpu_s=2, memory_mb=256)
SHOTS = 2


@dataclass(frozen=True, slots=True)
class Bench:
    """What a search needs."""

    engine: Any
    pool: LocalPool
    codec: StepCodec
    prompts: PolicyPrompts

    def job(
        self, problem: Problem, settings: SearchSettings, name: str, seed: int, log: Path | None = None
    ) -> SearchJob:
        """The search of one problem, judged by all of its tests; `name` tells it from others."""
        suite = Suite(problem_id=problem.id, tests=problem.tests)
        return SearchJob(f"{name}/{problem.id}", problem, self.prompts.ids(problem), suite, settings, seed, log)


@contextlib.asynccontextmanager
async def bench(max_num_seqs: int, on_step: Callable[[int, int], None] | None = None) -> AsyncIterator[Bench]:
    """Start everything, and end it. `on_step`: see `Engine`."""
    from actors.engine import Engine, EngineSettings
    from actors.tokens import Tokens
    from cluster.models import resolve

    model = resolve(MODEL)
    engine = Engine(model, EngineSettings(max_num_seqs=max_num_seqs), on_step)
    await engine.start()
    try:
        async with LocalPool(os.cpu_count() or 1) as pool:
            tokens = Tokens.load(model)
            prompts = PolicyPrompts(tokens.encode_chat, demonstrations(), {p.id: p for p in bundled()}, SHOTS)
            yield Bench(engine, pool, StepCodec(tokens.encode), prompts)
    finally:
        await engine.shutdown()


def quiet() -> None:
    """Nothing of vLLM's goes to where the result is expected; errors come out as exceptions."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    logging.disable(logging.WARNING)
