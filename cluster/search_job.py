"""`o1coder search`: tree search alone, without learners. Every problem is searched once, and the trees are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from cluster import job, preflight, search_report, trees
from cluster.config import RunConfig
from cluster.driver_log import attempt, driver_log
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir
from cluster.stop import Stop
from cluster.trees import PlannedTree
from cluster.workers import ENGINE_START_S, Workers, prepare_environment
from reasoning.errors import InputError, MachineError
from reasoning.nodes import TreeReport
from reasoning.records import Suite
from reasoning.search import PolicyName, SearchSettings

log = logging.getLogger(__name__)

SPLITS = ("train", "heldout", "all")
BUDGET = "laptop"
ROUND = 0
"""Where the last metrics stand on the axis of rounds: the model has been through none."""
MIN_DISK_GIB = 1.0
SHOW_S = 3.0
"""Seconds from one look at the workers to the next."""
FIXED = (
    *("model", "problems", "ids", "skip_bad_rows", "seed", "search.shots"),
    *("sandbox.cpu_s", "sandbox.memory_mb", "sandbox.packages"),
    *(f"search.{name}" for name in SearchSettings.model_fields),
    "engine.max_model_len",
)
"""What a search is about: the same before and after a resume. Everything else is about the machine."""


def memory_need(config: RunConfig) -> preflight.MemoryNeed:
    """What one engine, the sandboxes, Ray and the driver take together: seen was 4.5 GB with a 135M model and 1 GiB for
    keys and values."""
    return preflight.MemoryNeed(
        floor_gb=5.0, base_gb=3.2 + 1.074 * config.engine.kv_cache_gib, per_byte=2.0, learns=False
    )


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What the command line asked for; None where it said nothing. `overrides`: dotted settings."""

    budget: str | None = None
    run_dir: str | None = None
    resume: str | None = None
    policy: str | None = None
    split: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(slots=True)
class Search:
    """One search in this process. `reports`: of trees with an event log, by problem id."""

    config: RunConfig
    run_dir: RunDir
    split: str
    trees: list[PlannedTree]
    state: dict[str, Any]
    console: Console
    stop: Stop
    reports: dict[str, TreeReport] = field(default_factory=dict)
    context: Any = None
    note: str = ""
    seconds: float = 0.0

    @property
    def settings(self) -> SearchSettings:
        return self.config.search_settings()

    @property
    def left(self) -> list[PlannedTree]:
        """Trees that have not ended."""
        return [t for t in self.trees if not (t.problem.id in self.reports and self.reports[t.problem.id].finished)]


def policy_overrides(policy: str | None) -> tuple[str, ...]:
    """`--policy` as a setting, which those on the command line may change."""
    if policy is None:
        return ()
    if policy not in get_args(PolicyName):
        raise InputError("policy", policy, f"one of {', '.join(get_args(PolicyName))}")
    return (f"search.policy={policy}",)


def search(request: SearchRequest, console: Console, command: Sequence[str], stop: Stop) -> int:
    """Run or resume a search; returns the exit code (0 done, 1 without a report, 130 interrupted).

    `stop`: the signal that may come, with its handlers installed. Raises InputError for bad input, MachineError where
    the sandbox or the engine fails, Interrupted before the search has begun.
    """
    prepare_environment()
    config = _config(request)
    new = request.resume is None
    with job.run_directory(request.run_dir, request.resume) as run_dir:
        found = _planned(request, config, run_dir, console, stop)
        model = Path()
        if found.left:
            run_dir.require_disk(MIN_DISK_GIB)
            model, usable = job.check(config, [t.problem for t in found.trees], console, memory_need(config))
            kept = {p.id for p in usable}
            found.trees = [t for t in found.trees if t.problem.id in kept]
        run_dir = found.run_dir = job.begin(run_dir, config, stop, command if new else None, found.state)
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True, markup=False)
    with driver_log(run_dir.logs / "driver.log"):
        return _run(found, model)


# --- before ---


