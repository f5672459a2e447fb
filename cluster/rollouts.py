"""Paths that the policy writes alone, asked of all rollout workers of a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import flow
from cluster.context import RunContext
from reasoning.records import Path, Problem, Suite
from reasoning.search import SearchSettings

CALL_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Chain:
    """One path to write. `name`: becomes its tree id."""

    name: str
    problem: Problem
    suite: Suite
    seed: int
    greedy: bool = False


def sample_chains(
    run: RunContext,
    chains: Sequence[Chain],
    settings: SearchSettings,
    what: str,
    shown: Callable[[Sequence[Path]], dict[str, int]],
) -> tuple[list[Path], int]:
    """The paths, in the order of their ends, and how many the infrastructure lost. `shown`: what of the paths so far
    the terminal shows.

    Raises TimeoutError where nothing came back for `CALL_DEADLINE_S`, and what a worker raised.
    """
    workers = itertools.cycle(run.workers.rollouts)
    paths: list[Path] = []
    lost = 0

    def call(chain: Chain) -> Callable[[], Any]:
        c = chain
        return lambda: next(workers).chain.remote(c.name, c.problem, c.suite, settings, c.seed, c.greedy)

    def on_result(path: Path | None) -> None:
        nonlocal lost
        if path is None:
            lost += 1
        else:
            paths.append(path)
        run.display.update(len(paths) + lost, len(chains), unit="paths", **shown(paths))

    in_flight = 2 * run.config.engine.max_num_seqs * len(run.workers.rollouts)
    flow.stream(map(call, chains), in_flight, CALL_DEADLINE_S, what, on_result, run.live(dict))
    return paths, lost
