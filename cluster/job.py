"""What every command that works in a run directory shares: the checks before it, its services, and its ending."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from cluster import config as configuration
from cluster import models, preflight
from cluster.config import RunConfig
from cluster.driver_log import attempt
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir, default_path, expand, require_free
from cluster.stop import EXIT_INTERRUPTED, Interrupted, Stop, no_signals
from cluster.tracker import resolve_mode
from cluster.workers import Workers, start_ray
from reasoning.errors import InputError
from reasoning.problems import BadRow, bundled, demonstrations
from reasoning.records import Problem
from reasoning.steps import StepCodec

log = logging.getLogger(__name__)

Kind = Literal["train", "search", "tcg train", "tcg generate", "fit"]
R = TypeVar("R")

# Before -----------------------------------------------------------------------------------------------------------


def config_of(run: str, field: str = "resume") -> Path:
    """The settings of an earlier run. Raises InputError (naming `field`) where there are none."""
    path = expand(run) / "config.yaml"
    if not os.path.isfile(path):  # noqa: PTH113  a name may be too long for a path
        raise InputError(field, run, "the directory of an earlier run", "it has no config.yaml")
    return path


def load_config(source: str | Path, overrides: Sequence[str]) -> RunConfig:
    """`config.load` with paths as they are from anywhere: a run may be resumed from another directory."""
    config = configuration.load(source, overrides)
    names = {"problems": {"bundled", "mbpp"}, "model": set(models.ALIASES)}
    paths = {field: expand(getattr(config, field)) for field in names if getattr(config, field) not in names[field]}
    # os.path: a name may be too long for a path, which is no error here.
    found = {field: path for field, path in paths.items() if os.path.exists(path)}  # noqa: PTH110
    resolved = config.model_copy(update={field: str(path.resolve()) for field, path in found.items()})
    return _with_generator(resolved)


def _with_generator(config: RunConfig) -> RunConfig:
    """The generator's directory as it is from anywhere. Raises InputError where it holds no model."""
    name = config.tcg.generator
    if not name:
        return config
    path = Path(os.path.abspath(expand(name)))  # noqa: PTH100  not resolved: a name may be too long for a path
    if not os.path.isfile(path / "config.json") or not any(path.glob("*.safetensors")):  # noqa: PTH113
        legal = "a directory with config.json and *.safetensors, such as RUN/checkpoints/tcg-round-1"
        raise InputError("tcg.generator", name, legal, "it holds no model")
    return config.model_copy(update={"tcg": config.tcg.model_copy(update={"generator": str(path)})})


def require_same(
    names: Sequence[str], before: RunConfig, now: RunConfig, why: str = "cannot change on a resume"
) -> None:
    """Raises InputError naming the first of the settings `names` that differs from what it was when the run began."""
    for name in names:
        old, new = (operator.attrgetter(name)(c) for c in (before, now))
        if old != new:
            raise InputError(name, new, f"{old!r}, as the run began, or a new run", why)


def require_kind(run_dir: RunDir, state: Mapping[str, Any], kind: Kind) -> None:
    """Raises InputError (field "resume") where another command made the run. `state`: of its state.json."""
    made_by = state.get("kind", "train")
    if made_by != kind:
        legal = f"a run of `o1coder {kind}`, or `o1coder {made_by} --resume`"
        raise InputError("resume", str(run_dir.path), legal, f"it is a run of `o1coder {made_by}`")


@contextlib.contextmanager
def run_directory(path: str | None, resume: str | None) -> Iterator[RunDir]:
    """The directory of an earlier run, or where a new one may be made; closed where what is done with it fails.

    Everything is checked before anything is made (`begin`): a refused run leaves no directory. Raises InputError.
    """
    if resume is not None:
        run_dir = RunDir.open(resume)
    else:
        run_dir = RunDir(path or default_path())
        require_free(run_dir.path)
    try:
        yield run_dir
    except BaseException:
        run_dir.close()
        raise


def begin(
    run_dir: RunDir,
    config: RunConfig,
    stop: Stop,
    command: Sequence[str] | None,
    state: Mapping[str, Any] | None = None,
) -> RunDir:
    """Write down what the run is to be, and for a new one (with the `command` that asked for it) make its directory.

    `state`: what a new run begins with. Raises OSError, Interrupted.
    """
    made = run_dir
    try:
        with stop.held():
            if command is not None:
                made = RunDir.create(run_dir.path, command)
                if state is not None:
                    made.write_state(state)
            made.write_atomic(made.config, config.dump())
    except BaseException:
        made.close()
        raise
    return made