def _config(request: SearchRequest) -> RunConfig:
    if request.split is not None and request.split not in SPLITS:
        raise InputError("split", request.split, f"one of {', '.join(SPLITS)}")
    overrides = (*policy_overrides(request.policy), *request.overrides)
    if request.resume is None:
        return job.load_config(request.budget or BUDGET, overrides)
    path = job.config_of(request.resume)
    # A budget that is named again is compared as well, rather than passed over.
    config = job.load_config(request.budget or path, overrides)
    job.require_same(FIXED, job.load_config(path, ()), config)
    return config


def _planned(request: SearchRequest, config: RunConfig, run_dir: RunDir, console: Console, stop: Stop) -> Search:
    """The search with its problems, and what is there of it. Raises InputError."""
    state: dict[str, Any] = {"kind": "search", "split": request.split or "all"}
    if request.resume is not None:
        state = run_dir.read_state()
        job.require_kind(run_dir, state, "search")
        if request.split not in (None, state["split"]):
            legal = f"{state['split']!r}, as the run began, or a new run"
            raise InputError("split", request.split, legal, "cannot change on a resume")
    split = str(state["split"])
    problems = job.load_problems(console, lambda on_bad: preflight.problems_of(config, split, on_bad))
    console.print(f"problems: {len(problems)} to search", highlight=False)
    digest = state.setdefault("problems", trees.digest(problems))
    if digest != trees.digest(problems):
        legal = "the problems as they were when the run began, or a new run"
        raise InputError("problems", config.problems, legal, "they have changed since")
    planned = trees.plan(problems, config.seed, run_dir)
    found = Search(config, run_dir, split, planned, state, console, stop)
    if request.resume is not None:
        found.reports = trees.read_reports(planned, found.settings)
        unfinished = sum(not r.finished for r in found.reports.values())
        over = len(found.reports) - unfinished
        console.print(f"trees: {over} ended, {unfinished} to go on with, {len(planned) - over - unfinished} new")
    return found


# --- at work ---


def _run(search: Search, model: Path) -> int:
    job.quiet(search.run_dir)
    workers = Workers(search.config, model, search.run_dir.logs)

    def work() -> None:
        if search.left:
            _search_with(search, model, workers)
        _write(search)
        if search.left:
            lost = f"{len(search.left)} of {len(search.trees)} trees were ended by infrastructure errors"
            raise MachineError(f"{lost}; `./o1coder search --resume {search.run_dir.path}` goes on with them")

    def finish(stopped: str, code: int) -> int:
        return _finish(search, stopped, code)

    return job.conduct(work, finish, lambda: None, workers, search.run_dir, search.console, search.stop)


def _search_with(search: Search, model: Path, workers: Workers) -> None:
    """Start what a search takes, and search. Raises MachineError where the engine or a worker dies."""
    import ray

    search.console.print(job.join_ray(search.run_dir.id, search.stop), highlight=False, markup=False)
    problems = [t.problem for t in search.trees]
    context, search.note = job.prepare(
        search.config, search.run_dir, model, problems, workers, search.state, search.console
    )
    search.context, context.stop = context, search.stop
    search.state["shots"] = search.config.search.shots
    search.state["wandb_note"] = search.note
    context.display = ProgressDisplay(["start", "search"], search.console)
    try:
        with context.display as display:
            display.start_stage("start")
            seconds = max(ray.get(workers.launch_rollouts(), timeout=ENGINE_START_S))
            context.tell_prompts()
            display.end_stage(f"engine up in {seconds:.0f} s")
            display.start_stage("search", len(search.trees), "trees")
            _grow(search, context)
            display.end_stage()
    except (ray.exceptions.RayError, TimeoutError) as error:
        search.stop.check()
        reason = " ".join(str(getattr(error, "cause", None) or error).split())[:300]
        raise MachineError(
            f"a worker failed: {reason}; `./o1coder search --resume {search.run_dir.path}` goes on"
        ) from error


