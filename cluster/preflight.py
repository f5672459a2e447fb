"""What must be true before anything expensive starts: memory, disk, problems that hold, references that pass."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from cluster import memory
from cluster.config import LearnerConfig, RunConfig
from cluster.driver_log import unlogged
from cluster.progress import HEARTBEAT_SECONDS, ProgressDisplay
from learners.memory import Need, adapter_parameters, need, shape_of
from reasoning.errors import InputError, MachineError
from reasoning.problems import BadRow, bundled, demonstrations, from_rows, load_jsonl, row_id, with_held_out
from reasoning.prompts import ChatEncoder, PolicyPrompts
from reasoning.records import Problem
from sandbox import LocalPool, PackageError, SandboxUnavailableError, Submission, SuiteResult, Verdict

CHECKS_S = 3600.0
NAMED = 8
"""Problems whose references fail that are named beside the first."""
"""How long all reference checks together may take; each run has limits of its own."""
MIN_DISK_GIB = 4.0
MBPP_HUB = "google-research-datasets/mbpp"
CLOSING_S = 30.0
"""How long the cells of a check that was broken off may take to end."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What all processes of a command take together: `base_gb` and `per_byte` for each byte of weights on disk, and
    `floor_gb` at least. `learns`: with one learner rank of the default settings among them."""

    floor_gb: float
    base_gb: float
    per_byte: float
    learns: bool = True

    def gb(self, weights: int) -> float:
        """GB for `weights` bytes of weights."""
        return max(self.floor_gb, self.base_gb + self.per_byte * weights / 1e9)


LOOP_MEMORY = MemoryNeed(floor_gb=11.0, base_gb=8.3, per_byte=10.0)
"""What the laptop budget was seen to need (docs/results.md; tiny peaks at 9.5), and the learner's 18 bytes per
parameter."""


SMALLER = (
    "learner.recompute=true, learner.lora_rank and tcg.lora_rank, smaller learner.micro_tokens or learner.max_tokens"
)
"""What makes a rank take less."""


def learner_need(config: RunConfig, model: Path) -> Need | None:
    """What one learner rank needs to train the policy, the PRM or the generator, whichever takes most; None for a model
    whose shape cannot be read."""
    c = config.learner
    adapters = [c.lora_rank, *([config.tcg.lora_rank] if config.tcg.sft_completions else [])]
    try:
        shape = shape_of(model)
        return need(
            shape,
            trained=adapter_parameters(shape, max(adapters)) if all(adapters) else None,
            ranks=c.ranks,
            zero_stage=c.zero_stage,
            micro_tokens=max(c.micro_tokens, c.max_tokens),  # one long sequence is a micro-batch too
            recompute=c.recompute,
            offload=c.offload,
        )
    except (OSError, ValueError):
        return None


def require_device_memory(config: RunConfig, model: Path, free: int) -> None:
    """Raises InputError where a learner rank needs more than the `free` bytes of its GPU."""
    asked = learner_need(config, model)
    if asked is None or asked.device <= free:
        return
    legal = f"learner.zero_stage=3 with more learner.ranks, learner.offload=optimizer (or weights), {SMALLER}"
    reason = f"a rank needs about {asked.device / 1e9:.1f} GB for {model.name}"
    raise InputError("learner.gpus", f"{free / 1e9:.1f} GB free", legal, reason)


def _learner_gb(config: RunConfig, model: Path) -> float:
    """GB of host memory that the learner's ranks take beyond what one rank of the default settings does."""
    usual = config.model_copy(update={"learner": LearnerConfig()})
    asked, known = learner_need(config, model), learner_need(usual, model)
    if asked is None or known is None:
        return 0.0
    each = asked.host + (0 if config.learner.gpus else asked.device)
    return max(0.0, config.learner.ranks * each - known.device) / 1e9


def require_memory(model: Path, memory_need: MemoryNeed = LOOP_MEMORY, config: RunConfig | None = None) -> None:
    """Raises InputError where the run would be killed for memory. `config`: of a command that learns."""
    need = memory_need.gb(sum(f.stat().st_size for f in model.glob("*.safetensors")))
    learner = _learner_gb(config, model) if config is not None and memory_need.learns else 0.0
    need += learner
    taken, grouped = memory.available()
    free = taken / 1e9
    if free < need:
        legal = f"a machine with {need:.0f} GB of free memory, or a smaller model"
        if learner:
            legal += f", or less than these {learner:.0f} GB more than usual for the learner: {SMALLER}"
        bound = "; the limit of this process's control group (container, job) counts" if grouped else ""
        raise InputError("memory", f"{free:.1f} GB free", legal, f"{model.name} needs more{bound}")


def load_problems(config: RunConfig, on_bad: BadRow) -> list[Problem]:
    """The problems of a training run, at least one held out, those to train on with references. Raises InputError."""
    problems = with_held_out(_read_problems(config, on_bad), config.ids)
    bare = [p for p in problems if p.split == "train" and not p.references]
    if config.skip_bad_rows:
        for problem in bare:
            on_bad(0, problem.id, "it has no reference to learn from")
        return [p for p in problems if p not in bare]
    require_references(bare)
    return problems