def load_problems(console: Console, load: Callable[[BadRow], list[Problem]]) -> list[Problem]:
    """What `load` returns; rows that it leaves out are named. Raises InputError."""
    bad: list[str] = []

    def on_bad(number: int, name: str, why: str) -> None:
        where = " ".join([*([f"row {number}"] if number else []), *([f"({name})" if number else name] if name else [])])
        bad.append(f"{where}: {why}")

    problems = load(on_bad)
    for line in bad:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True, markup=False)
    return problems


def check(
    config: RunConfig,
    problems: list[Problem],
    console: Console,
    memory: preflight.MemoryNeed = preflight.LOOP_MEMORY,
    references: bool = True,
) -> tuple[Path, list[Problem]]:
    """The model's directory and the problems, known to be usable; `memory`: what the command takes; `references`:
    whether it runs them. With `skip_bad_rows` problems whose prompts leave no room or whose references fail are named
    and left out.

    Raises InputError for the first of these that does not hold: the model is there, its prompts leave room, memory is
    enough, W&B's mode is possible, all references pass.
    """
    if config.model in models.ALIASES and not models.is_converted(config.model):
        console.print(f"model: converting {config.model} once (about 20 s)", highlight=False)
    model = models.resolve(config.model)
    console.print(f"model: {model}", highlight=False, soft_wrap=True, markup=False)
    skip = config.skip_bad_rows
    usable = load_problems(console, lambda on_bad: _check_prompts(config, model, problems, on_bad if skip else None))
    preflight.require_memory(model, memory, config)
    asked = preflight.learner_need(config, model) if memory.learns else None
    if asked is not None:
        console.print(f"learner: about {(asked.device + asked.host) / 1e9:.1f} GB per rank", highlight=False)
    resolve_mode(config.wandb.mode)
    if references:
        usable = load_problems(
            console, lambda on_bad: preflight.check_references(usable, config, console, on_bad=on_bad if skip else None)
        )
    for split in sorted({p.split for p in problems} - {p.split for p in usable}):
        legal = "problems with room in the prompt whose references pass their own tests"
        raise InputError("problems", config.problems, legal, f"none is left in the split {split!r}")
    return model, usable


def _check_prompts(config: RunConfig, model: Path, problems: list[Problem], on_bad: BadRow | None) -> list[Problem]:
    from actors.tokens import Tokens

    try:
        tokens = Tokens.load(model)
        tokens.encode_chat([{"role": role, "content": "?"} for role in ("system", "user", "assistant", "user")])
    except Exception as error:  # tokenizers and chat templates fail in ways of their own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        legal = "a model whose tokenizer loads and takes a system message"
        raise InputError("model", config.model, legal, reason) from error
    header = StepCodec(tokens.encode).longest_header(config.search.max_depth)
    longest = models.positions(model)
    return preflight.require_room(problems, tokens.encode_chat, config, header, longest, on_bad)


# At work ----------------------------------------------------------------------------------------------------------


