"""What a search came to: counted over all trees, and shown without claiming more."""

import io
import json

import pytest
from rich.console import Console

from cluster import search_report
from cluster.config import load
from cluster.run_dir import RunDir
from reasoning.nodes import TreeReport


def tree(name, solved=False, reason="token budget", **counts):
    numbers = {
        "tokens": 100,
        "expansions": 4,
        "paths": 6,
        "programs": 5,
        "duplicates": 1,
        "lost": 2,
        "pruned": 3,
        "unscored": 0,
    }
    return TreeReport(problem_id=name, solved=solved, seconds=1.0, reason=reason, **{**numbers, **counts})


@pytest.fixture
def summed(tmp_path):
    def call(*reports, problems=3, **more):
        return search_report.summarize(load("tiny"), RunDir(tmp_path), "all", problems, reports, **more)

    return call


def shown(report):
    out = io.StringIO()
    search_report.render(report, Console(file=out, width=100))
    return out.getvalue()


def test_counts_are_of_all_trees_and_no_share_is_claimed_before_the_last_has_ended(summed):
    """Those that end first are the easy ones."""
    report = summed(tree("b", True), tree("a"), tree("c", True, reason="", tokens=7), problems=4, seconds=4.0)
    assert (report.searched, report.begun, report.problems) == (2, 3, 4)
    assert (report.solved, report.solved_ids, report.solved_share) == (2, ("b", "c"), None)
    assert (report.tokens, report.tokens_per_s, report.programs_per_s) == (207, 51.8, 3.75)
    assert (report.duplicates, report.lost, report.pruned, report.expansions) == (3, 6, 9, 12)
    assert report.ended_by == {"token budget": 2}
    assert [t["problem_id"] for t in report.trees] == ["a", "b", "c"]
    assert "2 of 4 ended, 1 more begun" in shown(report)


def test_what_was_not_measured_is_not_shown_as_0(summed):
    report = summed(problems=2, stopped_early="interrupted by SIGTERM")
    assert (report.tokens_per_s, report.seconds, report.solved_share, report.peak_memory_gb) == (None,) * 4
    text = shown(report)
    assert "Search stopped early" in text and "interrupted by SIGTERM" in text
    assert "0 of 2 ended" in text
    assert "search --resume" in text


def test_the_table(summed):
    report = summed(tree("b", True), tree("a"), tree("c"), seconds=4.0, peak_memory=4_500_000_000)
    assert (report.tokens_per_s, report.programs_per_s) == (75.0, 3.75)
    text = shown(report)
    for part in ("Search finished", "33.3 % [0.0, ", "95 % interval", "75.0 tokens/s", "3 merged as duplicates"):
        assert part in text
    assert "6 lost, 9 pruned" in text and "4.5 GB" in text and "solved problems   b" in text
    assert "--resume" not in text


def test_many_solved_problems_are_cut_in_the_table_alone(summed):
    report = summed(*[tree(f"p{n:03}", True) for n in range(50)], problems=50)
    assert "and 10 more (report.json)" in shown(report)
    assert len(report.solved_ids) == 50


def test_an_id_cannot_steer_the_terminal(summed):
    assert "\x1b" not in shown(summed(tree("a\x1b[2Jb", True), problems=1))


def test_both_files_are_written(summed, tmp_path):
    run = RunDir.create(tmp_path / "run")
    search_report.write(summed(tree("a", True), problems=1), run)
    assert json.loads(run.report.read_text())["solved_ids"] == ["a"]
    assert "Search finished" in run.report_text.read_text()
