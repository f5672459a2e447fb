"""Tree search over training problems: process data for the learners (method section 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from actors.programs import suite_identity
from actors.rollout import TreeResult
from actors.sandbox_pool import RayPool
from cluster import trees
from cluster.context import RunContext
from reasoning.labels import pass_rate
from reasoning.nodes import TreeReport
from reasoning.records import Path, Problem, Suite
from reasoning.search import SearchSettings
from sandbox import Submission, SuiteResult, Verdict

log = logging.getLogger(__name__)


def search(run: RunContext, round_: int) -> dict[str, Any]:
    """Search the training problems whose suites were accepted, with the policy as it is."""
    return _search(run, round_, f"round-{round_}-search", run.train_of(round_), run.config.search_settings())


def new_data(run: RunContext, round_: int) -> dict[str, Any]:
    """Search again with the updated policy and the PRM's values: D <- D + D'."""
    c = run.config.new_data
    settings = run.config.search_settings().model_copy(
        update={"token_budget": c.token_budget, "rollout_weight": c.rollout_weight}
    )
    prm = run.state.get("prm")
    if c.problems == 0:
        return {"skipped": "new_data.problems is 0"}
    if prm and c.rollout_weight < 1:
        run.workers.start_reward_model(run.dir.path / prm, run.tokens.pad_id)
    try:
        return _search(run, round_, f"round-{round_}-new", run.train_of(round_, c.problems), settings)
    finally:
        if not run.stop.signal:  # Ray may be gone with the same signal; the shutdown ends the reward model anyway
            run.workers.stop_reward_model()


def _search(
    run: RunContext, round_: int, shard: str, candidates: list[Problem], settings: SearchSettings
) -> dict[str, Any]:
    suites = {s.problem_id: s for s in run.store.read_suites("current") if s.accepted}
    problems = [p for p in candidates if p.id in suites]
    results: list[TreeResult] = []
    started = time.monotonic()
    by_id = {p.id: p for p in problems}
    planned = trees.plan(problems, run.config.seed * 1_000_003 + round_, run.dir, shard)
    prompts, limits = run.prompts(run.shots), run.config.sandbox.limits()

    def opened_with(tree: trees.PlannedTree) -> dict[str, Any]:
        judged_by = suite_identity(tree.problem, suites[tree.problem.id], limits)
        return {"prompt_ids": tuple(prompts.ids(tree.problem)), "judged_by": judged_by}

    for log_file in trees.set_aside(planned, settings, opened_with):
        log.info("the log of a search with other settings, prompt or tests is kept as %s", log_file)
    earlier = trees.read_reports(planned, settings)  # the stage was interrupted, and goes on

    def fields() -> dict[str, float | int | str]:
        # Trees that are being searched count by their tokens: most of them end late, and together.
        whole = sum(r.report.tokens for r in results) + (len(problems) - len(results)) * settings.token_budget
        share = min(0.99, (run.sampled_tokens - drawn_before) / max(1, whole))
        run.display.update(done=len(results), total=len(problems), share=share)
        return {"trees": f"{len(results)}/{len(problems)}", "solved": sum(r.report.solved for r in results)}

    run.speeds()
    drawn_before = run.sampled_tokens
    in_flight, tick = run.config.search.trees_in_flight, run.live(fields)
    trees.grow(run.workers.rollouts, planned, suites, settings, in_flight, results.append, tick)
    seconds = max(1e-6, time.monotonic() - started)
    paths = [path for result in results for path in result.paths]
    run.store.write_paths(shard, paths)
    reports = [r.report for r in results]
    solved = sorted(r.problem_id for r in reports if r.solved)
    gap = _holdout_gap(run, paths, by_id, suites)
    summary = _metrics(reports, paths, seconds, earlier.values())
    measured = {"search/holdout_gap": gap} if gap is not None else {}
    run.log({**summary, **measured, **run.sandbox_metrics()}, round_)
    run.guard({"holdout_gap": gap} if gap is not None else {}, round_)
    return {
        "shard": shard,
        "problems": len(problems),
        "solved": solved,
        "searched": [p.id for p in problems],
        "tokens": sum(r.tokens for r in reports),
        "programs": sum(r.programs for r in reports),
        "holdout_gap": gap,
        "note": f"{len(solved)} of {len(problems)} problems solved, {len(paths)} paths",
    }


def _metrics(
    reports: list[TreeReport], paths: list[Path], seconds: float, earlier: Iterable[TreeReport]
) -> dict[str, float]:
    return {
        **trees.metrics(reports, seconds, earlier),
        "search/pass_rate": pass_rate(paths),
        "search/mean_steps": sum(len(p.steps) for p in paths) / max(1, len(paths)),
    }


def _holdout_gap(
    run: RunContext, paths: list[Path], problems: dict[str, Any], suites: dict[str, Suite]
) -> float | None:
    """Share of programs that pass their suite but fail the tests kept apart; None where nothing can be said.

    The held-out tests never touch a reward: this is what tells whether the reward is being cheated.
    """
    programs = {(p.problem_id, p.program) for p in paths if p.solved and suites[p.problem_id].holdout}
    if not programs:
        return None
    limits = run.config.sandbox.limits()
    pool = RayPool(run.workers.sandboxes)

    async def judge_all() -> list[SuiteResult]:
        return await asyncio.gather(
            *[
                pool.judge(
                    Submission(
                        source=program,
                        entry_point=problems[problem_id].entry_point,
                        cases=[t.case for t in suites[problem_id].holdout],
                        limits=limits,
                        stop="first_failure",
                    )
                )
                for problem_id, program in sorted(programs, key=str)
            ]
        )

    verdicts = [r.verdict for r in asyncio.run(judge_all())]
    known = [v for v in verdicts if v is not Verdict.SANDBOX_ERROR]
    return sum(v is not Verdict.ACCEPTED for v in known) / len(known) if known else None
