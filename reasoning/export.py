"""Process data in the layout that the published O1-CODER code writes as "Complete Solutions" (arXiv 2412.00154)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reasoning.records import Path, Problem, Step, StepRecord
from reasoning.steps import readable

ROOT = 0


def complete_solutions(problem: Problem, paths: Iterable[Path]) -> list[dict[str, dict[str, Any]]]:
    """One object per complete path of `problem`, in order; those that a malformed step cut short are left out.

    An object is keyed by step number as text, from the last step down to "0":

        {"2": {"node_id": 5, "ost_step": "### Step 2: ...", "step_value": 0.5, "edges": [1, 5]}, "1": ...,
         "0": {"node_id": 0, "question": "..."}}

    `node_id` numbers the distinct prefixes of a tree in order of first appearance from 1, the root being 0, so a step
    that several paths share has one id; ids of different trees are unrelated. `step_value`: share of the independently
    sampled terminals below the step that pass, in [0, 1]. `edges`: [parent's node_id, node_id]. All values are JSON.

    Raises:
        ValueError: a path of another problem.
    """
    nodes: dict[str, dict[tuple[int, tuple[int, ...]], int]] = {}
    solutions = []
    for path in paths:
        if path.problem_id != problem.id:
            raise ValueError(f"paths: got one of {path.problem_id!r}; use those of {problem.id!r}")
        if path.complete and path.program is not None:
            solutions.append(_solution(problem, path, nodes.setdefault(path.tree_id, {})))
    return solutions


def _solution(problem: Problem, path: Path, nodes: dict[tuple[int, tuple[int, ...]], int]) -> dict[str, dict[str, Any]]:
    """One object; `nodes` holds the ids of the tree by parent and token ids of the step, and grows."""
    entries: dict[str, dict[str, Any]] = {"0": {"node_id": ROOT, "question": problem.question}}
    parent = ROOT
    for number, step in enumerate(path.steps, start=1):
        node = nodes.setdefault((parent, step.header_ids + step.token_ids), len(nodes) + 1)
        entries[str(number)] = {
            "node_id": node,
            "ost_step": readable(number, Step(action=step.action, text=step.text)),
            "step_value": _value(step, path),
            "edges": [parent, node],
        }
        parent = node
    return dict(reversed(entries.items()))


def _value(step: StepRecord, path: Path) -> float:
    if step.sampled:
        return step.passed / step.sampled
    # Nobody counted (a path written without a tree): the path itself is the one terminal below its steps.
    return float(path.solved)
