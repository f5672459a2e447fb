"""Thousands of real programs whose verdicts come from elsewhere: ours differ only where a table here says why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpus_bench import by_task, json_lines, judge_all, submission

from reasoning.asserts import convert_assert
from reasoning.problems import from_row
from sandbox import AssertCase, Limits, Submission, SuiteResult, Verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),  # in the data's own code
]

LIMITS = Limits(cpu_s=2, wall_s=6)

# Where ours is not the peer's: the program, and why. Empty: all 6,197 verdicts agree.
DISAGREEMENTS: dict[str, str] = {}

# HumanEval programs that both refuse, for different reasons.
OTHER_REASONS = {
    "deepseek-coder_6.7b HumanEval/9": "':=' was a syntax error for the peer's Python; ours calls it with []",
    "codellama_7b HumanEval/99": "an assert of the program itself fails, before the test calls anything",
}


def disagreements(verdicts: dict[str, Verdict], passed: dict[str, bool]) -> dict[str, str]:
    assert verdicts.keys() == passed.keys()
    return {
        name: f"the peer says {passed[name]}, we say {verdict.value}"
        for name, verdict in verdicts.items()
        if (verdict is Verdict.ACCEPTED) != passed[name] and name not in DISAGREEMENTS
    }


def test_humaneval(shared_data: Path) -> None:
    """Four models' programs, verdicts of the harness that comes with HumanEval."""
    tasks = by_task(shared_data / "humaneval" / "HumanEval.jsonl.gz")
    peers: dict[str, dict[str, Any]] = {}
    programs: dict[str, Submission] = {}
    for path in sorted((shared_data / "verdicts" / "humaneval").glob("*.jsonl")):
        for row in json_lines(path):
            task = tasks[row["task_id"]]
            name = f"{path.stem} {row['task_id']}"
            peers[name] = row
            programs[name] = submission(task["prompt"] + row["completion"], from_row(task), LIMITS, stop="never")
    results = judge_all(list(programs.values()))
    verdicts = {name: result.verdict for name, result in zip(programs, results, strict=True)}
    assert Counter(row["passed"] for row in peers.values()) == {True: 281, False: 375}
    assert not disagreements(verdicts, {name: row["passed"] for name, row in peers.items()})
    first = {name: first_failure(result) for name, result in zip(programs, results, strict=True)}
    assert {name for name, row in peers.items() if first[name] not in reasons(row["result"])} == set(OTHER_REASONS)
    # In another order, with more at once than there are cores: every single case as before.
    again = judge_all(list(programs.values())[::-1], slots=6)[::-1]
    for name, one, two in zip(programs, results, again, strict=True):
        assert [case.verdict for case in one.cases] == [case.verdict for case in two.cases], name


def first_failure(result: SuiteResult) -> Verdict:
    """What a harness sees that stops there."""
    failures = (case.verdict for case in result.cases if case.verdict is not Verdict.ACCEPTED)
    return next(failures, Verdict.ACCEPTED)


def reasons(said: str) -> set[Verdict]:
    """What a message of the peer can mean."""
    if said == "passed":
        return {Verdict.ACCEPTED}
    if said == "failed: ":
        return {Verdict.WRONG_ANSWER}  # an assert without a message
    return {Verdict.COMPILE_ERROR} if "(<string>, line" in said else {Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR}


def test_mbpp(shared_data: Path) -> None:
    """Programs of a small model, verdicts of plain Python on the three asserts."""
    tasks = by_task(shared_data / "mbpp" / "mbpp.jsonl")
    rows = json_lines(shared_data / "verdicts" / "mbpp" / "smollm2-135m.jsonl.gz")
    problems = {task: from_row(tasks[task]) for task in {row["task_id"] for row in rows}}
    results = judge_all(
        [submission(row["program"], problems[row["task_id"]], LIMITS, stop="first_failure") for row in rows]
    )
    names = [f"mbpp {number} of task {row['task_id']}" for number, row in enumerate(rows)]
    passed = {name: row["passed"] for name, row in zip(names, rows, strict=True)}
    assert Counter(passed.values()) == {True: 305, False: 3167}
    assert not disagreements({name: result.verdict for name, result in zip(names, results, strict=True)}, passed)


@pytest.mark.parametrize("how", ["calls", "test code"])
def test_refactory(shared_data: Path, how: str) -> None:
    """Students' programs, labelled: by single calls (every fifth program), and by test code in a process apart."""
    rows = json_lines(shared_data / "verdicts" / "refactory" / "tasks-1-2.jsonl.gz")
    tasks = {row["task"]: row for row in rows if row["kind"] == "task"}
    programs = [row for row in rows if row["kind"] == "program"][:: 5 if how == "calls" else 1]
    cases: dict[int, list[Any]] = {}
    for number, task in tasks.items():
        asserts = [f"assert {expression} == {value}" for expression, value in task["tests"]]
        entry_point = task["tests"][0][0].partition("(")[0]
        if how == "calls":
            cases[number] = [convert_assert(text, entry_point) for text in asserts]
            assert not any(isinstance(case, AssertCase) for case in cases[number])
        else:
            code = "\n".join([task["prelude"], *asserts]) + "\n"
            cases[number] = [AssertCase(code=code, entry_point=entry_point)]
    results = judge_all(
        [
            Submission(
                source=tasks[row["task"]]["prelude"] + row["program"],
                entry_point=tasks[row["task"]]["tests"][0][0].partition("(")[0],
                cases=cases[row["task"]],
                limits=LIMITS,
                stop="first_failure",
            )
            for row in programs
        ]
    )
    names = [f"refactory {number} of task {row['task']}" for number, row in enumerate(programs)]
    passed = {name: row["label"] == "correct" for name, row in zip(names, programs, strict=True)}
    assert set(passed.values()) == {True, False} and len(passed) == (414 if how == "calls" else 2069)
    assert not disagreements({name: result.verdict for name, result in zip(names, results, strict=True)}, passed)
