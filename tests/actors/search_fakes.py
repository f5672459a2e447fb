"""A sampler and a judge that are not real, and trees and chains grown with them."""

import asyncio
import math
import random

from actors.chains import Chains
from actors.programs import ProgramJudge
from actors.sampling import EngineError
from actors.scheduler import SearchJob, SearchScheduler
from reasoning.event_log import decode
from reasoning.records import Action, Problem, ProblemTest, Sample, Suite
from reasoning.search import SearchSettings
from reasoning.steps import END, STOPS, StepCodec
from sandbox import CallCase, Limits, SuiteResult, Verdict

PROMPT = (1, 2, 3)
CASES = tuple(ProblemTest(case=CallCase(args=[n], expected=n)) for n in range(4))
PROBLEM = Problem(id="p", question="q", entry_point="f", references=("x",), tests=CASES)
SUITE = Suite(problem_id="p", tests=CASES)
CODEC = StepCodec(lambda text: [ord(c) for c in text])


class FakeSampler:
    """Draws pseudocode and programs by a seeded generator; may fail, and remembers what it was asked."""

    def __init__(self, fail=0.0, prefer=Action.CODE, seed=0, bad=0.0, error=EngineError, delay=0.0):
        self.rng = random.Random(seed)
        self.fail, self.prefer, self.bad, self.error, self.delay = fail, prefer, bad, error, delay
        self.draws, self.seeds, self.chosen = [], [], 0
        self.running = self.most = 0

    async def draw(self, prompt_ids, draw, seed=None):
        self.running += 1
        self.most = max(self.most, self.running)
        self.draws.append((tuple(prompt_ids), draw))
        self.seeds.append(seed)
        try:
            for _ in range(self.rng.randrange(3)):
                await asyncio.sleep(self.delay)
        finally:
            self.running -= 1
        if self.rng.random() < self.fail:
            raise self.error("lost")
        if self.rng.random() < self.bad:
            return Sample((7,) * 3, (-0.1,) * 3, "cut off", "length", ((0, 0, 3),))
        name = self.rng.randrange(50)
        code = draw.stop == STOPS[Action.CODE]
        text = f"def f(x):\n    return x + {name}\n```" if code else f"idea {name}\n{END}"
        return Sample((7, name), (-0.5, -0.25), text, "stop", ((0, 0, 2),))

    async def choose(self, prompt_ids, tokens):
        self.chosen += 1
        await asyncio.sleep(0)
        if self.rng.random() < self.fail:
            raise self.error("lost")
        _, by_action = CODEC.choice(2)
        assert list(tokens) == list(by_action.values())
        return {t: math.log(0.8 if t == by_action[self.prefer] else 0.2) for t in tokens}


class FakeJudge:
    """Programs whose number is even pass; each may be lost instead."""

    def __init__(self, lost=0.0, raises=0.0):
        self.rng = random.Random(1)
        self.lost, self.raises = lost, raises
        self.submissions = []

    async def __call__(self, submission):
        self.submissions.append(submission)
        await asyncio.sleep(0)
        if self.rng.random() < self.raises:
            raise ConnectionError("the worker is gone")
        total = len(submission.cases)
        if self.rng.random() < self.lost:
            return self.result(Verdict.SANDBOX_ERROR, False, 0, total)
        passed = total if int(submission.source.split()[-1]) % 2 == 0 else 1
        return self.result(Verdict.ACCEPTED if passed == total else Verdict.WRONG_ANSWER, True, passed, total)

    def result(self, verdict, compiles, passed, total):
        return SuiteResult.model_construct(verdict=verdict, compiles=compiles, passed=passed, total=total, cases=())


def config(**changes):
    return SearchSettings(**{"token_budget": 400, "expansion_budget": 20, "enough_passing": 99, **changes})


def scheduler(sampler, judge, outstanding=64, max_trees=64, codec=CODEC):
    engines = sampler if isinstance(sampler, list) else [sampler]
    return SearchScheduler(engines, ProgramJudge(judge, Limits()), codec, outstanding=outstanding, max_trees=max_trees)


def job(tree_id="t", seed=0, prompt=PROMPT, log=None, **changes):
    return SearchJob(tree_id, PROBLEM, prompt, SUITE, config(**changes), seed, log)


def grow(sampler, judge, seed=0, scorer=None, log=None, **changes):
    async def work():
        made = scheduler(sampler, judge)
        made.scorer = scorer
        return await asyncio.wait_for(made.search(job(seed=seed, log=log, **changes)), 30)

    return asyncio.run(work())


def logged(tmp_path, *arguments, **changes):
    """A search, and the events of its log."""
    log = tmp_path / "t.jsonl"
    found = grow(*arguments, log=log, **changes)
    return found, decode(log.read_bytes())


def chain(sampler, judge, greedy=False, seed=0, **changes):
    chains = Chains(sampler, ProgramJudge(judge, Limits()), CODEC)
    return asyncio.run(chains.chain("c", PROBLEM, PROMPT, SUITE, config(**changes), seed, greedy))
