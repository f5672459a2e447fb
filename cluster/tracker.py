"""The one writer of metrics: every line goes to `metrics.jsonl`, and to W&B where that works.

`metrics.jsonl` is the record that a run can rely on; W&B is a view of it. Whatever goes wrong with W&B (no network, no
service, a refused key) is noted once and the run goes on. Metrics are drawn over axes of our own, since an offline run
that is resumed starts W&B's step at 0 again.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TextIO

from cluster.run_dir import RunDir
from reasoning.errors import InputError

Mode = Literal["auto", "online", "offline", "disabled"]
MODES = ("auto", "online", "offline", "disabled")

AXES = ("round", "learner/step", "wall_s")
"""What a metric may be drawn over: round, optimizer step of a learner, seconds of work on the run (resumes add up)."""
AXIS_OF = {
    # Exact names come first: the loss of the PRM goes by step, its AUC by round.
    "prm/loss": "learner/step",
    "prm/grad_norm": "learner/step",
    "prm/tokens_per_s": "learner/step",
    "prm/accuracy": "learner/step",
    "rl/alpha": "round",
    "eval/*": "round",
    "search/*": "round",
    "tcg/*": "round",
    "tcg_difficulty/*": "round",
    "sandbox/*": "round",
    "sync/*": "round",
    "prm/*": "round",
    "data/*": "round",
    "rl/*": "learner/step",
    "sft/*": "learner/step",
    "tcg_sft/*": "learner/step",
    "tcg_dpo/*": "learner/step",
    "tcg_rl/*": "learner/step",
    "critic/*": "learner/step",
    "alarm/*": "round",
    "guard/*": "round",
}
"""Metric, or its family, to the axis that a line with it must carry. Everything else is drawn over `wall_s`."""

FLUSH_SECONDS = 2.0
"""How much a kill may cost W&B's own file; `metrics.jsonl` loses nothing."""
INIT_SECONDS = 30.0
"""How long W&B may take to answer at the start; after that the run is kept offline."""
FINISH_SECONDS = 60.0
"""How long the last upload may take."""


def axis_of(metric: str) -> str:
    """The axis of `metric`."""
    return AXIS_OF.get(metric) or AXIS_OF.get(f"{metric.split('/')[0]}/*", "wall_s")


def check_line(metrics: Mapping[str, float | int], axes: Mapping[str, float | int]) -> dict[str, float | int]:
    """One line of `metrics.jsonl` as plain numbers, axes first.

    Raises:
        ValueError: no metrics; a value that is no finite number; an unknown axis; a metric whose axis is not given.
            The message names the metric.
    """
    if not metrics:
        raise ValueError("metrics: got none; use at least one")
    if unknown := sorted(set(axes) - set(AXES)):
        raise ValueError(f"axes: got {unknown[0]!r}; use {', '.join(AXES)}")
    for name in metrics:
        if name in AXES or name == "time":
            raise ValueError(f"{name}: it is an axis; give it in axes")
        axis = axis_of(name)
        if axis != "wall_s" and axis not in axes:
            raise ValueError(f"{name}: its axis {axis!r} is missing; give it in axes")
    return {name: _number(name, value) for name, value in (*axes.items(), *metrics.items())}


def _number(name: str, value: object) -> float | int:
    # Numbers of numpy and zero-dimensional tensors count: `item()` is what they share.
    plain = value.item() if not isinstance(value, numbers.Real) and hasattr(value, "item") else value
    if not isinstance(plain, numbers.Real):
        raise ValueError(f"{name}: got {value!r}; use a number")
    if isinstance(plain, numbers.Integral):
        return int(plain)
    if not math.isfinite(plain):
        raise ValueError(f"{name}: got {float(plain)}; use a finite number")
    return float(plain)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; [] where there is no file yet.

    A last line that was torn by a kill is left out. Raises ValueError, with the line's number, for any other bad line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    *lines, torn = data.split(b"\n")
    if torn:
        try:
            json.loads(torn)
            lines.append(torn)  # whole but for its line end
        except ValueError:
            pass
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from None
    return rows


