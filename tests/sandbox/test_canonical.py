"""The benchmarks' own solutions pass the benchmarks' own tests, as the loader converts them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_bench import by_task, canonical, json_lines, judge_all

from reasoning.asserts import EQUAL, imports_of
from sandbox import CallCase, CaseResult, Limits, Submission, SuiteResult, Verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),  # in the data's own code
]

GENEROUS = Limits(cpu_s=10, memory_mb=2048)

# HumanEval's own solutions against what EvalPlus's corrected ones return on the first of EvalPlus's inputs.
HUMANEVAL_MISTAKES = {
    "HumanEval/22": "takes True and False for integers",
    "HumanEval/32": "another zero of the polynomial, or a less exact one: the task has no single answer",
    "HumanEval/39": "too slow for the twelfth prime Fibonacci number",
    "HumanEval/97": "the unit digit of a negative number",
    "HumanEval/124": "operator precedence refuses 12-31-1999",
    "HumanEval/132": "takes brackets side by side for nested ones",
    "HumanEval/140": "a run of spaces at the end",
    "HumanEval/150": "takes 1 for a prime and zero or less for none",
}
PLUS_INPUTS = 8
PLUS_INPUT_CHARACTERS = 2000

PLAIN = """
import json, sys
sys.set_int_max_str_digits(0)
for job in json.load(sys.stdin):
    names = {}
    exec(job["source"], names)
    print(json.dumps([repr(names[job["entry_point"]](*args)) for args in job["inputs"]]))
"""


def failures(results: Mapping[str, SuiteResult]) -> dict[str, tuple[str, str | None]]:
    """The first case of each that was not accepted."""

    def first(cases: Sequence[CaseResult]) -> tuple[str, str | None]:
        return next((case.verdict.value, case.detail) for case in cases if case.verdict is not Verdict.ACCEPTED)

    return {name: first(result.cases) for name, result in results.items() if result.verdict is not Verdict.ACCEPTED}


def judged(submissions: Mapping[str, Submission]) -> dict[str, SuiteResult]:
    return dict(zip(submissions, judge_all(list(submissions.values())), strict=True))


def mbpp_plus(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of MBPP+ in the layout of MBPP: its asserts are one text, its imports stand among them."""
    body = ast.parse(row["assertion"]).body
    return {
        "task_id": row["task_id"].partition("/")[2],
        "prompt": row["prompt"],
        "code": row["canonical_solution"],
        "test_list": [ast.unparse(node) for node in body if isinstance(node, ast.Assert)],
        "test_imports": [imports_of(row["assertion"])],
    }


@pytest.mark.parametrize(
    "path, count",
    [
        ("mbpp/mbpp.jsonl", 974),
        ("mbpp/sanitized-mbpp.json", 427),
        ("humaneval/HumanEval.jsonl.gz", 164),
        ("evalplus/HumanEvalPlus.jsonl.gz", 164),
        ("evalplus/MbppPlus.jsonl.gz", 378),
    ],
)
def test_canonical_solutions_are_accepted(shared_data: Path, path: str, count: int) -> None:
    file = shared_data / path
    rows = json.loads(file.read_text()) if file.suffix == ".json" else json_lines(file)
    if "Mbpp" in path:
        rows = [mbpp_plus(row) for row in rows]
    results = judged({str(row["task_id"]): canonical(row, GENEROUS) for row in rows})
    assert len(results) == count
    assert not failures(results)


def test_inputs_of_evalplus(shared_data: Path) -> None:
    """Expected values from plain Python: what a program returns in the sandbox is what it returns outside.

    MBPP+ is left out: its file holds tuples as lists.
    """
    corrected = by_task(shared_data / "evalplus" / "HumanEvalPlus.jsonl.gz")
    original = by_task(shared_data / "humaneval" / "HumanEval.jsonl.gz")
    jobs = [
        {
            "source": row["prompt"] + row["canonical_solution"],
            "entry_point": row["entry_point"],
            "inputs": [args for args in row["plus_input"] if len(repr(args)) < PLUS_INPUT_CHARACTERS][:PLUS_INPUTS],
        }
        for row in corrected.values()
    ]
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN], input=json.dumps(jobs), capture_output=True, text=True, timeout=120, check=True
    )
    ours: dict[str, Submission] = {}
    theirs: dict[str, Submission] = {}
    for task, job, line in zip(corrected, jobs, plain.stdout.splitlines(), strict=True):
        values = [ast.literal_eval(text) for text in json.loads(line)]
        cases = [
            CallCase(args=args, expected=value, comparator=EQUAL)
            for args, value in zip(job["inputs"], values, strict=True)
        ]
        source = original[task]["prompt"] + original[task]["canonical_solution"]
        ours[task] = Submission(source=job["source"], entry_point=job["entry_point"], cases=cases)
        theirs[task] = Submission(source=source, entry_point=job["entry_point"], cases=cases)
    assert sum(len(one.cases) for one in ours.values()) > 1000
    assert not failures(judged(ours))
    assert failures(judged(theirs)).keys() == HUMANEVAL_MISTAKES.keys()
