"""What suites come to by difficulty, in the terminal, in files and as a page."""

import html.parser
import io
import json

import pytest
from rich.console import Console

from cluster import tcg_report
from cluster.run_dir import RunDir
from cluster.tcg_report import TcgReport, accuracies, metrics, overall, rows
from reasoning.records import Origin, ProblemTest, Suite, SuiteQuality
from sandbox import CallCase

TEST = ProblemTest(case=CallCase(args=[1], expected=1), origin=Origin.REFERENCE)


def suite(name, difficulty="easy", accepted=True, reason="", tests=2, **counts):
    numbers = {"mutants": 12, "screened": 10, "killed": 9, "killed_by_given": 5, "redundancy": 0.25}
    quality = SuiteQuality(**{**numbers, **counts})
    return Suite(
        problem_id=name,
        tests=(TEST,) * tests,
        accepted=accepted,
        reason=reason,
        quality=quality,
        difficulty=difficulty,
    )


SUITES = [
    suite("a", asked=6, cases=4, cases_valid=3, cases_right=1, false_accept=0.1, branches=4, branches_covered=3),
    suite("b", killed=5, asked=6, cases=6, cases_valid=3, cases_right=4, false_accept=0.3, branches=0),
    suite("c", "hard", False, "kill rate 0.20 is below the bar of 0.50", screened=0, killed=0, killed_by_given=0),
]
MEASURED = {"asked": 30, "cases": 20, "valid": 15, "right": 5, "accuracy": 0.25, "low": 0.125, "high": 0.5}
TRAINED = {
    "measured_problems": 10,
    "sft": {"reference": MEASURED, "question_only": {**MEASURED, "cases": 0, "right": 0, "accuracy": None}},
    "dpo": {"reference": {**MEASURED, "right": 10, "accuracy": 0.5}},
}


def report(suites=SUITES, **more):
    return TcgReport(
        run_dir="/runs/1",
        model="small",
        mode="reference",
        seed=0,
        rows=rows(suites),
        refused=tcg_report.refused(suites),
        tests_by_origin=tcg_report.origins(suites),
        **more,
    )


def shown(found, width=100):
    out = io.StringIO()
    tcg_report.render(found, Console(file=out, width=width))
    return out.getvalue()


def test_shares_count_cases_and_mutants_not_problems():
    easy, hard, whole = rows(SUITES)
    assert [r.difficulty for r in (easy, hard, whole)] == ["easy", "hard", "all"]
    assert (easy.suites, easy.accepted, easy.tests) == (2, 2, 2)
    assert (easy.validity, easy.output_accuracy) == (6 / 12, 5 / 10)
    assert (easy.kill_rate.mean, easy.kill_rate_given) == (14 / 20, 10 / 20)
    assert (easy.false_accept, easy.branch_coverage) == (pytest.approx(0.2), 3 / 4)
    assert whole.suites == 3 and whole.accepted == 2


def test_what_was_not_counted_is_not_zero():
    (_, hard, _) = rows(SUITES)
    for name in (
        "tests",
        "validity",
        "output_accuracy",
        "kill_rate",
        "policy_kill_rate",
        "false_reject",
        "branch_coverage",
    ):
        assert getattr(hard, name) is None
    found = metrics(rows(SUITES), overall(SUITES))
    assert "tcg_difficulty/hard/kill_rate" not in found
    assert found["tcg_difficulty/easy/kill_rate"] == 0.7


def test_all_suites_together_are_always_logged():
    for suites in (SUITES, SUITES[:2]):
        assert metrics(rows(suites), overall(suites))["tcg_difficulty/all/suites"] == len(suites)


def test_one_difficulty_has_one_row():
    assert [r.difficulty for r in rows(SUITES[:2])] == ["easy"]
    assert rows([]) == ()


def test_accuracy_after_each_step_in_each_mode():
    found = accuracies(TRAINED)
    assert [(a.step, a.mode) for a in found] == [("SFT", "reference"), ("SFT", "question_only"), ("DPO", "reference")]
    assert (found[0].output_accuracy.mean, found[0].output_accuracy.n) == (0.25, 10)
    assert found[1].output_accuracy is None
    assert accuracies({"skipped": "no problem"}) == ()


def test_the_terminal_shows_everything_in_a_hundred_columns():
    text = shown(report(accuracy=accuracies(TRAINED), wandb_note="W&B: offline"))
    for part in ("25.0 % [12.5, 50.0]", "70.0 %", "50.0 %", "hard", "c: kill rate 0.20", "4 reference", "W&B: offline"):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 100
    assert "Suites by difficulty" not in shown(report([]))


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.data = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_is_whole_and_escapes_what_it_shows():
    odd = suite("<script>alert(1)</script>", "a & b", False, "because <b>")
    text = tcg_report.page(report([odd, *SUITES], accuracy=accuracies(TRAINED)))
    page = Page()
    page.feed(text)
    assert page.open == ["html"]
    assert "<script>" not in text and "<script>alert(1)</script>" in page.data and "a & b" in page.data
    assert "http" not in text  # it needs nothing from elsewhere


def test_files(tmp_path):
    tcg_report.write(report(), RunDir(tmp_path))
    again = TcgReport.model_validate(json.loads((tmp_path / "report.json").read_text()))
    assert again == report()
    assert "Suites by difficulty" in (tmp_path / "report.txt").read_text()
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