def quiet(run_dir: RunDir) -> None:
    """Libraries write to the run's log, not over the progress display."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_dir.logs.mkdir(exist_ok=True)


def join_ray(run_id: str, stop: Stop) -> str:
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


def prepare(
    config: RunConfig,
    run_dir: RunDir,
    model: Path,
    problems: list[Problem],
    workers: Workers,
    state: dict[str, Any],
    console: Console,
    sandboxes: bool = True,
) -> tuple[Any, str]:
    """Metrics and, where the command runs programs, `sandboxes` started, and the context of the run; returns it and the
    note on W&B.

    Raises InputError and MachineError as `Workers.start_sandboxes` does.
    """
    import ray

    from actors.tokens import Tokens
    from cluster.context import RunContext
    from cluster.tracker import TrackerActor

    workers.tracker = TrackerActor.remote(
        run_dir, config.model_dump(mode="json"), config.wandb.mode, run_dir.id, config.wandb.project
    )
    if sandboxes:
        isolation = workers.start_sandboxes()
        console.print(f"sandbox: level {isolation.level} ({isolation.level_name})", highlight=False, markup=False)
    status = ray.get(workers.tracker.status.remote(), timeout=120)
    console.print(status.note, highlight=False, soft_wrap=True, markup=False)
    context = RunContext(
        config=config,
        dir=run_dir,
        model=model,
        tokens=Tokens.load(model),
        problems=problems,
        demonstrations=demonstrations(),
        demonstration_problems=bundled(),
        workers=workers,
        display=ProgressDisplay([]),
        state=state,
    )
    return context, status.note


def noting_memory(context: Any | None, state: dict[str, Any]) -> Callable[[], None]:
    """What notes the largest memory of the processes of the run in its state."""

    def note() -> None:
        if context is not None:
            context.measure_memory()
            state["peak_memory"] = max(state.get("peak_memory", 0), context.peak_memory)

    return note


# The end ----------------------------------------------------------------------------------------------------------


def conduct(
    work: Callable[[], None],
    finish: Callable[[str, int], int],
    clean: Callable[[], None],
    workers: Workers,
    run_dir: RunDir,
    console: Console,
    stop: Stop,
) -> int:
    """Do `work` and end everything, whatever happened in it; returns the exit code.

    `finish` is told why the work ended early ("" where it did not) and the code (0, 1, or 130 where a signal came), and
    returns the final one; it runs while the workers live. `clean` runs when they are gone. Raises what `work` raised,
    unless a signal made it.
    """
    code, stopped = 1, "an error"
    try:
        try:
            work()
            code, stopped = 0, ""
        except BaseException as error:
            if not stop.signal:
                log.exception("the run ended with an error")
                raise
            if not isinstance(error, KeyboardInterrupt):
                log.warning("interrupted by %s, which came out as another error", stop.signal, exc_info=True)
            code, stopped = EXIT_INTERRUPTED, f"interrupted by {stop.signal}"
            with attempt("looking for Ray", log):
                workers.look_for_ray(2.0 if stop.signal == "SIGTERM" else 0.1)
            with attempt("telling that the run was interrupted", log):
                console.print(f"{stopped}: saving and shutting down", highlight=False, markup=False)
    finally:
        with no_signals():
            try:
                code = finish(stopped, code)
            finally:
                with attempt("ending the workers", log):
                    workers.close()
                with attempt("cleaning up", log):
                    clean()
                run_dir.close()
                if workers.ray_is_gone:
                    # Ray's client would wait for its cluster at the end of the interpreter, and abort it.
                    with attempt("writing the last lines", log):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    logging.shutdown()
                    os._exit(code)
    return code


def remove_transfer(state: Mapping[str, Any]) -> None:
    """Free the shared memory that weights were handed over in."""
    if "transfer" in state and Path(state["transfer"]).name.startswith("o1coder-"):
        shutil.rmtree(state["transfer"], ignore_errors=True)


def wind_up(
    code: int,
    context: Any | None,
    run_dir: RunDir,
    state: dict[str, Any],
    console: Console,
    notes: Mapping[str, Callable[[], None]],
    sum_up: Callable[[], R],
    write: Callable[[R, RunDir], None],
    render: Callable[[R, Console], None],
) -> int:
    """The report and the end of the metrics; returns the exit code: `code`, or 1 where a run that ended well could not
    be written down. `notes`: what is still to be noted in `state`, by what it is.

    Each part stands for itself: trouble in one (a full disk) hides neither how the run ended nor the other parts.
    """
    lost: list[str] = []

    def tell(line: str) -> None:
        with attempt("telling it", log):
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    def lose(line: str) -> None:
        lost.append(line)
        tell(line)

    for what, note in notes.items():
        with attempt(what, log, tell):
            note()
    with attempt("writing state.json", log, lose):
        run_dir.write_state(state)
    with attempt("summing up the run", log, lose):
        result = sum_up()
        with attempt("writing the report", log, lose):
            write(result, run_dir)
        with attempt("showing the report", log, tell):
            render(result, console)
    code = code or int(bool(lost))
    if context is not None and not context.workers.ray_is_gone:
        import ray

        with attempt("ending the metrics", log, tell):
            ray.get(context.workers.tracker.finish.remote(code), timeout=90)
    return code
