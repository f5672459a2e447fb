"""`o1coder fit`: one learner alone, on what an earlier run gathered (method sections 2, 4 and 5)."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import fit_report, job, preflight
from cluster.config import RunConfig
from cluster.driver_log import driver_log
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir, expand
from cluster.stop import Stop
from cluster.workers import Workers, prepare_environment
from reasoning.errors import InputError
from reasoning.records import Problem

MEMORY = preflight.MemoryNeed(floor_gb=4.0, base_gb=3.0, per_byte=12.0)
"""Ray, the driver and one rank: bf16 weights and gradients, fp32 weights and two moments, and its activations."""
FIXED = ("model", "problems", "ids", "skip_bad_rows")
"""What the data of the earlier run is about; for the generator also the seed, which says what it is measured on."""


@dataclass(frozen=True, slots=True)
class Learner:
    """Something that can be fitted. `stage`: of the loop, whose work it does. `own`, `earlier`: the files below `data/`
    that the stage of round N had, of that round and of those before it. `needs`: nothing can be done without the first
    of its own. `models`: the checkpoints that it may read."""

    stage: str
    own: tuple[str, ...]
    earlier: tuple[str, ...] = ()
    needs: bool = True
    models: tuple[str, ...] = ("policy",)


LEARNERS: Mapping[str, Learner] = {
    "policy-sft": Learner("policy_sft", ("paths/round-{}-search",), ("paths/round-{}-*",)),
    "prm": Learner("prm", ("paths/round-{}-search",), ("paths/round-{}-*",)),
    "tcg": Learner(
        "tcg",
        ("paths/samples-round-{}", "generated/round-{}-sft-own-*"),
        ("paths/round-{}-*", "paths/samples-round-{}", "paths/rl-round-{}"),
        needs=False,
        models=("tcg",),
    ),
    "policy-rl": Learner(
        "policy_rl",
        ("paths/rl-round-{}", "paths/round-{}-search"),
        ("paths/round-{}-*",),
        models=("policy", "prm", "critic", "reference"),
    ),
}


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What the command line asked for; None where it said nothing. `data`: the earlier run. `overrides`: dotted
    settings."""

    what: str
    data: str | None = None
    round_: str | None = None
    run_dir: str | None = None
    resume: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(slots=True)
class Fit:
    """One such job in this process."""

    what: str
    config: RunConfig
    run_dir: RunDir
    problems: list[Problem]
    state: dict[str, Any]
    console: Console
    stop: Stop
    context: Any = None
    note: str = ""

    @property
    def round_(self) -> int:
        return int(self.state["round"])


def fit(request: FitRequest, console: Console, command: Sequence[str], stop: Stop) -> int:
    """Run or resume; returns the exit code (0 done, 1 without a report, 130 interrupted).

    Raises InputError for bad input, MachineError where the sandbox fails, Interrupted before the work has begun.
    """
    prepare_environment()
    new = request.resume is None
    config = _config(request)
    with job.run_directory(request.run_dir, request.resume) as run_dir:
        state = _begun(request) if new else run_dir.read_state()
        job.require_kind(run_dir, state, "fit")
        if state["what"] != request.what:
            raise InputError("learner", request.what, f"{state['what']!r}, as the run began, or a new run")
        model, problems = _check(request.what, config, state, console)
        run_dir.require_disk(preflight.MIN_DISK_GIB)
        run_dir = job.begin(run_dir, config, stop, command if new else None, state)
    console.print(f"run directory: {run_dir.path}", highlight=False, soft_wrap=True, markup=False)
    with driver_log(run_dir.logs / "driver.log"):
        return _run(Fit(request.what, config, run_dir, problems, state, console, stop), model)


# --- before ---


def _config(request: FitRequest) -> RunConfig:
    if request.resume is None and request.data is None:
        raise InputError("data", None, "--data RUN_DIR, a run of `o1coder train`")
    if request.resume is not None and request.round_ is not None:
        raise InputError("round", request.round_, "either --round or --resume", "--resume knows the round already")
    if request.resume is not None and request.data is not None:
        raise InputError("data", request.data, "either --data or --resume", "--resume knows the data already")
    source, field = (request.resume, "resume") if request.resume is not None else (str(request.data), "data")
    path = job.config_of(source, field)
    config = job.load_config(path, request.overrides)
    fixed = (*FIXED, "seed") if request.what == "tcg" or request.resume is not None else FIXED
    before = job.load_config(path, ())
    job.require_same(fixed, before, config, "cannot change on a resume" if field == "resume" else "the data is of that")
    return config


