"""Problems solved by search at equal sampled tokens: PUCT against the published search, best-of-N and beam search.

Every policy searches every problem once per repetition, on the real CPU engine, up to the same budget of sampled
tokens, one expansion of a tree at a time, so that each choice knows all that was sampled before. "Solved within T"
means that a program which passes all tests was there when at most T tokens had been sampled for its problem, those of
the samples drawn beside it included: all policies are compared at exactly the same T.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from actors.programs import ProgramJudge
from actors.scheduler import SearchScheduler
from benchmarks._data import rows_of
from benchmarks._engine import LIMITS, MODEL, Bench, bench, quiet
from benchmarks._results import FOLDER, keep, machine
from reasoning.estimators import bootstrap
from reasoning.event_log import Asked, Event, Told, decode
from reasoning.problems import bundled, from_rows
from reasoning.records import Problem
from reasoning.search import FAITHFUL, PolicyName, SearchSettings
from sandbox import Verdict

MAX_NUM_SEQS, TREES = 32, 40
REPETITIONS = 3
BASELINE = "best-of-n"
COMPARED = ("puct", "faithful", BASELINE, "beam")
MBPP_FIRST, MBPP_COUNT = 11, 60
QUICK_PROBLEMS, QUICK_TOKENS = 8, 150


@dataclass(frozen=True, slots=True)
class Grown:
    """One tree. `solved_at`: sampled tokens of all expansions that had begun when its first passing program was known,
    None without one."""

    problem: str
    solved_at: int | None
    tokens: int
    programs: int
    distinct: int


def grown(problem: str, events: Sequence[Event]) -> Grown:
    """What the log of a tree says."""
    begun: set[int] = set()
    before: set[int] | None = None  # the expansions that had begun when a program passed
    cost: dict[int, int] = {}
    programs: list[str] = []
    for event in events:
        if isinstance(event, Asked):
            begun.add(event.id)
        if not isinstance(event, Told) or event.outcome.sample is None:
            continue
        sample, judgement = event.outcome.sample, event.outcome.judgement
        cost[event.id] = cost.get(event.id, 0) + len(sample.token_ids)
        if judgement is not None:
            programs.append(sample.text)
            if judgement.verdict is Verdict.ACCEPTED and before is None:
                before = set(begun)
    tokens = sum(cost.values())
    solved_at = None if before is None else sum(cost.get(i, 0) for i in before)
    return Grown(problem, solved_at, tokens, len(programs), len(set(programs)))


def mbpp(path: Path) -> list[Problem]:
    """The first `MBPP_COUNT` problems of a file of MBPP (JSON lines, or the sanitized version's JSON) from `MBPP_FIRST`
    on that can be loaded."""
    rows = sorted((row for row in rows_of(path) if row["task_id"] >= MBPP_FIRST), key=lambda row: row["task_id"])
    return from_rows(enumerate(rows, start=1), str(path), on_bad=lambda *_: None)[:MBPP_COUNT]


async def searched(
    bench: Bench, problems: Sequence[Problem], settings: SearchSettings, seed: int, folder: Path
) -> list[Grown]:
    """One tree for each problem; `folder`: of their logs, from which an interrupted search goes on."""
    scheduler = SearchScheduler(
        [bench.engine], ProgramJudge(bench.pool.judge, LIMITS), bench.codec,
        outstanding=2 * MAX_NUM_SEQS, max_trees=TREES,
    )  # fmt: skip
    name = f"{settings.policy}-{seed}"
    logs = [folder / name / f"{n}.jsonl" for n in range(len(problems))]
    jobs = [
        bench.job(p, settings, name, 1000 * seed + n, log)
        for n, (p, log) in enumerate(zip(problems, logs, strict=True))
    ]
    await asyncio.gather(*map(scheduler.search, jobs))
    return [grown(p.id, decode(log.read_bytes())) for p, log in zip(problems, logs, strict=True)]


async def repeated(
    problems: Sequence[Problem],
    policies: Sequence[PolicyName],
    tokens: int,
    repetitions: int,
    folder: Path,
    known: dict[str, list[list[Grown]]],
    on_trees: Callable[[dict[str, list[list[Grown]]]], None],
) -> dict[str, list[list[Grown]]]:
    """For each policy one list of trees per repetition, the first ones those that are `known`. The policies take
    turns; `on_trees` is told what there is after each."""
    settings = SearchSettings(
        token_budget=tokens,
        expansion_budget=10**6,
        enough_passing=10**6,
        seconds=36_000,
        path_tokens=2048,
        leaves_in_flight=1,
        # Those of the published search, for all: a small model writes better programs without the tail of its
        # distribution, and no policy is to win by that.
        temperature=FAITHFUL["temperature"],
        top_p=FAITHFUL["top_p"],
    )
    found: dict[str, list[list[Grown]]] = {policy: known.get(policy, [])[:repetitions] for policy in policies}
    async with bench(MAX_NUM_SEQS) as real:
        for seed in range(repetitions):
            for policy in policies:
                if len(found[policy]) > seed:
                    continue
                began = time.monotonic()
                trees = await searched(real, problems, settings.with_policy(policy), seed, folder)
                found[policy].append(trees)
                solved, drawn = sum(within(t, tokens) for t in trees), sum(t.tokens for t in trees)
                say(f"{seed + 1}: {policy} solved {solved} of {len(trees)}, {drawn} tokens")
                say(f"   {drawn / (time.monotonic() - began):.0f} tokens/s")
                on_trees(found)
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
    """Of each policy: what it came to, and at some numbers of tokens the share that it solved, with the difference from
    best-of-N."""
    points = sorted({tokens * part // 8 for part in range(1, 9)})
    base = {t: shares(found[BASELINE], t) for t in points} if BASELINE in found else {}
    result: dict[str, Any] = {}
    for policy, repetitions in found.items():
        trees = [tree for one in repetitions for tree in one]
        programs = sum(t.programs for t in trees)
        own = {t: shares(repetitions, t) for t in points}
        result[policy] = {
            "solved": " ".join(str(sum(within(t, tokens) for t in one)) for one in repetitions),
            "tokens_per_tree": round(statistics.fmean(t.tokens for t in trees), 1),
            "programs_per_tree": round(programs / len(trees), 2),
            "distinct_programs": round(sum(t.distinct for t in trees) / max(1, programs), 3),
            "solved_share": {str(t): interval(own[t]) for t in points},
        }
        if base and policy != BASELINE:
            differences = {t: [a - b for a, b in zip(own[t], base[t], strict=True)] for t in points}
            result[policy]["vs_best_of_n"] = {str(t): interval(differences[t]) for t in points}
    return result


def ratios(found: dict[str, list[list[Grown]]], tokens: int) -> dict[str, float]:
    """Problems solved within the budget over those that best-of-N solved."""
    base = sum(shares(found[BASELINE], tokens)) if BASELINE in found else 0.0
    return {
        f"{policy}_vs_{BASELINE}": round(sum(shares(trees, tokens)) / base, 3)
        for policy, trees in found.items()
        if policy != BASELINE and base
    }


def result(found: dict[str, list[list[Grown]]], tokens: int) -> dict[str, Any]:
    """The ratios, and the summary of all problems and of each source."""
    ids = [t.problem for t in next(iter(found.values()))[0]]
    groups = {
        "all": set(ids),
        "bundled": {i for i in ids if not i.startswith("mbpp/")},
        "mbpp": {i for i in ids if i.startswith("mbpp/")},
    }
    parts = {
        name: {p: [[t for t in trees if t.problem in own] for trees in reps] for p, reps in found.items()}
        for name, own in groups.items()
        if own
    }
    return {
        "ratios": ratios(found, tokens),
        "groups": {name: {"problems": len(groups[name]), **summary(part, tokens)} for name, part in parts.items()},
    }


FIELDS = ("solved_at", "tokens", "programs", "distinct")


def recorded(found: dict[str, list[list[Grown]]]) -> dict[str, Any]:
    """Every tree, for whoever wants other figures or adds repetitions: of each policy and repetition one text for each
    field of `Grown`, with a number for each of `problems` ("-": None)."""
    first = next(iter(found.values()))[0]

    def text(trees: Sequence[Grown], field: str) -> str:
        return " ".join("-" if (value := getattr(t, field)) is None else str(value) for t in trees)

    return {
        "problems": " ".join(t.problem for t in first),
        **{
            policy: [{field: text(trees, field) for field in FIELDS} for trees in repetitions]
            for policy, repetitions in found.items()
        },
    }


def read_back(kept: dict[str, Any]) -> dict[str, list[list[Grown]]]:
    """The trees that `recorded` wrote."""
    problems = kept["problems"].split()

    def numbers(text: str) -> list[int | None]:
        return [None if word == "-" else int(word) for word in text.split()]

    return {
        policy: [
            [Grown(name, *row) for name, *row in zip(problems, *(numbers(one[f]) for f in FIELDS), strict=True)]
            for one in repetitions
        ]
        for policy, repetitions in kept.items()
        if policy != "problems"
    }


def kept_trees(problems: Sequence[Problem], tokens: int) -> dict[str, list[list[Grown]]]:
    """Those of the kept result. Raises SystemExit where there is none, or one of other problems or another budget."""
    file = FOLDER / "quality.json"
    if not file.exists():
        raise SystemExit(f"add: {file} does not exist; run without --add first")
    kept = json.loads(file.read_text())
    if kept["tokens"] != tokens or kept["trees"]["problems"].split() != [p.id for p in problems]:
        raise SystemExit(
            f"add: {file} is of {kept['tokens']} tokens and {len(kept['trees']['problems'].split())} problems; "
            "use the same --tokens and --mbpp"
        )
    return read_back(kept["trees"])


def table(found: dict[str, Any]) -> str:
    """Figures for people."""
    lines = []
    for name, group in found["groups"].items():
        lines += ["", f"{name}: {group['problems']} problems, at most {found['tokens']} sampled tokens each"]
        lines.append(
            f"{'':<12}{'solved':<14}{'share (95 % interval)':<28}{'vs best-of-n':<28}{'programs':>9}{'distinct':>10}"
        )
        for policy, one in group.items():
            if policy == "problems":
                continue
            share = one["solved_share"][str(found["tokens"])]
            versus = one.get("vs_best_of_n", {}).get(str(found["tokens"]))
            lines.append(
                f"{policy:<12}{one['solved']:<14}{percent(share):<28}{percent(versus, '+') if versus else '':<28}"
                f"{one['programs_per_tree']:>9.1f}{one['distinct_programs']:>10.0%}"
            )
    return "\n".join(lines)


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean and interval."""
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in values)
    return f"{mean} % [{low}, {high}]"


