"""What a run came to: the summary record, and the report a reader sees at the end.

The report claims no more than was measured: a missing value is "-", and a difference whose interval contains 0 is "no
clear change".
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from cluster.run_dir import RunDir
from reasoning.estimators import Interval

WIDTH = 100
"""No table is wider than this, in columns; paths and commands are never broken, so that they can be copied."""
MISSING = "-"
_LONGEST_QUESTION = 1200
"""Characters of a question that are shown; the whole of it is in report.json."""

R = TypeVar("R", bound="ReportRecord")
Change = Literal["better", "worse", "no clear change"]


class ReportRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvalSummary(ReportRecord):
    """One evaluation of the policy on the held-out problems."""

    pass_at_1: Interval = Field(description="over problems, unbiased, with a 95 % bootstrap interval")
    samples: int = Field(ge=1, description="samples per problem")
    greedy: float | None = Field(default=None, ge=0, le=1, description="share of problems solved by greedy decoding")
    prompt: str = Field(default="", description="how the model was asked, for example '2 written examples, steps'")


class SearchCount(ReportRecord):
    """Problems of one list that search solved, that is, found a program for that passes every test."""

    searched: NonNegativeInt
    solved: NonNegativeInt


class SolvedExample(ReportRecord):
    """One attempt of the model: its steps (title, text), the program, and what the sandbox said."""

    steps: tuple[tuple[str, str], ...] = ()
    program: str
    tests_passed: NonNegativeInt
    tests_total: NonNegativeInt
    verdict: str


class Showcase(ReportRecord):
    """The held-out problem that gained most, as the model answered it before and after training; None: it gave no
    program. Rates: share of its samples that pass."""

    problem_id: str
    question: str
    rate_before: float | None = Field(default=None, ge=0, le=1)
    rate_after: float | None = Field(default=None, ge=0, le=1)
    before: SolvedExample | None = None
    after: SolvedExample | None = None


class RunSummary(ReportRecord):
    """Everything the report says. None means "not measured", which is never printed as 0."""

    run_dir: str
    model: str
    seed: int
    rounds: NonNegativeInt = Field(description="finished rounds")
    eval_before: EvalSummary | None = None
    eval_after: EvalSummary | None = None
    difference: Interval | None = Field(default=None, description="pass@1 after - before, paired by problem")
    problems_searched: NonNegativeInt | None = None
    problems_solved: NonNegativeInt | None = None
    solved_before: SearchCount | None = Field(default=None, description="search with the policy of the start")
    solved_after: SearchCount | None = Field(default=None, description="search with the updated policy, same list")
    tests_by_origin: dict[str, int] = Field(default_factory=dict)
    suites_refused: NonNegativeInt | None = None
    tcg_output_accuracy_sft: float | None = Field(default=None, ge=0, le=1)
    tcg_output_accuracy_dpo: float | None = Field(default=None, ge=0, le=1)
    tcg_measured_cases: int | None = Field(default=None, ge=0)
    tcg_measured_problems: int | None = Field(default=None, ge=0)
    prm_auc: float | None = Field(default=None, ge=0, le=1)
    weight_version: NonNegativeInt | None = None
    sync_seconds: float | None = None
    seconds_per_stage: dict[str, float] = Field(default_factory=dict)
    tokens_sampled: NonNegativeInt | None = None
    programs_judged: NonNegativeInt | None = None
    peak_memory_gb: float | None = Field(default=None, description="largest resident memory of the whole run, GB")
    alarms: tuple[str, ...] = Field(default=(), description="what people should look at")
    showcase: Showcase | None = None
    next_commands: tuple[str, ...] = ()
    wandb_note: str = ""
    stopped_early: str = Field(default="", description="why the run ended before its last stage; empty: it did not")

    def change(self) -> Change | None:
        """Whether held-out pass@1 changed by more than noise; None where the difference was not measured."""
        if self.difference is None:
            return None
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no clear change"


def render(summary: RunSummary, console: Console) -> None:
    """Print the report, at most `WIDTH` columns wide."""
    width = min(WIDTH, console.width)
    colours = console.color_system is not None and not console.no_color
    for part in _parts(summary, colours, width):
        # Paths and commands stay in one line, whatever the width: a broken one cannot be copied.
        copied = isinstance(part, Text) and part.no_wrap
        console.print(part, width=None if copied else width, soft_wrap=copied, highlight=False)


def render_text(summary: RunSummary, width: int = WIDTH) -> str:
    """The report as plain text without trailing spaces."""
    return as_text(summary, render, width)


def as_text(record: R, show: Callable[[R, Console], None], width: int = WIDTH) -> str:
    """What `show` prints of a record, as plain text without trailing spaces."""
    out = io.StringIO()
    show(record, Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def write(summary: RunSummary, run_dir: RunDir) -> None:
    """Write report.json and report.txt, each whole or not at all. Raises OSError when the disk refuses."""
    write_record(summary, render, run_dir)


def write_record(record: R, show: Callable[[R, Console], None], run_dir: RunDir) -> None:
    """As `write`, for the report of any command."""
    run_dir.write_atomic(run_dir.report, json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
    run_dir.write_atomic(run_dir.report_text, as_text(record, show).encode(errors="replace"))


# Parts of the page ---------------------------------------------------------------------------------------------------


def _parts(summary: RunSummary, colours: bool, width: int) -> Iterator[RenderableType]:
    yield Rule(Text("Run stopped early" if summary.stopped_early else "Run finished", style="bold"), characters="─")
    yield _facts(
        ("model", f"{clean(summary.model)}, seed {summary.seed}, {_count(summary.rounds, 'round')} finished"),
        *([("stopped early", clean(summary.stopped_early))] if summary.stopped_early else []),
    )
    yield _line("  run directory     ", summary.run_dir)
    yield ""
    yield from _evaluation(summary)
    yield ""
    yield from _search_and_tests(summary)
    if summary.alarms:
        yield ""
        yield Text("Alarms", style="bold")
        for alarm in summary.alarms:
            yield Padding(Text(clean(alarm), style="bold yellow"), (0, 0, 0, 2))
    if summary.seconds_per_stage:
        yield ""
        yield _stages(summary.seconds_per_stage)
    if summary.showcase is not None:
        yield ""
        yield from _showcase(summary.showcase, colours, width)
    if summary.wandb_note:
        yield ""
        # The command in the note gets a line of its own where the sentence is too long for one.
        for part in [summary.wandb_note] if len(summary.wandb_note) <= width else summary.wandb_note.split("; "):
            yield _line("", part)
    if summary.next_commands:
        yield ""
        yield Text("To go on", style="bold")
        for command in summary.next_commands:
            yield _line("  ", command, "cyan")


def _evaluation(summary: RunSummary) -> Iterator[RenderableType]:
    before, after = summary.eval_before, summary.eval_after
    yield Text("Held-out problems", style="bold")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True)
    table.add_column("")
    table.add_column("pass@1 [95 % interval]", justify="right", no_wrap=True)
    table.add_column("greedy", justify="right", no_wrap=True)
    table.add_column("problems", justify="right")
    table.add_column("samples each", justify="right")
    table.add_column("prompt")
    for name, result in (("before", before), ("after", after)):
        if result is None:
            table.add_row(name, *[MISSING] * 5)
            continue
        mean = result.pass_at_1
        prompt = Text(clean(result.prompt or MISSING))
        table.add_row(name, str(mean), _percent(result.greedy), str(mean.n), str(result.samples), prompt)
    yield Padding(table, (0, 0, 0, 1))
    yield _verdict(summary)
    if before and after and before.prompt != after.prompt:
        yield Padding(Text("the change is that of training and of the prompt together", style="dim"), (0, 0, 0, 2))


def _verdict(summary: RunSummary) -> RenderableType:
    change, gap = summary.change(), summary.difference
    if change is None or gap is None:
        return Padding(Text(f"change: {MISSING} (it takes both evaluations)"), (0, 0, 0, 2))
    text = Text(f"change: {100 * gap.mean:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], ")
    text.append(change, style={"better": "bold green", "worse": "bold red"}.get(change, "bold yellow"))
    side = {"better": "is above 0", "worse": "is below 0"}.get(change, "contains 0")
    text.append(f" (95 % interval {side})")
    return Padding(text, (0, 0, 0, 2))


def _search_and_tests(summary: RunSummary) -> Iterator[RenderableType]:
    yield Text("What the run did", style="bold")
    origins = ", ".join(f"{count:,} {clean(origin)}" for origin, count in summary.tests_by_origin.items() if count)
    solved = _of(summary.problems_solved, summary.problems_searched)
    if summary.solved_before or summary.solved_after:
        solved += f"\nbefore the update {_ratio(summary.solved_before)}, after it {_ratio(summary.solved_after)}"
    sft, dpo = _percent(summary.tcg_output_accuracy_sft), _percent(summary.tcg_output_accuracy_dpo)
    generator = MISSING if sft == dpo == MISSING else f"outputs right after SFT {sft}, after DPO {dpo}"
    if summary.tcg_measured_cases is not None:
        generator += f"\non {summary.tcg_measured_problems} unseen problems, {summary.tcg_measured_cases} cases at last"
    version = MISSING if summary.weight_version is None else f"version {summary.weight_version}"
    memory = MISSING if summary.peak_memory_gb is None else f"{summary.peak_memory_gb:.1f} GB"
    synced = MISSING if summary.sync_seconds is None else f"synced in {summary.sync_seconds:.1f} s"
    yield _facts(
        ("solved in search", solved),
        ("tests by origin", origins or MISSING),
        ("suites refused", _number(summary.suites_refused)),
        ("test generator", generator),
        ("reward model", f"AUC {MISSING if summary.prm_auc is None else f'{summary.prm_auc:.3f}'}"),
        ("weights served", _both(version, synced)),
        ("tokens sampled", _number(summary.tokens_sampled)),
        ("programs judged", _number(summary.programs_judged)),
        ("peak memory", memory),
    )


def _stages(seconds: dict[str, float]) -> RenderableType:
    total = sum(seconds.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("Stage")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, spent in seconds.items():
        table.add_row(Text(clean(name)), f"{spent:,.1f}", f"{100 * spent / total:.0f} %" if total > 0 else MISSING)
    table.add_row("all stages", f"{total:,.1f}", "", style="bold")
    return Padding(table, (0, 0, 0, 1))


def _showcase(case: Showcase, colours: bool, width: int) -> Iterator[RenderableType]:
    gain = (case.rate_after or 0.0) - (case.rate_before or 0.0)
    which = "The held-out problem that gained most" if gain > 0 else "One held-out problem (none gained)"
    yield Text(f"{which}: {clean(case.problem_id)}", style="bold")
    if case.rate_before is not None and case.rate_after is not None:
        gained = f"{_percent(case.rate_before)} of its samples passed before, {_percent(case.rate_after)} after"
        yield Padding(Text(gained, style="dim"), (0, 2))
    question = clean(case.question).strip()
    if len(question) > _LONGEST_QUESTION:
        question = question[:_LONGEST_QUESTION].rstrip() + " [...]"
    yield Padding(Text(question), (0, 2))
    for when, example in (("Before training", case.before), ("After training", case.after)):
        yield ""
        if example is None:
            yield Rule(f"{when}: {MISSING}", align="left", characters="─", style="dim")
            yield Padding(Text("the model gave no program", style="dim"), (0, 2))
            continue
        passed = f"{example.tests_passed} of {_count(example.tests_total, 'test')} passed"
        good = example.tests_total > 0 and example.tests_passed == example.tests_total
        verdict = "" if good else f" ({clean(example.verdict)})"
        title = Text(f"{when}: {passed}{verdict}", style="green" if good else "yellow")
        yield Rule(title, align="left", characters="─", style="dim")
        yield from _example(example, colours, width)


def _example(example: SolvedExample, colours: bool, width: int) -> Iterator[RenderableType]:
    steps = Table.grid(padding=(0, 1))
    steps.add_column(justify="right", style="dim", no_wrap=True)
    steps.add_column()
    for number, (title, text) in enumerate(example.steps, 1):
        body = Text(clean(title).strip(), style="italic")
        if content := clean(text).strip():
            body.append("\n" if body.plain else "", style="not italic")
            body.append(content, style="not italic")
        steps.add_row(f"{number}.", body)
    if example.steps:
        yield Padding(steps, (0, 2))
        yield ""
    program = clean(example.program).strip("\n")
    if not program.strip():
        yield Padding(Text("(empty program)", style="dim"), (0, 2))
    elif colours:
        code = Syntax(program, "python", theme="ansi_dark", background_color="default", word_wrap=True)
        yield Padding(code, (0, 4))
    else:
        yield Padding(Text("\n".join(_fold(program, width - 8))), (0, 4))


# Small pieces --------------------------------------------------------------------------------------------------------


def _facts(*rows: tuple[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=16)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return Padding(table, (0, 0, 0, 2))


def _line(lead: str, content: str, style: str = "") -> Text:
    text = Text(lead, style="dim", no_wrap=True, overflow="ignore")
    text.append(clean(content), style=f"not dim {style}".strip())
    return text


def _fold(program: str, width: int) -> Sequence[str]:
    """Lines of a program, cut where they are too long; wrapping at words would move its indentation about."""
    lines = []
    for line in program.expandtabs(4).split("\n"):
        lines += [line[start : start + width] for start in range(0, len(line), width)] or [""]
    return lines


_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_facts(console: Console, title: str, facts: Iterable[tuple[str, str]]) -> None:
    """A rule with a title and named facts below it, at most `WIDTH` columns wide."""
    width = min(WIDTH, console.width)
    console.print(Rule(Text(title, style="bold"), characters="─"), width=width)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=16)
    table.add_column()
    for name, value in facts:
        table.add_row(name, Text(clean(value)))
    console.print(Padding(table, (0, 0, 0, 2)), width=width, highlight=False)


def clean(text: str) -> str:
    """Text of a model or a data set without what would steer the terminal."""
    return _CONTROL.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n")))


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def _number(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _of(part: int | None, whole: int | None) -> str:
    return MISSING if part is None and whole is None else f"{_number(part)} of {_number(whole)} problems"


def _both(first: str, second: str) -> str:
    return MISSING if first == second == MISSING else f"{first}, {second}"


def _ratio(count: SearchCount | None) -> str:
    return MISSING if count is None else f"{count.solved} of {count.searched}"


def _count(value: int, thing: str) -> str:
    return f"{value:,} {thing}{'' if value == 1 else 's'}"
