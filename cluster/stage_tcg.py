"""The test case generator: SFT, DPO, generation, and the suites that decide rewards (method section 2)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.sampling import Draw
from actors.sandbox_pool import RayPool
from actors.suite_builder import BuildSettings, Material, SuiteBuilder
from cluster import flow
from cluster.context import RunContext
from cluster.stage_learn import spec
from learners.batches import Example, PreferenceExample
from reasoning.records import GeneratedText, Problem, ProblemTest, Suite, mean
from reasoning.suites import tests_by_origin
from reasoning.test_cases import (
    OPENING,
    ParsedCase,
    parse_cases,
    preference_pairs,
    sft_completions,
    tcg_messages,
)

CALL_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Generated:
    """What the generator wrote for one problem. `tests`: inputs on which all references ran and agreed, with their
    outputs; `right`: cases whose model-written output is the reference's; `cases`: all that could be read and run
    (those that the sandbox itself failed on are in neither); `lost`: texts that the engine failed to write."""

    tests: list[ProblemTest]
    cases: int
    right: int
    lost: int = 0


def tcg(run: RunContext, round_: int) -> dict[str, Any]:
    """Train the generator, generate, execute references for the outputs, and decide which suites may score rewards.

    Its accuracy is that on problems which it was not trained on.
    """
    c = run.config.tcg
    problems = run.train_of(round_)
    kept_out = min(c.measure_problems, max(1, len(problems) // 3)) if len(problems) > 1 else 0
    unseen, taught = problems[:kept_out], problems[kept_out:]
    rng = random.Random(run.config.seed)
    result: dict[str, Any] = {"accuracy_sft": None, "accuracy_dpo": None, "measured_problems": len(unseen)}
    base_scores = run.sync.current_scores() if run.sync is not None else []
    generated: dict[str, Generated] = {}
    material = asyncio.run(_material(run, taught))
    if _train_sft(run, round_, taught, material, rng):
        run.publish_learner(round_)
        pairs = _dpo_pairs(run, taught, material, rng)
        if pairs:
            if unseen:
                result["accuracy_sft"] = _accuracy(_generate(run, unseen, f"round-{round_}-sft", seed=1), unseen)
            _train_dpo(run, round_, pairs)
            run.publish_learner(round_)
        run.checkpoint(f"tcg-round-{round_}")
        generated = _generate(run, problems, f"round-{round_}", seed=2)
        result["accuracy_dpo" if pairs else "accuracy_sft"] = _accuracy(generated, unseen)
        result["measured_cases"] = sum(generated[p.id].cases for p in unseen)
        run.workers.learner.release()
        # The engine goes back to the policy's weights; what it said under them before is the proof.
        run.publish(run.policy, base_scores, round_)
    suites = asyncio.run(_suites(run, problems, generated))
    run.store.write_suites("current", suites)
    run.store.write_suites(f"round-{round_}", suites)
    return _report(run, round_, suites, generated, result)


def _report(
    run: RunContext, round_: int, suites: list[Suite], generated: dict[str, Generated], result: dict[str, Any]
) -> dict[str, Any]:
    origins = tests_by_origin(suites)
    refused = [s for s in suites if not s.accepted]
    rates = [s.kill_rate for s in suites if s.kill_rate is not None]
    accuracy = result["accuracy_dpo"] if result["accuracy_dpo"] is not None else result["accuracy_sft"]
    metrics: dict[str, float] = {
        "tcg/suites": len(suites),
        "tcg/suites_refused": len(refused),
        "tcg/generated_cases": sum(g.cases for g in generated.values()),
        "tcg/lost_texts": sum(g.lost for g in generated.values()),
        "tcg/valid_tests": sum(len(g.tests) for g in generated.values()),
        "tcg/kill_rate": mean(rates),
        **_quality(suites),
        **{f"tcg/tests_{name}": n for name, n in origins.items()},
    }
    for name, value in (("tcg/output_accuracy", accuracy), ("tcg/output_accuracy_sft", result["accuracy_sft"])):
        if value is not None:
            metrics[name] = value
    run.log(metrics, round_)
    shown = "output accuracy unknown" if accuracy is None else f"output accuracy {100 * accuracy:.0f} %"
    result.update(
        origins=origins,
        refused=[{"problem": s.problem_id, "reason": s.reason} for s in refused],
        kill_rate=mean(rates),
        note=f"{sum(origins.values())} tests, {origins['reference']} on generated inputs; "
        f"{len(refused)} suites refused; {shown}",
    )
    return result


def _quality(suites: Sequence[Suite]) -> dict[str, float]:
    """Of all suites together: mutants that were told from their references, killed by the suites and by the given tests
    among the candidates; inputs made by mutation that the references took; needless tests."""
    found = [s.quality for s in suites if s.quality is not None]
    screened, inputs = sum(q.screened for q in found), sum(q.inputs for q in found)
    return {
        "tcg/mutants": screened,
        "tcg/mutants_killed": sum(q.killed for q in found) / max(1, screened),
        "tcg/mutants_killed_by_given": sum(q.killed_by_given for q in found) / max(1, screened),
        "tcg/inputs_legal": sum(q.inputs_legal for q in found) / max(1, inputs),
        "tcg/redundancy": mean([q.redundancy for q in found]),
    }


# --- training ---


def _prompt(run: RunContext, problem: Problem) -> list[int]:
    """The generator's prompt; like a step's header, the opening of the answer is written by the system."""
    messages = tcg_messages(problem, problem.references[0])
    return [*run.tokens.encode_chat(messages), *run.tokens.encode(OPENING)]


def _example(run: RunContext, problem: Problem, prompt: Sequence[int], completion: str) -> Example:
    ids = [*run.tokens.encode(completion.removeprefix(OPENING)), *run.tokens.end_ids]
    return Example((*prompt, *ids), (*[0] * len(prompt), *[1] * len(ids)), problem.id)


async def _material(run: RunContext, problems: Sequence[Problem]) -> dict[str, Material]:
    builder = _builder(run)
    found = await asyncio.gather(*[builder.material(problem) for problem in problems])
    return {problem.id: one for problem, one in zip(problems, found, strict=True)}


def _train_sft(
    run: RunContext, round_: int, problems: Sequence[Problem], material: dict[str, Material], rng: random.Random
) -> bool:
    c = run.config.tcg
    examples = []
    for problem in problems:
        prompt = _prompt(run, problem)
        texts = sft_completions(material[problem.id].tests, rng, c.sft_completions)
        examples += [_example(run, problem, prompt, text) for text in texts]
    examples = [e for e in examples if len(e.token_ids) <= run.config.learner.max_tokens]
    if not examples:
        return False
    run.workers.learner.load(spec(run, run.model, "policy", c.learning_rate), run.config.seed)
    run.fit("sft", examples, run.fit_settings(c.batch_size, c.sft_epochs), round_, "tcg_sft")
    run.state["tcg_sft"] = run.checkpoint(f"tcg-sft-round-{round_}")
    return True


def _dpo_pairs(
    run: RunContext, problems: Sequence[Problem], material: dict[str, Material], rng: random.Random
) -> list[PreferenceExample]:
    c = run.config.tcg
    per_problem = -(-c.dpo_pairs // max(1, len(problems)))
    pairs: list[PreferenceExample] = []
    for problem in rng.sample(list(problems), len(problems)):
        prompt = _prompt(run, problem)
        own = material[problem.id]
        for pair in preference_pairs(problem, own.tests, "", rng, per_problem, own.wrong):
            chosen, rejected = (_example(run, problem, prompt, text) for text in (pair.chosen, pair.rejected))
            if max(len(chosen.token_ids), len(rejected.token_ids)) <= run.config.learner.max_tokens:
                pairs.append(PreferenceExample(chosen, rejected))
    return pairs[: c.dpo_pairs]


def _train_dpo(run: RunContext, round_: int, pairs: list[PreferenceExample]) -> None:
    c = run.config.tcg
    model = run.dir.path / run.state["tcg_sft"]
    run.workers.learner.load(spec(run, model, "policy", c.dpo_learning_rate), run.config.seed)
    run.fit("dpo", pairs, run.fit_settings(c.batch_size, 1), round_, "tcg_dpo", beta=c.beta)


# --- generation ---


def _generate(run: RunContext, problems: Sequence[Problem], shard: str, seed: int) -> dict[str, Generated]:
    """Texts by the generator, kept in `data/generated`; outputs by executing every reference."""
    c = run.config.tcg
    draw = Draw(max_tokens=c.max_tokens, temperature=c.temperature)
    workers = itertools.cycle(run.workers.rollouts)
    texts: dict[str, list[str | None]] = {}

    def call(index: int) -> Callable[[], Any]:
        problem = problems[index]
        prompts = [_prompt(run, problem)] * c.prompts
        first = run.config.seed + 1000 * seed + c.prompts * index
        return lambda: next(workers).draw_texts.remote(problem.id, prompts, draw, first)

    def on_result(result: tuple[str, list[str | None]]) -> None:
        texts[result[0]] = result[1]
        run.display.update(len(texts), len(problems), unit="problems", loss=None)

    in_flight = -(-2 * run.config.engine.max_num_seqs * len(run.workers.rollouts) // c.prompts)
    calls = map(call, range(len(problems)))
    flow.stream(calls, in_flight, CALL_DEADLINE_S, "test case generation", on_result, run.live(dict))
    written = [
        GeneratedText(problem_id=p.id, text=text or "", lost=text is None) for p in problems for text in texts[p.id]
    ]
    run.store.write_records("generated", shard, written)
    by_problem: dict[str, dict[str, ParsedCase]] = {p.id: {} for p in problems}
    for problem in problems:
        for text in texts[problem.id]:
            for case in parse_cases(OPENING + (text or ""), problem):
                by_problem[problem.id].setdefault(case.key, case)
    found = asyncio.run(_execute_all(run, problems, {name: list(cases.values()) for name, cases in by_problem.items()}))
    return {name: replace(generated, lost=texts[name].count(None)) for name, generated in found.items()}


async def _execute_all(
    run: RunContext, problems: Sequence[Problem], cases: dict[str, list[ParsedCase]]
) -> dict[str, Generated]:
    builder = _builder(run)
    found = await asyncio.gather(*[builder.execute(p, cases[p.id]) for p in problems])
    return {p.id: Generated(e.tests, e.known, e.right) for p, e in zip(problems, found, strict=True)}


def _builder(run: RunContext) -> SuiteBuilder:
    c = run.config.tcg
    settings = BuildSettings(c.suite_size, c.mutated_inputs, c.screening_inputs, c.mutants, c.kill_bar, run.config.seed)
    return SuiteBuilder(RayPool(run.workers.sandboxes), run.config.sandbox.limits(), settings)


def _accuracy(generated: dict[str, Generated], problems: Sequence[Problem]) -> float | None:
    """Share of the test cases generated for `problems` on which the references agree with the output that the model
    wrote; 0 where it wrote nothing that could be read, None where there is no problem to measure on."""
    mine = [generated[p.id] for p in problems]
    return sum(g.right for g in mine) / max(1, sum(g.cases for g in mine)) if mine else None


# --- suites ---


async def _suites(run: RunContext, problems: Sequence[Problem], generated: dict[str, Generated]) -> list[Suite]:
    builder = _builder(run)
    done = 0

    async def one(problem: Problem) -> Suite:
        nonlocal done
        own = generated.get(problem.id)
        suite = await builder.build(problem, own.tests if own else [])
        done += 1
        run.display.update(done, len(problems), unit="suites", loss=None, tokens_per_s=None, programs_per_s=None)
        return suite

    return list(await asyncio.gather(*[one(p) for p in problems]))
