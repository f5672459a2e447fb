"""Paths for tests, without a model."""

from __future__ import annotations

from reasoning.records import Action, Path, StepRecord
from sandbox import Verdict


def step(action, token_ids, header_ids=(9,), passed=0, sampled=0, version=0):
    ids = tuple(token_ids)
    return StepRecord(
        action=action,
        header_ids=tuple(header_ids),
        token_ids=ids,
        logprobs=tuple(-0.5 for _ in ids),
        text="text",
        weight_spans=((version, 0, len(ids)),),
        passed=passed,
        sampled=sampled,
    )


def path(problem="p", value=1.0, steps=None, tree="t", compiles=True, program="x = 1\n", passed=None, prompt=(1, 2)):
    """A path whose program got `value`; None: lost to the infrastructure."""
    if steps is None:
        steps = (step(Action.DEFINE, [3, 4]), step(Action.CODE, [5, 6, 7]))
    verdict = None
    if value is not None:
        verdict = Verdict.ACCEPTED if (value == 1.0 if passed is None else passed) else Verdict.WRONG_ANSWER
    return Path(
        problem_id=problem,
        tree_id=tree,
        prompt_ids=prompt,
        steps=tuple(steps),
        program=program,
        verdict=verdict,
        compiles=compiles,
        value=value,
    )
