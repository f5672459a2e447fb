"""What a test case generator and its suites are worth, by difficulty: for the terminal, for programs, and as a page."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeInt
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cluster.report import MISSING, WIDTH, ReportRecord, clean, write_record
from cluster.run_dir import RunDir
from reasoning.estimators import Interval, bootstrap_ratio
from reasoning.records import Suite, SuiteQuality, mean
from reasoning.suites import tests_by_origin

BAR = 30
"""Columns of a full bar."""
SHOWN_REFUSED = 8
PAGE = "report.html"
STEPS = {"start": "start", "sft": "SFT", "dpo": "DPO", "after_self_play": "self-play"}


class Accuracy(ReportRecord):
    """The generator after one step of its training, on problems that it was not trained on. `asked`: cases that it was
    asked for; `cases`: different ones that could be read and run; `valid`: with inputs that the references take."""

    step: str
    mode: str
    asked: NonNegativeInt
    cases: NonNegativeInt
    valid: NonNegativeInt
    right: NonNegativeInt
    output_accuracy: Interval | None = Field(default=None, description="right / cases, 95 % bootstrap over problems")


class Row(ReportRecord):
    """The suites of the problems of one difficulty, None where there is nothing to count. False accept, false reject
    and redundancy are means over problems, the other shares are over all cases, programs or branches together."""

    difficulty: str
    suites: NonNegativeInt
    accepted: NonNegativeInt
    tests: float | None = Field(description="per accepted suite")
    validity: float | None = Field(default=None, description="cases on which the references agree, of those asked for")
    output_accuracy: float | None = None
    kill_rate: Interval | None = Field(default=None, description="of mutants, 95 % bootstrap over problems")
    kill_rate_given: float | None = Field(default=None, description="of the same mutants, by the given tests")
    policy_kill_rate: float | None = Field(default=None, description="of wrong programs of the policy")
    policy_kill_rate_given: float | None = None
    false_accept: float | None = None
    false_reject: float | None = None
    branch_coverage: float | None = None
    redundancy: float | None = None


class TcgReport(ReportRecord):
    """Everything that the report says."""

    run_dir: str
    model: str
    generator: str = ""
    mode: Literal["reference", "question_only"]
    seed: int
    accuracy: tuple[Accuracy, ...] = ()
    rows: tuple[Row, ...] = Field(default=(), description="by difficulty, and all together last")
    tests_by_origin: dict[str, int] = {}
    refused: tuple[tuple[str, str], ...] = Field(default=(), description="problem id and reason")
    seconds_per_stage: dict[str, float] = {}
    peak_memory_gb: float | None = None
    wandb_note: str = ""
    stopped_early: str = ""
    command: str = Field(default="tcg train", description="what made the run, and goes on with it")


# --- from suites to rows ---


def rows(suites: Sequence[Suite], seed: int = 0) -> tuple[Row, ...]:
    """One row per difficulty in the order of their names, and one of all suites where there are several."""
    names = sorted({s.difficulty for s in suites})
    groups = [(name, [s for s in suites if s.difficulty == name]) for name in names]
    if len(groups) > 1:
        return *(_row(name, group, seed) for name, group in groups), overall(suites, seed)
    return tuple(_row(name, group, seed) for name, group in groups)


def overall(suites: Sequence[Suite], seed: int = 0) -> Row:
    """One row of all suites."""
    return _row("all", suites, seed)


def _row(difficulty: str, suites: Sequence[Suite], seed: int) -> Row:
    known = [s.quality for s in suites if s.quality is not None]
    accepted = [s for s in suites if s.accepted]

    def share(part: str, whole: str) -> float | None:
        total = sum(getattr(q, whole) for q in known)
        return sum(getattr(q, part) for q in known) / total if total else None

    def average(of: Callable[[SuiteQuality], float | None]) -> float | None:
        values = [value for q in known if (value := of(q)) is not None]
        return mean(values) if values else None

    killed, screened = [q.killed for q in known], [q.screened for q in known]
    return Row(
        difficulty=difficulty,
        suites=len(suites),
        accepted=len(accepted),
        tests=round(mean([len(s.tests) for s in accepted]), 2) if accepted else None,
        validity=share("cases_valid", "asked"),
        output_accuracy=share("cases_right", "cases"),
        kill_rate=bootstrap_ratio(killed, screened, seed) if sum(screened) else None,
        kill_rate_given=share("killed_by_given", "screened"),
        policy_kill_rate=share("samples_killed", "samples_wrong"),
        policy_kill_rate_given=share("samples_killed_by_given", "samples_wrong"),
        false_accept=average(lambda q: q.false_accept),
        false_reject=average(lambda q: q.false_reject),
        branch_coverage=share("branches_covered", "branches"),
        redundancy=average(lambda q: q.redundancy),
    )


def accuracies(trained: dict[str, Any]) -> tuple[Accuracy, ...]:
    """What the training stage measured (`stage_tcg.train_generator`)."""
    found = []
    for step, name in STEPS.items():
        for mode, m in (trained.get(step) or {}).items():
            interval = None
            if m["accuracy"] is not None:
                interval = Interval(m["accuracy"], m["low"], m["high"], trained["measured_problems"])
            counts = {field: m[field] for field in ("asked", "cases", "valid", "right")}
            found.append(Accuracy(step=name, mode=mode, output_accuracy=interval, **counts))
    return tuple(found)


def table(found: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of plain numbers, for W&B."""
    names = [name for name, _ in COLUMNS]
    values = [[getattr(row, name) for name in names] for row in found]
    return names, [[v.mean if isinstance(v, Interval) else v for v in one] for one in values]


