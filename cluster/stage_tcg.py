"""The test case generator in the loop: its training, and the suites that decide rewards (method section 2)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from actors.suite_builder import SuiteBuilder
from cluster import tcg_generation as generation
from cluster import tcg_report
from cluster import tcg_training as training
from cluster.background import Background
from cluster.context import RunContext
from cluster.rollouts import Chain, sample_chains
from cluster.tcg_generation import Texts
from reasoning.estimators import bootstrap_ratio
from reasoning.records import Problem, Suite, mean
from reasoning.suites import split_given, tests_by_origin
from reasoning.test_cases import CASES_PER_PROMPT
from sandbox.cache import program_key

log = logging.getLogger(__name__)

OWN = "sft-own"
"""Of the names of the shards that hold the generator's own texts on what it is taught."""
POLICY_PROGRAMS = 8
"""Of a problem, that suites are measured with: the latest ones; as many as are sampled where those are more."""
BUILD_DEADLINE_S = 1800.0
"""How long the building of one suite may take after all that wait before it."""


# --- training ---


def tcg(run: RunContext, round_: int) -> dict[str, Any]:
    """Train the generator on the problems of the round, but for those that it is measured on in every round, and is
    never trained on."""
    c = run.config.tcg
    unseen = kept_apart(run)
    names = {p.id for p in unseen}
    problems = run.train_of(round_)
    programs = sample_policy(run, round_, problems)
    taught = [p for p in problems if p.id not in names]
    return train_generator(run, round_, taught, unseen, programs, [c.mode == "reference"])


