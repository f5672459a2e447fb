"""Held-out evaluation: the policy alone, without search (method section 7)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from actors.sampling import EngineError
from cluster import flow
from cluster.context import RunContext
from reasoning.estimators import bootstrap, pass_at_k
from reasoning.records import Path, Problem, Suite, mean

CALL_DEADLINE_S = 600.0


def evaluate(run: RunContext, round_: int, name: str) -> dict[str, Any]:
    """Pass@1 (unbiased, with a bootstrap interval over problems) and greedy pass rate on the held-out problems.

    Every given test of a held-out problem counts. Chains lost to infrastructure are left out and counted.

    Raises EngineError where none is left.
    """
    c = run.config.eval
    problems = run.held_out[: c.problems]
    settings = run.config.search_settings().model_copy(update={"temperature": c.temperature})
    engines = itertools.cycle(run.workers.rollouts)
    sampled: dict[str, list[Path]] = defaultdict(list)
    greedy: dict[str, Path] = {}
    lost = 0
    jobs = [(p, i, False) for p in problems for i in range(c.samples)]
    jobs += [(p, 0, True) for p in problems if c.greedy]

    def call(job: tuple[Problem, int, bool]) -> Callable[[], Any]:
        problem, index, is_greedy = job
        suite = Suite(problem_id=problem.id, tests=problem.tests)
        seed = run.config.seed * 1_000_003 + index
        tag = "greedy" if is_greedy else str(index)

        def start() -> Any:
            worker = next(engines)
            return worker.chain.remote(f"{name}/{problem.id}/{tag}", problem, suite, settings, seed, is_greedy)

        return start

    def on_result(path: Path | None) -> None:
        nonlocal lost
        if path is None:
            lost += 1
        elif path.tree_id.endswith("/greedy"):
            greedy[path.problem_id] = path
        else:
            sampled[path.problem_id].append(path)
        done = sum(map(len, sampled.values())) + len(greedy) + lost
        passed = sum(p.solved for paths in sampled.values() for p in paths)
        run.display.update(done, len(jobs), unit="paths", passed=passed)

    in_flight = 2 * run.config.engine.max_num_seqs * len(run.workers.rollouts)
    tick = run.live(dict)
    flow.stream(map(call, jobs), in_flight, CALL_DEADLINE_S, f"evaluation {name}", on_result, tick)
    rates = {p.id: _rate(sampled[p.id]) for p in problems if sampled[p.id]}
    if not rates:
        raise EngineError(f"evaluation {name}: all {lost} chains were lost; the logs of the run say why")
    interval = bootstrap(list(rates.values()), run.config.seed)
    run.store.write_paths(f"eval-{name}", [p for paths in sampled.values() for p in paths] + list(greedy.values()))
    greedy_rate = mean([float(p.solved) for p in greedy.values()]) if greedy else None
    metrics = {"eval/pass_at_1": interval.mean, "eval/low": interval.low, "eval/high": interval.high, "eval/lost": lost}
    if greedy_rate is not None:
        metrics["eval/greedy"] = greedy_rate
    run.log(metrics, round_)
    return {
        "pass_at_1": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "problems": len(rates),
        "samples": c.samples,
        "greedy": greedy_rate,
        "shots": run.shots,
        "lost": lost,
        "rates": rates,
        "note": f"pass@1 {interval}",
    }


def _rate(paths: list[Path]) -> float:
    return pass_at_k(len(paths), sum(p.solved for p in paths), 1)
