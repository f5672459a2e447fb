"""The main job, from a configuration to a finished run: `o1coder train` and `python -m cluster.train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import job, preflight
from cluster.config import RunConfig
from cluster.driver_log import driver_log
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir
from cluster.stop import Stop
from cluster.workers import Workers, prepare_environment
from reasoning.records import Problem


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the command line asked for. `overrides`: dotted settings."""

    budget: str = "laptop"
    run_dir: str | None = None
    resume: str | None = None
    overrides: tuple[str, ...] = ()


def train(request: TrainRequest, console: Console, command: Sequence[str], stop: Stop) -> int:
    """Run or resume; returns the exit code (0 done, 1 without a report, 130 interrupted).

    `stop`: the signal that may come, with its handlers installed. Raises InputError for bad input, MachineError where
    the sandbox fails, Interrupted before the run has begun.
    """
    prepare_environment()
    config = _config(request)
    new = request.resume is None
    with job.run_directory(request.run_dir, request.resume) as run_dir:
        job.require_kind(run_dir, run_dir.read_state(), "train")
        run_dir.require_disk(preflight.MIN_DISK_GIB)
        model, problems = _check(config, console)
        run_dir = job.begin(run_dir, config, stop, command if new else None)
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True, markup=False)
    with driver_log(run_dir.logs / "driver.log"):
        return _run(config, run_dir, model, problems, console, stop)


def _check(config: RunConfig, console: Console) -> tuple[Path, list[Problem]]:
    """The model's directory and the problems, both known to be usable. Raises InputError."""
    problems = job.load_problems(console, lambda on_bad: preflight.load_problems(config, on_bad))
    held = sum(p.split == "heldout" for p in problems)
    console.print(f"problems: {len(problems) - held} to train on, {held} held out", highlight=False)
    preflight.require_programs(config)
    return job.check(config, problems, console)


FIXED = ("model", "problems", "ids", "seed", "search.shots")
"""What a run is about: the same before and after a resume."""


def _config(request: TrainRequest) -> RunConfig:
    if request.resume is None:
        return job.load_config(request.budget, request.overrides)
    path = job.config_of(request.resume)
    config = job.load_config(path, request.overrides)
    job.require_same(FIXED, job.load_config(path, ()), config)
    return config


def _run(config: RunConfig, run_dir: RunDir, model: Path, problems: list[Problem], console: Console, stop: Stop) -> int:
    job.quiet(run_dir)
    workers = Workers(config, model, run_dir.logs)
    state = run_dir.read_state()
    context: Any = None
    note = ""

    def work() -> None:
        nonlocal context, note
        console.print(job.join_ray(run_dir.id, stop), highlight=False, markup=False)
        context, note = _prepare(config, run_dir, model, problems, workers, state, console)
        context.stop = stop
        _loop(context)

    def finish(stopped: str, code: int) -> int:
        return _finish(context, note, stopped, code, console)

    return job.conduct(work, finish, lambda: job.remove_transfer(state), workers, run_dir, console, stop)


def _prepare(
    config: RunConfig,
    run_dir: RunDir,
    model: Path,
    problems: list[Problem],
    workers: Any,
    state: dict[str, Any],
    console: Console,
) -> tuple[Any, str]:
    """Everything that must be there before the first stage; returns the context and the note on W&B."""
    from cluster.coordinator import Coordinator

    context, note = job.prepare(config, run_dir, model, problems, workers, state, console)
    names = Coordinator(context).names()
    context.display = ProgressDisplay(names, console, stage_estimates=_estimates(names))
    return context, note


def _estimates(names: list[str]) -> dict[str, float]:
    from cluster.coordinator import ESTIMATES

    return {name: float(ESTIMATES.get(name.split(" (")[0], 60)) for name in names}


def _loop(context: Any) -> None:
    from cluster.coordinator import Coordinator

    with context.display:
        coordinator = Coordinator(context)
        coordinator.start()
        coordinator.go()


def _finish(context: Any, note: str, stopped: str, code: int, console: Console) -> int:
    """See `job.wind_up`."""
    if context is None:
        return code
    from cluster import report, summary

    notes = {"measuring memory": context.measure_memory}
    if not context.workers.ray_is_gone:
        notes = {"counting tokens and programs": lambda: _count(context), **notes}
    return job.wind_up(
        code, context, context.dir, context.state, console, notes,
        lambda: summary.summarize(context, note, stopped), report.write, report.render,
    )  # fmt: skip


def _count(context: Any) -> None:
    """Add what the rollout workers counted to the counts of earlier processes of this run."""
    import ray

    counters = ray.get([w.counters.remote() for w in context.workers.rollouts], timeout=20)
    earlier = context.state.get("counters", {})
    context.state["counters"] = {
        "tokens": earlier.get("tokens", 0) + sum(c.sampled_tokens for c in counters),
        "programs": earlier.get("programs", 0) + sum(c.programs for c in counters),
    }


if __name__ == "__main__":
    from cluster.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
