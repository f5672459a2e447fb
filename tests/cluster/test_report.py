"""The report: what it says, that it claims no more than was measured, and that it fits the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from cluster.report import EvalSummary, RunSummary, SearchCount, Showcase, SolvedExample, render, render_text, write
from cluster.run_dir import RunDir
from reasoning.estimators import Interval

PROGRAM = """def count_vowels(text):
    total = 0
    for letter in text:
        if letter in "aeiou":
            total += 1
    return total
"""

SHOWCASE = Showcase(
    problem_id="bundled/strings-07",
    question="Write a function count_vowels(text) that returns how many vowels the text has.\n"
    "Capital letters count as well: count_vowels('Apple') is 2.",
    before=SolvedExample(
        steps=(("Define the algorithm's structure", "Go through the text and count the letters that are vowels."),),
        program=PROGRAM,
        tests_passed=2,
        tests_total=8,
        verdict="wrong answer",
    ),
    after=SolvedExample(
        steps=(
            ("Define the algorithm's structure", "Lower the text, then count its letters that are in 'aeiou'."),
            ("Refine", "function count_vowels(text):\n    return the number of letters of lower(text) in 'aeiou'"),
        ),
        program='def count_vowels(text):\n    return sum(letter in "aeiou" for letter in text.lower())\n',
        tests_passed=8,
        tests_total=8,
        verdict="passed",
    ),
)


def summary(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "run_dir": "/home/someone/o1coder/runs/20260131-120000-a1b2c3",
        "model": "smollm2-135m",
        "seed": 0,
        "rounds": 1,
        "eval_before": EvalSummary(
            pass_at_1=Interval(0.125, 0.042, 0.208, 16), samples=8, greedy=0.125, prompt="2 shots"
        ),
        "eval_after": EvalSummary(
            pass_at_1=Interval(0.172, 0.07, 0.289, 16), samples=8, greedy=0.1875, prompt="2 shots"
        ),
        "difference": Interval(0.047, -0.016, 0.117, 16),
        "problems_searched": 48,
        "problems_solved": 19,
        "solved_before": SearchCount(searched=48, solved=17),
        "solved_after": SearchCount(searched=24, solved=11),
        "tests_by_origin": {"given": 384, "reference mutants": 120, "model": 7},
        "suites_refused": 3,
        "tcg_output_accuracy_sft": 0.31,
        "tcg_output_accuracy_dpo": 0.34,
        "prm_auc": 0.713,
        "weight_version": 2,
        "sync_seconds": 1.84,
        "seconds_per_stage": {"test generator": 81.2, "evaluation before": 64.0, "search": 301.9, "policy RL": 140.25},
        "tokens_sampled": 412345,
        "programs_judged": 5120,
        "peak_memory_gb": 7.9,
        "showcase": SHOWCASE,
        "next_commands": (
            "./o1coder train --resume /home/someone/o1coder/runs/20260131-120000-a1b2c3 rounds=2",
            "./o1coder evaluate /home/someone/o1coder/runs/20260131-120000-a1b2c3/checkpoints/policy --problems mbpp",
        ),
        "wandb_note": "W&B: offline (no API key configured); sync later with "
        "`wandb sync /home/someone/o1coder/runs/20260131-120000-a1b2c3/wandb/offline-run-*`",
    }
    return RunSummary(**(values | changes))


def in_colour(record: RunSummary, width: int = 120) -> str:
    out = io.StringIO()
    render(record, Console(file=out, width=width, force_terminal=True, color_system="standard"))
    return out.getvalue()


def test_the_page_says_what_was_measured() -> None:
    page = render_text(summary())
    for said in (
        "12.5 % [4.2, 20.8]",
        "17.2 % [7.0, 28.9]",
        "+4.7 points [-1.6, +11.7]",
        "2 shots",
        "19 of 48 problems",
        "before the update 17 of 48, after it 11 of 24",
        "384 given, 120 reference mutants, 7 model",
        "AUC 0.713",
        "version 2, synced in 1.8 s",
        "412,345",
        "7.9 GB",
        "Before training: 2 of 8 tests passed (wrong answer)",
        "After training: 8 of 8 tests passed",
        'return sum(letter in "aeiou" for letter in text.lower())',
    ):
        assert said in page
    stage = next(line for line in page.splitlines() if line.split()[:1] == ["search"])
    assert stage.split() == ["search", "301.9", "51", "%"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.2, "no clear change"),
        (0.0, 0.2, "no clear change"),
        (-0.2, 0.0, "no clear change"),
        (0.0, 0.0, "no clear change"),
    ],
)
def test_a_change_is_claimed_only_outside_of_noise(low: float, high: float, words: str) -> None:
    record = summary(difference=Interval((low + high) / 2, low, high, 16))
    assert record.change() == words
    line = next(line for line in render_text(record).splitlines() if "change:" in line)
    assert f", {words} (" in line
    assert sum(claim in line for claim in ("better", "worse", "no clear change")) == 1


def test_alarms_are_listed() -> None:
    assert "Alarms" not in render_text(summary())
    page = render_text(summary(alarms=("round 2: paths repeat each other",)))
    assert page.index("Alarms") < page.index("round 2: paths repeat each other")


def test_what_was_not_measured_is_a_dash_and_never_a_zero() -> None:
    bare = RunSummary(run_dir="/r", model="m", seed=1, rounds=1)
    page = render_text(bare)
    assert "0" not in page.replace("rounds", "")
    rows = {line.strip().split("  ")[0]: line.split("  ")[-1].strip() for line in page.splitlines() if line.strip()}
    for name in ("solved in search", "tests by origin", "suites refused", "test generator", "weights served"):
        assert rows[name] == "-"
    for name in ("tokens sampled", "programs judged", "peak memory"):
        assert rows[name] == "-"
    assert rows["reward model"] == "AUC -"
    assert bare.change() is None
    assert "change: -" in page


def test_a_measured_zero_is_a_zero() -> None:
    page = render_text(summary(problems_solved=0, prm_auc=0.0, suites_refused=0, tcg_output_accuracy_sft=0.0))
    assert "0 of 48 problems" in page
    assert "AUC 0.000" in page
    assert "right after SFT 0.0 %" in page


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_page_fits_but_commands_stay_whole(width: int) -> None:
    record = summary(
        showcase=SHOWCASE.model_copy(
            update={"before": SolvedExample(program="x = " + "9" * 300, tests_passed=0, tests_total=1, verdict="error")}
        )
    )
    lines = render_text(record, width).splitlines()
    for command in record.next_commands:
        assert f"  {command}" in lines
    assert any(line.endswith(record.run_dir) for line in lines)
    long = [line for line in lines if len(line) > min(width, 100)]
    assert all("/home/someone" in line for line in long)
    assert sum(line.count("9") for line in lines if set(line.strip()) <= set("x= 9")) == 300


def test_colours_highlight_the_program_and_plain_text_has_none() -> None:
    assert "\x1b[" in in_colour(summary())
    coloured_program = next(
        line for line in in_colour(summary()).splitlines() if "count_vowels" in line and "def" in line
    )
    assert coloured_program.count("\x1b[") >= 3
    assert "\x1b" not in render_text(summary())


def test_text_of_a_model_cannot_steer_the_terminal_or_the_markup() -> None:
    nasty = "\x1b]0;title\x07\x1b[2J[red]gone[/red]\x00\x9b1m\rback"
    case = Showcase(
        problem_id="p",
        question=nasty,
        before=SolvedExample(steps=((nasty, nasty),), program=nasty, tests_passed=0, tests_total=0, verdict=nasty),
    )
    for page in (render_text(summary(showcase=case)), in_colour(summary(showcase=case))):
        assert not set("\x00\x07\x9b\r") & set(page)
        assert "\x1b[2J" not in page and "\x1b]" not in page
    assert "[red]gone[/red]" in render_text(summary(showcase=case))


def test_a_side_without_a_program_is_said() -> None:
    page = render_text(summary(showcase=SHOWCASE.model_copy(update={"before": None})))
    assert "the model gave no program" in page


def test_an_early_stop_comes_first() -> None:
    page = render_text(summary(stopped_early="interrupted during search"))
    assert "Run stopped early" in page.splitlines()[0]
    assert "interrupted during search" in page
    assert "Run finished" not in page


def test_written_files_hold_the_summary(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    write(summary(), run)
    assert RunSummary.model_validate_json(run.report.read_text()) == summary()
    assert json.loads(run.report.read_text())["difference"] == {"mean": 0.047, "low": -0.016, "high": 0.117, "n": 16}
    assert run.report_text.read_text() == render_text(summary())
    assert not list(run.path.glob(".report*"))


def test_the_record_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="prm_acu"):
        summary(prm_acu=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        summary().seed = 3  # type: ignore[misc]
