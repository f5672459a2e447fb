"""What a search needs of the engine, the sandbox and the reward model, without any of them: no torch, vLLM or Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from reasoning.records import Sample
from sandbox import Submission, SuiteResult


class EngineError(RuntimeError):
    """The engine failed or did not answer in time: an infrastructure failure, never the policy's fault."""


class EngineDeadError(EngineError):
    """The engine is gone: it will answer no further request, so none is worth sending to it."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw from the policy. `stop`: strings that end a sample; they are kept in it."""

    max_tokens: int
    temperature: float = 0.8
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    greedy: bool = False


class Sampler(Protocol):
    """What of an engine is used in a search; see `actors.engine.Engine`.

    Both raise EngineError, and EngineDeadError where no later request can succeed.
    """

    async def draw(self, prompt_ids: Sequence[int], draw: Draw, seed: int | None = None) -> Sample: ...

    async def choose(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]: ...


Judge = Callable[[Submission], Awaitable[SuiteResult]]
Scorer = Callable[[Sequence[int]], Awaitable[float]]
"""Token ids up to the end of a step -> the PRM's value in [0, 1]."""
