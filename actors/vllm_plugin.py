"""What every process of our engines does first; vLLM calls `register` in each of them (entry point in pyproject.toml).

Engines of anybody else in the same environment are left alone: `Engine` says by the environment which are its own.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from actors.ownership import end_with

OWNER_VARIABLE = "O1CODER_ENGINE_OWNER"
"""The process whose end must end those of its engine."""
SPIN_VARIABLE = "O1CODER_ENGINE_SPIN_S"
"""Seconds that a process of the engine looks for a message again and again before it sleeps until one comes."""

RESERVED_VARIABLE = "VLLM_CPU_NUM_OF_RESERVED_CPU"
FEW_CORES = 4


def environment(owner: int, cores: int) -> dict[str, str]:
    """What `Engine` sets before it starts vLLM's processes, on a machine with so many usable cores.

    vLLM's core looks for its worker's answer for a second without a pause, for which vLLM keeps a core free of the
    worker's threads. Where there are few cores that is half of the machine, or a quarter: there it sleeps until the
    answer is there, and the worker gets all cores.
    """
    variables = {OWNER_VARIABLE: str(owner)}
    if cores <= FEW_CORES:
        variables[SPIN_VARIABLE] = "0.001"
        variables[RESERVED_VARIABLE] = os.environ.get(RESERVED_VARIABLE, "0")
    return variables


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once."""
    owner = os.environ.get(OWNER_VARIABLE, "")
    if not owner.isdigit():
        return
    if int(owner) != os.getpid():
        _watch_once(int(owner))
    if SPIN_VARIABLE in os.environ:
        _sleep_earlier(float(os.environ[SPIN_VARIABLE]))


@functools.cache
def _watch_once(owner: int) -> None:
    end_with(owner)


@functools.cache
def _sleep_earlier(seconds: float) -> None:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    begin = SpinCondition.__init__

    @functools.wraps(begin)
    def shorter(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        if self.is_reader:
            self.busy_loop_s = min(self.busy_loop_s, seconds)

    SpinCondition.__init__ = shorter
