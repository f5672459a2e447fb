"""The one module that knows vLLM's weight-transfer interface.

Two halves, for the two processes it runs in. In vLLM's worker (imported there because the engine names
`WORKER_EXTENSION` as its `worker_extension_cls`) it registers the backend `shm`: new weights are read from a
safetensors file that the learner wrote to shared memory. In the actor, `swap_weights` drives one update of a running
engine.
The interface moves between vLLM's minor releases; a contract test runs it on the pinned one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

from actors.ownership import end_with

BACKEND = "shm"
WORKER_EXTENSION = "actors.weight_transfer.WorkerExtension"
RPC_DEADLINE_S = 120.0  # one control call; a 135M model takes 0.5 s, a 7B one from shared memory a few seconds


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """The shared-memory backend needs no rendezvous. `owner`: the process whose end must end vLLM's too."""

    owner: int = 0


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """`path`: safetensors file, or model directory of such files, with the full weights under Hugging Face names."""

    path: str


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads a whole checkpoint from a file on this node into the running model."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """vLLM's worker ends with its owner, and vLLM's core, which waits for its worker, with the worker."""
        if init_info.owner:
            end_with(init_info.owner)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes the accelerator afterwards, which raises where there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        path = Path(update_info.path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"no safetensors file in {path}")
        self.model.load_weights(_tensors(files))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # On CPU the output head keeps a prepacked copy of a tied embedding, which a reload leaves as it was.
        for module in self.model.modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


class WorkerExtension:
    """Named as vLLM's worker extension so that this module is imported in the worker; adds nothing itself."""


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)


def transfer_config() -> WeightTransferConfig:
    """What an engine is started with so that `swap_weights` works on it."""
    return WeightTransferConfig(backend=BACKEND)


class WeightSyncError(RuntimeError):
    """An update of an engine's weights did not complete; the engine must not serve until one does."""


async def _within_deadline(what: str, call: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(call, RPC_DEADLINE_S)
    except TimeoutError as error:
        raise WeightSyncError(f"weight sync: {what} did not return within {RPC_DEADLINE_S:.0f} s") from error


async def swap_weights(llm: Any, path: Path, version: int) -> float:
    """Put the weights of `path` under label `version` into a running engine; running requests go on after it.

    Pauses with requests kept, updates, checks the version label, and resumes whatever happened. The prefix cache cannot
    be cleared under running requests: the caller salts its keys with the version.

    Returns: seconds from pause to resume.
    Raises:
        WeightSyncError: a call failed, hung, or the engine reports another version than `version`.
    """
    started = time.monotonic()
    await _within_deadline("pause", llm.pause_generation(mode="keep", clear_cache=False))
    try:
        await _within_deadline("start", llm.start_weight_update())
        await _within_deadline("update", llm.update_weights(WeightTransferUpdateRequest({"path": str(path)})))
        await _within_deadline("finish", llm.finish_weight_update(str(version)))
        seen = await _within_deadline("version", llm.get_weight_version())
        if seen != str(version):
            raise WeightSyncError(f"weight sync: the engine reports version {seen!r} after an update to {version}")
    except WeightSyncError:
        raise
    except Exception as error:  # whatever the worker raised: the caller gets one kind of failure
        raise WeightSyncError(f"weight sync: {type(error).__name__}: {error}") from error
    finally:
        await _within_deadline("resume", llm.resume_generation())
    return time.monotonic() - started


async def initialize(llm: Any) -> None:
    """Prepare a started engine for `swap_weights`; once per engine."""
    await _within_deadline("init", llm.init_weight_transfer_engine(WeightTransferInitRequest({"owner": os.getpid()})))
