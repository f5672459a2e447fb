"""What `o1coder fit` came to, for people and for programs."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.text import Text

from cluster.report import MISSING, ReportRecord, clean, print_facts, write_record
from cluster.run_dir import RunDir
from cluster.tracker import read_metrics

SHOWN_LOSSES = 8


class FitReport(ReportRecord):
    """Everything the report says. None means "not measured"."""

    run_dir: str
    what: str
    source: str = Field(description="the run whose data it was")
    round: int
    model: str = Field(description="what the training began with")
    seed: int
    result: str = ""
    skipped: str = Field(default="", description="why nothing was trained")
    losses: dict[str, list[float]] = Field(
        default={}, description="of each optimizer step, before its update, by what was trained"
    )
    tokens_per_s: float | None = Field(default=None, description="median over the steps")
    seconds: float | None = None
    peak_memory_gb: float | None = Field(default=None, description="of all processes, GB")
    checkpoints: list[str] = []
    alarms: list[str] = []
    wandb_note: str = ""
    stopped_early: str = ""


def training_rows(file: Path) -> dict[str, list[dict[str, float]]]:
    """Loss and speed of the optimizer steps in a `metrics.jsonl`, in their order, by the family of their names; of a
    step that was done twice, the later one."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for line in read_metrics(file):
        losses = [name for name in line if name.endswith("/loss")]
        if losses and "learner/step" in line:
            family = losses[0].partition("/")[0]
            own = {name.partition("/")[2]: value for name, value in line.items() if name.startswith(f"{family}/")}
            found.setdefault(family, {})[int(line["learner/step"])] = own
    return {family: [rows[step] for step in sorted(rows)] for family, rows in found.items()}


def write(report: FitReport, run_dir: RunDir) -> None:
    """Write report.json and report.txt, each whole or not at all. Raises OSError when the disk refuses."""
    write_record(report, render, run_dir)


def render(report: FitReport, console: Console) -> None:
    """Print the report, at most `report.WIDTH` columns wide but for paths and commands, which can be copied."""
    title = "Fit stopped early" if report.stopped_early else "Fit finished"
    print_facts(console, f"{title}: {report.what}", _facts(report))
    lines = [("data of", report.source), ("run directory", report.run_dir), ("began with", report.model)]
    lines += [("checkpoint", path) for path in report.checkpoints]
    for name, path in lines:
        console.print(Text(f"  {name:16}  {clean(path)}"), soft_wrap=True, highlight=False)
    for alarm in report.alarms:
        console.print(Text(f"  alarm: {clean(alarm)}", style="bold yellow"), soft_wrap=True, highlight=False)
    if report.wandb_note:
        console.print(Text(clean(report.wandb_note)), soft_wrap=True, highlight=False)
    if report.stopped_early:
        go_on = f"To go on: ./o1coder fit {report.what} --resume {shlex.quote(report.run_dir)}"
        console.print(Text(clean(go_on), style="bold"), soft_wrap=True, highlight=False)


def _facts(report: FitReport) -> list[tuple[str, str]]:
    return [
        *([("stopped early", report.stopped_early)] if report.stopped_early else []),
        ("round, seed", f"{report.round}, {report.seed}"),
        ("result", f"nothing to learn: {report.skipped}" if report.skipped else report.result or MISSING),
        ("optimizer steps", f"{sum(map(len, report.losses.values())):,}"),
        *([(f"{name} loss", _shown(losses)) for name, losses in report.losses.items()] or [("loss", MISSING)]),
        ("speed", MISSING if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f} tokens/s"),
        ("seconds", MISSING if report.seconds is None else f"{report.seconds:,.1f}"),
        ("peak memory", MISSING if report.peak_memory_gb is None else f"{report.peak_memory_gb:.1f} GB"),
    ]


def _shown(losses: list[float]) -> str:
    """Some of them, the first and the last among these."""
    last = len(losses) - 1
    chosen = sorted({round(n * last / (SHOWN_LOSSES - 1)) for n in range(SHOWN_LOSSES)})
    return " ".join(f"{losses[n]:.3f}" for n in chosen)