def kept_apart(run: RunContext) -> list[Problem]:
    """The training problems that the generator is measured on: a third at most, by the seed and their ids alone."""
    count = min(run.config.tcg.measure_problems, len(run.train) // 3)

    def rank(problem: Problem) -> bytes:
        return hashlib.sha256(f"{run.config.seed}:{problem.id}".encode()).digest()

    return sorted(run.train, key=rank)[:count]


def train_generator(
    run: RunContext,
    round_: int,
    taught: Sequence[Problem],
    unseen: Sequence[Problem],
    programs: dict[str, list[str]],
    measured: Sequence[bool],
) -> dict[str, Any]:
    """SFT, DPO and, where the configuration says so, self-play on `taught`; the accuracy on `unseen` after each, by
    prompts that show the reference (True in `measured`) or not. `programs`: of the policy, by problem id. The
    checkpoints are in the state of the run."""
    c = run.config.tcg
    measured_on: dict[str, Any] = {"measured_problems": len(unseen)}

    def own() -> training.OwnPairs:
        return training.own_pairs(run, round_, taught, OWN)

    def told(step: str) -> dict[str, Any]:
        return measure(run, unseen, f"round-{round_}-{step}", measured)

    result, found = _teach(run, round_, taught, programs, own, told)
    result = {**measured_on, **result}
    if found is None:
        return result
    if c.self_play:
        result["self_play"] = training.self_play(run, round_, taught, found)
        if result["self_play"]:
            run.log({f"tcg/self_play_{name}": value for name, value in result["self_play"].items()}, round_)
            result["after_self_play"] = measure(run, unseen, f"round-{round_}-self-play", measured)
    run.workers.learner.release()
    _log_accuracy(run, round_, result)
    return {**result, "note": _training_note(result, result["texts"], result["pairs"])}


def _teach(
    run: RunContext,
    round_: int,
    taught: Sequence[Problem],
    programs: dict[str, list[str]],
    own: Callable[[], training.OwnPairs],
    told: Callable[[str], dict[str, Any]],
) -> tuple[dict[str, Any], training.Materials | None]:
    """SFT and DPO. `own`: pairs of the generator's own texts, asked for after SFT; `told(step)`: what is noted of the
    generator after a step. Returns the result, and what there was to learn from, None where there was nothing."""
    c = run.config.tcg
    result: dict[str, Any] = {"taught_problems": len(taught)}
    if not c.sft_completions:
        return {**result, "skipped": "tcg.sft_completions is 0"}, None
    rng = random.Random(run.config.seed)
    found = training.materials(run, taught, programs)
    examples = training.sft_examples(run, taught, found, rng) if c.sft_epochs else []
    made = current_generator(run)
    if examples:
        made = training.train_sft(run, round_, made, examples)
        run.state["tcg"] = run.state["tcg_sft"]
    elif c.sft_epochs:
        return {**result, "skipped": "no problem has three tests to learn from"}, None
    else:
        run.serve(made, round_)
    step = "sft" if examples else "start"
    result[step] = told(step)
    pairs = training.dpo_pairs(run, taught, found, own() if c.dpo_pairs else training.OwnPairs([], []), rng)
    if pairs:
        last = training.train_dpo(run, round_, made, pairs)[-1]
        result["dpo"] = told("dpo")
        result["dpo_stopped"] = bool(last["dpo/stopped"])
    return {**result, "texts": len(examples), "pairs": len(pairs)}, found


def fit_generator(run: RunContext, round_: int, alone: bool) -> dict[str, Any]:
    """SFT and DPO on what the stage of an earlier run had (`o1coder fit tcg`): programs of its policy, texts of its
    generator. Nothing is generated or measured. `alone`: that run was one of `o1coder tcg train`."""
    names = set() if alone else {p.id for p in kept_apart(run)}
    taught = [p for p in (run.train if alone else run.train_of(round_)) if p.id not in names]
    shards = [
        s for s, _ in training.own_shards(run, round_, OWN) if (run.dir.data / "generated" / f"{s}.parquet").exists()
    ]

    def own() -> training.OwnPairs:
        return training.judged(run, taught, [generation.read_texts(run, shard) for shard in shards])

    result, found = _teach(run, round_, taught, policy_programs(run, taught), own, lambda step: {})
    if found is None:
        return result
    stopped = "; DPO ended early" if result.get("dpo_stopped") else ""
    return {**result, "note": f"{result['texts']} texts, {result['pairs']} pairs{stopped}"}


def current_generator(run: RunContext) -> Path:
    """The generator as it is: what this run trained last, the one that is given, or the model."""
    if run.state.get("tcg"):
        return run.dir.path / str(run.state["tcg"])
    return Path(run.config.tcg.generator) if run.config.tcg.generator else run.model


def measure(
    run: RunContext, problems: Sequence[Problem], shard: str, with_code: Sequence[bool]
) -> dict[str, dict[str, Any]]:
    """How often the references agree with what the generator writes (the paper's output accuracy), by mode; the weights
    are those that the engines hold. Shares are None where nothing was written that could be read."""
    found = {}
    for shown in with_code if problems else ():
        mode = "reference" if shown else "question_only"
        texts = generation.write_texts(run, problems, f"{shard}-{mode}", shown, 1, run.config.tcg.prompts)
        executed = generation.execute(run, problems, texts)
        rows = [executed[p.id] for p in problems]
        known, right = [e.known for e in rows], [e.right for e in rows]
        interval = bootstrap_ratio(right, known, run.config.seed) if sum(known) else None
        found[mode] = {
            "asked": CASES_PER_PROMPT * sum(text is not None for one in texts.values() for text in one),
            "cases": sum(known),
            "valid": sum(len(e.tests) for e in rows),
            "right": sum(right),
            "accuracy": interval.mean if interval else None,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "by_problem": {p.id: [e.right, e.known] for p, e in zip(problems, rows, strict=True)},
        }
    return found


def accuracy_of(result: dict[str, Any], step: str) -> float | None:
    """Output accuracy after a step (`tcg_report.STEPS`) in the first mode that was measured."""
    modes = result.get(step) or {}
    first = next(iter(modes.values()), None)
    if first is None:
        return None
    return float(first["accuracy"] or 0.0)  # nothing readable: none of it is right


def _log_accuracy(run: RunContext, round_: int, result: dict[str, Any]) -> None:
    metrics = {
        f"tcg/output_accuracy_{step}{'' if mode == 'reference' else '_question_only'}": found["accuracy"] or 0.0
        for step in tcg_report.STEPS
        for mode, found in (result.get(step) or {}).items()
    }
    last = [a for step in tcg_report.STEPS if (a := accuracy_of(result, step)) is not None]
    if last:
        metrics["tcg/output_accuracy"] = last[-1]
    if metrics:
        run.log(metrics, round_)


def _training_note(result: dict[str, Any], examples: int, pairs: int) -> str:
    shown = [f"{examples} texts, {pairs} pairs"]
    for step, name in tcg_report.STEPS.items():
        accuracy = accuracy_of(result, step)
        if accuracy is not None:
            shown.append(f"output accuracy {100 * accuracy:.0f} % {'at' if step == 'start' else 'after'} {name}")
    return "; ".join(shown)


# --- programs of the policy ---


def sample_policy(run: RunContext, round_: int, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Programs by problem id: `tcg.policy_samples` of the policy as it is, and those of earlier rounds."""
    c = run.config.tcg
    shard = f"samples-round-{round_}"
    if c.policy_samples:
        run.serve(run.policy, round_)
        settings = run.config.search_settings()
        chains = [
            Chain(
                f"{shard}/{problem.id}/{index}",
                problem,
                Suite(problem_id=problem.id, tests=split_given(problem)[0]),
                run.config.seed * 1_000_003 + 15_485_863 * round_ + index,
            )
            for problem in problems
            for index in range(c.policy_samples)
        ]
        paths, _ = sample_chains(run, chains, settings, "programs of the policy", lambda paths: {})
        run.store.write_paths(shard, paths)
    return policy_programs(run, problems)


def policy_programs(run: RunContext, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """What the policy wrote for each problem in this run, the latest programs first, equal ones once."""
    wanted = {p.id for p in problems}
    most = max(POLICY_PROGRAMS, run.config.tcg.policy_samples)
    files = [f for f in (run.dir.data / "paths").glob("*round-*.parquet") if not f.name.startswith("eval-")]
    found: dict[str, dict[bytes, str]] = {}
    for file in sorted(files, key=lambda f: (f.stat().st_mtime_ns, f.name), reverse=True):
        # Not in the order of their ends: short programs end first.
        for path in sorted(run.store.read_paths([file.stem]), key=lambda path: path.tree_id):
            if path.program is not None and path.problem_id in wanted:
                mine = found.setdefault(path.problem_id, {})
                if len(mine) < most:
                    mine.setdefault(program_key(path.program), path.program)
    return {name: list(programs.values()) for name, programs in found.items()}


# --- suites ---


def suites(run: RunContext, round_: int) -> dict[str, Any]:
    """Have the generator write for the problems of the round, and decide which suites may score rewards."""
    return make_suites(run, round_, run.train_of(round_))


def make_suites(run: RunContext, round_: int, problems: Sequence[Problem]) -> dict[str, Any]:
    """Texts by the generator of the state (none where there is none), and the suites that are made from them: by
    executing references, or in mode "question_only" by consensus. The engines hold the policy then."""
    c = run.config.tcg
    with_code = c.mode == "reference"
    maker = generation.builder(run)
    programs = policy_programs(run, problems)
    by_id = {p.id: p for p in problems}
    texts: Texts = {}
    began = time.monotonic()
    places = asyncio.Semaphore(generation.AT_ONCE)
    with Background() as background:
        building: dict[str, Future[Suite]] = {}

        def build(name: str, written: list[str | None]) -> None:
            own = programs.get(name, [])
            building[name] = background.start(_build(maker, places, by_id[name], written, own, with_code))

        if c.sft_completions and (run.state.get("tcg") or c.generator or not with_code):
            run.serve(current_generator(run), round_)
            texts = generation.write_texts(run, problems, f"round-{round_}", with_code, 2, c.prompts, build)
        else:
            for problem in problems:
                build(problem.id, [])
        written_s = time.monotonic() - began
        run.serve(run.policy, round_)
        found = [_suite_of(run, building, p.id) for p in problems]
    seconds = max(1e-6, time.monotonic() - began)
    slots = run.config.sandbox.workers * run.config.sandbox.slots
    speeds = {
        "tcg/suites_per_minute": 60 * len(found) / seconds,
        "tcg/sandbox_busy": maker.executions.busy_s / seconds / slots,
        "tcg/writing_share": written_s / seconds,
    }
    run.store.write_suites("current", found)
    run.store.write_suites(f"round-{round_}", found)
    return {**_report(run, round_, found, texts, speeds), **{name.partition("/")[2]: v for name, v in speeds.items()}}


async def _build(
    maker: SuiteBuilder,
    places: asyncio.Semaphore,
    problem: Problem,
    texts: Sequence[str | None],
    programs: list[str],
    by_reference: bool,
) -> Suite:
    mine = [text for text in texts if text is not None]
    async with places:
        try:
            cases, asked = generation.cases_of(problem, mine), CASES_PER_PROMPT * len(mine)
            if not by_reference:
                return await maker.build_agreed(problem, cases, programs, asked)
            return await maker.build(problem, await maker.executions.by_references(problem, cases), programs, asked)
        except generation.UNUSABLE as error:  # one problem must not end the stage; its suite decides nothing
            log.warning("the suite of %s could not be built", problem.id, exc_info=True)
            reason = f"it could not be built: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            return Suite(problem_id=problem.id, tests=(), accepted=False, reason=reason, difficulty=problem.difficulty)


def _suite_of(run: RunContext, building: dict[str, Future[Suite]], name: str) -> Suite:
    """The suite of a problem when it is there; a signal is heard meanwhile."""
    deadline = time.monotonic() + BUILD_DEADLINE_S
    while True:
        done = sum(future.done() for future in building.values())
        run.display.update(done, len(building), unit="suites", loss=None, tokens_per_s=None, programs_per_s=None)
        run.tick()
        try:
            return building[name].result(timeout=1.0)
        except TimeoutError:
            if building[name].done():  # meanwhile, or with a timeout of its own
                return building[name].result()
            if time.monotonic() > deadline:
                raise TimeoutError(f"suites: that of {name} was not done within {BUILD_DEADLINE_S:.0f} s") from None


def _report(run: RunContext, round_: int, found: list[Suite], texts: Texts, speeds: dict[str, float]) -> dict[str, Any]:
    origins = tests_by_origin(found)
    refused = [s for s in found if not s.accepted]
    rates = [s.kill_rate for s in found if s.kill_rate is not None]
    seed = run.config.seed
    run.log(
        {
            "tcg/suites": len(found),
            "tcg/suites_refused": len(refused),
            "tcg/lost_texts": sum(one.count(None) for one in texts.values()),
            "tcg/kill_rate": mean(rates),
            **speeds,
            **_counts(found),
            **{f"tcg/tests_{name}": n for name, n in origins.items()},
            **tcg_report.metrics(tcg_report.rows(found, seed), tcg_report.overall(found, seed)),
        },
        round_,
    )
    return {
        "suites": len(found),
        "origins": origins,
        "refused": [{"problem": s.problem_id, "reason": s.reason} for s in refused],
        "kill_rate": mean(rates),
        "note": f"{sum(origins.values())} tests, {origins['reference'] + origins['consensus']} on generated inputs; "
        f"{len(refused)} suites refused",
    }


def _counts(found: Sequence[Suite]) -> dict[str, int]:
    """What the shares of all suites are shares of, see `SuiteQuality`."""
    known = [s.quality for s in found if s.quality is not None]
    return {
        "tcg/generated_cases": sum(q.cases for q in known),
        "tcg/made_inputs": sum(q.inputs for q in known),
        "tcg/made_inputs_legal": sum(q.inputs_legal for q in known),
        "tcg/mutants": sum(q.screened for q in known),
        "tcg/policy_programs_wrong": sum(q.samples_wrong for q in known),
    }