def _begun(request: FitRequest) -> dict[str, Any]:
    """The state that a fit begins with: that of the earlier run before the stage. Raises InputError (field "data" or
    "round")."""
    source = RunDir(expand(str(request.data)))
    state = source.read_state()
    kinds = ("train", "tcg train") if request.what == "tcg" else ("train",)
    made_by = state.get("kind", "train")
    if made_by not in kinds:
        legal = " or ".join(f"a run of `o1coder {kind}`" for kind in kinds)
        raise InputError("data", request.data, legal, f"it is a run of `o1coder {made_by}`")
    stage = LEARNERS[request.what].stage
    ended = {int(key.split("/")[0]): key for key in state.get("stages", {}) if key.split("/")[1] == stage}
    if not ended:
        raise InputError("data", request.data, f"a run whose stage {stage} has ended", "this one's has not")
    round_ = _round(request, ended)
    before = state["stages"][ended[round_]].get("models")
    if before is None:
        legal = "a run that notes the models its stages begin with (one of this version)"
        raise InputError("data", request.data, legal, "this one does not")
    missing(request.what, source.data, round_)
    models = {name: _absolute(source.path, value) for name, value in before.items()}
    return {
        "kind": "fit",
        "what": request.what,
        "source": str(source.path),
        "source_kind": made_by,
        "round": round_,
        "taken": state.get("taken", {}),
        "shots": state.get("shots", 0),
        "began_with": models.get("tcg" if request.what == "tcg" else "policy", ""),
        **models,
    }


def _round(request: FitRequest, ended: Mapping[int, str]) -> int:
    if request.round_ is None:
        return max(ended)
    legal = f"one of {', '.join(map(str, sorted(ended)))}"
    if not request.round_.isdecimal() or int(request.round_) not in ended:
        raise InputError("round", request.round_, legal, "the stage has not ended in such a round")
    return int(request.round_)


def _absolute(source: Path, value: Any) -> Any:
    """A checkpoint as it is from anywhere; other values as they are."""
    return str(source / value) if isinstance(value, str) and value else value


def _check(what: str, config: RunConfig, state: Mapping[str, Any], console: Console) -> tuple[Path, list[Problem]]:
    """The model's directory and the problems. Raises InputError."""
    problems = job.load_problems(console, lambda on_bad: preflight.load_problems(config, on_bad))
    for name in LEARNERS[what].models:
        if state.get(name) and not Path(state[name], "config.json").is_file():
            raise InputError("data", state["source"], "a run that still has its checkpoints", f"{state[name]} is gone")
    return job.check(config, problems, console, MEMORY, references=what == "tcg")


def missing(what: str, source: Path, round_: int) -> None:
    """Raises InputError (field "data") where an earlier run's `data/` lacks what nothing can be done without."""
    learner = LEARNERS[what]
    first = f"{learner.own[0].format(round_)}.parquet"
    if learner.needs and not (source / first).exists():
        raise InputError("data", str(source.parent), f"a run that has data/{first}")


def link_data(what: str, source: Path, target: Path, round_: int) -> None:
    """Put what the stage had of an earlier run's `data/` into another one's. Files are shared, not copied, where the
    file system can: no process changes them. Raises OSError."""
    learner = LEARNERS[what]
    patterns = [p.format(round_) for p in learner.own]
    patterns += [p.format(r) for p in learner.earlier for r in range(1, round_)]
    for file in [f for p in patterns for f in sorted(source.glob(f"{p}.parquet"))]:
        place = target / file.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = place.with_name(f".{place.name}.partial")
            scratch.unlink(missing_ok=True)
            try:
                os.link(file, scratch)
            except OSError:  # another file system
                shutil.copy2(file, scratch)  # with its time: which programs are the latest is read from it
            scratch.rename(place)


# --- at work ---


