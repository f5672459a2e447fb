"""Rows in TACO's layout: functions and programs, values as JSON, as Python literals and as they are."""

import asyncio
import gzip
import json

import pytest

from reasoning.errors import RowError
from reasoning.problems import from_row, from_rows, row_id
from sandbox import CallCase, Limits, LocalPool, StdioCase, Submission, Verdict

CALL = {
    "question": "Angles of a polygon.",
    "solutions": '["def angle(n):\\n\\treturn 180 * (n - 2)\\n", "angle = lambda n: (n - 2) * 180\\n", "x", "y"]',
    "input_output": '{"fn_name": "angle", "inputs": [[3], [4]], "outputs": [[180], [360]]}',
    "difficulty": "EASY",
    "url": "https://www.codewars.com/kata/5a03b3f6a1c9040084001765",
}
PRINT = {
    "question": "Double it.",
    "solutions": ["print(2 * int(input()))"],
    "input_output": {"inputs": ["1\n", ["2", ""]], "outputs": ["2\n", ["4"]]},
    "url": "None",
}


def test_a_function():
    problem = from_row(CALL)
    assert problem.entry_point == "angle" and "`angle`" in problem.question
    assert [type(t.case) for t in problem.tests] == [CallCase, CallCase]
    assert [(t.case.args, t.case.expected, t.shown) for t in problem.tests] == [([3], 180, True), ([4], 360, False)]
    assert len(problem.references) == 3 and problem.difficulty == "easy"
    assert problem.id == row_id(CALL) and problem.id.startswith("taco/kata-5a03b3f6a1c9040084001765-")


def test_a_program():
    problem = from_row(PRINT)
    assert problem.entry_point is None
    assert [t.case for t in problem.tests] == [
        StdioCase(stdin="1\n", expected="2\n"),
        StdioCase(stdin="2\n", expected="4"),
    ]
    assert row_id(PRINT) != row_id({**PRINT, "question": "Triple it."})


def test_answers_that_are_not_wrapped_stay_lists():
    found = {"fn_name": "angle", "inputs": [[3], [4]], "outputs": [[1], [2, 3]]}
    assert [t.case.expected for t in from_row({**CALL, "input_output": found}).tests] == [[1], [2, 3]]
    bare = {name: value for name, value in CALL.items() if name != "solutions"}
    assert from_row(bare).references == ()


def test_literals_of_python_and_no_solution():
    problem = from_row({**CALL, "solutions": "[]", "input_output": str(json.loads(CALL["input_output"]))})
    assert problem.references == () and len(problem.tests) == 2


@pytest.mark.parametrize(
    "change, says",
    [
        ({"question": " "}, "field question: is empty"),
        ({"solutions": "[1, 2"}, "field solutions: is neither JSON nor a Python literal"),
        ({"solutions": {}}, "field solutions: needs a list, not dict"),
        ({"solutions": [1]}, "field references.0"),
        ({"input_output": ""}, "field input_output: is neither"),
        ({"input_output": "{}"}, "at least one"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "as many of the one"),
        ({"input_output": {"fn_name": "f", "inputs": ["1"], "outputs": ["1"]}}, "a list of its arguments"),
        ({"input_output": {"fn_name": 3, "inputs": [[1]], "outputs": ["1"]}}, "field entry_point"),
    ],
)
def test_what_is_no_problem_says_why(change, says):
    with pytest.raises(RowError, match=says):
        from_row({**CALL, **change})


def test_real_rows_load_and_their_references_tell_the_broken_one(shared_data):
    """One of the ten has its outputs in another order than its inputs."""
    rows = json.loads(gzip.decompress((shared_data / "taco" / "train_easy_10.json.gz").read_bytes()))
    rows += json.loads((shared_data / "taco" / "self_create_data.json").read_text())
    problems = from_rows(enumerate(rows), "taco")
    assert len(problems) == 11 and [bool(p.references) for p in problems] == [True] * 10 + [False]

    async def verdicts():
        async with LocalPool(2) as pool:
            return await asyncio.gather(
                *[
                    pool.judge(
                        Submission(
                            source=p.references[0],
                            entry_point=p.entry_point,
                            cases=[t.case for t in p.tests],
                            limits=Limits(cpu_s=4),
                        )
                    )
                    for p in problems[:10]
                ]
            )

    found = [r.verdict for r in asyncio.run(verdicts())]
    assert [i for i, v in enumerate(found) if v is not Verdict.ACCEPTED] == [8]
