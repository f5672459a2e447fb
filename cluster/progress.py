"""What a run shows while it works: a live panel on a terminal, plain lines elsewhere.

The display never ends a run: whatever goes wrong in it (a closed pipe, a strange terminal) is swallowed. It never goes
silent either: off a terminal a line comes at least every `heartbeat_s` seconds, also while the driver waits.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, ParamSpec, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

HEARTBEAT_SECONDS = 30.0
log = logging.getLogger(__name__)
REFRESHES_PER_SECOND = 4
WIDTH = 100
"""The panel is at most this wide, in columns."""

Status = Literal["pending", "running", "done", "skipped", "stopped"]
Value = float | int | str
P = ParamSpec("P")

_MARKS: dict[Status, tuple[str, str]] = {
    "pending": ("·", "dim"),
    "running": (">", "bold cyan"),
    "done": ("✓", "green"),
    "skipped": ("-", "dim"),
    "stopped": ("!", "yellow"),
}
_RATES = {"tokens_per_s": "tok/s"}


_TELLING_SHARE = 0.1


@dataclass(slots=True)
class Stage:
    """One row of the display; times in seconds of the display's clock. `share`: how much of the work is done, in
    [0, 1], where `done` of `total` would mislead; `phase`: when counting began for the present `total`."""

    name: str
    status: Status = "pending"
    started: float = 0.0
    seconds: float = 0.0
    done: float = 0
    total: float | None = None
    share: float | None = None
    phase: float | None = None
    unit: str = ""
    note: str = ""
    fields: dict[str, Value] = field(default_factory=dict)

    def elapsed(self, now: float) -> float:
        return self.seconds + (now - self.started if self.status == "running" else 0.0)


def format_clock(seconds: float) -> str:
    """Seconds as ` 3:20` or `1:03:20`."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:2}:{rest:02}"


def format_duration(seconds: float) -> str:
    """Seconds for a reader, as exact as an estimate deserves: `40 s`, `4 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(5 * round(minutes / 5), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_value(value: Value) -> str:
    """A number as short as a glance needs: `12,345`, `8.2`, `0.513`; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or abs(value) == float("inf"):
        return "-"
    if abs(value) >= 1:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{value:.3g}"


def format_field(name: str, value: Value) -> str:
    """`5 solved`, `213 tok/s`, `8.2 programs/s`, `loss 0.53`, `policy v3`: counts and rates lead, the rest is named."""
    if name.endswith("_per_s"):
        return f"{format_value(value)} {_RATES.get(name) or name.removesuffix('_per_s').replace('_', ' ') + '/s'}"
    label = name.replace("_", " ")
    return f"{format_value(value)} {label}" if isinstance(value, int) else f"{label} {format_value(value)}"


