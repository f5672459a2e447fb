"""Held-out evaluation: the policy alone, without search (method section 7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from actors.sampling import EngineError
from cluster.context import RunContext
from cluster.rollouts import Chain, sample_chains
from reasoning.estimators import bootstrap, pass_at_k
from reasoning.records import Path, Suite, mean


def evaluate(run: RunContext, round_: int, name: str) -> dict[str, Any]:
    """Pass@1 (unbiased, with a bootstrap interval over problems) and greedy pass rate on the held-out problems.

    Every given test of a held-out problem counts. Chains lost to infrastructure are left out and counted.

    Raises EngineError where none is left.
    """
    c = run.config.eval
    problems = run.held_out[: c.problems]
    settings = run.config.search_settings().model_copy(update={"temperature": c.temperature})
    chains = [
        Chain(
            f"{name}/{problem.id}/{'greedy' if greedy else index}",
            problem,
            Suite(problem_id=problem.id, tests=problem.tests),
            run.config.seed * 1_000_003 + index,
            greedy,
        )
        for greedy in ((False, True) if c.greedy else (False,))
        for problem in problems
        for index in range(1 if greedy else c.samples)
    ]
    paths, lost = sample_chains(run, chains, settings, f"evaluation {name}", _passed)
    greedy = {p.problem_id: p for p in paths if p.tree_id.endswith("/greedy")}
    sampled: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if not path.tree_id.endswith("/greedy"):
            sampled[path.problem_id].append(path)
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
        "policy": run.state.get("policy", ""),
        "lost": lost,
        "rates": rates,
        "note": f"pass@1 {interval}",
    }


def _passed(paths: Sequence[Path]) -> dict[str, int]:
    return {"passed": sum(p.solved for p in paths if not p.tree_id.endswith("/greedy"))}


def _rate(paths: list[Path]) -> float:
    return pass_at_k(len(paths), sum(p.solved for p in paths), 1)
