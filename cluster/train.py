"""The main job, from a configuration to a finished run: `o1coder train` and `python -m cluster.train`."""

from __future__ import annotations

import logging
import operator
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import config as configuration
from cluster import models, preflight
from cluster.config import RunConfig
from cluster.driver_log import attempt, driver_log
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir, default_path, expand, require_free
from cluster.stop import EXIT_INTERRUPTED, Interrupted, Stop, no_signals
from cluster.tracker import resolve_mode
from cluster.workers import Workers, prepare_environment, start_ray
from reasoning.errors import InputError
from reasoning.problems import bundled, demonstrations
from reasoning.records import Problem

log = logging.getLogger(__name__)


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
    if request.resume is not None:
        run_dir = RunDir.open(request.resume)
    else:
        # Everything is checked before anything is made: a refused run leaves no directory behind.
        run_dir = RunDir(request.run_dir or default_path())
        require_free(run_dir.path)
    try:
        run_dir.require_disk(preflight.MIN_DISK_GIB)
        model, problems = _check(config, console)
        with stop.held():
            if request.resume is None:
                run_dir = RunDir.create(run_dir.path, command)
            run_dir.write_atomic(run_dir.config, config.dump())
    except BaseException:
        run_dir.close()
        raise
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True, markup=False)
    with driver_log(run_dir.logs / "driver.log"):
        return _run(config, run_dir, model, problems, console, stop)


def _check(config: RunConfig, console: Console) -> tuple[Path, list[Problem]]:
    """The model's directory and the problems, both known to be usable. Raises InputError."""
    bad: list[str] = []
    problems = preflight.load_problems(config, lambda n, name, why: bad.append(f"row {n} ({name}): {why}"))
    for line in bad:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True, markup=False)
    held = sum(p.split == "heldout" for p in problems)
    console.print(f"problems: {len(problems) - held} to train on, {held} held out", highlight=False)
    if config.model in models.ALIASES and not models.is_converted(config.model):
        console.print(f"model: converting {config.model} once (about 20 s)", highlight=False)
    model = models.resolve(config.model)
    console.print(f"model: {model}", highlight=False, soft_wrap=True, markup=False)
    _check_prompts(config, model, problems)
    preflight.require_memory(model)
    resolve_mode(config.wandb.mode)
    preflight.check_references(problems, config, console)
    return model, problems


def _check_prompts(config: RunConfig, model: Path, problems: list[Problem]) -> None:
    from actors.tokens import Tokens

    try:
        tokens = Tokens.load(model)
        tokens.encode_chat([{"role": role, "content": "?"} for role in ("system", "user", "assistant", "user")])
    except Exception as error:  # tokenizers and chat templates fail in ways of their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        legal = "a model whose tokenizer loads and takes a system message"
        raise InputError("model", config.model, legal, reason) from error
    preflight.require_room(problems, tokens.encode_chat, config)


FIXED = ("model", "problems", "ids", "seed", "search.shots")
"""What a run is about: the same before and after a resume."""


def _config(request: TrainRequest) -> RunConfig:
    if request.resume is None:
        return _absolute(configuration.load(request.budget, request.overrides))
    path = expand(request.resume) / "config.yaml"
    if not os.path.isfile(path):  # noqa: PTH113  a name may be too long for a path
        raise InputError("resume", request.resume, "the directory of an earlier run", "it has no config.yaml")
    before = configuration.load(path)
    config = _absolute(configuration.load(path, request.overrides))
    for name in FIXED:
        old, new = (operator.attrgetter(name)(c) for c in (before, config))
        if old != new:
            raise InputError(name, new, f"{old!r}, as the run began, or a new run", "cannot change on a resume")
    return config


def _absolute(config: RunConfig) -> RunConfig:
    """Paths as they are from anywhere: a run may be resumed from another directory."""
    names = {"problems": {"bundled", "mbpp"}, "model": set(models.ALIASES)}
    paths = {field: expand(getattr(config, field)) for field in names if getattr(config, field) not in names[field]}
    # os.path: a name may be too long for a path, which is no error here.
    found = {field: path for field, path in paths.items() if os.path.exists(path)}  # noqa: PTH110
    return config.model_copy(update={field: str(path.resolve()) for field, path in found.items()})


