"""Solutions in the layout of the published process data."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_paths import path, step
from made_records import PROBLEM_ROW

from reasoning.export import complete_solutions
from reasoning.records import Action, Problem, Step
from reasoning.steps import BEGIN, END, render

DEFINE, REFINE, CODE = Action.DEFINE, Action.REFINE, Action.CODE
PROBLEM = Problem.model_validate(PROBLEM_ROW)


def said(made, text):
    return made.model_copy(update={"text": text})


def own(steps, **kwargs):
    return path(problem=PROBLEM.id, steps=tuple(steps), **kwargs)


PLAN = said(step(DEFINE, [3], passed=3, sampled=4), "plan")
DETAIL = said(step(REFINE, [4], passed=2, sampled=2), "detail")


def code(token, passed=1, sampled=1):
    return said(step(CODE, [token], passed=passed, sampled=sampled), f"```python\nx = {token}\n```")


def test_the_layout():
    (solution,) = complete_solutions(PROBLEM, [own([PLAN, code(5)])])
    assert list(solution.items()) == [
        (
            "2",
            {
                "node_id": 2,
                "ost_step": "### Step 2: <Action 3> Write the Python code\n```python\nx = 5\n```",
                "step_value": 1.0,
                "edges": [1, 2],
            },
        ),
        (
            "1",
            {
                "node_id": 1,
                "ost_step": "### Step 1: <Action 1> Define the structure in pseudocode\nplan",
                "step_value": 0.75,
                "edges": [0, 1],
            },
        ),
        ("0", {"node_id": 0, "question": PROBLEM.question}),
    ]


def test_the_steps_are_those_that_are_rendered():
    (solution,) = complete_solutions(PROBLEM, [own([PLAN, DETAIL, code(5)])])
    rendered = render([Step(action=s.action, text=s.text) for s in (PLAN, DETAIL, code(5))])
    shown = "\n".join(f"{BEGIN}\n{solution[str(n)]['ost_step']}\n{END}" for n in (1, 2, 3))
    assert shown == rendered


def test_shared_steps_are_one_node_and_trees_are_numbered_apart():
    paths = [
        own([PLAN, code(5)]),
        own([PLAN, DETAIL, code(5)]),
        own([PLAN, DETAIL, code(6)]),
        own([PLAN, code(5)], tree="u"),
    ]
    nodes = [[entry["node_id"] for entry in reversed(x.values())] for x in complete_solutions(PROBLEM, paths)]
    assert nodes == [[0, 1, 2], [0, 1, 3, 4], [0, 1, 3, 5], [0, 1, 2]]


def test_only_complete_paths_solved_or_not():
    wrong = own([PLAN, code(5, passed=0)], value=0.1)
    cut_short = own([PLAN], value=0.0, program=None)
    lost = own([PLAN, code(6)], value=None)
    (solution,) = complete_solutions(PROBLEM, [cut_short, lost, wrong])
    assert solution["2"]["step_value"] == 0.0


def test_a_path_without_counts_is_its_own_terminal():
    paths = [own([step(DEFINE, [3]), code(n, 0, 0)], value=float(n)) for n in (0, 1)]
    values = [[x["1"]["step_value"], x["2"]["step_value"]] for x in complete_solutions(PROBLEM, paths)]
    assert values == [[0.0, 0.0], [1.0, 1.0]]


def test_a_path_of_another_problem_is_refused():
    with pytest.raises(ValueError, match="paths: got one of 'p'"):
        complete_solutions(PROBLEM, [path()])


tokens = st.lists(st.integers(0, 2), max_size=2)
texts = st.text(max_size=12)


@st.composite
def complete_paths(draw):
    refinements = draw(st.lists(st.tuples(tokens, texts), max_size=2))
    steps = [said(step(DEFINE, draw(tokens), passed=1, sampled=3), draw(texts))]
    steps += [said(step(REFINE, ids, (8,), 1, 2), text) for ids, text in refinements]
    steps.append(said(step(CODE, draw(tokens), (7,), 1, 1), draw(texts)))
    return own(steps, tree=draw(st.sampled_from("tu")))


@given(st.lists(complete_paths(), max_size=8))
def test_edges_lead_from_the_step_before_and_ids_are_one_per_prefix(paths):
    solutions = complete_solutions(PROBLEM, paths)
    assert json.loads(json.dumps(solutions)) == solutions
    assert len(solutions) == len(paths)
    prefixes = {}
    for solution, made in zip(solutions, paths, strict=True):
        assert list(solution) == [str(n) for n in range(len(made.steps), -1, -1)]
        assert solution["0"] == {"node_id": 0, "question": PROBLEM.question}
        prefix = ()
        for number, s in enumerate(made.steps, start=1):
            entry = solution[str(number)]
            assert entry["edges"] == [solution[str(number - 1)]["node_id"], entry["node_id"]]
            assert entry["step_value"] == s.passed / s.sampled
            assert entry["ost_step"].startswith(f"### Step {number}: <Action {s.action.value}>")
            prefix += ((*s.header_ids, *s.token_ids),)
            assert prefixes.setdefault((made.tree_id, prefix), entry["node_id"]) == entry["node_id"]
    for tree in "tu":
        ids = [node for (name, _), node in prefixes.items() if name == tree]
        assert ids == list(range(1, len(ids) + 1))