def metrics(found: Sequence[Row], overall: Row) -> dict[str, float]:
    """Every share of every difficulty, as `tcg_difficulty/NAME/SHARE`; those of all suites too where there is one
    difficulty alone."""
    values = {}
    for row in (*found, overall):
        for name, value in row.model_dump().items():
            value = value["mean"] if isinstance(value, dict) else value
            if isinstance(value, int | float):
                values[f"tcg_difficulty/{row.difficulty}/{name}"] = float(value)
    return values


def refused(suites: Sequence[Suite]) -> tuple[tuple[str, str], ...]:
    """Problem and reason of each suite that may not score rewards."""
    return tuple((s.problem_id, s.reason) for s in suites if not s.accepted)


def origins(suites: Sequence[Suite]) -> dict[str, int]:
    """Tests of accepted suites by origin, those that there are."""
    return {name: count for name, count in tests_by_origin(suites).items() if count}


# --- for people ---

COLUMNS: tuple[tuple[str, str], ...] = (
    ("difficulty", "difficulty"),
    ("suites", "suites"),
    ("accepted", "accepted"),
    ("tests", "tests"),
    ("validity", "valid"),
    ("output_accuracy", "outputs right"),
    ("kill_rate", "mutants killed"),
    ("kill_rate_given", "by given"),
    ("policy_kill_rate", "policy's killed"),
    ("policy_kill_rate_given", "by given"),
    ("false_accept", "false accept"),
    ("false_reject", "false reject"),
    ("branch_coverage", "branches"),
    ("redundancy", "redundant"),
)


def _shown(value: object, brief: bool = True) -> str:
    match value:
        case None:
            return MISSING
        case Interval():
            return f"{100 * value.mean:.1f} %" if brief else str(value)
        case bool() | int() | str():
            return str(value)
        case float():
            return f"{100 * value:.1f} %"
    return str(value)


def _cells(row: Row, brief: bool = True) -> list[str]:
    found = {name: _shown(getattr(row, name), brief) for name, _ in COLUMNS}
    found["tests"] = MISSING if row.tests is None else f"{row.tests:.1f}"
    return list(found.values())