class Board:
    """The state of the display: stages, their progress and the time left. Pure but for the injected clock."""

    def __init__(
        self, stages: Sequence[str], estimates: Mapping[str, float] | None, clock: Callable[[], float]
    ) -> None:
        self.stages = {name: Stage(name) for name in stages}
        self.estimates = dict(estimates or {})
        self.clock = clock
        self.began = clock()
        self.current: Stage | None = None

    def start(self, name: str, total: float | None, unit: str) -> Stage:
        """Begin a stage (a new row if it is unknown); one that still runs is ended first. Times of a repeat add up."""
        if self.current is not None:
            self.finish("done", "")
        old = self.stages.get(name)
        stage = Stage(name, "running", self.clock(), old.seconds if old else 0.0, total=total, unit=unit)
        self.stages[name] = self.current = stage
        return stage

    def finish(self, status: Status, note: str) -> Stage | None:
        """End the running stage, if there is one."""
        stage, self.current = self.current, None
        if stage is not None:
            stage.seconds, stage.status, stage.note = stage.elapsed(self.clock()), status, note
        return stage

    def elapsed(self) -> float:
        return self.clock() - self.began

    def stage_left(self) -> float | None:
        """Seconds that the running stage will still take, by its own pace, at first by the estimate; None: unknown."""
        stage = self.current
        if stage is None:
            return None
        spent = self.clock() - stage.started
        share = stage.share if stage.share is not None or not stage.total else stage.done / stage.total
        expected = self.estimates[stage.name] * self.pace() if stage.name in self.estimates else 0.0
        # The first of many that run at once end late: their number says nothing yet.
        if share and (share >= _TELLING_SHARE or spent >= expected):
            counted = self.clock() - (stage.started if stage.phase is None else stage.phase)
            # Other phases may follow: while the estimate lasts, not less than it.
            return max(0.0, expected - spent if stage.phase is not None else 0.0, counted * (1 - share) / share)
        return max(0.0, expected - spent) if expected else None

    def run_left(self) -> float | None:
        """Seconds that the whole run will still take; None unless every stage to come has an estimate."""
        waiting = [stage.name for stage in self.stages.values() if stage.status == "pending"]
        running = self.stage_left() if self.current is not None else 0.0
        if not self.estimates or running is None or any(name not in self.estimates for name in waiting):
            return None
        return running + self.pace() * sum(self.estimates[name] for name in waiting)

    def pace(self) -> float:
        """How much slower this machine is than the estimates, by the finished stages; within a factor of 4."""
        finished = [s for s in self.stages.values() if s.status == "done" and self.estimates.get(s.name, 0) > 0]
        expected = sum(self.estimates[stage.name] for stage in finished)
        return min(4.0, max(0.25, sum(s.seconds for s in finished) / expected)) if expected else 1.0

    def facts(self, stage: Stage) -> list[str]:
        """Progress and fields of a stage, without the time left."""
        unit = f" {stage.unit}" if stage.unit else ""
        facts = []
        if stage.total is not None:
            facts.append(f"{format_value(stage.done)}/{format_value(stage.total)}{unit}")
        elif stage.done:
            facts.append(f"{format_value(stage.done)}{unit}")
        return facts + [format_field(name, value) for name, value in stage.fields.items()]

    def line(self) -> str:
        """The heartbeat: where the run stands, in one line."""
        stage = self.current
        if stage is None:
            over = sum(s.status != "pending" for s in self.stages.values())
            return f"between stages, {over} of {len(self.stages)} over"
        facts = self.facts(stage) or [f"running for {format_duration(self.clock() - stage.started)}"]
        if (left := self.stage_left()) is not None and (left > 0 or stage.done):
            facts.append(f"about {format_duration(left)} left")
        if (whole := self.run_left()) is not None and whole > (left or 0.0):
            facts.append(f"whole run about {format_duration(whole)}")
        return f"{stage.name}: {', '.join(facts)}"


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """The display may fail, the run may not. SystemExit too: rich raises it when the reader of a pipe has gone."""

    told = False

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal told
        try:
            method(*args, **kwargs)
        except (Exception, SystemExit):
            if not told:  # once: it is called many times a minute
                told = True
                log.warning("the progress display failed in %s", method.__name__, exc_info=True)

    return guarded