def resolve_mode(mode: str, run_dir: str | Path | None = None) -> tuple[str, str]:
    """What `mode` comes to on this machine ("online", "offline" or "disabled"), and a sentence for the user.

    "auto" is online when an API key is configured, unless W&B's own settings (WANDB_MODE, `wandb offline`) say less.

    Raises:
        InputError: an unknown mode, or "online" without a usable API key.
    """
    if mode not in MODES:
        raise InputError("wandb.mode", mode, f"one of {', '.join(MODES)}")
    later = f"; sync later with `{_sync_command(run_dir)}`"
    if mode == "disabled":
        return "disabled", "W&B: disabled (as configured); metrics.jsonl holds every metric"
    if mode == "offline":
        return "offline", f"W&B: offline (as configured){later}"
    try:
        wished, key, problem = _wandb_settings()
    except ImportError:
        if mode == "online":
            raise InputError("wandb.mode", mode, "offline or auto", "the package wandb is not installed") from None
        return "disabled", "W&B: disabled (the package is not installed); metrics.jsonl holds every metric"
    if mode == "auto" and wished in ("offline", "disabled"):
        return wished, f"W&B: {wished} (as W&B's own settings say)" + (later if wished == "offline" else "")
    if not key:
        if mode == "online":
            legal = "auto or offline, or configure a key (WANDB_API_KEY or `wandb login`)"
            raise InputError("wandb.mode", mode, legal, problem)
        return "offline", f"W&B: offline ({problem}){later}"
    return "online", "W&B: online (an API key is configured)"


def _scratch() -> list[Path]:
    """The two directories in /tmp that importing W&B makes. They are its own business, and may be called something else
    in another version."""
    with contextlib.suppress(ImportError, AttributeError):
        from wandb.sdk.artifacts.artifact import Artifact
        from wandb.sdk.data_types._private import MEDIA_TMP

        return [Path(MEDIA_TMP.name), Path(Artifact._TMP_DIR.name)]
    return []


def _wandb_settings() -> tuple[str, bool, str]:
    """W&B's configured mode, whether there is a usable key, and if not the reason. Asks no server, prompts nobody."""
    os.environ.setdefault("WANDB_SILENT", "true")
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    # Not wandb.setup(): that starts W&B's service process, which the driver has no use for and would have to end.
    settings = wandb_setup.singleton().settings
    try:
        auth = wbauth.authenticate_session(host=settings.base_url, source="o1coder", prompt=False, update_session=False)
    except Exception as error:
        return settings.mode or "", False, f"the configured API key cannot be used: {_short(error)}"
    return settings.mode or "", auth is not None, "no API key configured"


def _sync_command(run_dir: str | Path | None) -> str:
    # A resumed run has several such folders; the pattern stays outside of the quotes.
    return f"wandb sync {shlex.quote(str(run_dir)) if run_dir else 'RUN_DIR'}/wandb/offline-run-*"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """Where the metrics of a run go: the mode in force, a sentence for the user, the first failure of W&B or ""."""

    mode: str
    note: str
    warning: str
    wandb_dir: str