def _run(config: RunConfig, run_dir: RunDir, model: Path, problems: list[Problem], console: Console, stop: Stop) -> int:
    _quiet(run_dir)
    workers = Workers(config, model, run_dir.logs)
    state = run_dir.read_state()
    context: Any = None
    note = ""
    code = 1
    stopped = "an error"
    try:
        try:
            console.print(_ray(run_dir.id, stop), highlight=False, markup=False)
            context, note = _prepare(config, run_dir, model, problems, workers, state, console)
            context.stop = stop
            _loop(context)
            code, stopped = 0, ""
        except BaseException as error:
            if not stop.signal:
                log.exception("the run ended with an error")
                raise
            if not isinstance(error, Interrupted):
                log.warning("interrupted by %s, which came out as another error", stop.signal, exc_info=True)
            code, stopped = EXIT_INTERRUPTED, f"interrupted by {stop.signal}"
            with attempt("looking for Ray", log):
                workers.look_for_ray(2.0 if stop.signal == "SIGTERM" else 0.1)
            with attempt("telling that the run was interrupted", log):
                console.print(f"{stopped}: saving and shutting down", highlight=False, markup=False)
    finally:
        with no_signals():
            try:
                code = _finish(context, note, stopped, code, console)
            finally:
                with attempt("ending the workers", log):
                    workers.close()
                if "transfer" in state and Path(state["transfer"]).name.startswith("o1coder-"):
                    shutil.rmtree(state["transfer"], ignore_errors=True)
                run_dir.close()
                if workers.ray_is_gone:
                    # Ray's client would wait for its cluster at the end of the interpreter, and abort it.
                    with attempt("writing the last lines", log):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    logging.shutdown()
                    os._exit(code)
    return code


def _ray(run_id: str, stop: Stop) -> str:
    """Start or join Ray; signals are heard meanwhile too. Returns a line for people. Raises Interrupted, InputError."""
    try:
        started = start_ray(run_id)
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # what Ray makes of the signal while it starts
            raise
        stop.signal = stop.signal or "SIGTERM"
        raise Interrupted(stop.signal) from error
    stop.listen()
    stop.check()
    return started


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
    import ray

    from actors.tokens import Tokens
    from cluster.context import RunContext
    from cluster.coordinator import Coordinator
    from cluster.tracker import TrackerActor

    workers.tracker = TrackerActor.remote(
        run_dir, config.model_dump(mode="json"), config.wandb.mode, run_dir.id, config.wandb.project
    )
    isolation = workers.start_sandboxes()
    console.print(f"sandbox: level {isolation.level} ({isolation.level_name})", highlight=False, markup=False)
    status = ray.get(workers.tracker.status.remote(), timeout=120)
    console.print(status.note, highlight=False, soft_wrap=True, markup=False)
    shown = bundled()
    context = RunContext(
        config=config,
        dir=run_dir,
        model=model,
        tokens=Tokens.load(model),
        problems=problems,
        demonstrations=demonstrations(),
        demonstration_problems=shown,
        workers=workers,
        display=ProgressDisplay([]),
        state=state,
    )
    names = Coordinator(context).names()
    context.display = ProgressDisplay(names, console, stage_estimates=_estimates(names))
    return context, status.note


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
    """The report and the end of the metrics; returns the exit code: `code`, or 1 where a run that ended well could not
    be written down.

    Each part stands for itself: trouble in one (a full disk) hides neither how the run ended nor the other parts.
    """
    if context is None:
        return code
    import ray

    from cluster import report, summary

    lost: list[str] = []

    def tell(line: str) -> None:
        with attempt("telling it", log):
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    def lose(line: str) -> None:
        lost.append(line)
        tell(line)

    if not context.workers.ray_is_gone:
        with attempt("counting tokens and programs", log, tell):
            _count(context)
    with attempt("measuring memory", log, tell):
        context.measure_memory()
    with attempt("writing state.json", log, lose):
        context.dir.write_state(context.state)
    result = None
    with attempt("summing up the run", log, lose):
        result = summary.summarize(context, note, stopped)
    if result is not None:
        with attempt("writing the report", log, lose):
            report.write(result, context.dir)
        with attempt("showing the report", log, tell):
            report.render(result, console)
    code = code or int(bool(lost))
    if not context.workers.ray_is_gone:
        with attempt("ending the metrics", log, tell):
            ray.get(context.workers.tracker.finish.remote(code), timeout=90)
    return code


def _count(context: Any) -> None:
    """Add what the rollout workers counted to the counts of earlier processes of this run."""
    import ray

    counters = ray.get([w.counters.remote() for w in context.workers.rollouts], timeout=20)
    earlier = context.state.get("counters", {})
    context.state["counters"] = {
        "tokens": earlier.get("tokens", 0) + sum(c.sampled_tokens for c in counters),
        "programs": earlier.get("programs", 0) + sum(c.programs for c in counters),
    }


def _quiet(run_dir: RunDir) -> None:
    """Libraries write to the run's log, not over the progress display."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_dir.logs.mkdir(exist_ok=True)


if __name__ == "__main__":
    from cluster.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
