"""What the tests of the SandboxFusion protocol share: server processes, small submissions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox_bench import wait_gone

from sandbox import (
    Limits,
    SandboxFusionBackend,
    StdioCase,
    Submission,
    SuiteResult,
)
from sandbox.bench import processes_below

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-tests"
TIGHT = Limits(cpu_s=0.5, wall_s=1.0, memory_mb=256)


def start(*arguments: str, token: str | None = None) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address."""
    environment = {name: value for name, value in os.environ.items() if name != "O1CODER_SANDBOX_TOKEN"}
    if token is not None:
        environment["O1CODER_SANDBOX_TOKEN"] = token
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "serving on http://" in line, line + process.stderr.read()
    return process, line.partition("serving on ")[2].partition(",")[0]


def stop(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> int:
    below = processes_below(process.pid)
    process.send_signal(how)
    status = process.wait(10)
    assert not wait_gone(below, 1)
    assert process.stderr is not None
    process.stderr.close()
    return status


def judged(url: str, submission: Submission | None = None, **options: Any) -> SuiteResult:
    """One submission, by default one that is right, on a backend of its own."""
    options.setdefault("backoff_s", 0.01)

    async def work() -> SuiteResult:
        async with SandboxFusionBackend(url, **options) as backend:
            return await backend.judge(submission or simple())

    return asyncio.run(work())


def simple(source: str = "print('ok')", **fields: Any) -> Submission:
    return Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], limits=TIGHT, **fields)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
