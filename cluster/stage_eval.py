"""Held-out evaluation: the policy alone, without search (method section 7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from actors.sampling import EngineError
from cluster.context import RunContext
from cluster.rollouts import Chain, sample_chains
from reasoning.estimators import bootstrap, pass_at_k
from reasoning.records import Path, Problem, Suite, mean


def evaluate(run: RunContext, round_: int, name: str) -> dict[str, Any]:
    """Pass@1 (unbiased, with a bootstrap interval over problems) and greedy pass rate on the held-out problems, and
    with `eval.train_problems` pass@1 on training ones, the same of every evaluation.

    Every given test of a problem counts. Chains lost to infrastructure are left out and counted.

    Raises EngineError where none of the held-out problems is left.
    """
    c = run.config.eval
    held, taught = run.held_out[: c.problems], _taught(run)
    chains = [
        *(_chain(run, name, problem, index) for problem in held for index in range(c.samples)),
        *(_chain(run, name, problem, 0, greedy=True) for problem in held if c.greedy),
        *(_chain(run, f"{name}/train", problem, index) for problem in taught for index in range(c.samples)),
    ]
    settings = run.config.search_settings().model_copy(update={"temperature": c.temperature})
    paths, lost = sample_chains(run, chains, settings, f"evaluation {name}", _passed)
    greedy = [p for p in paths if p.tree_id.endswith("/greedy")]
    sampled = _rates(held, [p for p in paths if not p.tree_id.endswith("/greedy")])
    if not sampled:
        raise EngineError(f"evaluation {name}: all {lost} chains were lost; the logs of the run say why")
    interval = bootstrap(list(sampled.values()), run.config.seed)
    run.store.write_paths(f"eval-{name}", paths)
    greedy_rate = mean([float(p.solved) for p in greedy]) if greedy else None
    metrics = {"eval/pass_at_1": interval.mean, "eval/low": interval.low, "eval/high": interval.high, "eval/lost": lost}
    if greedy_rate is not None:
        metrics["eval/greedy"] = greedy_rate
    on_train = _rates(taught, paths)
    if on_train:
        metrics["eval/train_pass_at_1"] = mean(list(on_train.values()))
    run.log(metrics, round_)
    return {
        "pass_at_1": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "problems": len(sampled),
        "samples": c.samples,
        "greedy": greedy_rate,
        "shots": run.shots,
        "policy": run.state.get("policy", ""),
        "lost": lost,
        "rates": sampled,
        "train_rates": on_train,
        "note": f"pass@1 {interval}",
    }


def _taught(run: RunContext) -> list[Problem]:
    """The training problems that are measured, evenly from all."""
    count = min(run.config.eval.train_problems, len(run.train))
    problems = sorted(run.train, key=lambda p: p.id)
    return [problems[i * len(problems) // count] for i in range(count)]


def _chain(run: RunContext, name: str, problem: Problem, index: int, greedy: bool = False) -> Chain:
    return Chain(
        f"{name}/{problem.id}/{'greedy' if greedy else index}",
        problem,
        Suite(problem_id=problem.id, tests=problem.tests),
        run.config.seed * 1_000_003 + index,
        greedy,
    )


def _rates(problems: Sequence[Problem], paths: Sequence[Path]) -> dict[str, float]:
    """Pass@1 of each of the problems that has paths."""
    by_problem: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_problem[path.problem_id].append(path)
    return {p.id: _rate(by_problem[p.id]) for p in problems if p.id in by_problem}


def _passed(paths: Sequence[Path]) -> dict[str, int]:
    return {"passed": sum(p.solved for p in paths if not p.tree_id.endswith("/greedy"))}


def _rate(paths: list[Path]) -> float:
    return pass_at_k(len(paths), sum(p.solved for p in paths), 1)
