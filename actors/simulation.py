"""An engine and a sandbox that only take (virtual) time: to try a search scheduler with many trees in seconds.

`SimEngine` is a `Sampler` that serves like a continuous-batching engine and writes by a seeded `SimPolicy`;
`SimSandbox` is a `Judge` whose verdicts agree with what the policy writes. Run them with `run_virtual`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.sampling import Draw, EngineDeadError, EngineError
from actors.simulated_batch import BatchedSequence, ContinuousBatch, PrefixCache, StepCost
from actors.virtual_time import DeadlockError, VirtualTimeLoop, run_virtual
from reasoning.records import Action, Sample
from reasoning.steps import END, STOPS
from sandbox import Submission, SuiteResult, Verdict

__all__ = [
    "DeadlockError",
    "PrefixCache",
    "SimEngine",
    "SimPolicy",
    "SimSandbox",
    "VirtualTimeLoop",
    "lognormal_latency",
    "lognormal_lengths",
    "passes",
    "run_virtual",
]

MEAN_TOKENS = {Action.DEFINE: 60.0, Action.REFINE: 80.0, Action.CODE: 120.0}
# Above every token id of a tokenizer and every code point, so that a prompt shows which ideas it holds.
IDEA_TOKEN = 2_000_000
FILLER_TOKEN = 4_000_000

LengthModel = Callable[[random.Random, Action], int]
"""How many tokens the policy would write for a step if nothing cut it off."""


def lognormal_lengths(means: Mapping[Action, float] = MEAN_TOKENS, sigma: float = 0.5) -> LengthModel:
    """Lognormal lengths with these means (tokens); `sigma`: standard deviation of the logarithm."""

    def length(rng: random.Random, action: Action) -> int:
        return round(rng.lognormvariate(math.log(means[action]) - sigma * sigma / 2, sigma))

    return length


def lognormal_latency(mean_s: float = 0.03, sigma: float = 0.5) -> Callable[[random.Random], float]:
    """Lognormal seconds with this mean; `sigma`: standard deviation of the logarithm."""
    return lambda rng: rng.lognormvariate(math.log(mean_s) - sigma * sigma / 2, sigma)


def passes(number: int) -> bool:
    """Whether the program `return x + number` is right: the rule that policy and sandbox share."""
    return number % 2 == 0


@dataclass(frozen=True, slots=True)
class SimPolicy:
    """What is written, in the grammar of `reasoning.steps`: `idea 3`, then `return x + 8`.

    A program is right with a probability whose logarithm of odds is that of `pass_rate`, plus a normal term of the
    problem (deviation `problem_spread`), plus one of each chain of ideas that leads to it (`idea_spread`): good ideas
    are worth finding, and what follows a good idea is good. The problem is all that stands before the first idea.

    `ideas`: distinct pseudocode texts of a step. `programs`: distinct right programs, and as many wrong ones.
    `malformed`: share of steps that are not one. `seed`: of what is good, not of what is drawn.
    """

    seed: int = 0
    ideas: int = 12
    programs: int = 25
    pass_rate: float = 0.25
    idea_spread: float = 1.5
    problem_spread: float = 1.0
    malformed: float = 0.03
    length: LengthModel = field(default_factory=lognormal_lengths)

    def write(self, prompt_ids: Sequence[int], draw: Draw, rng: random.Random) -> Sample:
        """One step, of 1 to `draw.max_tokens` tokens; the same for the same prompt, draw and state of `rng`.

        A draw with the stop strings of a code step is one; any other is pseudocode.
        """
        action = self._action(prompt_ids, draw)
        wanted = max(1, self.length(rng, action))
        count = max(1, min(wanted, draw.max_tokens))
        mean_logprob = -rng.uniform(0.1, 1.2)
        malformed = rng.random() < self.malformed
        idea, filler = rng.randrange(self.ideas), FILLER_TOKEN + rng.randrange(2**30)
        if action is Action.CODE:
            right = rng.random() < self.quality(prompt_ids)
            number = 2 * rng.randrange(self.programs) + (0 if right else 1)
            text = "\n```" if malformed else f"def f(x):\n    return x + {number}\n```"
            ids = tuple(range(filler, filler + count))
        else:
            text = f"idea {idea}\n" + ("" if malformed else END)
            ids = (IDEA_TOKEN + idea, *range(filler, filler + count - 1))
        if wanted > count:
            text = text[: text.rindex("\n")]
        return Sample(ids, (mean_logprob,) * count, text, "length" if wanted > count else "stop")

    def choose(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """Log-probabilities (nats) over `tokens`; the same for the same prompt."""
        rng = random.Random(f"choose:{self.seed}:{hash(tuple(prompt_ids))}")
        weights = [rng.gammavariate(4.0, 1.0) for _ in tokens]
        return {token: math.log(weight / sum(weights)) for token, weight in zip(tokens, weights, strict=True)}

    def quality(self, prompt_ids: Sequence[int]) -> float:
        """Probability that a program written after this prompt is right."""
        chain = self._ideas(prompt_ids)
        first = prompt_ids.index(IDEA_TOKEN + chain[0]) if chain else len(prompt_ids)
        key = f"{self.seed}:{hash(tuple(prompt_ids[:first]))}"
        odds = math.log(self.pass_rate / (1 - self.pass_rate)) + random.Random(key).gauss(0, self.problem_spread)
        for idea in chain:
            key += f":{idea}"
            odds += random.Random(key).gauss(0, self.idea_spread)
        return 1 / (1 + math.exp(-odds))

    def _action(self, prompt_ids: Sequence[int], draw: Draw) -> Action:
        if draw.stop == STOPS[Action.CODE]:
            return Action.CODE
        return Action.REFINE if self._ideas(prompt_ids) else Action.DEFINE

    def _ideas(self, prompt_ids: Sequence[int]) -> list[int]:
        return [t - IDEA_TOKEN for t in prompt_ids if IDEA_TOKEN <= t < FILLER_TOKEN]


class SimEngine:
    """A `Sampler` that serves like one engine: continuous batching, first come, first served (`ContinuousBatch`).

    A step takes `base_s + per_sequence_s * running` seconds, and `prefill_s` per prompt token that is not in the
    prefix cache; the defaults are like an H200's. It belongs to the event loop of its first request.

    A draw with a seed depends on that seed, the prompt and the policy alone; one without, on `seed` and the number of
    the request; a greedy one on the prompt. `fail_rate`: share of requests that end in EngineError after some of their
    tokens. `cache`: see `PrefixCache`.

    `requests`: begun. `sampled_tokens`: delivered, one for each `choose`. `wasted_tokens`: made for a request that was
    cancelled, failed or lost with the engine.
    """

    def __init__(
        self,
        policy: SimPolicy | None = None,
        *,
        seed: int = 0,
        max_num_seqs: int = 256,
        base_s: float = 0.004,
        per_sequence_s: float = 24e-6,
        prefill_s: float = 0.0,
        fail_rate: float = 0.0,
        version: int = 0,
        cache: PrefixCache | None = None,
    ) -> None:
        self.policy = policy or SimPolicy()
        self.seed, self.max_num_seqs, self.fail_rate = seed, max_num_seqs, fail_rate
        self.sampled_tokens = self.wasted_tokens = self.requests = 0
        self.dead = False
        cost = StepCost(base_s, per_sequence_s, prefill_s)
        self._batch = ContinuousBatch(max_num_seqs, cost, cache or PrefixCache(), version)
        self._answers: dict[BatchedSequence, asyncio.Future[None]] = {}
        self._failing: set[BatchedSequence] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def draw(self, prompt_ids: Sequence[int], draw: Draw, seed: int | None = None) -> Sample:
        """One sample after `prompt_ids`. Cancelling it frees its slot at once.

        Raises EngineError for a request that fails, EngineDeadError where the engine has died.
        """
        prompt = tuple(prompt_ids)
        sample = self.policy.write(prompt, draw, self._writer(prompt, draw, seed))
        sequence = await self._serve(prompt, sample.token_ids)
        return replace(sample, weight_spans=self._batch.spans(sequence))

    async def choose(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """Log-probabilities over `tokens`, for one decoding step. Raises as `draw`."""
        prompt = tuple(prompt_ids)
        await self._serve(prompt, (FILLER_TOKEN,))
        return self.policy.choose(prompt, tokens)

    def set_version(self, version: int) -> None:
        """New weights: the steps that begin from now on are of `version`, and later requests find no older blocks."""
        self._advance()
        self._batch.set_version(version)

    def die(self) -> None:
        """Every running, waiting and later request raises EngineDeadError."""
        self._advance()
        self.dead = True
        for sequence, answer in reversed(list(self._answers.items())):  # those that wait first
            self._batch.abort(sequence)
            _fail(answer, EngineDeadError("the engine died (simulated)"))
        self._answers.clear()
        self._set_timer()

    @property
    def version(self) -> int:
        return self._batch.version

    @property
    def running(self) -> int:
        """Sequences in the batch, at most `max_num_seqs`."""
        self._advance()
        return len(self._batch.running)

    @property
    def waiting(self) -> int:
        """Requests that have not been admitted to the batch."""
        self._advance()
        return len(self._batch.waiting)

    @property
    def busy_s(self) -> float:
        """Virtual seconds with at least one sequence running."""
        self._advance()
        return self._batch.busy_s

    @property
    def occupancy_s(self) -> float:
        """Integral over time of running / max_num_seqs, in seconds; divided by the time it is the mean occupancy."""
        self._advance()
        return self._batch.occupancy_s

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests that were admitted."""
        return self._batch.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the prefix cache."""
        return self._batch.cached_tokens

    @property
    def reusable_tokens(self) -> int:
        """Prompt tokens that an unlimited cache would have held (of all engines that share its `seen`)."""
        return self._batch.reusable_tokens

    def _writer(self, prompt: tuple[int, ...], draw: Draw, seed: int | None) -> random.Random:
        if draw.greedy:
            return random.Random(f"greedy:{hash(prompt)}")
        return random.Random(f"request:{self.seed}:{self.requests}" if seed is None else f"draw:{seed}")

    async def _serve(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> BatchedSequence:
        """Returns when a request of these tokens is done. Raises EngineError, EngineDeadError."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("a simulated engine serves one event loop")
        self._loop = loop
        # Not of the draw's own seed: the same draw tried again must be able to succeed.
        chance = random.Random(f"fail:{self.seed}:{self.requests}")
        self.requests += 1
        if self.dead:
            raise EngineDeadError("the engine is dead (simulated)")
        fails = chance.random() < self.fail_rate
        if fails:
            output = output[: chance.randint(1, len(output))]
        sequence = BatchedSequence(prompt, output, self.version)
        answer = self._answers[sequence] = loop.create_future()
        if fails:
            self._failing.add(sequence)
        self._advance()
        self._batch.arrive(loop.time(), sequence)
        self._set_timer()
        try:
            await answer
        except BaseException:
            if self._answers.pop(sequence, None) is not None:
                self._advance()
                if sequence.ended is None:
                    self._batch.abort(sequence)
                self._set_timer()
            self._failing.discard(sequence)
            self.wasted_tokens += self._batch.tokens(sequence)
            raise
        self.sampled_tokens += len(output)
        return sequence

    def _advance(self) -> None:
        """Bring the batch to the present and answer what has ended."""
        if self._loop is None:
            return
        for sequence in self._batch.advance(self._loop.time()):
            answer = self._answers.pop(sequence, None)
            if answer is None or answer.done():
                continue  # its task was cancelled at this very instant
            if sequence in self._failing:
                self._failing.remove(sequence)
                _fail(answer, EngineError("the request failed (simulated)"))
            else:
                answer.set_result(None)

    def _on_timer(self) -> None:
        self._timer = None
        self._advance()
        self._set_timer()

    def _set_timer(self) -> None:
        when = self._batch.next_change()
        if self._timer is not None:
            if self._timer.when() == when:
                return
            self._timer.cancel()
            self._timer = None
        if when is not None and self._loop is not None:
            self._timer = self._loop.call_at(when, self._on_timer)