def without_bare(problems: list[Problem], on_bad: BadRow) -> list[Problem]:
    """The problems that have a reference; the others are named."""
    for problem in problems:
        if not problem.references:
            on_bad(0, problem.id, "it has no reference")
    return [p for p in problems if p.references]


def require_references(problems: list[Problem]) -> None:
    """Raises InputError naming the first problem without a reference."""
    for problem in problems:
        if not problem.references:
            legal = "problems with references, or `o1coder tcg generate tcg.mode=question_only`, which does without"
            raise InputError("problems", problem.id, legal, "it has no reference")


def require_programs(config: RunConfig) -> None:
    """Raises InputError where tests are to be confirmed by programs and there would be too few."""
    if config.tcg.mode == "question_only" and config.tcg.policy_samples < 2:
        legal = "2 or more: tests are confirmed by programs that agree"
        raise InputError("tcg.policy_samples", config.tcg.policy_samples, legal, "too few for tcg.mode=question_only")


def problems_of(config: RunConfig, split: str, on_bad: BadRow) -> list[Problem]:
    """The problems of one split ("train", "heldout", as `load_problems` makes them where no row of the source is held
    out), or all ("all"). A problem is in the same split whichever others are chosen beside it. Raises InputError, also
    where the split is empty."""
    problems = _read_problems(config, on_bad)
    if split == "all":
        return problems
    lenient = config.model_copy(update={"ids": (), "skip_bad_rows": True})
    every = _read_problems(lenient, lambda *_: None) if config.ids else problems
    if len(every) > 1 and not any(p.split == "heldout" for p in every):
        every = with_held_out(every)
    splits = {p.id: p.split for p in every}
    chosen = [p.model_copy(update={"split": split}) for p in problems if splits.get(p.id, p.split) == split]
    if not chosen:
        raise InputError("split", split, "all, or other problems", f"none of {len(problems)} problems belongs to it")
    for problem in problems:
        if config.ids and splits.get(problem.id, problem.split) != split:
            on_bad(0, problem.id, f"it is not in the split {split!r}")
    return chosen


def _read_problems(config: RunConfig, on_bad: BadRow) -> list[Problem]:
    ids = config.ids
    skip = on_bad if config.skip_bad_rows else None
    if config.problems == "bundled":
        problems = bundled()
        if ids:
            wanted = set(ids)
            problems = [p for p in problems if wanted & {p.id, p.id.split("/")[-1]}]
            missing = wanted - {i for p in problems for i in (p.id, p.id.split("/")[-1])}
            if missing:
                known = [p.id.split("/")[-1] for p in bundled()]
                alike = difflib.get_close_matches(min(missing).split("/")[-1], known, 3, 0.5) or known[:3]
                legal = f"ids of bundled problems, such as {', '.join(alike)}"
                raise InputError("ids", ",".join(sorted(missing)[:5]), legal, "not found")
    elif config.problems.endswith((".jsonl", ".json")) or os.path.exists(config.problems):  # noqa: PTH110
        problems = load_jsonl(Path(config.problems), ids, skip)
    elif config.problems == "mbpp" or "/" in config.problems:
        problems = _from_hub(MBPP_HUB if config.problems == "mbpp" else config.problems, ids, skip)
    else:
        raise InputError("problems", config.problems, "bundled, mbpp, an existing FILE.jsonl, or a hub id (owner/name)")
    return problems


def _from_hub(name: str, ids: tuple[str, ...], on_bad: BadRow | None) -> list[Problem]:
    from datasets import load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # the hub's client raises many kinds; the user needs one sentence
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            "problems", name, "bundled, an existing FILE.jsonl, or a hub id that can be reached", reason
        ) from error
    rows = [(split, row) for split, rows in splits.items() for row in rows]
    problems = from_rows(enumerate((row for _, row in rows), start=1), name, ids, on_bad)
    tested = {row_id(row) for split, row in rows if split.startswith("test")}
    return [p.model_copy(update={"split": "heldout"}) if p.id in tested else p for p in problems]


def require_room(
    problems: list[Problem],
    encode_chat: ChatEncoder,
    config: RunConfig,
    header: int = 0,
    longest: int = 10**9,
    on_bad: BadRow | None = None,
) -> list[Problem]:
    """The problems whose prompts leave room for a step and a program: all, unless `on_bad` is given, which is told of
    the others.

    `header`: tokens that stand before each of the two. `longest`: positions that the model has. Raises InputError
    naming the first problem without room.
    """
    settings = config.search_settings()
    room = 2 * header + settings.step_tokens + settings.code_tokens
    own = settings.path_tokens != config.engine.max_model_len
    bound = "search.path_tokens" if own else "engine.max_model_len"
    known = {p.id: p for p in [*bundled(), *problems]}
    prompts = PolicyPrompts(encode_chat, demonstrations(), known, config.search.shots)
    fitting = []
    for problem in problems:
        length = len(prompts.ids(problem))
        reason = f"its prompt has {length} tokens, a step and a program take {room}"
        if settings.has_room(length, header):
            fitting.append(problem)
        elif on_bad is not None:
            on_bad(0, problem.id, reason)
        elif length + room > longest:
            legal = "skip_bad_rows=true to go on without it"
            raise InputError("problems", problem.id, legal, f"{reason}, the model's context has {longest}")
        else:
            legal = f"{bound}={length + room} or more, or skip_bad_rows=true to go on without it"
            raise InputError("problems", problem.id, legal, reason)
    return fitting


