"""Many search trees against few engines: keeps every engine full without letting any tree run away (method section 3).

Knows neither Ray nor vLLM; what it needs of them are the protocols of `actors.sampling`. All state is touched from one
event loop.

- An engine has up to `outstanding` samples at a time, from all of its trees; a sample counts until the engine has
  answered, not while its program is judged or its step is scored.
- Trees take turns, one expansion each, with at most `leaves_in_flight` expansions of one tree running. A waiting
  problem is begun as soon as the trees at work cannot fill the engine: nothing waits for the slowest tree.
- A tree stays with its engine, whose prefix cache holds its steps; when the engine dies it goes on with another one.
- Every expansion ends in exactly one way: its samples are told, lost (infrastructure) or pruned (the tree had enough).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.programs import ProgramJudge
from actors.sampling import Draw, EngineDeadError, EngineError, Sampler, Scorer
from reasoning.event_log import Ended, EventFile, EventLogError, decode, header_rows, opening, require_same
from reasoning.nodes import BROKEN_OFF, Expansion, Judgement, Outcome
from reasoning.records import Action, Problem, Sample, Suite
from reasoning.search import SearchSettings
from reasoning.steps import STOPS, StepCodec, extract_program, read_sample
from reasoning.tree import SearchTree

log = logging.getLogger(__name__)

DRY = "nothing left to try"
KNOWN_LENGTHS = 64
"""Samples after which their mean length is known well enough."""


@dataclass(frozen=True, slots=True)
class SearchJob:
    """One problem to search. `log`: where its events go; a log that is there is gone on with."""

    tree_id: str
    problem: Problem
    prompt_ids: tuple[int, ...]
    suite: Suite
    settings: SearchSettings
    seed: int
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """A search that came to its end. `seconds`: on the clock since it began or went on."""

    tree: SearchTree
    reason: str
    seconds: float


@dataclass(slots=True)
class SchedulerStats:
    """Since the start: expansions, samples by their end, tokens of those told and the sum of their squared lengths,
    seconds of this process on trees."""

    expansions: int = 0
    told: int = 0
    tokens: int = 0
    squared_lengths: int = 0
    lost: int = 0
    pruned: int = 0
    trees: int = 0
    most_outstanding: int = 0
    host_s: float = 0.0


@dataclass(eq=False, slots=True)
class _Lane:
    """One engine and the trees that stay with it."""

    sampler: Sampler
    outstanding: int = 0
    alive: bool = True
    trees: set[_Active] = field(default_factory=set)
    ready: deque[_Active] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class _Active:
    """A tree at work."""

    job: SearchJob
    tree: SearchTree
    lane: _Lane
    done: asyncio.Future[Searched]
    started: float
    file: EventFile | None = None
    timer: asyncio.TimerHandle | None = None
    running: set[asyncio.Task[None]] = field(default_factory=set)
    queued: bool = False  # in the lane's `ready`
    ended: bool = False


class SearchScheduler:
    """Searches problems; many `search` calls wait at once.

    engines: what to draw from. outstanding: samples that an engine is given at a time; 2 * max_num_seqs keeps a
    continuously batching engine full. max_trees: trees at work per engine. `scorer`: the PRM, or None.
    """

    def __init__(
        self,
        engines: Sequence[Sampler],
        programs: ProgramJudge,
        codec: StepCodec,
        *,
        outstanding: int,
        max_trees: int,
    ) -> None:
        self.scorer: Scorer | None = None
        self.stats = SchedulerStats()
        self._programs, self._codec = programs, codec
        self._outstanding, self._max_trees = outstanding, max_trees
        self._lanes = [_Lane(engine) for engine in engines]
        self._waiting: deque[tuple[SearchJob, asyncio.Future[Searched]]] = deque()

    async def search(self, job: SearchJob) -> Searched:
        """Grow the tree of one problem until its budget or stop rule, or until nothing is left to try.

        Raises EngineDeadError when the last engine dies, EventLogError where `job.log` is of another search, OSError
        where it cannot be written. Cancelling it ends the tree's requests.
        """
        done: asyncio.Future[Searched] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        self._fill_all()
        try:
            return await done
        except asyncio.CancelledError:
            self._forget(done)
            raise

    @property
    def outstanding(self) -> int:
        """Samples that the engines are working on."""
        return sum(lane.outstanding for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Problems that have not been begun."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Trees at work."""
        return sum(len(lane.trees) for lane in self._lanes)

    # --- filling the engines ---

    def _fill_all(self) -> None:
        if not any(lane.alive for lane in self._lanes):
            while self._waiting:
                _, done = self._waiting.popleft()
                _resolve(done, EngineDeadError("no engine is left"))
        # The emptiest first, so that the waiting problems are spread.
        for lane in sorted(self._lanes, key=lambda lane: (len(lane.trees), lane.outstanding)):
            self._fill(lane)

    def _fill(self, lane: _Lane) -> None:
        """Ask the lane's trees in turn, and begin waiting problems, while the engine has room."""
        while lane.alive and lane.outstanding < self._outstanding:
            active = lane.ready.popleft() if lane.ready else self._begin(lane)
            if active is None:
                return
            active.queued = False
            if active.ended:
                continue
            try:
                expansion = self._ask(active)
            except OSError as error:
                self._fail(active, error)
                continue
            if expansion is None:
                self._end_if_over(active)
                continue
            self.stats.expansions += 1
            self._start(active, _Slots(self, lane, expansion.count), expansion)
            self._queue(active)

    def _ask(self, active: _Active) -> Expansion | None:
        started = time.perf_counter()
        # Over all trees: the first to come back of one tree are its short ones.
        known = self.stats.told >= KNOWN_LENGTHS and self.stats.tokens > 0
        length = self.stats.squared_lengths / self.stats.tokens if known else None
        over = active.tree.finished(self._elapsed(active))
        expansion = None if over else active.tree.ask(length=length)
        self.stats.host_s += time.perf_counter() - started
        return expansion

    def _begin(self, lane: _Lane) -> _Active | None:
        """A waiting problem as a tree of this lane."""
        while self._waiting and len(lane.trees) < self._max_trees:
            job, done = self._waiting.popleft()
            if done.done():
                continue
            try:
                active = self._open(job, lane, done)
            except EventLogError as error:
                _resolve(done, EventLogError(f"{job.log}: {error}; remove the file to begin anew"))
                continue
            except Exception as error:  # of whatever kind: its caller waits
                _resolve(done, error)
                continue
            if active is not None:
                return active
        return None

    def _open(self, job: SearchJob, lane: _Lane, done: asyncio.Future[Searched]) -> _Active | None:
        """The tree of a job, from its log where there is one; None where that is complete."""
        loop = asyncio.get_running_loop()
        headers = self._codec.headers(job.settings.max_depth)
        file = None
        if job.log is None:
            tree = SearchTree(job.tree_id, job.problem.id, job.prompt_ids, headers, job.settings, job.seed)
        else:
            file = EventFile(job.log)
            try:
                tree, ended = _from_log(job, headers, self._programs.identity(job.problem, job.suite), file)
            except BaseException:
                file.close()
                raise
            if ended is not None:
                file.close()
                _resolve(done, Searched(tree, ended.reason, ended.seconds))
                return None
        active = _Active(job, tree, lane, done, loop.time(), file)
        active.timer = loop.call_later(job.settings.seconds, self._end_if_over, active)
        lane.trees.add(active)
        return active

    def _queue(self, active: _Active) -> None:
        """Let a tree take its next turn, if it may have another expansion running."""
        room = len(active.running) < active.job.settings.leaves_in_flight
        if room and not active.queued and not active.ended:
            active.queued = True
            active.lane.ready.append(active)

    def _elapsed(self, active: _Active) -> float:
        return round(asyncio.get_running_loop().time() - active.started, 3)

    # --- one expansion ---

    def _start(self, active: _Active, slots: _Slots, expansion: Expansion) -> None:
        task = asyncio.create_task(self._expand(active, slots, expansion))
        active.running.add(task)
        # Not in the task's own `finally`: a task that is cancelled before its first step never gets there.
        task.add_done_callback(lambda task: self._expanded(active, slots, expansion, task))

    async def _expand(self, active: _Active, slots: _Slots, expansion: Expansion) -> None:
        """Draw the samples of an expansion. Raises EngineError where not even their actions could be found out."""
        tree = active.tree
        prompt = tree.prompt_for(expansion.node)
        priors = None
        if len(expansion.legal) > 1:
            chosen = await action_priors(slots.lane.sampler, self._codec, prompt, expansion.depth + 1)
            priors = {int(a): p for a, p in chosen.items()}
        actions = tree.begin(expansion.id, priors)
        await asyncio.gather(
            *(self._slot(active, slots, expansion, n, action, prompt) for n, action in enumerate(actions))
        )

    async def _slot(
        self, active: _Active, slots: _Slots, expansion: Expansion, slot: int, action: Action, prompt: tuple[int, ...]
    ) -> None:
        tree, job = active.tree, active.job
        header = self._codec.header_ids(expansion.depth + 1, action)
        try:
            draw = step_draw(action, job.settings)
            try:
                seed = seed_of(job.seed, expansion.id, slot)
                sample = await slots.lane.sampler.draw((*prompt, *header), draw, seed)
            finally:
                slots.release()
            outcome = await self._valued(active, action, sample, (*prompt, *header))
        except EngineError as error:
            self._note_death(slots.lane, error)
            outcome = Outcome(infra_error=str(error) or type(error).__name__)
        except Exception as error:  # ends the sample, never the tree
            outcome = Outcome(infra_error=f"{type(error).__name__}: {error}")
        self._told(active, lambda: tree.tell(expansion.id, slot, outcome))
        self._end_if_over(active)
        self._queue(active)
        self._fill(active.lane)

    async def _valued(self, active: _Active, action: Action, sample: Sample, before: tuple[int, ...]) -> Outcome:
        """A sample with its judgement, or the PRM's score. What goes wrong here leaves the sample without one."""
        if not all(map(math.isfinite, sample.logprobs)):
            return Outcome(infra_error="the engine gave a log-probability that is no number")
        judgement, score = None, None
        try:
            judgement = await self._judge(active, action, sample)
            if self.scorer is not None and action is not Action.CODE and active.job.settings.rollout_weight < 1:
                score = await self.scorer((*before, *sample.token_ids))
        except Exception as error:  # the sandbox or the scorer is gone: never the tree's fault
            return Outcome(sample=sample, infra_error=f"{type(error).__name__}: {error}")
        return Outcome(sample=sample, judgement=judgement, score=score if _is_number(score) else None)

    def _told(self, active: _Active, change: Callable[[], object]) -> None:
        """Change a tree by what has ended, and count it."""
        tree, started = active.tree, time.perf_counter()
        before = tree.samples, tree.infra_errors, tree.pruned, tree.tokens, tree.squared_lengths
        try:
            change()
        except OSError as error:  # the log takes no more
            self._fail(active, error)
        self.stats.told += tree.samples - before[0]
        self.stats.lost += tree.infra_errors - before[1]
        self.stats.pruned += tree.pruned - before[2]
        self.stats.tokens += tree.tokens - before[3]
        self.stats.squared_lengths += tree.squared_lengths - before[4]
        self.stats.host_s += time.perf_counter() - started

    async def _judge(self, active: _Active, action: Action, sample: Sample) -> Judgement | None:
        if action is not Action.CODE:
            return None
        step, _ = read_sample(action, sample.text, truncated=sample.finish == "length")
        program = extract_program(step.text) if step is not None else None
        if program is None:
            return None
        known = active.tree.known_judgement(program)
        return known if known is not None else await self._programs.judge(program, active.job.problem, active.job.suite)

    def _expanded(self, active: _Active, slots: _Slots, expansion: Expansion, task: asyncio.Task[None]) -> None:
        """An expansion has ended, perhaps before it began: whatever of it has no end yet gets one."""
        active.running.discard(task)
        slots.release_all()
        error = None if task.cancelled() else task.exception()
        why, pruned = ("", True) if error is None else (str(error) or type(error).__name__, False)
        if isinstance(error, EngineError):
            self._note_death(slots.lane, error)
        elif error is not None:
            self._fail(active, error)
        self._told(active, lambda: active.tree.abandon(expansion.id, why, pruned=pruned))
        self._queue(active)
        self._end_if_over(active)
        self._fill(active.lane)

    # --- ends ---

    def _end_if_over(self, active: _Active) -> None:
        """End a tree that is over; cut off what it has running where that can change nothing for the better."""
        if active.ended:
            return
        reason = active.tree.finished(self._elapsed(active))
        if reason.startswith(("enough", "time", "too many")):
            for task in active.running:
                task.cancel()
        if active.running or not active.tree.idle:
            return
        if not reason and active.queued:
            return  # it has not been asked since
        try:
            active.tree.end(reason or DRY, self._elapsed(active))
        except OSError:
            log.warning("%s is whole, but its log lacks the last line", active.job.tree_id, exc_info=True)
        self._leave(active)
        self.stats.trees += 1
        _resolve(active.done, Searched(active.tree, reason or DRY, self._elapsed(active)))

    def _fail(self, active: _Active, error: BaseException) -> None:
        self._leave(active)
        _resolve(active.done, error)

    def _leave(self, active: _Active) -> None:
        """Take a tree out of work."""
        if active.ended:
            return
        active.ended = True
        active.lane.trees.discard(active)
        if active.timer is not None:
            active.timer.cancel()
        for task in active.running:
            task.cancel()
        if active.file is not None:
            try:
                active.file.close()
            except OSError:
                log.warning("the log of %s did not close", active.job.tree_id, exc_info=True)

    def _forget(self, done: asyncio.Future[Searched]) -> None:
        """The caller wants it no more."""
        for lane in self._lanes:
            for active in [a for a in lane.trees if a.done is done]:
                self._leave(active)
        self._fill_all()

    def _note_death(self, lane: _Lane, error: EngineError) -> None:
        """Move the trees of an engine that is gone to those that are left."""
        if not isinstance(error, EngineDeadError) or not lane.alive:
            return
        lane.alive = False
        moved, lane.trees, lane.ready = lane.trees, set(), deque()
        left = [other for other in self._lanes if other.alive]
        for active in sorted(moved, key=lambda a: a.job.tree_id):
            active.queued = False
            if not left:
                self._fail(active, EngineDeadError(f"no engine is left: {error}"))
                continue
            active.lane = min(left, key=lambda other: (len(other.trees), other.outstanding))
            active.lane.trees.add(active)
            self._queue(active)
        asyncio.get_running_loop().call_soon(self._fill_all)