def render(report: TcgReport, console: Console) -> None:
    """Print the report, at most `WIDTH` columns wide but for paths, which can be copied."""
    width = min(WIDTH, console.width)
    for part in _parts(report):
        copied = isinstance(part, Text) and part.no_wrap
        console.print(part, width=None if copied else width, soft_wrap=copied, highlight=False)


def _parts(report: TcgReport) -> Iterator[RenderableType]:
    title = "Test case generator: stopped early" if report.stopped_early else "Test case generator"
    yield Rule(Text(title, style="bold"), characters="─")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True, min_width=16)
    facts.add_column()
    for name, value in _facts(report):
        facts.add_row(name, Text(clean(value)))
    yield Padding(facts, (0, 0, 0, 2))
    yield Text(f"  run directory     {clean(report.run_dir)}", no_wrap=True, overflow="ignore")
    if report.accuracy:
        yield ""
        yield Text("Outputs written by the generator that the references agree with, on unseen problems", style="bold")
        yield Padding(_accuracy_table(report.accuracy), (0, 0, 0, 1))
    if report.rows:
        yield ""
        yield Text("Suites by difficulty", style="bold")
        # Narrower than one line per difficulty would be: difficulties are few, shares many.
        yield Padding(_suite_table(report.rows), (0, 0, 0, 1))
        yield ""
        yield Text("Mutants killed, by the suites and by the given tests alone", style="bold")
        yield Padding(_bars(report.rows), (0, 0, 0, 2))
    if report.refused:
        yield ""
        yield Text("Refused: these problems score no rewards", style="bold")
        for name, reason in report.refused[:SHOWN_REFUSED]:
            yield Padding(Text(clean(f"{name}: {reason}")), (0, 0, 0, 2))
        if len(report.refused) > SHOWN_REFUSED:
            yield Padding(Text(f"and {len(report.refused) - SHOWN_REFUSED} more (report.json)"), (0, 0, 0, 2))
    if report.stopped_early:
        yield ""
        go_on = f"To go on: ./o1coder {report.command} --resume {shlex.quote(report.run_dir)}"
        yield Text(clean(go_on), style="bold", no_wrap=True, overflow="ignore")
    if report.wandb_note:
        yield ""
        yield Text(clean(report.wandb_note), no_wrap=True, overflow="ignore")


def _facts(report: TcgReport) -> list[tuple[str, str]]:
    tests = ", ".join(f"{count:,} {name}" for name, count in report.tests_by_origin.items())
    memory = MISSING if report.peak_memory_gb is None else f"{report.peak_memory_gb:.1f} GB"
    stages = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in report.seconds_per_stage.items())
    return [
        *([("stopped early", report.stopped_early)] if report.stopped_early else []),
        ("model", f"{report.model}, seed {report.seed}"),
        *([("generator", report.generator)] if report.generator else []),
        ("mode", report.mode),
        ("tests by origin", tests or MISSING),
        ("seconds", stages or MISSING),
        ("peak memory", memory),
    ]


