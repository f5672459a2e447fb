"""A command of o1coder in a process group of its own, watched from outside."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


class Started:
    """A run of the command line; remembers every process that was ever below it.

    `lines`: of its output, each with the time (monotonic, seconds) at which it came.
    """

    def __init__(self, command: str, *arguments: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "WANDB_"))}
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", command, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its own process group, as a shell gives it
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.lines: list[tuple[float, str]] = []
        self.seen: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        return "".join(f"{line}\n" for _, line in self.lines)

    def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so; it may not end before."""
        assert self._wait(done, seconds), f"ended too early:\n{self.output}"

    def until_says(self, pattern: str, seconds: float) -> None:
        """Wait until a line of the output matches."""
        self.until(lambda: any(re.search(pattern, line) for _, line in self.lines), seconds)

    def until_end(self, seconds: float) -> None:
        """Wait until the process has ended."""
        assert not self._wait(lambda: False, seconds)

    def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            self._look()
            if done():
                return True
            if ended:
                return False
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"not within {seconds} s:\n{self.output}")

    def _look(self) -> None:
        while line := self.process.stdout.readline():
            self.lines.append((time.monotonic(), line.rstrip("\n")))
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass

    def left_behind(self, seconds: float = 5) -> list[str]:
        """Processes of the run that still live `seconds` later: some are just ending."""
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=seconds)
        return [f"{p.pid} {' '.join(p.cmdline())[:100]}" for p in alive if p.is_running() and p.status() != "zombie"]
