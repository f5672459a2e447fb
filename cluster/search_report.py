"""What a search came to, for people and for programs: the table at the end, `report.txt` and `report.json`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from pydantic import Field, NonNegativeInt
from rich.console import Console
from rich.text import Text

from cluster.config import RunConfig
from cluster.report import MISSING, ReportRecord, clean, print_facts, write_record
from cluster.run_dir import RunDir
from cluster.trees import as_rows
from reasoning.estimators import Interval, bootstrap
from reasoning.nodes import TreeReport

SHOWN_IDS = 40
"""Solved problems that the table names; report.json names all."""


class SearchReport(ReportRecord):
    """Everything the report says; counts are of all trees that were begun. None means "not measured"."""

    run_dir: str
    model: str
    problems_from: str
    split: str
    policy: str
    seed: int
    problems: NonNegativeInt
    searched: NonNegativeInt = Field(description="problems whose tree has ended")
    begun: NonNegativeInt = Field(description="problems whose tree has begun, those that ended among them")
    solved: NonNegativeInt
    solved_share: Interval | None = Field(
        default=None, description="with a 95 % bootstrap interval; None while trees have not ended"
    )
    solved_ids: tuple[str, ...] = ()
    tokens: NonNegativeInt = Field(description="sampled")
    tokens_per_s: float | None = Field(default=None, description="over the seconds of the search")
    expansions: NonNegativeInt
    paths: NonNegativeInt
    programs: NonNegativeInt
    programs_per_s: float | None = None
    duplicates: NonNegativeInt = Field(description="samples merged into an equal sibling")
    lost: NonNegativeInt = Field(description="samples that the infrastructure lost")
    pruned: NonNegativeInt = Field(description="samples cut off because their tree had enough")
    ended_by: dict[str, int] = Field(default_factory=dict, description="trees by the reason of their end")
    seconds: float | None = Field(default=None, description="on the clock, of all processes that worked on the search")
    peak_memory_gb: float | None = Field(default=None, description="largest resident memory of all processes, GB")
    wandb_note: str = ""
    stopped_early: str = ""
    trees: tuple[dict[str, object], ...] = ()


def summarize(
    config: RunConfig,
    run_dir: RunDir,
    split: str,
    problems: int,
    reports: Sequence[TreeReport],
    *,
    seconds: float = 0.0,
    peak_memory: int = 0,
    wandb_note: str = "",
    stopped_early: str = "",
) -> SearchReport:
    """The record of a search. `reports`: of all trees that have begun. `problems`: how many there are to search.
    `seconds`, `peak_memory` (bytes): 0 where not measured."""
    begun = sorted(reports, key=lambda r: r.problem_id)
    ended = [r for r in begun if r.finished]
    tokens, programs = sum(r.tokens for r in begun), sum(r.programs for r in begun)
    # The first trees to end are the easy ones: their share would say too much.
    whole = bool(ended) and len(ended) == problems
    return SearchReport(
        run_dir=str(run_dir.path),
        model=config.model,
        problems_from=config.problems,
        split=split,
        policy=config.search.policy,
        seed=config.seed,
        problems=problems,
        searched=len(ended),
        begun=len(begun),
        solved=sum(r.solved for r in begun),
        solved_share=bootstrap([float(r.solved) for r in ended], config.seed) if whole else None,
        solved_ids=tuple(r.problem_id for r in begun if r.solved),
        tokens=tokens,
        tokens_per_s=round(tokens / seconds, 1) if seconds > 0 else None,
        expansions=sum(r.expansions for r in begun),
        paths=sum(r.paths for r in begun),
        programs=programs,
        programs_per_s=round(programs / seconds, 2) if seconds > 0 else None,
        duplicates=sum(r.duplicates for r in begun),
        lost=sum(r.lost for r in begun),
        pruned=sum(r.pruned for r in begun),
        ended_by=dict(Counter(r.reason for r in ended).most_common()),
        seconds=round(seconds, 1) or None,
        peak_memory_gb=round(peak_memory / 1e9, 2) if peak_memory else None,
        wandb_note=wandb_note,
        stopped_early=stopped_early,
        trees=tuple(as_rows(begun)),
    )


def write(report: SearchReport, run_dir: RunDir) -> None:
    """Write report.json and report.txt, each whole or not at all. Raises OSError when the disk refuses."""
    write_record(report, render, run_dir)


def render(report: SearchReport, console: Console) -> None:
    """Print the report, at most `report.WIDTH` columns wide but for paths and commands, which can be copied."""
    title = "Search stopped early" if report.stopped_early else "Search finished"
    print_facts(console, title, _facts(report))
    for text in (f"  run directory     {report.run_dir}", report.wandb_note):
        if text:
            console.print(Text(clean(text)), soft_wrap=True, highlight=False)
    if report.searched < report.problems or report.stopped_early:
        go_on = f"To go on: ./o1coder search --resume {shlex.quote(report.run_dir)}"
        console.print(Text(clean(go_on), style="bold"), soft_wrap=True, highlight=False)


def _facts(report: SearchReport) -> list[tuple[str, str]]:
    share = f", {report.solved_share} (95 % interval)" if report.solved_share else ""
    ids = ", ".join(report.solved_ids[:SHOWN_IDS])
    more = len(report.solved_ids) - SHOWN_IDS
    open_ = f", {report.begun - report.searched:,} more begun" if report.begun > report.searched else ""
    waiting = f" of {report.problems:,} ended{open_}" if report.searched < report.problems else ""
    return [
        *([("stopped early", report.stopped_early)] if report.stopped_early else []),
        ("model, policy", f"{report.model}, {report.policy}, seed {report.seed}"),
        ("problems", f"{report.searched:,}{waiting}"),
        ("solved", f"{report.solved:,}{share}"),
        ("sampled tokens", _with_rate(report.tokens, report.tokens_per_s, "tokens/s")),
        ("expansions", f"{report.expansions:,}"),
        ("programs judged", _with_rate(report.programs, report.programs_per_s, "programs/s")),
        ("samples", f"{report.duplicates:,} merged as duplicates, {report.lost:,} lost, {report.pruned:,} pruned"),
        ("trees ended by", ", ".join(f"{reason} {n:,}" for reason, n in report.ended_by.items()) or MISSING),
        ("seconds", MISSING if report.seconds is None else f"{report.seconds:,.1f}"),
        ("peak memory", MISSING if report.peak_memory_gb is None else f"{report.peak_memory_gb:.1f} GB"),
        ("solved problems", (ids or "none") + (f" and {more:,} more (report.json)" if more > 0 else "")),
    ]


def _with_rate(count: int, rate: float | None, unit: str) -> str:
    return f"{count:,}" + (f", {rate:,.1f} {unit}" if rate is not None else "")
