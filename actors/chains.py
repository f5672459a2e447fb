"""Paths as the policy writes them alone, without search: for evaluation and for on-policy training."""

from __future__ import annotations

import random
from collections.abc import Sequence

from actors.programs import ProgramJudge
from actors.sampling import EngineError, Sampler
from actors.scheduler import action_priors, seed_of, step_draw
from reasoning.nodes import Judgement
from reasoning.records import Action, Path, Problem, StepRecord, Suite
from reasoning.search import SearchSettings, terminal_value
from reasoning.steps import StepCodec, extract_program, legal_actions, read_sample

CHAIN_ATTEMPTS = 3


class Chains:
    """Writes paths step by step; many calls run at once on one event loop."""

    def __init__(self, sampler: Sampler, programs: ProgramJudge, codec: StepCodec) -> None:
        self.sampler, self.programs, self.codec = sampler, programs, codec

    async def chain(
        self,
        chain_id: str,
        problem: Problem,
        prompt_ids: Sequence[int],
        suite: Suite,
        settings: SearchSettings,
        seed: int,
        greedy: bool = False,
    ) -> Path | None:
        """One path as the policy writes it alone: the next action drawn by the policy, up to the code step.

        Returns None where the infrastructure failed on every attempt.
        """
        for attempt in range(CHAIN_ATTEMPTS):
            try:
                return await self._chain(
                    chain_id, problem, prompt_ids, suite, settings, seed_of(seed, attempt, 0), greedy
                )
            except EngineError:
                continue
        return None

    async def _chain(
        self,
        chain_id: str,
        problem: Problem,
        prompt_ids: Sequence[int],
        suite: Suite,
        settings: SearchSettings,
        seed: int,
        greedy: bool,
    ) -> Path | None:
        rng = random.Random(seed)
        steps: list[StepRecord] = []
        ids = tuple(prompt_ids)
        while True:
            action = await self._next_action(ids, len(steps), settings, rng, greedy)
            header = self.codec.header_ids(len(steps) + 1, action)
            draw = step_draw(action, settings, greedy)
            sample = await self.sampler.draw((*ids, *header), draw, None if greedy else rng.randrange(2**31))
            step, failure = read_sample(action, sample.text, truncated=sample.finish == "length")
            steps.append(
                StepRecord(
                    action=action,
                    header_ids=header,
                    token_ids=sample.token_ids,
                    logprobs=sample.logprobs,
                    text=step.text if step else sample.text,
                    weight_spans=sample.weight_spans,
                )
            )
            ids = (*ids, *header, *sample.token_ids)
            if failure or action is Action.CODE:
                break
        program = extract_program(step.text) if step is not None and action is Action.CODE else None
        judgement = None
        if program is not None:
            try:
                judgement = await self.programs.judge(program, problem, suite)
            except Exception as error:  # a worker is gone, or did not answer: infrastructure, like the engine's
                raise EngineError(f"the sandbox failed: {type(error).__name__}: {error}") from error
            if judgement is None:
                raise EngineError("the sandbox gave no verdict")
        return _path(chain_id, problem, prompt_ids, steps, program, judgement, settings)

    async def _next_action(
        self, ids: Sequence[int], depth: int, settings: SearchSettings, rng: random.Random, greedy: bool
    ) -> Action:
        room = settings.has_room(len(ids), self.codec.longest_header(settings.max_depth))
        legal = legal_actions(depth, settings.max_depth, room)
        if len(legal) == 1:
            return legal[0]
        priors = await action_priors(self.sampler, self.codec, ids, depth + 1)
        if greedy:
            return max(priors, key=lambda a: priors[a])
        return rng.choices(list(priors), weights=list(priors.values()))[0]


def _path(
    chain_id: str,
    problem: Problem,
    prompt_ids: Sequence[int],
    steps: Sequence[StepRecord],
    program: str | None,
    judgement: Judgement | None,
    settings: SearchSettings,
) -> Path:
    value = 0.0  # a malformed step is the policy's own failure
    if judgement is not None:
        value = terminal_value(judgement.compiles, judgement.passed, judgement.total, settings.compile_weight)
    return Path(
        problem_id=problem.id,
        tree_id=chain_id,
        prompt_ids=tuple(prompt_ids),
        steps=tuple(steps),
        program=program,
        verdict=judgement.verdict if judgement else None,
        compiles=bool(judgement and judgement.compiles),
        tests_passed=judgement.passed if judgement else 0,
        tests_total=judgement.total if judgement else 0,
        value=value,
        temperature=settings.temperature,
    )