def _run(fit_: Fit, model: Path) -> int:
    job.quiet(fit_.run_dir)
    workers = Workers(fit_.config, model, fit_.run_dir.logs)

    def work() -> None:
        console, run_dir = fit_.console, fit_.run_dir
        if (source := Path(fit_.state["source"]) / "data").is_dir():  # gone on a resume, perhaps
            link_data(fit_.what, source, run_dir.data, fit_.round_)
        console.print(job.join_ray(run_dir.id, fit_.stop), highlight=False, markup=False)
        context, fit_.note = job.prepare(
            fit_.config, run_dir, model, fit_.problems, workers, fit_.state, console, sandboxes=fit_.what == "tcg"
        )
        fit_.context, context.stop, context.replays = context, fit_.stop, True
        _go(context, fit_)

    def finish(stopped: str, code: int) -> int:
        return _finish(fit_, stopped, code)

    return job.conduct(work, finish, lambda: None, workers, fit_.run_dir, fit_.console, fit_.stop)


def _go(context: Any, fit_: Fit) -> None:
    from cluster.coordinator import Coordinator

    coordinator, stage = Coordinator(context), LEARNERS[fit_.what].stage
    context.display = ProgressDisplay([coordinator.label(stage, fit_.round_)], fit_.console)
    with context.display:
        coordinator.stage(stage, fit_.round_, _work(fit_))


def _work(fit_: Fit) -> Callable[[Any, int], dict[str, Any]]:
    """What the stage does, with data that is there already."""
    from cluster import stage_learn, stage_rl, stage_tcg

    def policy_rl(run: Any, round_: int) -> dict[str, Any]:
        return stage_rl.improve(run, round_, run.store.read_paths([f"rl-round-{round_}"]))

    def tcg(run: Any, round_: int) -> dict[str, Any]:
        return stage_tcg.fit_generator(run, round_, alone=fit_.state["source_kind"] == "tcg train")

    work: dict[str, Callable[[Any, int], dict[str, Any]]] = {
        "policy-sft": stage_learn.policy_sft, "prm": stage_learn.prm, "policy-rl": policy_rl, "tcg": tcg,
    }  # fmt: skip
    return work[fit_.what]


# --- the end ---


def _finish(fit_: Fit, stopped: str, code: int) -> int:
    context = fit_.context

    def sum_up() -> fit_report.FitReport:
        return summarize(fit_.config, fit_.run_dir, fit_.state, fit_.note, stopped)

    notes = {"measuring memory": job.noting_memory(context, fit_.state)}
    return job.wind_up(
        code, context, fit_.run_dir, fit_.state, fit_.console, notes, sum_up,
        fit_report.write, fit_report.render,
    )  # fmt: skip


def summarize(
    config: RunConfig, run_dir: RunDir, state: Mapping[str, Any], note: str = "", stopped: str = ""
) -> fit_report.FitReport:
    """The report of a fit from what it has on disk."""
    stage = LEARNERS[state["what"]].stage
    result: dict[str, Any] = dict(state.get("stages", {}).get(f"{state['round']}/{stage}", {}))
    rows = fit_report.training_rows(run_dir.metrics)
    made = sorted(p for p in run_dir.checkpoints.glob("*") if (p / "config.json").is_file())
    speeds = [row["tokens_per_s"] for own in rows.values() for row in own if "tokens_per_s" in row]
    given = config.tcg.generator if state["what"] == "tcg" else ""
    return fit_report.FitReport(
        run_dir=str(run_dir.path),
        what=state["what"],
        source=state["source"],
        round=state["round"],
        model=state["began_with"] or given or config.model,
        seed=config.seed,
        result=str(result.get("note", "")),
        skipped=str(result.get("skipped", "")),
        losses={family: [row["loss"] for row in own] for family, own in rows.items()},
        tokens_per_s=round(statistics.median(speeds), 1) if speeds else None,
        seconds=result.get("seconds"),
        peak_memory_gb=round(state["peak_memory"] / 1e9, 2) if state.get("peak_memory") else None,
        checkpoints=[str(path) for path in made],
        alarms=[says for own in state.get("alarms", {}).values() for says in own.values()],
        wandb_note=note,
        stopped_early=stopped,
    )
