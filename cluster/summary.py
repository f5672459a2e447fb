"""From the state of a run to the record that the final report shows."""

from __future__ import annotations

import random
from typing import Any

from cluster.context import RunContext
from cluster.report import EvalSummary, RunSummary, SearchCount, Showcase, SolvedExample
from cluster.stage_tcg import accuracy_of
from reasoning.estimators import Interval
from reasoning.records import Path
from reasoning.steps import TITLES


def summarize(run: RunContext, wandb_note: str, stopped_early: str = "") -> RunSummary:
    """What the finished stages came to; what was not measured stays None."""
    stages: dict[str, Any] = run.state.get("stages", {})
    last = max((int(key.split("/")[0]) for key in stages if key.endswith("eval after")), default=0)
    before, after = stages.get("0/eval before"), stages.get(f"{last}/eval after") if last else None
    rounds = range(1, run.config.rounds + 1)
    found = [stages[f"{r}/search"] for r in rounds if "solved" in stages.get(f"{r}/search", {})]
    renewed = [stages[f"{r}/new_data"] for r in rounds if "solved" in stages.get(f"{r}/new_data", {})]
    tcg = next((stages[f"{r}/tcg"] for r in reversed(rounds) if f"{r}/tcg" in stages), {})
    suites = next((stages[f"{r}/suites"] for r in reversed(rounds) if f"{r}/suites" in stages), {})
    prm = next((stages[f"{r}/prm"] for r in reversed(rounds) if f"{r}/prm" in stages), {})
    sync = run.state.get("sync_seconds") or []
    counters = run.state.get("counters", {})
    return RunSummary(
        run_dir=str(run.dir.path),
        model=run.config.model,
        seed=run.config.seed,
        rounds=last,
        eval_before=_eval(before),
        eval_after=_eval(after),
        difference=_difference(before, after, run.config.seed),
        problems_searched=found[-1]["problems"] if found else None,
        problems_solved=len(found[-1]["solved"]) if found else None,
        solved_before=_count(found[-1], renewed[-1]) if found and renewed else None,
        solved_after=SearchCount(searched=renewed[-1]["problems"], solved=len(renewed[-1]["solved"]))
        if renewed
        else None,
        tests_by_origin=suites.get("origins", {}),
        suites_refused=len(suites["refused"]) if "refused" in suites else None,
        tcg_output_accuracy_sft=accuracy_of(tcg, "sft"),
        tcg_output_accuracy_dpo=accuracy_of(tcg, "dpo"),
        tcg_measured_cases=next((m["cases"] for m in (tcg.get("dpo") or tcg.get("sft") or {}).values()), None),
        tcg_measured_problems=tcg.get("measured_problems"),
        prm_auc=prm.get("auc"),
        weight_version=run.state.get("weight_version"),
        sync_seconds=sorted(sync)[len(sync) // 2] if sync else None,
        seconds_per_stage=_seconds(run, stages),
        tokens_sampled=counters.get("tokens"),
        programs_judged=counters.get("programs"),
        peak_memory_gb=round(run.peak_memory / 1e9, 2) if run.peak_memory else None,
        alarms=run.alarms,
        showcase=_showcase(run, last),
        next_commands=_next(run, stopped_early),
        wandb_note=wandb_note,
        stopped_early=stopped_early,
    )


def _eval(result: dict[str, Any] | None) -> EvalSummary | None:
    if result is None or "pass_at_1" not in result:
        return None
    shots = result["shots"]
    return EvalSummary(
        pass_at_1=Interval(result["pass_at_1"], result["low"], result["high"], result["problems"]),
        samples=result["samples"],
        greedy=result["greedy"],
        prompt=f"{shots} shots" if shots else "no shots",
    )


def _difference(before: dict[str, Any] | None, after: dict[str, Any] | None, seed: int) -> Interval | None:
    """Paired bootstrap over the problems that both evaluations have."""
    if not before or not after:
        return None
    gains = [after["rates"][p] - before["rates"][p] for p in sorted(before["rates"].keys() & after["rates"].keys())]
    if not gains:
        return None
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(gains, k=len(gains))) / len(gains) for _ in range(2000))
    return Interval(sum(gains) / len(gains), means[50], means[1949], len(gains))


def _count(found: dict[str, Any], renewed: dict[str, Any]) -> SearchCount | None:
    """How many of the problems of the later search the earlier one had solved, where it searched them all."""
    again = set(renewed.get("searched", ()))
    if not again or not again <= set(found.get("searched", ())):
        return None
    return SearchCount(searched=len(again), solved=len(again & set(found["solved"])))


def _seconds(run: RunContext, stages: dict[str, Any]) -> dict[str, float]:
    start = {name: s for name, s in run.display.seconds.items() if name == "start"}
    many = run.config.rounds > 1
    for key, result in stages.items():
        round_, name = key.split("/", 1)
        label = f"{name} (round {round_})" if many and name != "eval before" else name
        start[label] = result["seconds"]
    return start


def _showcase(run: RunContext, last: int) -> Showcase | None:
    """A held-out problem that tells most: failed before and solved after, else solved at all."""
    folder = run.dir.data / "paths"
    if not last or not (folder / "eval-before.parquet").exists():
        return None
    before = _by_problem(run.store.read_paths(["eval-before"]))
    after = _by_problem(run.store.read_paths([f"eval-after-round-{last}"]))
    problems = {p.id: p for p in run.held_out}
    shared = sorted(before.keys() & after.keys() & problems.keys())
    stages = run.state["stages"]
    rates, now = (stages[name]["rates"] for name in ("0/eval before", f"{last}/eval after"))
    shared = [i for i in shared if i in rates and i in now]
    if not shared:
        return None
    chosen = max(shared, key=lambda i: (now[i] - rates[i], now[i], i))
    return Showcase(
        problem_id=chosen,
        question=problems[chosen].question,
        rate_before=rates[chosen],
        rate_after=now[chosen],
        before=_example(before[chosen], prefer_solved=rates[chosen] >= now[chosen]),
        after=_example(after[chosen], prefer_solved=True),
    )


def _by_problem(paths: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.problem_id, []).append(path)
    return found


def _example(paths: list[Path], prefer_solved: bool) -> SolvedExample | None:
    """One attempt with a program; `prefer_solved` False shows a failed one, which is what was usual."""
    written = [p for p in paths if p.program is not None]
    if not written:
        return None
    path = next((p for p in written if p.solved == prefer_solved), written[0])
    steps = tuple((TITLES[s.action], s.text) for s in path.steps if s.action != 3)
    verdict = str(path.verdict) if path.verdict else "no verdict"
    return SolvedExample(
        steps=steps,
        program=path.program or "",
        tests_passed=path.tests_passed,
        tests_total=path.tests_total,
        verdict=verdict,
    )


def _next(run: RunContext, stopped_early: str) -> tuple[str, ...]:
    if stopped_early:
        return (f"./o1coder train --resume {run.dir.path}",)
    more = run.config.rounds + 1
    return (
        f"./o1coder train --resume {run.dir.path} rounds={more}   # another round",
        f"./o1coder train --model {run.policy}   # a new run from this policy",
    )
