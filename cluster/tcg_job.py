"""`o1coder tcg train|generate|report`: the test case generator alone (method section 2)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cluster import config as configuration
from cluster import job, preflight, tcg_report
from cluster.config import RunConfig
from cluster.driver_log import driver_log
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir, expand
from cluster.stop import Stop
from cluster.store import ProcessDataStore
from cluster.workers import Workers, prepare_environment
from reasoning.errors import InputError
from reasoning.records import Problem

Action = Literal["train", "generate"]
ROUND = 1
FIXED = (
    *("model", "problems", "ids", "skip_bad_rows", "seed", "search.shots"),
    *(f"tcg.{name}" for name in configuration.TcgConfig.model_fields),
    *("sandbox.cpu_s", "sandbox.memory_mb", "sandbox.packages", "engine.max_model_len"),
)
"""What it is about: the same before and after a resume."""


@dataclass(frozen=True, slots=True)
class TcgRequest:
    """What the command line asked for; None where it said nothing. `overrides`: dotted settings."""

    action: Action
    budget: str | None = None
    run_dir: str | None = None
    resume: str | None = None
    split: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def kind(self) -> job.Kind:
        return "tcg train" if self.action == "train" else "tcg generate"


@dataclass(slots=True)
class Tcg:
    """One such job in this process. `taught`: empty where nothing is trained; `problems`: that suites are made for."""

    request: TcgRequest
    config: RunConfig
    run_dir: RunDir
    taught: list[Problem]
    problems: list[Problem]
    state: dict[str, Any]
    console: Console
    stop: Stop
    context: Any = None
    note: str = ""


def run(request: TcgRequest, console: Console, command: Sequence[str], stop: Stop) -> int:
    """Run or resume; returns the exit code (0 done, 1 without a report, 130 interrupted).

    Raises InputError for bad input, MachineError where the sandbox fails, Interrupted before the work has begun.
    """
    prepare_environment()
    config = _config(request)
    new = request.resume is None
    with job.run_directory(request.run_dir, request.resume) as run_dir:
        state: dict[str, Any] = {"kind": request.kind, "split": request.split or "all"}
        if not new:
            state = run_dir.read_state()
            job.require_kind(run_dir, state, request.kind)
        taught, problems = _problems(request, config, state, console)
        run_dir.require_disk(preflight.MIN_DISK_GIB)
        memory = dataclasses.replace(preflight.LOOP_MEMORY, learns=request.action == "train")
        model, usable = job.check(config, [*taught, *problems], console, memory)
        names = {p.id for p in usable}
        taught, problems = ([p for p in some if p.id in names] for some in (taught, problems))
        run_dir = job.begin(run_dir, config, stop, command if new else None, state)
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True, markup=False)
    with driver_log(run_dir.logs / "driver.log"):
        return _run(Tcg(request, config, run_dir, taught, problems, state, console, stop), model)


# --- before ---


def _config(request: TcgRequest) -> RunConfig:
    if request.resume is None:
        return job.load_config(request.budget or "laptop", request.overrides)
    path = job.config_of(request.resume)
    config = job.load_config(request.budget or path, request.overrides)
    job.require_same(FIXED, job.load_config(path, ()), config)
    return config


def _problems(
    request: TcgRequest, config: RunConfig, state: dict[str, Any], console: Console
) -> tuple[list[Problem], list[Problem]]:
    """What is trained on, and what suites are made for (after training: what it is measured on). Raises InputError."""
    if request.action == "generate":
        split = str(state["split"])
        if request.split not in (None, split):
            legal = f"{split!r}, as the run began, or a new run"
            raise InputError("split", request.split, legal, "cannot change on a resume")
        found = job.load_problems(console, lambda on_bad: preflight.problems_of(config, split, on_bad))
        if config.tcg.mode == "reference" and config.skip_bad_rows:
            every = found
            found = job.load_problems(console, lambda on_bad: preflight.without_bare(every, on_bad))
        elif config.tcg.mode == "reference":
            preflight.require_references(found)
        preflight.require_programs(config)
        console.print(f"problems: {len(found)}", highlight=False)
        return [], found
    if config.tcg.sft_completions == 0:
        raise InputError("tcg.sft_completions", 0, "1 or more: this command trains the generator")
    found = job.load_problems(console, lambda on_bad: preflight.load_problems(config, on_bad))
    taught = [p for p in found if p.split == "train"]
    held = sorted((p for p in found if p.split == "heldout" and p.references), key=lambda p: p.id)
    measured = random.Random(config.seed).sample(held, min(len(held), config.tcg.measure_problems))
    console.print(f"problems: {len(taught)} to train on, {len(measured)} to measure on", highlight=False)
    return taught, measured


# --- at work ---


def _run(tcg: Tcg, model: Path) -> int:
    job.quiet(tcg.run_dir)
    workers = Workers(tcg.config, model, tcg.run_dir.logs)

    def work() -> None:
        tcg.console.print(job.join_ray(tcg.run_dir.id, tcg.stop), highlight=False, markup=False)
        context, tcg.note = job.prepare(
            tcg.config, tcg.run_dir, model, [*tcg.taught, *tcg.problems], workers, tcg.state, tcg.console
        )
        tcg.context, context.stop = context, tcg.stop
        stages = _stages(tcg)
        context.display = ProgressDisplay(["start", *stages], tcg.console)
        _go(context, stages)

    def finish(stopped: str, code: int) -> int:
        return _finish(tcg, stopped, code)

    return job.conduct(
        work, finish, lambda: job.remove_transfer(tcg.state), workers, tcg.run_dir, tcg.console, tcg.stop
    )


def _stages(tcg: Tcg) -> dict[str, Callable[[Any, int], dict[str, Any]]]:
    """What is done, in order; each is done once, whatever interrupts."""
    from cluster import stage_tcg

    def sample(run: Any, round_: int) -> dict[str, Any]:
        found = stage_tcg.sample_policy(run, round_, tcg.problems)
        return {"note": f"{sum(map(len, found.values()))} different programs"}

    def train(run: Any, round_: int) -> dict[str, Any]:
        programs = stage_tcg.sample_policy(run, round_, [*tcg.taught, *tcg.problems])
        return stage_tcg.train_generator(run, round_, tcg.taught, tcg.problems, programs, both)

    def suites(run: Any, round_: int) -> dict[str, Any]:
        return stage_tcg.make_suites(run, round_, tcg.problems)

    if tcg.request.action == "generate":
        return {"policy samples": sample, "suites": suites}
    both = [True, False] if tcg.config.tcg.question_only_share else [True]
    return {"tcg": train, "suites": suites}


def _go(context: Any, stages: dict[str, Callable[[Any, int], dict[str, Any]]]) -> None:
    from cluster.coordinator import Coordinator

    with context.display:
        coordinator = Coordinator(context)
        coordinator.start()
        for name, work in stages.items():
            coordinator.stage(name, ROUND, work)


# --- the end ---


def _finish(tcg: Tcg, stopped: str, code: int) -> int:
    context = tcg.context

    def sum_up() -> tcg_report.TcgReport:
        result = summarize(tcg.config, tcg.run_dir, tcg.state, tcg.note, stopped)
        if context is not None and result.rows and not context.workers.ray_is_gone:
            context.log_table("tcg/by_difficulty", *tcg_report.table(result.rows), ROUND)
        return result

    notes = {"measuring memory": job.noting_memory(context, tcg.state)}
    return job.wind_up(
        code, context, tcg.run_dir, tcg.state, tcg.console, notes, sum_up,
        tcg_report.write, tcg_report.render,
    )  # fmt: skip


def summarize(
    config: RunConfig, run_dir: RunDir, state: dict[str, Any], note: str = "", stopped: str = ""
) -> tcg_report.TcgReport:
    """The report of a run, of `train` too, from what it has on disk."""
    stages: dict[str, Any] = state.get("stages", {})
    rounds = [key.split("/")[0] for key in stages if key.endswith("/suites")]
    trained = next((stages[k] for k in reversed(stages) if k.endswith("/tcg")), {})
    file = run_dir.data / "suites" / "current.jsonl"
    found = ProcessDataStore(run_dir.data).read_suites("current") if rounds and file.exists() else []
    peak = int(state.get("peak_memory", 0))
    return tcg_report.TcgReport(
        run_dir=str(run_dir.path),
        model=config.model,
        generator=config.tcg.generator,
        mode=config.tcg.mode,
        seed=config.seed,
        accuracy=tcg_report.accuracies(trained),
        rows=tcg_report.rows(found, config.seed),
        tests_by_origin=tcg_report.origins(found),
        refused=tcg_report.refused(found),
        seconds_per_stage={k.split("/", 1)[1]: s["seconds"] for k, s in stages.items() if "seconds" in s},
        peak_memory_gb=round(peak / 1e9, 2) if peak else None,
        wandb_note=note,
        stopped_early=stopped,
        command=str(state.get("kind", "train")),
    )


def report(run: str, console: Console) -> int:
    """`o1coder tcg report RUN`: print the report of a run, and write it beside the run's own as a page.

    Raises InputError where there is no run with suites.
    """
    path = job.config_of(run, "run")
    run_dir = RunDir(expand(run))
    result = summarize(job.load_config(path, ()), run_dir, run_dir.read_state())
    if not result.rows and not result.accuracy:
        legal = "a run whose generator was trained or whose suites were made"
        raise InputError("run", run, legal, "no generator was trained and no suite was made in it yet")
    page = run_dir.write_atomic(run_dir.path / "tcg.html", tcg_report.page(result))
    tcg_report.render(result, console)
    console.print(f"page: {page}", highlight=False, soft_wrap=True, markup=False)
    return 0