def say(what: str) -> None:
    """A line on stderr: the whole run takes an hour."""
    print(f"quality: {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./o1coder bench quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute, few problems; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--mbpp", type=Path, metavar="FILE", help="mbpp.jsonl or sanitized-mbpp.json")
    parser.add_argument("--tokens", type=int, default=800, help="sampled tokens per problem (800)")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help=f"searches per problem ({REPETITIONS})")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep the event logs; the same again goes on from them"
    )
    parser.add_argument(
        "--add", action="store_true", help="take the repetitions of the kept result, add what is missing"
    )
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
    known = kept_trees(problems, tokens) if options.add and not options.quick else {}

    def keep_what_there_is(trees: dict[str, list[list[Grown]]]) -> dict[str, Any]:
        """An hour of work is not to be lost with its last minute; nor a whole result to what has just begun."""
        found = {"machine": machine(), "model": MODEL, "tokens": tokens, **result(trees, tokens)}
        found["seconds"] = round(time.monotonic() - started, 1)
        whole = all(len(one) == count for one in trees.values())
        if not options.quick and (whole or options.add):
            keep("quality", {**found, "trees": recorded(trees)})
        return found

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.logs or Path(scratch)
        search = repeated(problems, tuple(options.policies), tokens, count, folder, known, keep_what_there_is)
        found = keep_what_there_is(asyncio.run(search))
    print(json.dumps(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