def _fail(answer: asyncio.Future[None], error: EngineError) -> None:
    if not answer.done():
        answer.set_exception(error)


class SimSandbox:
    """A `Judge` with `slots` workers, first come, first served.

    Programs `... + N` are accepted where `passes(N)` and else pass some cases, but not all; anything else is a compile
    error. Results hold no cases and no isolation report. Latencies and errors depend on `seed` and the number of the
    submission. `error_rate`: share of results that are `sandbox_error`.

    `judged`: results given. `busy_s`: seconds of work, summed over the workers. `most_waiting`: longest queue seen.
    """

    def __init__(
        self,
        slots: int = 8,
        latency: Callable[[random.Random], float] | None = None,
        error_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots: got {slots}; use 1 or more")
        self.slots, self.error_rate, self.seed = slots, error_rate, seed
        self.judged = self.most_waiting = 0
        self.busy_s = 0.0
        self._latency = latency or lognormal_latency()
        self._free = slots
        self._queue: deque[asyncio.Future[None]] = deque()
        self._submissions = 0

    @property
    def running(self) -> int:
        return self.slots - self._free

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def __call__(self, submission: Submission) -> SuiteResult:
        rng = random.Random(f"sandbox:{self.seed}:{self._submissions}")
        self._submissions += 1
        latency, lost = self._latency(rng), rng.random() < self.error_rate
        await self._take()
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await asyncio.sleep(latency)
        finally:
            self.busy_s += loop.time() - started
            self._release()
        self.judged += 1
        total = len(submission.cases)
        return _result(Verdict.SANDBOX_ERROR, 0, total) if lost else _verdict(submission.source, total)

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.most_waiting = max(self.most_waiting, len(self._queue))
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
            elif not turn.cancelled():  # cancelled at the instant at which it was given a worker
                self._release()
            raise

    def _release(self) -> None:
        """Give the worker to the next in the queue."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _verdict(source: str, total: int) -> SuiteResult:
    end = source.split()[-1] if source.split() else ""
    if not end.isdecimal():
        return _result(Verdict.COMPILE_ERROR, 0, total)
    number = int(end)
    if passes(number):
        return _result(Verdict.ACCEPTED, total, total)
    return _result(Verdict.WRONG_ANSWER, number // 2 % total, total)


def _result(verdict: Verdict, passed: int, total: int) -> SuiteResult:
    compiles = verdict not in (Verdict.SANDBOX_ERROR, Verdict.COMPILE_ERROR)
    return SuiteResult.model_construct(verdict=verdict, compiles=compiles, passed=passed, total=total, cases=())