class Tracker:
    """Writes a run's metrics. One per run: two writers would interleave lines and start two W&B runs.

    Made again with the same `run_id` (a resume, or an actor that was restarted) it goes on with the same run: lines are
    appended, a line torn by a kill is cut off, and `wall_s` counts on from the last line. Thread-safe.
    """

    def __init__(
        self,
        run_dir: RunDir | str | Path,
        config: dict[str, Any],
        mode: Mode = "auto",
        run_id: str | None = None,
        project: str = "o1coder",
        name: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`run_id` defaults to the id of the run directory, `name` to the directory's name.

        Raises:
            InputError: unknown mode. OSError: `metrics.jsonl` cannot be written. W&B's troubles raise nothing.
        """
        self._run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
        self._clock = clock
        self._lock = threading.RLock()
        self._warning = ""
        self._wandb: Any = None
        self._wandb_works = True
        self._named: set[str] = set()
        self._file = _open_for_append(self._run.metrics)
        seconds = [row["wall_s"] for row in read_metrics(self._run.metrics)[-1:] if "wall_s" in row]
        self._began = clock() - max(seconds, default=0.0)
        if mode not in MODES:
            raise InputError("wandb.mode", mode, f"one of {', '.join(MODES)}")
        self._prepare_environment()
        try:
            self._mode, self._note = resolve_mode(mode, self._run.path)
        except InputError as error:
            # The driver has refused this already where the user can act; a key that did not reach this process is no
            # reason to stop a run.
            self._warn(str(error))
            self._mode, self._note = resolve_mode("offline", self._run.path)
        if self._mode != "disabled":
            self._start(config, run_id or self._run.id, project, name or self._run.path.name)

    def log(self, metrics: Mapping[str, float | int], axes: Mapping[str, float | int] | None = None) -> None:
        """Append one line `{"time": unix seconds, **axes, **metrics}` and hand it to W&B. `wall_s` is added if absent.

        Raises:
            ValueError: see `check_line`. RuntimeError: after `finish`. OSError: the disk refuses the line.
        """
        with self._lock:
            if self._file.closed:
                raise RuntimeError(f"tracker: {sorted(metrics)} came after finish()")
            now = self._clock()
            given = dict(axes or {})
            given.setdefault("wall_s", round(max(0.0, now - self._began), 3))
            line = check_line(metrics, given)
            # One write of one whole line, flushed at once: a reader or a kill can tear no more than the last line.
            self._file.write(json.dumps({"time": round(now, 3), **line}, allow_nan=False) + "\n")
            self._file.flush()
            self._guarded("log", lambda run: self._send(run, metrics, line))

    def log_table(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        axes: Mapping[str, float | int] | None = None,
    ) -> None:
        """Send a table (examples, not metrics) to W&B; `metrics.jsonl` does not hold tables.

        Raises:
            ValueError: a row that is not as long as `columns`; an unknown axis.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"{name}, row {number}: got {len(row)} values; use {len(columns)}")
        if unknown := sorted(set(axes or {}) - set(AXES)):
            raise ValueError(f"axes: got {unknown[0]!r}; use {', '.join(AXES)}")

        def send(run: Any) -> None:
            import wandb

            # Mixed types in a column are refused by W&B unless they are text.
            data = [[v if isinstance(v, (int, float)) or v is None else str(v) for v in row] for row in rows]
            table = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
            run.log({name: table, **(axes or {})})

        with self._lock:
            self._guarded("log_table", send)

    def status(self) -> TrackerStatus:
        """Mode, note and first failure; a method rather than a field so that an actor can be asked for it."""
        with self._lock:
            place = str(getattr(getattr(self._wandb, "settings", None), "sync_dir", "") or "")
            note = self._note + (f" (trouble: {self._warning})" if self._warning else "")
            return TrackerStatus(self._mode, note, self._warning, place)

    def finish(self, exit_code: int = 0, deadline_s: float = FINISH_SECONDS) -> TrackerStatus:
        """Close `metrics.jsonl` and the W&B run, within `deadline_s` seconds. Logging ends here.

        A second call does nothing. Never raises for W&B's sake: what went wrong is in the returned status.
        """
        with self._lock:
            status = self.status()
            run, self._wandb = self._wandb, None
            self._file.close()
        if run is None:
            return status

        failures: list[str] = []

        def end() -> None:
            import wandb

            try:
                run.finish(exit_code=exit_code)
                wandb.teardown(exit_code=exit_code)  # ends W&B's own service process
                # An actor that is killed does not run what would remove them at the end of its interpreter.
                for place in _scratch():
                    shutil.rmtree(place, ignore_errors=True)
            except BaseException as error:
                failures.append(_short(error))

        worker = threading.Thread(target=end, name="wandb-finish", daemon=True)
        worker.start()
        worker.join(deadline_s)
        if worker.is_alive():
            self._warn(f"W&B did not finish within {deadline_s:g} s; the rest can be sent with `wandb sync`")
        elif failures:
            self._warn(f"finish: {failures[0]}")
        note = self._note + (f" (trouble: {self._warning})" if self._warning else "")
        return TrackerStatus(status.mode, note, self._warning, status.wandb_dir)

    def _prepare_environment(self) -> None:
        """W&B's files into the run directory, its output off; before wandb is imported, which reads some of it once."""
        place = self._run.wandb
        os.environ.update(
            WANDB_DIR=str(self._run.path),  # W&B itself adds the folder "wandb"
            WANDB_DATA_DIR=str(place / "data"),
            WANDB_CACHE_DIR=str(place / "cache"),
            WANDB_ARTIFACT_DIR=str(place / "artifacts"),
            WANDB_SILENT="true",
            WANDB_QUIET="true",
            WANDB_CONSOLE="off",
        )
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

    def _start(self, config: dict[str, Any], run_id: str, project: str, name: str) -> None:
        try:
            self._wandb = self._init(self._mode, config, run_id, project, name)
            return
        except Exception as error:
            self._warn(f"{self._mode} start failed: {_short(error)}")
        if self._mode == "online":
            try:
                import wandb

                wandb.teardown()  # the failed attempt holds the run id
                self._mode, self._note = resolve_mode("offline", self._run.path)
                self._wandb = self._init("offline", config, run_id, project, name)
                return
            except Exception as error:
                self._warn(f"offline start failed: {_short(error)}")
        self._mode, self._note = "disabled", "W&B: disabled (it could not be started); metrics.jsonl holds every metric"

    def _init(self, mode: str, config: dict[str, Any], run_id: str, project: str, name: str) -> Any:
        import wandb

        self._run.wandb.mkdir(parents=True, exist_ok=True)
        for place in _scratch():  # gone where this process had another tracker
            place.mkdir(exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            show_warnings=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            init_timeout=INIT_SECONDS,
            login_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )
        how: Any = mode
        run = wandb.init(
            project=project,
            id=run_id,
            name=name,
            dir=str(self._run.path),
            config=config,
            mode=how,
            resume="allow",
            settings=settings,
        )
        for axis in AXES:
            run.define_metric(axis, hidden=axis != "round")
        for pattern, axis in AXIS_OF.items():
            run.define_metric(pattern, step_metric=axis)
        return run

    def _send(self, run: Any, metrics: Mapping[str, float | int], line: dict[str, float | int]) -> None:
        # A pattern "*" would compete with those of AXIS_OF, so metrics outside of them are given their axis by name.
        for name in metrics:
            if axis_of(name) == "wall_s" and name not in self._named:
                run.define_metric(name, step_metric="wall_s")
                self._named.add(name)
        run.log(line)

    def _guarded(self, what: str, call: Callable[[Any], None]) -> None:
        """Run `call` with the W&B run; a failure is kept as a warning and ends the use of W&B, not the run."""
        if self._wandb is None or not self._wandb_works:
            return
        try:
            call(self._wandb)
        except Exception as error:
            self._warn(f"{what}: {_short(error)}; only metrics.jsonl goes on")
            self._wandb_works = False

    def _warn(self, text: str) -> None:
        self._warning = self._warning or text  # the first failure explains the others


def _open_for_append(path: Path) -> TextIO:
    """Open for appending; a last line without its end (a kill in the middle of a write) is mended or cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            try:
                json.loads(data[whole:])
                mended = data + b"\n"
            except ValueError:
                mended = data[:whole]
            with path.open("r+b") as file:
                file.write(mended)
                file.truncate()
    return path.open("a", encoding="utf-8")


@cache
def _actor_class() -> Any:
    import ray

    # No CPU of its own: it waits for lines most of the time. Restarted, it goes on with the same run.
    return ray.remote(num_cpus=0, max_restarts=3)(Tracker)


def __getattr__(name: str) -> Any:
    # `TrackerActor` is made on first use: importing ray fixes its authentication settings, which the driver sets first.
    if name == "TrackerActor":
        return _actor_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
