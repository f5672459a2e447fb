"""Suites of tests that no model wrote, against the given tests and against the suites of peers, on the same programs.

    bundled, mbpp   kill rate: suites by the settings of a training run, which chose their tests by mutants of the
                    references, and the given tests, all of them; both on other mutants, screened by every known test
                    and by further inputs
    mbpp programs   false accept rate on wrong programs of a small model: suites, the three given asserts, and MBPP+.
                    Wrong is what fails the given asserts or MBPP+ (`by_peers`), or any of the three (`by_all`)
    humaneval       false accept and false reject rate on programs of four models with known verdicts: suites, and
                    CodeT's generated tests, of which most are not true, as they are (`codet`) and those that the
                    reference passes (`codet_true`). Right is by a harness with the given tests (`verdict`), or by
                    HumanEval+ too (`by_plus`); `illegal`: tests whose input breaks HumanEval+'s contract
    refactory       the same on programs of people for two tasks

`suites_per_minute` and `sandbox_busy`: of building all suites of MBPP, on all cores; busy is the share of the time of
the sandbox's slots that programs ran in. Intervals are 95 % bootstraps over problems.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.suite_builder import BuildSettings, SuiteBuilder
from benchmarks._data import rows_of
from benchmarks._results import FOLDER, keep, machine
from reasoning.estimators import bootstrap_ratio
from reasoning.execution_matrix import Matrix
from reasoning.inputs import new_arguments
from reasoning.mutants import mutants
from reasoning.problems import bundled, from_rows
from reasoning.records import Origin, Problem, ProblemTest, Suite
from reasoning.test_cases import ParsedCase, make_test
from sandbox import CallCase, Limits, LocalPool
from sandbox.cache import program_key

LIMITS = Limits(cpu_s=2, memory_mb=512)
FRESH_MUTANTS, FRESH_INPUTS = 12, 30
FRESH_SEED = 1_000
PLUS_INPUTS = 30
"""Of MBPP+ and HumanEval+, sometimes thousands, evenly chosen."""
CODET_TESTS = 40
SAY_S = 60.0
QUICK = 2
"""Problems of each part."""


@dataclass
class Counts:
    """What a suite did on the programs of one problem after the other."""

    part: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)

    def add(self, part: int, whole: int) -> None:
        """One problem."""
        self.part.append(part)
        self.whole.append(whole)

    def shown(self) -> list[float] | None:
        """Share and interval."""
        if not sum(self.whole):
            return None
        found = bootstrap_ratio(self.part, self.whole)
        return [round(x, 4) for x in (found.mean, found.low, found.high)]


class Bench:
    """A pool and what is counted; problems are worked on side by side."""

    def __init__(self, pool: LocalPool, settings: BuildSettings) -> None:
        self.builder = SuiteBuilder(pool, LIMITS, settings)
        self.runs = self.builder.executions

    async def each(self, work: Callable[[Any], Coroutine[Any, Any, Any]], items: Iterable[Any]) -> list[Any]:
        """The results of `work` on every item; some at a time, so that memory stays bounded."""
        places = asyncio.Semaphore(8 * (os.cpu_count() or 1))
        every = list(items)
        done, said = 0, time.monotonic()

        async def one(item: Any) -> Any:
            nonlocal done, said
            async with places:
                found = await work(item)
            done += 1
            if time.monotonic() - said > SAY_S:
                said = time.monotonic()
                say(f"  {done} of {len(every)}")
            return found

        return list(await asyncio.gather(*map(one, every)))

    async def true_tests(self, problem: Problem, arguments: Sequence[tuple[Any, ...]]) -> list[ProblemTest]:
        """Tests by the references."""
        cases = [ParsedCase(args, "", None, output_ok=False) for args in arguments]
        return (await self.runs.by_references(problem, cases)).tests

    async def plus_tests(self, problem: Problem, row: Mapping[str, Any], reference: str) -> list[ProblemTest]:
        """Tests of MBPP+ or HumanEval+ by their own reference."""
        inputs = [*row["base_input"], *row["plus_input"]]
        corrected = problem.model_copy(update={"references": (reference,)})
        return await self.true_tests(corrected, [tuple(args) for args in inputs[:: -(-len(inputs) // PLUS_INPUTS)]])

    async def illegal(self, problem: Problem, row: Mapping[str, Any], tests: Sequence[ProblemTest]) -> tuple[int, int]:
        """Tests whose input HumanEval+'s contract does not allow, of how many."""
        allows = row["prompt"] + row["contract"] + "\n    return True\n"
        asked = [
            ProblemTest(case=CallCase(args=t.case.args, expected=True)) for t in tests if isinstance(t.case, CallCase)
        ]
        (found,) = await self.rows(problem, [allows], asked) if asked else [[]]
        return sum(one is False for one in found), sum(one is not None for one in found)

    async def rows(self, problem: Problem, programs: Sequence[str], tests: Sequence[ProblemTest]) -> Matrix:
        """What programs do on tests."""
        return await self.runs.matrix(problem, programs, tests, 0.0)

    # --- mutants ---

    async def kills(self, pair: tuple[Problem, Suite]) -> dict[str, Any]:
        """Suite and given tests on mutants that did not choose the suite."""
        problem, suite = pair
        chose = {m.source for m in mutants(problem.references[0], self.builder.settings.mutants)}
        planted = mutants(problem.references[0], FRESH_MUTANTS + len(chose), FRESH_SEED)
        fresh = [m.source for m in planted if m.source not in chose][:FRESH_MUTANTS]
        known = [tuple(t.case.args) for t in problem.tests if isinstance(t.case, CallCase) and not t.case.kwargs]
        more = await self.true_tests(problem, new_arguments(known, FRESH_INPUTS, FRESH_SEED)) if known else []
        tests = [*problem.tests, *suite.tests, *more]
        cpu_s = await self.runs.seconds(problem, problem.references[0], tests)
        found = await self.runs.matrix(problem, fresh, tests, cpu_s)
        wrong = [source for source, row in zip(fresh, found, strict=True) if False in row]
        # Each alone: of a program that runs out of time on one test nothing is known on later ones.
        killed = [await self.runs.matrix(problem, wrong, some, cpu_s) for some in (suite.tests, problem.tests)]
        return {
            "screened": len(wrong),
            "suite": sum(False in row for row in killed[0]),
            "given": sum(False in row for row in killed[1]),
            "tests": len(suite.tests),
            "true": await self.passes(problem, suite),
            "accepted": suite.accepted,
        }

    async def passes(self, problem: Problem, suite: Suite) -> bool:
        """Whether every reference passes the suite."""
        found = await self.rows(problem, problem.references, suite.tests)
        return all(all(row) for row in found)

    # --- programs with known verdicts ---

    async def judged(
        self, problem: Problem, programs: Sequence[str], suites: Mapping[str, Sequence[ProblemTest]]
    ) -> dict[str, list[bool | None]]:
        """For each suite, whether it accepts each program; None where that is not known."""
        result: dict[str, list[bool | None]] = {}
        for name, suite in suites.items():
            found = await self.rows(problem, programs, suite)
            result[name] = [False if False in row else None if None in row else True for row in found]
        return result


