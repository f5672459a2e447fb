"""The process reward model as a Ray actor: scores partial paths in dynamic batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

MAX_BATCH = 16
WIDTH = 64
"""Batches are as wide as a multiple of this: a CPU kernel is kept for every shape that occurs."""
MAX_QUEUE = 4096


@ray.remote(num_cpus=0, max_restarts=1, max_concurrency=2048)
class RewardModel:
    """Loads a value checkpoint (Hugging Face token classification, one label) and answers `score`.

    Requests that wait while a forward pass runs go together into the next one.
    """

    def __init__(self, model: str, threads: int, pad_id: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForTokenClassification

        self._threads, self._pad_id = threads, pad_id
        self._model: Any = AutoModelForTokenClassification.from_pretrained(Path(model), dtype=torch.bfloat16).eval()
        if torch.cuda.is_available():
            self._model = self._model.cuda()
        self._queue: asyncio.Queue[tuple[tuple[int, ...], asyncio.Future[float]]] = asyncio.Queue(MAX_QUEUE)
        self._runner: asyncio.Task[None] | None = None

    async def ready(self) -> bool:
        return True

    async def score(self, token_ids: Sequence[int]) -> float:
        """The value in [0, 1] of the state whose last step ends with the last of `token_ids`."""
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        await self._queue.put((tuple(token_ids), future))
        return await future

    async def _run(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            while len(waiting) < MAX_BATCH and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            try:
                values = await asyncio.to_thread(self._forward, [ids for ids, _ in waiting])
            except Exception as error:  # each caller is told; the loop goes on with the next batch
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(RuntimeError(f"reward model: {type(error).__name__}: {error}"))
                continue
            for (_, future), value in zip(waiting, values, strict=True):
                if not future.done():
                    future.set_result(value)

    def _forward(self, sequences: list[tuple[int, ...]]) -> list[float]:
        import torch

        torch.set_num_threads(self._threads)
        width = -(-max(len(s) for s in sequences) // WIDTH) * WIDTH
        ids = torch.full((len(sequences), width), self._pad_id)
        attention = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            attention[row, : len(sequence)] = 1
        last = torch.tensor([len(s) - 1 for s in sequences])
        device = self._model.device
        with torch.no_grad():
            logits = self._model(input_ids=ids.to(device), attention_mask=attention.to(device)).logits.squeeze(-1)
        return [float(v) for v in logits[torch.arange(len(sequences)), last].float().sigmoid().cpu()]