class ProgressDisplay:
    """Context manager that shows a run's stages. Thread-safe; no method raises.

    Args:
        stages: names of the stages, in order; others may be started, they get a row of their own.
        console: where to draw (default: standard output).
        interactive: the live panel (True) or plain lines (False); default: whether the console is a real terminal.
        heartbeat_s: off a terminal, the longest silence in seconds.
        stage_estimates: expected seconds per stage; with them the time left of the whole run is shown.
        title: what stands above the panel.
    """

    def __init__(
        self,
        stages: Sequence[str],
        console: Console | None = None,
        interactive: bool | None = None,
        heartbeat_s: float = HEARTBEAT_SECONDS,
        *,
        stage_estimates: Mapping[str, float] | None = None,
        title: str = "o1coder",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        if interactive is None:
            interactive = self._console.is_terminal and not self._console.is_dumb_terminal
        self._interactive = interactive
        self._heartbeat_s = heartbeat_s
        self._title = title
        self._board = Board(stages, stage_estimates, clock)
        # Never held while something is printed: the live panel draws under rich's own lock and then takes this one.
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._beat: threading.Thread | None = None
        self._closing = threading.Event()
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close(kind)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per finished (or stopped) stage, in the order of the stages."""
        with self._lock:
            return {s.name: s.seconds for s in self._board.stages.values() if s.status in ("done", "stopped")}

    @_never_raises
    def start_stage(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Begin a stage of `total` units ("trees", "steps"; None: unknown)."""
        with self._lock:
            self._board.start(name, total, unit)
        size = f" ({format_value(total)}{' ' + unit if unit else ''})" if total is not None else ""
        self._line(f"{name}: started{size}")

    @_never_raises
    def update(
        self,
        done: float | None = None,
        total: float | None = None,
        share: float | None = None,
        unit: str | None = None,
        **fields: Value | None,
    ) -> None:
        """New progress of the running stage. A field stays until it is set again; None removes it.

        `share` of the work that is done, for the time left, where units end late and together, as trees do.
        """
        with self._lock:
            stage = self._board.current
            if stage is None:
                return
            if total not in (None, stage.total):  # another phase of the stage goes by a pace of its own
                stage.phase = self._board.clock()
            stage.done = stage.done if done is None else done
            stage.total = stage.total if total is None else total
            stage.share = stage.share if share is None else share
            stage.unit = stage.unit if unit is None else unit
            for name, value in fields.items():
                if value is None:
                    stage.fields.pop(name, None)
                else:
                    # Numbers of numpy print badly; `item()` turns them into Python's.
                    stage.fields[name] = value.item() if hasattr(value, "item") else value

    @_never_raises
    def end_stage(self, note: str = "") -> None:
        """The running stage is done; `note` says what came of it."""
        with self._lock:
            stage = self._board.finish("done", note)
            facts = ", ".join(self._board.facts(stage)) if stage else ""
        if stage is not None:
            self._line(
                f"{stage.name}: done in {_exact(stage.seconds)}{'; ' + (note or facts) if note or facts else ''}"
            )

    @_never_raises
    def skip_stage(self, name: str, note: str) -> None:
        """A stage is not needed, for example since an earlier process of this run finished it."""
        with self._lock:
            self._board.stages.setdefault(name, Stage(name))
            self._board.stages[name].status, self._board.stages[name].note = "skipped", note
        self._line(f"{name}: skipped, {note}")

    @_never_raises
    def message(self, text: str) -> None:
        """One line for the reader, above the panel or among the lines."""
        if self._live is not None:
            self._print(text)
        else:
            self._line(text)

    # Inside -----------------------------------------------------------------------------------------------------------

    @_never_raises
    def _open(self) -> None:
        if self._interactive:
            live = Live(
                get_renderable=self._safe_panel,
                console=self._console,
                refresh_per_second=REFRESHES_PER_SECOND,
                vertical_overflow="crop",
            )
            try:
                live.start(refresh=True)
                self._live = live
                return
            except Exception:  # a terminal that cannot do this gets lines
                self._interactive = False
                log.warning("no live panel on this terminal", exc_info=True)
        self._last_line = time.monotonic()
        self._beat = threading.Thread(target=self._heartbeat, name="progress-heartbeat", daemon=True)
        self._beat.start()

    @_never_raises
    def _close(self, kind: type[BaseException] | None) -> None:
        self._closing.set()
        if self._beat is not None:
            self._beat.join(timeout=5)
        note = "" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else kind.__name__
        with self._lock:
            stage = self._board.finish("stopped" if kind else "done", note)
        if stage is not None:
            self._line(f"{stage.name}: {stage.status} after {_exact(stage.seconds)}{', ' + note if note else ''}")
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _heartbeat(self) -> None:
        wait = self._heartbeat_s
        while not self._closing.wait(max(0.01, wait)):
            silent = time.monotonic() - self._last_line
            if silent >= self._heartbeat_s:
                self._beat_once()
                silent = 0.0
            wait = self._heartbeat_s - silent

    @_never_raises
    def _beat_once(self) -> None:
        self._last_line = time.monotonic()  # first: a print that fails must not turn the heartbeat into a busy loop
        with self._lock:
            text = self._board.line()
        self._line(text)

    def _line(self, text: str) -> None:
        if self._interactive:
            return
        self._last_line = time.monotonic()
        self._print(f"[{format_clock(self._board.elapsed())}] {text}")

    def _print(self, text: str) -> None:
        # Soft wrap keeps a line one line in a log file; markup would eat "[...]" out of file names and messages.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _safe_panel(self) -> RenderableType:
        # Rich draws in a thread of its own: an exception there would end the panel with a traceback on the screen.
        try:
            with self._lock:
                return self._panel()
        except Exception as error:
            return Text(f"(the display failed: {type(error).__name__})", style="dim")

    def _panel(self) -> RenderableType:
        board = self._board
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        now = board.clock()
        for stage in board.stages.values():
            mark, style = _MARKS[stage.status]
            spent = format_clock(stage.elapsed(now)).strip() if stage.status not in ("pending", "skipped") else ""
            sign: RenderableType = self._spinner if stage.status == "running" else Text(mark, style=style)
            about = self._progress(stage) if stage.status == "running" else Text(self._ending(stage), style="dim")
            table.add_row(sign, Text(stage.name, style=style), Text(spent, style="dim"), about)
        left = board.run_left()
        foot = f"{format_clock(board.elapsed()).strip()} so far"
        foot += f", about {format_duration(left)} left" if left is not None and board.current is not None else ""
        width = min(WIDTH, self._console.width)
        return Panel(table, title=Text(self._title, style="bold"), subtitle=Text(foot, style="dim"), width=width)

    def _ending(self, stage: Stage) -> str:
        return stage.note or ("" if stage.status == "pending" else ", ".join(self._board.facts(stage)))

    def _progress(self, stage: Stage) -> RenderableType:
        facts = self._board.facts(stage)
        if (left := self._board.stage_left()) is not None and (left > 0 or stage.done):
            facts.append(f"about {format_duration(left)} left")
        text = Text(", ".join(facts))
        if not stage.total:
            return text
        bar = ProgressBar(total=stage.total, completed=min(stage.done, stage.total), width=30)
        both = Table.grid()
        both.add_row(bar)
        both.add_row(text)
        return both


def _exact(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else format_clock(seconds).strip() + " min"
