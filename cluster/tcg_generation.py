"""What the test case generator writes: prompts, texts that survive a kill, and what the references say of them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from actors.executions import Executed
from actors.sampling import Draw
from actors.sandbox_pool import RayPool
from actors.suite_builder import BuildSettings, SuiteBuilder
from cluster import flow
from cluster.context import RunContext
from reasoning.durable import write_atomic
from reasoning.records import GeneratedText, Problem, Sample
from reasoning.test_cases import OPENING, ParsedCase, new_cases, tcg_messages

log = logging.getLogger(__name__)

CALL_DEADLINE_S = 600.0
AT_ONCE = 64
"""Problems in work at a time."""
UNUSABLE = (ValueError, SyntaxError, RecursionError, OverflowError)
"""What programs and texts of models raise that nobody can work with. A sandbox that is gone is none of these."""
T = TypeVar("T")
Texts = dict[str, list[str | None]]
"""By problem id, one text per prompt; None where the engine failed."""


def prompt(run: RunContext, problem: Problem, with_code: bool) -> list[int]:
    """The generator's prompt; like a step's header, the opening of the answer is written by the system."""
    messages = tcg_messages(problem, problem.references[0] if with_code else None)
    return [*run.tokens.encode_chat(messages), *run.tokens.encode(OPENING)]


def builder(run: RunContext) -> SuiteBuilder:
    """Suites by the sandboxes of the run."""
    c = run.config.tcg
    settings = BuildSettings(
        c.suite_size, c.mutated_inputs, c.screening_inputs, c.mutants, c.kill_bar, run.config.seed, c.fill_suites
    )
    return SuiteBuilder(RayPool(run.workers.sandboxes), run.config.sandbox.limits(), settings)


def fingerprint(model: Path) -> list[str | int]:
    """Which weights a model directory holds, without reading gigabytes: its files are written once, never changed."""
    files = sorted(model.glob("*.safetensors"))
    return [str(model), *(part for f in files for part in (f.name, f.stat().st_size, f.stat().st_mtime_ns))]


async def each(work: Callable[[Problem], Coroutine[Any, Any, T]], problems: Sequence[Problem]) -> dict[str, T]:
    """What `work` makes of each problem, by id, `AT_ONCE` at a time: tests and outputs of thousands need not be in
    memory together. A problem whose programs or texts cannot be handled is left out, and the log says why; what the
    infrastructure fails on comes out."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(problem: Problem) -> T | None:
        async with places:
            try:
                return await work(problem)
            except UNUSABLE:
                log.warning("problem %s is left out", problem.id, exc_info=True)
                return None

    found = await asyncio.gather(*map(one, problems))
    return {p.id: result for p, result in zip(problems, found, strict=True) if result is not None}