def _accuracy_table(found: Sequence[Accuracy]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("after")
    table.add_column("mode")
    for name in ("cases asked for", "read and run", "valid", "outputs right [95 %]"):
        table.add_column(name, justify="right")
    for one in found:
        shown = _shown(one.output_accuracy, brief=False)
        table.add_row(one.step, one.mode, str(one.asked), str(one.cases), str(one.valid), shown)
    return table


def _suite_table(found: Sequence[Row]) -> Table:
    """Difficulties are the columns: there are few of them, and many shares."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for row in found:
        table.add_column(Text(clean(row.difficulty)), justify="right")
    columns = [_cells(row, brief=len(found) > 3) for row in found]
    for place, (_, title) in enumerate(COLUMNS):
        if place:
            table.add_row("  " + title if title == "by given" else title, *(cells[place] for cells in columns))
    return table


def _bars(found: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    for row in found:
        for name, share, style in (
            ("suite", row.kill_rate.mean if row.kill_rate else None, "green"),
            ("given", row.kill_rate_given, "yellow"),
        ):
            filled = round(BAR * (share or 0.0))
            bar = Text("█" * filled, style=style).append("░" * (BAR - filled), style="dim")
            table.add_row(Text(clean(row.difficulty) if name == "suite" else ""), name, bar, _shown(share))
    return table


# --- files ---


def write(report: TcgReport, run_dir: RunDir) -> None:
    """Write report.json, report.txt and report.html, each whole or not at all. Raises OSError when the disk refuses."""
    write_record(report, render, run_dir)
    run_dir.write_atomic(run_dir.path / PAGE, page(report).encode(errors="replace"))


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1c2024; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } th, td { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 1px solid #8b9199; font-weight: 600; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) td { background: #f4f6f8; } svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.dim { color: #60666d; } @media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e8ea; }
tr:nth-child(even) td { background: #1d2125; } }
"""


def page(report: TcgReport) -> str:
    """The report as one HTML file that needs nothing else."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Test case generator</title>",
        f"<style>{_STYLE}</style><h1>Test case generator</h1>",
        _html_table(("", ""), [*_facts(report), ("run directory", report.run_dir)]),
    ]
    if report.accuracy:
        parts.append("<h2>Outputs that the references agree with, on unseen problems</h2>")
        shown = [
            (a.step, a.mode, str(a.asked), str(a.cases), str(a.valid), _shown(a.output_accuracy, False))
            for a in report.accuracy
        ]
        parts.append(
            _html_table(("after", "mode", "cases asked for", "read and run", "valid", "outputs right [95 %]"), shown)
        )
    if report.rows:
        parts.append("<h2>Suites by difficulty</h2>")
        parts.append(_html_table([title for _, title in COLUMNS], [_cells(row, False) for row in report.rows]))
        for title, ours, given in (
            ("Mutants killed", "kill_rate", "kill_rate_given"),
            ("Wrong programs of the policy killed", "policy_kill_rate", "policy_kill_rate_given"),
        ):
            parts.append(f"<h2>{title}</h2>" + _svg(report.rows, ours, given))
    if report.refused:
        parts.append("<h2>Refused: these problems score no rewards</h2>")
        parts.append(_html_table(("problem", "reason"), report.refused))
    return "\n".join(parts) + "\n"


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(clean(cell))}</{tag}>" for cell in cells) + "</tr>"

    titles = line("th", head) if any(head) else ""
    return "<table>" + titles + "".join(line("td", cells) for cells in body) + "</table>"


def _svg(found: Sequence[Row], ours: str, given: str) -> str:
    """Two bars per difficulty, with the interval of the first where it has one."""
    left, full, step = 130, 420, 46
    shapes = []
    for place, row in enumerate(found):
        top = step * place
        shapes.append(f"<text x='0' y='{top + 22}'>{html.escape(clean(row.difficulty))}</text>")
        for offset, name, colour in ((4, ours, "#2e9e5b"), (22, given, "#c9962a")):
            value = getattr(row, name)
            share = value.mean if isinstance(value, Interval) else value
            if share is not None:
                shapes.append(
                    f"<rect x='{left}' y='{top + offset}' width='{full * share:.1f}' height='15' fill='{colour}'/>"
                )
            shapes.append(f"<text x='{left + full + 10}' y='{top + offset + 12}'>{_shown(share)}</text>")
            if isinstance(value, Interval):
                low, high = (left + full * x for x in (value.low, value.high))
                middle = top + offset + 7.5
                shapes.append(
                    f"<path d='M{low:.1f} {middle}H{high:.1f}' stroke='currentColor' stroke-width='1.5' fill='none'/>"
                )
    height = step * len(found)
    legend = "<p class='dim'>upper bar: the suites (line: 95 % interval); lower bar: the given tests alone</p>"
    return f"<svg width='{left + full + 80}' height='{height}' role='img'>{''.join(shapes)}</svg>{legend}"
