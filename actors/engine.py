"""One vLLM engine: the only module that starts it and draws from it."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors import vllm_plugin
from actors.sampling import Draw, EngineDeadError, EngineError
from actors.sockets import SocketFolder
from reasoning.records import Sample

START_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is started. `kv_cache_gib`: memory for keys and values on CPU, whole GiB."""

    max_model_len: int = 2048
    max_num_seqs: int = 64
    kv_cache_gib: int = 1
    seed: int = 0
    request_deadline_s: float = 300.0


class Engine:
    """An `AsyncLLM` with deadlines, token ids in and out, and weights that can be replaced while it runs."""

    def __init__(
        self, model: Path, settings: EngineSettings, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """`on_step`: told after each step how many sequences vLLM ran in it and how many tokens it made, those of
        requests that are given up later included; for measuring, it costs a little."""
        self.model, self.settings = model, settings
        self._on_step = on_step
        self.version = 0
        self.sampled_tokens = 0
        self.requests = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0  # of those, not computed again
        self.running = 0
        self.busy_seconds = 0.0
        self._busy_since = 0.0
        self.sockets: SocketFolder | None = None  # those that vLLM's processes talk through
        self._llm: Any = None
        # vLLM's CPU worker dies where a request with a seed of its own is prefilled in chunks ("CPU Generator does not
        # use offset"); there the engine's own seed has to do.
        self._request_seeds = torch.cuda.is_available()
        self._ids = itertools.count()

    async def start(self) -> float:
        """Start the engine; returns seconds. Raises EngineError where it does not come up."""
        started = time.monotonic()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # oneDNN keeps a primitive per batch shape, 1,024 of them by default: over a run the worker grows by gigabytes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        # vLLM leaves its sockets where they are.
        self.sockets = SocketFolder()
        os.environ["VLLM_RPC_BASE_PATH"] = str(self.sockets.path)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.settings.kv_cache_gib)
        os.environ.update(vllm_plugin.environment(os.getpid(), len(os.sched_getaffinity(0))))
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors import weight_transfer

        args = AsyncEngineArgs(
            model=str(self.model),
            dtype="bfloat16",
            max_model_len=self.settings.max_model_len,
            max_num_seqs=self.settings.max_num_seqs,
            seed=self.settings.seed,
            enforce_eager=True,
            enable_prefix_caching=True,
            # The learner computes log-probabilities at the sampling temperature; so must the sampler report them.
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            weight_transfer_config=weight_transfer.transfer_config(),
            worker_extension_cls=weight_transfer.WORKER_EXTENSION,
            disable_log_stats=True,
        )
        try:
            loggers = [_step_logger(self._on_step)] if self._on_step is not None else None
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, args, stat_loggers=loggers)
            await weight_transfer.initialize(self._llm)
        except Exception as error:  # vLLM raises many kinds here; the caller needs one
            raise EngineError(f"the engine did not start: {type(error).__name__}: {error}") from error
        return time.monotonic() - started

    async def draw(self, prompt_ids: Sequence[int], draw: Draw, seed: int | None = None) -> Sample:
        """One sample after exactly `prompt_ids`. `seed` is honoured on GPU only.

        Raises EngineError where the engine fails, breaks the sample off or lets the deadline pass; the request is then
        aborted. It is an EngineDeadError where vLLM says that its engine is dead.
        """
        output = await self._generate(prompt_ids, self._params(draw, seed, logprobs=0))
        ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(ids, output.logprobs or (), strict=True))
        spans = tuple(
            (int(s.version) if s.version.isdigit() else 0, s.start, s.end) for s in output.weight_versions or ()
        )
        if output.finish_reason not in ("stop", "length"):  # part of a sample is none
            raise EngineError(f"the engine broke a sample off: {output.finish_reason}")
        return Sample(ids, logprobs, output.text, output.finish_reason, spans)

    async def choose(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """The policy's log-probability of each of `tokens` as the next one, renormalised over them."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            allowed_token_ids=list(tokens),
            logprobs=len(tokens),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._generate(prompt_ids, params)
        found = output.logprobs[0]
        return {token: found[token].logprob if token in found else float("-inf") for token in tokens}

    async def fill(self, prompt_ids: Sequence[int], count: int, temperature: float) -> int:
        """Sample exactly `count` tokens, whatever they are; returns how many came. For measuring the engine alone."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=count,
            min_tokens=count,
            ignore_eos=True,
            temperature=temperature,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return len((await self._generate(prompt_ids, params)).token_ids)

    async def score(self, prompt_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of every token of `prompt_ids` after the first."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        result = await self._run(prompt_ids, params)
        return [step[token].logprob for token, step in zip(prompt_ids[1:], result.prompt_logprobs[1:], strict=True)]

    async def update_weights(self, path: Path, version: int) -> float:
        """Load the weights of a safetensors file and label them `version`; returns seconds from pause to resume."""
        from actors import weight_transfer

        seconds = await weight_transfer.swap_weights(self._llm, path, version)
        self.version = version
        return seconds

    async def shutdown(self) -> None:
        """End the engine and its processes."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)
        if self.sockets is not None:
            self.sockets.remove()
            self.sockets = None

    def _params(self, draw: Draw, seed: int | None, logprobs: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=draw.max_tokens,
            temperature=0.0 if draw.greedy else draw.temperature,
            top_p=1.0 if draw.greedy else draw.top_p,
            stop=list(draw.stop) or None,
            include_stop_str_in_output=True,
            seed=seed if self._request_seeds else None,
            logprobs=logprobs,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _generate(self, prompt_ids: Sequence[int], params: Any) -> Any:
        output = (await self._run(prompt_ids, params)).outputs[0]
        self.sampled_tokens += len(output.token_ids)
        return output

    async def _run(self, prompt_ids: Sequence[int], params: Any) -> Any:
        if self._llm is None:
            raise EngineError("the engine is not running")
        room = self.settings.max_model_len - len(prompt_ids)
        if room < 1:
            raise EngineError(f"prompt of {len(prompt_ids)} tokens; max_model_len is {self.settings.max_model_len}")
        params.max_tokens = min(params.max_tokens, room)
        # Cached keys and values belong to the weights that made them: the version is part of the cache key.
        prompt = {"prompt_token_ids": list(prompt_ids), "cache_salt": f"v{self.version}"}
        request = f"r{next(self._ids)}"
        self._enter()
        try:
            async with asyncio.timeout(self.settings.request_deadline_s):
                last = None
                async for output in self._llm.generate(prompt, params, request):
                    last = output
        except TimeoutError as error:
            await self._llm.abort(request)
            raise EngineError(f"no answer within {self.settings.request_deadline_s:.0f} s") from error
        except asyncio.CancelledError:
            raise
        except Exception as error:  # vLLM's errors are many; all are infrastructure here
            kind = EngineDeadError if _says_dead(error) else EngineError
            raise kind(f"{type(error).__name__}: {error}") from error
        finally:
            self._leave()
        if last is None:
            raise EngineError("the engine ended a request without output")
        self.prompt_tokens += len(prompt_ids)
        self.cached_tokens += last.num_cached_tokens or 0
        return last

    def _enter(self) -> None:
        if self.running == 0:
            self._busy_since = time.monotonic()
        self.running += 1
        self.requests += 1

    def _leave(self) -> None:
        self.running -= 1
        if self.running == 0:
            self.busy_seconds += time.monotonic() - self._busy_since

    def seconds_busy(self) -> float:
        """Seconds during which at least one request was running."""
        return self.busy_seconds + (time.monotonic() - self._busy_since if self.running else 0.0)


def _says_dead(error: Exception) -> bool:
    """Whether vLLM's error means that its engine process is gone for good."""
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    return isinstance(error, VllmEngineDeadError)


def _step_logger(on_step: Callable[[int, int], None]) -> Any:
    """What vLLM calls for an object that it tells of every step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StepLogger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                made = iteration_stats.num_generation_tokens if iteration_stats is not None else 0
                on_step(scheduler_stats.num_running_reqs, made)

        def log_engine_initialized(self) -> None:
            pass

    return StepLogger