def check_references(
    problems: list[Problem],
    config: RunConfig,
    console: Console | None = None,
    heartbeat_s: float = HEARTBEAT_SECONDS,
    on_bad: BadRow | None = None,
) -> list[Problem]:
    """Every reference passes every test of its problem, in the sandbox. Shows how far it is; silent for `heartbeat_s`
    seconds at most. Returns the problems of which that is so: all, unless `on_bad` is given, which is told of the
    others.

    Raises InputError naming the first problem that fails and how, or where no isolation is available; MachineError
    where the sandbox itself fails.
    """
    total = sum(len(p.references) for p in problems)
    with unlogged("sandbox"):
        try:
            with ProgressDisplay(["checks"], console, heartbeat_s=heartbeat_s) as display:
                display.start_stage("checks", total, "references")
                failures = _wait_for(_check(problems, config, lambda done: display.update(done)))
                display.end_stage()
        except PackageError as error:  # at once, or when the first cell loads it
            legal = "packages that are installed and start no thread, e.g. [numpy]"
            raise InputError("sandbox.packages", config.sandbox.packages, legal, str(error)) from None
        except SandboxUnavailableError as error:
            legal = "a machine with seccomp (Linux 4.14 or newer)"
            raise InputError("sandbox.min_level", config.sandbox.min_level, legal, str(error)) from None
    if failures and on_bad is not None:
        names = dict(failures)
        for problem in problems:
            if problem.id in names:
                on_bad(0, problem.id, f"its reference gets {names[problem.id]}")
        return [p for p in problems if p.id not in names]
    if failures:
        problem, verdict = failures[0]
        others = ", ".join(name for name, _ in failures[1 : 1 + NAMED]) + (", ..." if len(failures) > 1 + NAMED else "")
        more = f" (and so do {len(failures) - 1} more: {others})" if len(failures) > 1 else ""
        legal = "problems whose references pass their own tests, or skip_bad_rows=true to go on without the others"
        raise InputError("problems", problem, legal, f"its reference gets {verdict}{more}")
    return problems


async def _check(problems: list[Problem], config: RunConfig, on_done: Callable[[int], None]) -> list[tuple[str, str]]:
    """The problems with a reference that fails, in order, and how. `on_done` is told how many were run."""
    failures: dict[str, str] = {}
    limits = config.sandbox.limits()
    done = 0

    async def one(pool: LocalPool, problem: Problem, reference: str) -> None:
        nonlocal done
        cases = [t.case for t in problem.tests]
        try:
            submission = Submission(
                source=reference, entry_point=problem.entry_point, cases=cases, limits=limits, stop="first_failure"
            )
        except ValidationError as error:  # a source that is too long
            failures.setdefault(problem.id, f"refused: {error.errors()[0]['msg']}")
        else:
            result = await pool.judge(submission)
            if result.verdict is not Verdict.ACCEPTED:
                failures.setdefault(problem.id, _failure(problem.id, result))
        done += 1
        on_done(done)

    async with LocalPool(min_level=config.sandbox.min_level, packages=config.sandbox.packages) as pool:
        await asyncio.gather(*[one(pool, p, r) for p in problems for r in p.references])
    return [(p.id, failures[p.id]) for p in problems if p.id in failures]


def _failure(problem_id: str, result: SuiteResult) -> str:
    """The first case that failed, for people. Raises MachineError where it failed for the sandbox."""
    number, case = next((i, r) for i, r in enumerate(result.cases, 1) if r.verdict is not Verdict.ACCEPTED)
    if case.verdict is Verdict.SANDBOX_ERROR:
        raise MachineError(
            f"the sandbox failed, not the problem: test {number} of {problem_id} could not be run, several times over: "
            f"{case.detail or 'no reason given'}; `python -m sandbox doctor` looks at the sandbox alone"
        )
    return f"{case.verdict} on test {number}" + (f": {case.detail}" if case.detail else "")


def _wait_for(work: Coroutine[Any, Any, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Run a coroutine in an event loop of another thread, and wait for it.

    A signal interrupts this wait, where its exception is raised as it is; inside the event loop it would come out of
    whatever callback runs at that moment, or be swallowed there. The work is then cancelled and cleans up.
    """
    ended: Future[list[tuple[str, str]]] = Future()
    cancel: Future[Callable[[], object]] = Future()

    async def cancellable() -> list[tuple[str, str]]:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    def run() -> None:
        try:
            ended.set_result(asyncio.run(cancellable()))
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=run, name="reference-checks", daemon=True)
    thread.start()
    try:
        return ended.result(CHECKS_S)
    except TimeoutError:
        raise MachineError(f"the references were not checked within {CHECKS_S:.0f} s") from None
    finally:
        if not ended.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended by itself
                cancel.result(CLOSING_S)()
        thread.join(CLOSING_S)