def rates(truth: Sequence[bool | None], said: Sequence[bool | None]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Wrong programs that are accepted, of how many; right ones that are refused, of how many."""
    known = [(t, s) for t, s in zip(truth, said, strict=True) if t is not None and s is not None]
    wrong, right = [s for t, s in known if not t], [s for t, s in known if t]
    return (sum(wrong), len(wrong)), (len(right) - sum(right), len(right))


def by_rates(found: Sequence[Mapping[str, Any]], truth: str, suites: Sequence[str]) -> dict[str, Any]:
    """False accept and reject rates of each suite, the truth being a suite's word or a peer's verdict."""
    result = {}
    for name in suites:
        accepts, refuses = Counts(), Counts()
        for one in found:
            wrong, right = rates(one[truth], one[name])
            accepts.add(*wrong)
            refuses.add(*right)
        result[name] = {
            "false_accept": accepts.shown(),
            "false_reject": refuses.shown(),
            "wrong": sum(accepts.whole),
            "right": sum(refuses.whole),
        }
    return result


def all_of(*said: Sequence[bool | None]) -> list[bool | None]:
    """Accepted where all accept, refused where one refuses."""
    return [False if False in row else None if None in row else True for row in zip(*said, strict=True)]


def distinct(programs: Iterable[str]) -> list[str]:
    """Programs that differ in more than layout."""
    found: dict[bytes, str] = {}
    for program in programs:
        found.setdefault(program_key(program), program)
    return list(found.values())


# --- the data ---


def loaded(file: Path, quick: bool) -> list[Problem]:
    """Problems whose tests are plain calls."""
    problems = from_rows(enumerate(rows_of(file), 1), str(file), on_bad=lambda *_: None)
    return problems[:: max(1, len(problems) // QUICK)] if quick else problems


async def mbpp_programs(bench: Bench, data: Path, quick: bool) -> list[dict[str, Any]]:
    """The three suites on the programs of the small model, where MBPP and MBPP+ have the same entry point."""
    plus = {row["task_id"].partition("/")[2]: row for row in rows_of(data / "evalplus" / "MbppPlus.jsonl.gz")}
    programs: dict[str, list[str]] = {}
    for row in rows_of(data / "verdicts" / "mbpp" / "smollm2-135m.jsonl.gz"):
        programs.setdefault(str(row["task_id"]), []).append(row["program"])
    problems = [
        p
        for p in loaded(data / "mbpp" / "mbpp.jsonl", False)
        if p.id.partition("/")[2] in plus.keys() & programs.keys()
    ]
    problems = [p for p in problems if plus[p.id.partition("/")[2]]["entry_point"] == p.entry_point]

    async def one(problem: Problem) -> dict[str, Any]:
        row = plus[problem.id.partition("/")[2]]
        suite = await bench.builder.build(problem)
        suites = {
            "suite": suite.tests,
            "given": problem.tests,
            "plus": await bench.plus_tests(problem, row, row["canonical_solution"]),
        }
        said = await bench.judged(problem, distinct(programs[problem.id.partition("/")[2]]), suites)
        said["by_peers"] = all_of(said["given"], said["plus"])
        return {**said, "by_all": all_of(*(said[name] for name in suites))}

    return await bench.each(one, problems[: QUICK if quick else None])


def codet_cases(samples: Sequence[str], problem: Problem) -> list[ProblemTest]:
    """CodeT's asserts of the form f(literals) == literal, none twice, in their order."""
    found: dict[str, ProblemTest] = {}
    for sample in samples:
        for text in ("assert " + sample).split("\n"):
            try:
                (statement,) = ast.parse(text.strip()).body
            except (SyntaxError, ValueError):
                continue
            match statement:
                case ast.Assert(
                    test=ast.Compare(
                        left=ast.Call(func=ast.Name(id=name), args=args), ops=[ast.Eq()], comparators=[value]
                    )
                ) if name == problem.entry_point:
                    try:
                        case = ParsedCase(
                            tuple(map(ast.literal_eval, args)), "", ast.literal_eval(value), output_ok=True
                        )
                        test = make_test(problem, case, case.output, Origin.GENERATED)
                    except (ValueError, TypeError):
                        continue
                    found.setdefault(case.key + repr(case.output), test)
    return list(found.values())[:CODET_TESTS]


async def humaneval(bench: Bench, data: Path, quick: bool) -> list[dict[str, Any]]:
    """Suites and CodeT's tests on the programs of four models; the truth is a peer harness's verdict."""
    programs: dict[str, list[tuple[str, bool]]] = {}
    for file in sorted((data / "verdicts" / "humaneval").glob("*.jsonl")):
        for row in rows_of(file):
            programs.setdefault(row["task_id"].lower(), []).append((row["completion"], bool(row["passed"])))
    prompts = {
        row["prompt"].split("def ")[1].split("(")[0]: row["samples"]
        for row in rows_of(data / "codet" / "generated_tests.jsonl.gz")
    }
    plus = {row["task_id"].lower(): row for row in rows_of(data / "evalplus" / "HumanEvalPlus.jsonl.gz")}
    problems = [
        p
        for p in loaded(data / "humaneval" / "HumanEval.jsonl.gz", quick)
        if any(isinstance(t.case, CallCase) for t in p.tests)
    ]

    async def one(problem: Problem) -> dict[str, Any]:
        written = codet_cases(prompts.get(problem.entry_point or "", []), problem)
        true = (await bench.rows(problem, problem.references, written))[0] if written else []
        suites: dict[str, Sequence[ProblemTest]] = {
            "suite": (await bench.builder.build(problem)).tests,
            "codet": written,
            "codet_true": [t for t, passes in zip(written, true, strict=True) if passes],
        }
        row, verdict = plus[problem.id], [passed for _, passed in programs[problem.id]]
        illegal = {name: await bench.illegal(problem, row, tests) for name, tests in suites.items()}
        suites["plus"] = await bench.plus_tests(problem, row, row["prompt"] + row["canonical_solution"])
        said = await bench.judged(problem, [source for source, _ in programs[problem.id]], suites)
        by_plus = all_of(verdict, said["plus"])
        return {**said, "verdict": verdict, "by_plus": by_plus, "illegal": illegal}

    return await bench.each(one, problems)


def functions_of(task: Mapping[str, Any], reference: str) -> list[Problem]:
    """One problem for each function that a task asks for, with the task's tests of it; arguments may be names of the
    task's prelude."""
    known: dict[str, Any] = {}
    for statement in ast.parse(task["prelude"]).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                known[name] = ast.literal_eval(value)
    tests: dict[str, list[ProblemTest]] = {}
    for expression, expected in task["tests"]:
        match ast.parse(expression, mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=arguments):
                args = [known[a.id] if isinstance(a, ast.Name) else ast.literal_eval(a) for a in arguments]
                case = CallCase(args=args, expected=ast.literal_eval(expected))
                tests.setdefault(name, []).append(ProblemTest(case=case))
            case _:
                raise ValueError(f"tests: got {expression!r}; use a call of a function")
    return [
        Problem(
            id=f"refactory/{task['task']}/{name}",
            question=task["description"],
            entry_point=name,
            references=(reference,),
            tests=tuple(own),
        )
        for name, own in tests.items()
    ]


async def refactory(bench: Bench, data: Path, quick: bool) -> list[dict[str, Any]]:
    """Suites and the tasks' own tests on programs of people; the truth is their label. A program is accepted where the
    suites of all functions that the task asks for accept it."""
    rows = rows_of(data / "verdicts" / "refactory" / "tasks-1-2.jsonl.gz")

    async def one(task: Mapping[str, Any]) -> dict[str, Any]:
        mine = [row for row in rows if row["kind"] == "program" and row["task"] == task["task"]]
        mine = mine[:: 80 if quick else 1]
        # The first right program is the reference, and is not judged.
        sources = ["\n".join(part for part in (task["prelude"], row["program"]) if part) for row in mine]
        at = next(n for n, row in enumerate(mine) if row["label"] == "correct")
        first = sources.pop(at)
        del mine[at]
        each = []
        for problem in functions_of(task, first):
            suite = await bench.builder.build(problem)
            made = tuple(t for t in suite.tests if t.origin is Origin.REFERENCE)
            suites = {"suite": suite.tests, "given": problem.tests, "made_alone": made}
            each.append(await bench.judged(problem, sources, suites))
        said: dict[str, Any] = {name: all_of(*(one[name] for one in each)) for name in each[0]}
        return {**said, "label": [row["label"] == "correct" for row in mine]}

    return await bench.each(one, [row for row in rows if row["kind"] == "task"])


# --- all of it ---


def kill_rates(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all problems together."""
    result: dict[str, Any] = {"problems": len(found), "mutants": sum(one["screened"] for one in found)}
    for name in ("suite", "given"):
        counts = Counts()
        for one in found:
            counts.add(one[name], one["screened"])
        result[name] = counts.shown()
    result["not_true"] = sum(not one["true"] for one in found)
    result["refused"] = sum(not one["accepted"] for one in found)
    result["tests_per_suite"] = round(sum(one["tests"] for one in found) / max(1, len(found)), 2)
    return result


async def built(bench: Bench, problems: Sequence[Problem]) -> tuple[list[tuple[Problem, Suite]], dict[str, float]]:
    """Each problem with its suite, and how fast suites are built."""
    busy, began = bench.runs.busy_s, time.monotonic()
    suites = await bench.each(bench.builder.build, problems)
    seconds = time.monotonic() - began
    speed = {
        "suites_per_minute": round(60 * len(problems) / seconds, 1),
        "sandbox_busy": round((bench.runs.busy_s - busy) / seconds / (os.cpu_count() or 1), 3),
    }
    return list(zip(problems, suites, strict=True)), speed


async def measured(
    data: Path | None, quick: bool, parts: Sequence[str], on_part: Callable[[dict[str, Any]], None]
) -> None:
    """Every figure of some parts; `on_part` is told of each as soon as it is there."""
    async with LocalPool(os.cpu_count() or 1) as pool:
        bench = Bench(pool, BuildSettings())
        own = bundled()[:: 32 if quick else 1]
        for part in parts:
            say(part)
            if part == "bundled":
                pairs, speed = await built(bench, own)
                on_part({"throughput": speed} if data is None else {})
                on_part({part: kill_rates(await bench.each(bench.kills, pairs))})
                continue
            assert data is not None
            on_part(await PARTS[part](bench, data, quick))


async def _mbpp(bench: Bench, data: Path, quick: bool) -> dict[str, Any]:
    problems = loaded(data / "mbpp" / "sanitized-mbpp.json", quick)
    pairs, speed = await built(bench, problems)
    return {"throughput": speed, "mbpp": kill_rates(await bench.each(bench.kills, pairs))}


async def _mbpp_programs(bench: Bench, data: Path, quick: bool) -> dict[str, Any]:
    programs = await mbpp_programs(bench, data, quick)
    found = {
        "problems": len(programs),
        "by_peers": by_rates(programs, "by_peers", ("suite", "given")),
        "by_all": by_rates(programs, "by_all", ("suite", "given", "plus")),
    }
    return {"mbpp_programs": found}


async def _humaneval(bench: Bench, data: Path, quick: bool) -> dict[str, Any]:
    known = await humaneval(bench, data, quick)
    names = ("suite", "codet", "codet_true")
    found: dict[str, Any] = {
        "problems": len(known),
        "verdict": by_rates(known, "verdict", (*names, "plus")),
        "by_plus": by_rates(known, "by_plus", names),
    }
    for name in names:
        counts = Counts()
        for one in known:
            counts.add(*one["illegal"][name])
        found["by_plus"][name]["illegal"] = counts.shown()
    return {"humaneval": found}


async def _refactory(bench: Bench, data: Path, quick: bool) -> dict[str, Any]:
    people = await refactory(bench, data, quick)
    return {"refactory": by_rates(people, "label", ("suite", "given", "made_alone"))}


PARTS: dict[str, Callable[[Bench, Path, bool], Coroutine[Any, Any, dict[str, Any]]]] = {
    "mbpp": _mbpp, "mbpp_programs": _mbpp_programs, "humaneval": _humaneval, "refactory": _refactory,
}  # fmt: skip


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """What is promised: kill rates, and over the given tests'."""
    result = {}
    for name in ("bundled", "mbpp"):
        if name in found:
            suite, given = found[name]["suite"][0], found[name]["given"][0]
            result |= {f"kill_rate_{name}": suite, f"kill_rate_{name}_vs_given": round(suite / given, 3)}
    return result


def say(what: str) -> None:
    """A line on stderr: a whole run takes minutes."""
    print(f"suites: {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and keep a full result."""
    parser = argparse.ArgumentParser(prog="./o1coder bench suites", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few problems; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with mbpp, evalplus, humaneval, codet, verdicts"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["bundled", *PARTS], metavar="PART",
        help=f"of bundled, {', '.join(PARTS)}; what is kept of the others stays",
    )  # fmt: skip
    options = parser.parse_args()
    parts = options.parts or (["bundled", *PARTS] if options.data else ["bundled"])
    if options.data is None and parts != ["bundled"]:
        parser.error("--parts: these need --data")
    started = time.monotonic()
    file = FOLDER / "suites.json"
    before = json.loads(file.read_text()) if file.exists() and options.parts and not options.quick else {}
    result: dict[str, Any] = {**before, "machine": machine()}

    def on_part(found: dict[str, Any]) -> None:
        """An hour of work is not to be lost with its last minute."""
        result.update(found)
        took = {name: round(time.monotonic() - started, 1) for name in found}
        result["seconds_until"] = {**result.get("seconds_until", {}), **took}
        result["ratios"] = ratios(result)
        if not options.quick:
            keep("suites", result)

    asyncio.run(measured(options.data, options.quick, parts, on_part))
    print(json.dumps(result, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