def draw_samples(
    run: RunContext,
    problems: Sequence[Problem],
    prompts: Callable[[Problem], list[list[int]]],
    seed: int,
    on_samples: Callable[[str, list[Sample | None]], None],
) -> None:
    """One sample after each prompt of each problem; `on_samples` is told of a problem when all of its samples are
    there. The seeds of a problem depend on `seed` and its id."""
    c = run.config.tcg
    draw = Draw(max_tokens=c.max_tokens, temperature=c.temperature)
    workers = itertools.cycle(run.workers.rollouts)
    done = 0

    def call(problem: Problem) -> Callable[[], Any]:
        first = random.Random(f"{run.config.seed}:{seed}:{problem.id}").randrange(2**30)
        return lambda: next(workers).draw_samples.remote(problem.id, prompts(problem), draw, first)

    def on_result(result: tuple[str, list[Sample | None]]) -> None:
        nonlocal done
        done += 1
        on_samples(*result)
        run.display.update(done, len(problems), unit="problems", loss=None)

    each_asks = max((len(prompts(problem)) for problem in problems), default=1)
    in_flight = -(-2 * run.config.engine.max_num_seqs * len(run.workers.rollouts) // each_asks)
    flow.stream(map(call, problems), in_flight, CALL_DEADLINE_S, "test case generation", on_result, run.live(dict))


def write_texts(
    run: RunContext,
    problems: Sequence[Problem],
    shard: str,
    with_code: bool,
    seed: int,
    count: int,
    on_texts: Callable[[str, list[str | None]], None] = lambda name, texts: None,
) -> Texts:
    """`count` texts of each problem by the weights that the engines hold, kept in `data/generated/<shard>`. What an
    earlier process had of the same, by the same weights, is not written again. `on_texts` is told of each problem as
    soon as its texts are there.
    """
    c = run.config.tcg
    assert run.serving is not None
    starts = {p.id: prompt(run, p, with_code) for p in problems}
    made_by = {"weights": fingerprint(run.serving), "seed": [run.config.seed, seed]}
    made_by["prompts_digest"] = hashlib.sha256(json.dumps(sorted(starts.items())).encode()).hexdigest()
    made_by |= {"prompts": count, "max_tokens": c.max_tokens, "temperature": c.temperature}
    whole = run.dir.data / "generated" / f"{shard}.made_by.json"
    if whole.exists() and json.loads(whole.read_text(encoding="utf-8")) == made_by:
        texts = read_texts(run, shard)
        for name, own in texts.items():
            on_texts(name, own)
        return texts
    kept = _Kept(run.dir.data / "generated" / f"{shard}.partial.jsonl", made_by)
    missing = [p for p in problems if p.id not in kept.texts]

    def on_samples(problem_id: str, samples: list[Sample | None]) -> None:
        texts = [None if sample is None else sample.text for sample in samples]
        kept.add(problem_id, texts)
        on_texts(problem_id, texts)

    for problem in problems:
        if problem.id in kept.texts:
            on_texts(problem.id, kept.texts[problem.id])
    with kept:
        draw_samples(run, missing, lambda p: [starts[p.id]] * count, seed, on_samples)
    texts = {p.id: kept.texts[p.id] for p in problems}
    written = [
        GeneratedText(problem_id=name, text=text or "", lost=text is None) for name in texts for text in texts[name]
    ]
    whole.unlink(missing_ok=True)
    run.store.write_records("generated", shard, written)
    if not any(text.lost for text in written):
        write_atomic(whole, json.dumps(made_by))
    kept.path.unlink(missing_ok=True)
    return texts


def read_texts(run: RunContext, shard: str) -> Texts:
    """Texts of `data/generated/<shard>`, by problem id."""
    found = Texts()
    for row in run.store.read_records("generated", shard, GeneratedText):
        found.setdefault(row.problem_id, []).append(None if row.lost else row.text)
    return found


class _Kept:
    """The texts of a generation that has not ended, one line per problem after a line that says what they are of; a
    file of another generation is begun anew."""

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self.path, self.texts = path, Texts()
        self._file: TextIO | None = None
        head = json.dumps(made_by)
        whole = path.read_bytes() if path.exists() else b""
        lines = whole[: whole.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]  # a torn last line does not count
        if lines[:1] != [head]:
            lines = [head]
        for line in lines[1:]:
            name, texts = json.loads(line)
            if None not in texts:  # what the engine lost may come this time
                self.texts[name] = texts
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(f"{line}\n" for line in lines))

    def __enter__(self) -> _Kept:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, name: str, texts: list[str | None]) -> None:
        """Durable when this returns."""
        assert self._file is not None
        self._file.write(json.dumps([name, texts]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.texts[name] = texts


def cases_of(problem: Problem, texts: Sequence[str | None]) -> list[ParsedCase]:
    """The different cases of all texts that count (`new_cases`), the first of those that ask the same."""
    found: dict[str, ParsedCase] = {}
    for text in texts:
        for case in new_cases(text or "", problem):
            found.setdefault(case.key, case)
    return list(found.values())


def execute(run: RunContext, problems: Sequence[Problem], texts: Texts) -> dict[str, Executed]:
    """What the references make of the cases of each problem."""

    runs = builder(run).executions
    found = asyncio.run(each(lambda p: runs.by_references(p, cases_of(p, texts[p.id])), problems))
    return {p.id: found.get(p.id, Executed([])) for p in problems}