class _Slots:
    """The share of an engine that an expansion holds; each sample gives its part back once."""

    def __init__(self, scheduler: SearchScheduler, lane: _Lane, count: int) -> None:
        self.lane = lane
        self._scheduler, self._held = scheduler, count
        lane.outstanding += count
        scheduler.stats.most_outstanding = max(scheduler.stats.most_outstanding, lane.outstanding)

    def release(self) -> None:
        """One sample is drawn: its place can be filled while it is judged."""
        if self._held > 0:
            self._held -= 1
            self.lane.outstanding -= 1
            self._scheduler._fill(self.lane)

    def release_all(self) -> None:
        """Whatever is still held."""
        self.lane.outstanding -= self._held
        self._held = 0


def _resolve(done: asyncio.Future[Searched], result: Searched | BaseException) -> None:
    if done.done():
        return
    if isinstance(result, Searched):
        done.set_result(result)
    else:
        done.set_exception(result)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _from_log(
    job: SearchJob, headers: Mapping[tuple[int, Action], tuple[int, ...]], judged_by: str, file: EventFile
) -> tuple[SearchTree, Ended | None]:
    """The tree of a log, without the expansions that nobody runs any more, and its end if it has come to one; a new
    tree where there is no log. Raises EventLogError."""
    events = decode(file.before)
    if not events:
        opened = (job.tree_id, job.problem.id, job.prompt_ids, headers, job.settings, job.seed)
        return SearchTree(*opened, file.append, judged_by), None
    require_same(
        opening(events), tree_id=job.tree_id, problem_id=job.problem.id, prompt_ids=job.prompt_ids, seed=job.seed,
        settings=job.settings.model_dump(), judged_by=judged_by, headers=header_rows(headers),
    )  # fmt: skip
    tree, last = SearchTree.replay(events, file.append), events[-1]
    if isinstance(last, Ended) and last.reason != BROKEN_OFF:
        return tree, last
    for expansion_id in tree.in_flight:
        tree.abandon(expansion_id, "the process that ran it is gone", pruned=True)
    return tree, None


async def action_priors(sampler: Sampler, codec: StepCodec, prompt: Sequence[int], number: int) -> dict[Action, float]:
    """The policy's probability of each action of step `number` after `prompt`.

    Raises EngineError where the engine does not say them, or says what is no probability.
    """
    shared, tokens = codec.choice(number)
    try:
        logprobs = await sampler.choose((*prompt, *shared), list(tokens.values()))
        priors = {action: math.exp(logprobs[token]) for action, token in tokens.items()}
    except EngineError:
        raise
    except Exception as error:  # ends the expansion, never the tree
        raise EngineError(f"{type(error).__name__}: {error}") from error
    if not all(map(math.isfinite, priors.values())):
        raise EngineError("the engine gave a log-probability that is no number")
    return priors


def step_draw(action: Action, settings: SearchSettings, greedy: bool = False) -> Draw:
    """How to draw a step of an action."""
    tokens = settings.code_tokens if action is Action.CODE else settings.step_tokens
    return Draw(tokens, settings.temperature, settings.top_p, STOPS[action], greedy)


def seed_of(*parts: int) -> int:
    """A 31-bit seed that depends on all parts."""
    return random.Random(":".join(map(str, parts))).randrange(2**31)