def _grow(search: Search, context: Any) -> None:
    """Search what is left, at most `search.trees_in_flight` trees at a time."""
    suites = {t.problem.id: Suite(problem_id=t.problem.id, tests=t.problem.tests) for t in search.left}

    def on_result(result: Any) -> None:
        search.reports[result.report.problem_id] = result.report

    look = _Look(search, context)
    workers, in_flight = context.workers.rollouts, search.config.search.trees_in_flight
    try:
        trees.grow(workers, search.left, suites, search.settings, in_flight, on_result, look)
    finally:
        look.note_seconds()
    look.look()
    _log_last(search, context)


class _Look:
    """Every few seconds: what the terminal shows, a line of metrics, and the seconds that a resume counts on from."""

    def __init__(self, search: Search, context: Any) -> None:
        self._search, self._context = search, context
        self._earlier = sum(r.tokens for r in search.reports.values())
        self._seconds_before = float(search.state.get("seconds", 0.0))
        self._began = self._last = time.monotonic()
        context.speeds()

    def __call__(self) -> None:
        if time.monotonic() - self._last >= SHOW_S:
            self.look()

    def look(self) -> None:
        """Show and log how far the search is."""
        self._last = time.monotonic()
        rates = self._context.speeds()
        ended = [r for r in self._search.reports.values() if r.finished]
        tokens = self._earlier + self._context.sampled_tokens
        # Trees that are being searched count by their tokens: most of them end late, and together.
        open_ = len(self._search.trees) - len(ended)
        whole = sum(r.tokens for r in ended) + open_ * self._search.settings.token_budget
        solved = sum(r.solved for r in ended)
        shown = {name: round(value, 1) for name, value in rates.items()}
        share = min(0.99, tokens / max(1, whole))
        if not open_:
            # The whole search, and no tokens of choices between actions: what the report says.
            tokens, shown = sum(r.tokens for r in ended), self._overall(ended)
        self._context.display.update(done=len(ended), share=share, solved=solved, **shown)
        self._context.log(
            {
                "trees/done": len(ended),
                "trees/solved": solved,
                "trees/tokens": tokens,
                **{f"trees/{name}": value for name, value in rates.items()},
            },
            ROUND,
        )
        self.note_seconds()
        self._search.run_dir.write_state(self._search.state)
        self._context.tick()

    def _overall(self, ended: list[TreeReport]) -> dict[str, float]:
        self.note_seconds()
        found = trees.metrics(ended, max(1e-6, float(self._search.state["seconds"])))
        return {
            "tokens_per_s": round(found["search/tokens_per_s"], 1),
            "programs_per_s": round(found["sandbox/programs_per_s"], 1),
        }

    def note_seconds(self) -> None:
        """Keep how long the search has taken, earlier processes included."""
        self._search.state["seconds"] = self._seconds_before + time.monotonic() - self._began


def _log_last(search: Search, context: Any) -> None:
    """The metrics that the search stage of a training run ends with, too."""
    from cluster.context import RunContext

    assert isinstance(context, RunContext)
    found = trees.metrics(list(search.reports.values()), max(1e-6, float(search.state["seconds"])))
    context.log({**found, **context.sandbox_metrics()}, ROUND)


# --- the end ---


def _write(search: Search) -> None:
    written = trees.write_outputs(search.run_dir, search.trees)
    search.reports = {r.problem_id: r for r in written}


def _finish(search: Search, stopped: str, code: int) -> int:
    """See `job.wind_up`."""
    context = search.context

    def sum_up() -> search_report.SearchReport:
        with attempt("reading the logs of trees that have not ended", log):
            search.reports |= trees.read_reports(search.left, search.settings)
        return search_report.summarize(
            search.config,
            search.run_dir,
            search.split,
            len(search.trees),
            list(search.reports.values()),
            seconds=float(search.state.get("seconds", 0.0)),
            peak_memory=int(search.state.get("peak_memory", 0)),
            wandb_note=search.note or str(search.state.get("wandb_note", "")),
            stopped_early=stopped,
        )

    notes = {"measuring memory": job.noting_memory(context, search.state)}
    return job.wind_up(
        code, context, search.run_dir, search.state, search.console, notes, sum_up,
        search_report.write, search_report.render,
    )  # fmt: skip
