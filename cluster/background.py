"""Work for the sandboxes while the main thread waits for engines: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
ENDING_S = 30.0
"""How long cancelled work may take to end."""


class Background:
    """Runs coroutines side by side. What is not done when the block is left is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work`; the future has its result or its error."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __exit__(self, *_: object) -> None:
        ended = self.start(_cancel_others())
        try:
            ended.result(ENDING_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(ENDING_S)
            if not self._thread.is_alive():
                self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
