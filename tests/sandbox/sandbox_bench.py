"""Synchronous access to a pool on an event loop in a background thread (as inside an actor)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

from sandbox import (
    CallCase,
    CaseResult,
    Limits,
    LocalPool,
    RunOutput,
    StdioCase,
    Submission,
    SuiteResult,
)
from sandbox.cell import Cell

QUICK = Limits(cpu_s=1.0, wall_s=2.0, memory_mb=256)


class Bench:
    """Synchronous access to a LocalPool that lives in its own thread."""

    made: ClassVar[int] = 0

    def __init__(self, slots: int = 1, **options: Any) -> None:
        Bench.made += 1
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.pool: LocalPool = self.call(self._make(slots, options))

    @property
    def cell(self) -> Cell | None:
        """The cell of the first slot, as it is now."""
        return self.pool._slots[0].cell

    async def _make(self, slots: int, options: dict[str, Any]) -> LocalPool:
        pool = LocalPool(slots, **options)
        await pool.start()
        return pool

    def call(self, work: Any, timeout: float = 60) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def judge(self, source: str, *cases: Any, **fields: Any) -> SuiteResult:
        fields.setdefault("limits", QUICK)
        return self.call(self.pool.judge(Submission(source=source, cases=list(cases), **fields)))

    def script(self, source: str, stdin: str = "", expected: str = "ok", **fields: Any) -> CaseResult:
        return self.judge(source, StdioCase(stdin=stdin, expected=expected), **fields).cases[0]

    def value(self, source: str, *args: Any, expected: Any = "ok", **fields: Any) -> CaseResult:
        return self.judge(source, CallCase(args=list(args), expected=expected), entry_point="f", **fields).cases[0]

    def stdout(self, source: str, **fields: Any) -> RunOutput:
        limits = fields.pop("limits", QUICK)
        return self.call(self.pool.run_stdin(source, [fields.pop("stdin", "")], limits))[0]

    def close(self) -> None:
        self.call(self.pool.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
