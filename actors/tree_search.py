"""Runs search trees and plain chains of steps against an engine, a judge and a scorer (method section 3).

Knows neither Ray nor vLLM: what it needs of them are the protocols of `actors.sampling`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence

from actors.sampling import Draw, EngineError, Judge, Sampler, Scorer
from reasoning.records import Action, Path, Problem, Sample, StepRecord, Suite
from reasoning.search import SearchSettings, terminal_value
from reasoning.steps import STOPS, StepCodec, extract_program, legal_actions, read_sample
from reasoning.tree import Expansion, Judgement, Outcome, SearchTree
from sandbox import Limits, Submission, Verdict

CHAIN_ATTEMPTS = 3


class TreeSearch:
    """Searches problems; many calls run at once on one event loop."""

    def __init__(self, sampler: Sampler, judge: Judge, codec: StepCodec, limits: Limits) -> None:
        self.sampler, self.judge, self.codec, self.limits = sampler, judge, codec, limits
        self.scorer: Scorer | None = None

    # --- trees ---

    async def search(
        self,
        tree_id: str,
        problem: Problem,
        prompt_ids: Sequence[int],
        suite: Suite,
        settings: SearchSettings,
        seed: int,
    ) -> SearchTree:
        """Grow the tree of one problem until its budget or stop rule, or until nothing is left to try."""
        tree = SearchTree(tree_id, problem.id, prompt_ids, self.codec.header_ids, settings)
        started = time.monotonic()
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(running) < settings.leaves_in_flight and not tree.finished(time.monotonic() - started):
                    expansion = tree.ask()
                    if expansion is None:
                        break
                    running.add(asyncio.create_task(self._expand(tree, expansion, problem, suite, seed)))
                if not running:
                    return tree
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()

    async def _expand(self, tree: SearchTree, expansion: Expansion, problem: Problem, suite: Suite, seed: int) -> None:
        prompt = tree.prompt_for(expansion.node)
        try:
            priors = None
            if len(expansion.legal) > 1:
                chosen = await self._action_priors(prompt, expansion.depth + 1)
                priors = {int(a): p for a, p in chosen.items()}
            actions = tree.begin(expansion.id, expansion.count, priors)
        except EngineError as error:
            tree.abandon(expansion.id, str(error))
            return
        slots = [
            self._slot(tree, expansion, slot, action, prompt, problem, suite, _seed(seed, expansion.id, slot))
            for slot, action in enumerate(actions)
        ]
        await asyncio.gather(*slots)

    async def _action_priors(self, prompt: Sequence[int], number: int) -> dict[Action, float]:
        shared, tokens = self.codec.choice(number)
        logprobs = await self.sampler.choose((*prompt, *shared), list(tokens.values()))
        return {action: math.exp(logprobs[token]) for action, token in tokens.items()}

    async def _slot(
        self,
        tree: SearchTree,
        expansion: Expansion,
        slot: int,
        action: Action,
        prompt: Sequence[int],
        problem: Problem,
        suite: Suite,
        seed: int,
    ) -> None:
        header = self.codec.header_ids(expansion.depth + 1, action)
        try:
            sample = await self.sampler.draw((*prompt, *header), _draw(action, tree.settings), seed)
            judgement = await self._judge_sample(action, sample, problem, suite, tree)
            score = None
            if self.scorer is not None and action is not Action.CODE and tree.settings.rollout_weight < 1:
                score = await self.scorer((*prompt, *header, *sample.token_ids))
        except EngineError as error:
            tree.tell(expansion.id, slot, Outcome(infra_error=str(error)))
            return
        except Exception as error:  # the sandbox or the scorer is gone: ends the slot, never the tree
            tree.tell(expansion.id, slot, Outcome(infra_error=f"{type(error).__name__}: {error}"))
            return
        tree.tell(expansion.id, slot, Outcome(sample=sample, judgement=judgement, score=score))

    async def _judge_sample(
        self, action: Action, sample: Sample, problem: Problem, suite: Suite, tree: SearchTree
    ) -> Judgement | None:
        if action is not Action.CODE:
            return None
        step, _ = read_sample(action, sample.text, truncated=sample.finish == "length")
        program = extract_program(step.text) if step is not None else None
        if program is None:
            return None
        known = tree.known_judgement(program)
        return known if known is not None else await self.judge_program(program, problem, suite)

    async def judge_program(self, program: str, problem: Problem, suite: Suite) -> Judgement | None:
        """What the sandbox says of a program on a suite; None for a failure of the infrastructure."""
        cases = [test.case for test in suite.tests]
        submission = Submission(
            source=program, entry_point=problem.entry_point, cases=cases, limits=self.limits, stop="first_timeout"
        )
        result = await self.judge(submission)
        if result.verdict is Verdict.SANDBOX_ERROR:
            return None
        return Judgement(result.verdict, result.compiles, result.passed, result.total)

    # --- chains: the policy by itself, without search ---

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
                    chain_id, problem, prompt_ids, suite, settings, _seed(seed, attempt, 0), greedy
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
            draw = _draw(action, settings, greedy)
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
                judgement = await self.judge_program(program, problem, suite)
            except Exception as error:  # a worker is gone, or did not answer: infrastructure, like the engine's
                raise EngineError(f"the sandbox failed: {type(error).__name__}: {error}") from error
            if judgement is None:
                raise EngineError("the sandbox gave no verdict")
        return _path(chain_id, problem, prompt_ids, steps, program, judgement, settings)

    async def _next_action(
        self, ids: Sequence[int], depth: int, settings: SearchSettings, rng: random.Random, greedy: bool
    ) -> Action:
        legal = legal_actions(depth, settings.max_depth)
        if len(legal) == 1:
            return legal[0]
        priors = await self._action_priors(ids, depth + 1)
        if greedy:
            return max(priors, key=lambda a: priors[a])
        return rng.choices(list(priors), weights=list(priors.values()))[0]


def _draw(action: Action, settings: SearchSettings, greedy: bool = False) -> Draw:
    tokens = settings.code_tokens if action is Action.CODE else settings.step_tokens
    return Draw(tokens, settings.temperature, settings.top_p, STOPS[action], greedy)


def _seed(*parts: int) -> int:
    """A 31-bit seed that depends on all parts."""
    return random.Random(":".join(map(str, parts))).randrange(2**31)


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
