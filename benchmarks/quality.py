"""Problems solved by search at equal sampled tokens: PUCT against the published search, best-of-N and beam search.

Every policy searches every problem once per repetition, on the real CPU engine, up to the same budget of sampled
tokens, and stops at its first program that passes all tests. "Solved within T" means that such a program was there
when at most T tokens had been sampled for its problem, so that all policies are compared at exactly the same T.
Problems: the bundled training problems and, with --mbpp, the first 60 of a file of MBPP from task 11 on (its test
split). Intervals are 95 % bootstraps over problems, of the mean of the repetitions; `vs_best_of_n` is the difference
problem by problem.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from actors.programs import ProgramJudge
from actors.scheduler import SearchScheduler
from benchmarks._engine import LIMITS, MODEL, Bench, bench, quiet
from benchmarks._results import keep, machine
from reasoning.estimators import bootstrap
from reasoning.event_log import Event, Told, decode
from reasoning.problems import bundled, from_rows
from reasoning.records import Problem
from reasoning.search import PolicyName, SearchSettings
from sandbox import Verdict
from sandbox.bench import as_text

MAX_NUM_SEQS, TREES = 32, 24
REPETITIONS = 3
BASELINE = "best-of-n"
COMPARED = ("puct", "faithful", BASELINE, "beam")
MBPP_FIRST, MBPP_COUNT = 11, 60
QUICK_PROBLEMS, QUICK_TOKENS = 8, 150


@dataclass(frozen=True, slots=True)
class Grown:
    """One tree. `solved_at`: sampled tokens when its first passing program was known, None without one."""

    problem: str
    solved_at: int | None
    tokens: int
    programs: int
    distinct: int


def grown(problem: str, events: Sequence[Event]) -> Grown:
    """What the log of a tree says."""
    tokens, solved_at = 0, None
    programs: list[str] = []
    for event in events:
        if not isinstance(event, Told) or event.outcome.sample is None:
            continue
        tokens += len(event.outcome.sample.token_ids)
        judgement = event.outcome.judgement
        if judgement is not None:
            programs.append(event.outcome.sample.text)
            if judgement.verdict is Verdict.ACCEPTED and solved_at is None:
                solved_at = tokens
    return Grown(problem, solved_at, tokens, len(programs), len(set(programs)))


def mbpp(path: Path) -> list[Problem]:
    """The first `MBPP_COUNT` problems of a file of MBPP (JSON lines, or the sanitized version's JSON) from `MBPP_FIRST`
    on that can be loaded."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    rows = sorted((row for row in rows if row["task_id"] >= MBPP_FIRST), key=lambda row: row["task_id"])
    return from_rows(enumerate(rows, start=1), str(path), on_bad=lambda *_: None)[:MBPP_COUNT]


async def searched(bench: Bench, problems: Sequence[Problem], settings: SearchSettings, seed: int) -> list[Grown]:
    """One tree for each problem."""
    scheduler = SearchScheduler(
        [bench.engine], ProgramJudge(bench.pool.judge, LIMITS), bench.codec,
        outstanding=2 * MAX_NUM_SEQS, max_trees=TREES,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{n}.jsonl" for n in range(len(problems))]
        jobs = [
            bench.job(p, settings, f"{settings.policy}-{seed}", 1000 * seed + n, log)
            for n, (p, log) in enumerate(zip(problems, logs, strict=True))
        ]
        await asyncio.gather(*map(scheduler.search, jobs))
        return [grown(p.id, decode(log.read_bytes())) for p, log in zip(problems, logs, strict=True)]


async def repeated(
    problems: Sequence[Problem], policies: Sequence[PolicyName], tokens: int, repetitions: int
) -> dict[str, list[list[Grown]]]:
    """For each policy one list of trees per repetition. The policies take turns."""
    settings = SearchSettings(
        token_budget=tokens, expansion_budget=10**6, enough_passing=1, enough_failing=0, seconds=36_000
    )
    found: dict[str, list[list[Grown]]] = {policy: [] for policy in policies}
    async with bench(MAX_NUM_SEQS) as real:
        for seed in range(repetitions):
            for policy in policies:
                began = time.monotonic()
                trees = await searched(real, problems, settings.with_policy(policy), seed)
                found[policy].append(trees)
                solved, drawn = sum(within(t, tokens) for t in trees), sum(t.tokens for t in trees)
                say(f"{seed + 1}: {policy} solved {solved} of {len(trees)}, {drawn} tokens")
                say(f"   {drawn / (time.monotonic() - began):.0f} tokens/s")
    return found


def within(tree: Grown, tokens: int) -> bool:
    """Whether the problem was solved within that many sampled tokens."""
    return tree.solved_at is not None and tree.solved_at <= tokens


def shares(repetitions: Sequence[Sequence[Grown]], tokens: int) -> list[float]:
    """For each problem, the share of repetitions that solved it within `tokens`."""
    return [statistics.fmean(within(t, tokens) for t in trees) for trees in zip(*repetitions, strict=True)]


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % interval."""
    found = bootstrap(values)
    return [round(x, 4) for x in (found.mean, found.low, found.high)]


def summary(found: dict[str, list[list[Grown]]], tokens: int) -> dict[str, Any]:
    """Per policy and number of tokens: the share solved, and its difference from best-of-N."""
    points = sorted({tokens * part // 8 for part in range(1, 9)})
    curves = {p: {str(t): interval(shares(trees, t)) for t in points} for p, trees in found.items()}
    differences = {
        policy: {
            str(t): interval([a - b for a, b in zip(shares(trees, t), shares(found[BASELINE], t), strict=True)])
            for t in points
        }
        for policy, trees in found.items()
        if policy != BASELINE and BASELINE in found
    }
    facts = {
        policy: {
            "solved": [sum(within(t, tokens) for t in trees) for trees in repetitions],
            "tokens_per_tree": round(statistics.fmean(t.tokens for trees in repetitions for t in trees), 1),
            "programs_per_tree": round(statistics.fmean(t.programs for trees in repetitions for t in trees), 2),
            "distinct_programs": round(
                sum(t.distinct for trees in repetitions for t in trees)
                / max(1, sum(t.programs for trees in repetitions for t in trees)), 3,
            ),
        }
        for policy, repetitions in found.items()
    }  # fmt: skip
    return {"policies": facts, "solved_share_within_tokens": curves, "vs_best_of_n": differences}


def ratios(found: dict[str, list[list[Grown]]], tokens: int) -> dict[str, float]:
    """Problems solved within the budget over those that best-of-N solved."""
    base = sum(shares(found[BASELINE], tokens)) if BASELINE in found else 0.0
    return {
        f"{policy}_vs_{BASELINE}": round(sum(shares(trees, tokens)) / base, 3)
        for policy, trees in found.items()
        if policy != BASELINE and base
    }


def measured(problems: Sequence[Problem], policies: Sequence[PolicyName], tokens: int, count: int) -> dict[str, Any]:
    """All policies on all problems."""
    found = asyncio.run(repeated(problems, policies, tokens, count))
    groups = {"all": problems, "bundled": [p for p in problems if not p.id.startswith("mbpp/")]}
    groups["mbpp"] = [p for p in problems if p.id.startswith("mbpp/")]
    result: dict[str, Any] = {"ratios": ratios(found, tokens)}
    for name, own in groups.items():
        ids = {p.id for p in own}
        if ids:
            part = {p: [[t for t in trees if t.problem in ids] for trees in reps] for p, reps in found.items()}
            result[name] = {"problems": len(ids), **summary(part, tokens)}
    result["trees"] = {p: [[asdict(t) for t in trees] for trees in reps] for p, reps in found.items()}
    return result


def say(what: str) -> None:
    """A line on stderr: the whole run takes an hour."""
    print(f"quality: {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./o1coder bench quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute, few problems; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--mbpp", type=Path, metavar="FILE", help="mbpp.jsonl or sanitized-mbpp.json")
    parser.add_argument("--tokens", type=int, default=600, help="sampled tokens per problem (600)")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help=f"searches per problem ({REPETITIONS})")
    parser.add_argument("--policies", nargs="+", default=COMPARED, choices=get_args(PolicyName), help="all of them run")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and keep a full result."""
    options = arguments()
    quiet()
    started = time.monotonic()
    problems = [p for p in bundled() if p.split == "train"] + (mbpp(options.mbpp) if options.mbpp else [])
    tokens, count = options.tokens, options.repetitions
    if options.quick:
        problems, tokens, count = problems[:QUICK_PROBLEMS], QUICK_TOKENS, 1
    found = {
        "machine": machine(),
        "model": MODEL,
        "tokens": tokens,
        "repetitions": count,
        **measured(problems, tuple(options.policies), tokens, count),
        "seconds": round(time.monotonic() - started, 1),
    }
    if not options.quick:
        keep("quality", found)
    found.pop("trees")  # in the file, for whoever wants another curve
    print(json.dumps(found) if options.json else as_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
