"""Continuous batching as arithmetic: which sequence runs when, without tokens, tasks or a clock of its own."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 16
# asyncio runs a timer up to a nanosecond early; times this close are one instant.
_SAME_S = 2e-9


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one decoding step: `base_s + per_sequence_s * running + prefill_s * uncached prompt tokens`, the last
    over the sequences that the step admits."""

    base_s: float = 0.004
    per_sequence_s: float = 24e-6
    prefill_s: float = 0.0


@dataclass(eq=False, slots=True)
class BatchedSequence:
    """One request: it ends after `len(output_ids)` >= 1 tokens.

    `first_step`: number of the step that makes its first token, None while it waits. `ended`: tokens that it had when
    it ended or was aborted, None before.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    version: int = 0
    first_step: int | None = None
    uncached: int = 0
    ended: int | None = None


class PrefixCache:
    """Blocks of `block_tokens` ids, each known by all ids up to its end and by the version that computed it.

    `capacity`: blocks kept, least recently used out first; None keeps all. `seen`: every block ever computed; engines
    that are given the same set count as reusable what any of them computed.
    """

    def __init__(
        self, capacity: int | None = None, seen: set[int] | None = None, block_tokens: int = BLOCK_TOKENS
    ) -> None:
        self.capacity, self.block_tokens = capacity, block_tokens
        self.seen: set[int] = set() if seen is None else seen
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def look_up(self, ids: Sequence[int], version: int) -> tuple[int, int]:
        """Leading tokens of a prompt that are in the cache, and that were ever computed under this version.

        As in vLLM the last token is always computed, so that there is something to sample from.
        """
        blocks = self._keys(ids[: max(0, len(ids) - 1)], version)
        cached = sum(1 for _ in itertools.takewhile(self._blocks.__contains__, blocks))
        reusable = sum(1 for _ in itertools.takewhile(self.seen.__contains__, blocks))
        return cached * self.block_tokens, reusable * self.block_tokens

    def insert(self, ids: Sequence[int], version: int) -> None:
        """Keep the whole blocks of `ids`."""
        blocks = self._keys(ids, version)
        self.seen.update(blocks)
        for block in reversed(blocks):  # the first block is of most use: it goes out last
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while self.capacity is not None and len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)

    def _keys(self, ids: Sequence[int], version: int) -> list[int]:
        keys: list[int] = []
        key = hash((version,))
        for end in range(self.block_tokens, len(ids) + 1, self.block_tokens):
            key = hash((key, *ids[end - self.block_tokens : end]))
            keys.append(key)
        return keys


class ContinuousBatch:
    """At most `max_num_seqs` sequences in steps; each step gives each of them one token, the others wait in order.

    A step that begins at an instant takes what arrives at that instant too: its batch, and with it its duration, is
    fixed once the clock moves on. What arrives later waits for the next step. A sequence aborted in the middle of a
    step is gone at once, but the step takes its time, and the slot is given out when it ends.

    Times are seconds on the caller's clock and must not decrease. Events cost O(log n): steps in which nothing begins
    or ends are passed over in one.
    """

    def __init__(self, max_num_seqs: int, cost: StepCost, cache: PrefixCache, version: int = 0) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs: got {max_num_seqs}; use 1 or more")
        if cost.base_s <= 0 or min(cost.per_sequence_s, cost.prefill_s) < 0:
            raise ValueError(f"a step must take time: got {cost}")
        self.max_num_seqs, self.cost, self.cache = max_num_seqs, cost, cache
        self.running: set[BatchedSequence] = set()
        self.waiting: OrderedDict[BatchedSequence, None] = OrderedDict()
        self.busy_s = self.occupancy_s = 0.0
        self.prompt_tokens = self.cached_tokens = self.reusable_tokens = 0
        self._now = 0.0
        self._steps = 0  # ended so far; the number of the step under way
        self._stepping = False
        self._step_start = self._step_s = 0.0
        self._uncached = 0  # prompt tokens that the step under way computes
        self._ends: list[tuple[int, int, BatchedSequence]] = []
        self._order = itertools.count()
        self._versions = [(0, version)]  # (first step, version)

    @property
    def version(self) -> int:
        """The version of the tokens of later steps."""
        return self._versions[-1][1]

    def advance(self, now: float) -> list[BatchedSequence]:
        """Run the steps that end up to `now`; returns the sequences that ended, in order."""
        ended: list[BatchedSequence] = []
        while self._stepping:
            end = self._step_start + self._step_s
            if end > now + _SAME_S:
                break
            steady = self._steady_s()
            count = min(self._steps_to_change(), 1 + int((now + _SAME_S - end) / steady))
            self._step_start = end + (count - 1) * steady
            self._move(self._step_start)
            self._steps += count
            self._uncached = 0
            ended += self._take_ended()
            self._begin()
        self._move(now)
        return ended

    def arrive(self, now: float, sequence: BatchedSequence) -> None:
        """A request comes in; call `advance(now)` first."""
        self.waiting[sequence] = None
        if not self._stepping:
            self._step_start, self._uncached = max(now, self._now), 0
            self._begin()
        elif self._open():
            self._begin()

    def abort(self, sequence: BatchedSequence) -> None:
        """End a sequence that has not ended, now; call `advance(now)` first."""
        sequence.ended = self.tokens(sequence)
        if sequence in self.waiting:
            del self.waiting[sequence]
            return
        self.running.remove(sequence)
        self._keep(sequence)
        if self._open():
            if sequence.first_step == self._steps:
                self._uncached -= sequence.uncached
            self._begin()

    def set_version(self, version: int) -> None:
        """Another version for all later steps; call `advance(now)` first. The step under way keeps its own."""
        first = self._steps + (1 if self._stepping and not self._open() else 0)
        if self._versions[-1][0] == first:
            self._versions.pop()
        if not self._versions or self._versions[-1][1] != version:
            self._versions.append((first, version))

    def tokens(self, sequence: BatchedSequence) -> int:
        """Tokens that a sequence has so far."""
        if sequence.ended is not None:
            return sequence.ended
        return 0 if sequence.first_step is None else self._steps - sequence.first_step

    def spans(self, sequence: BatchedSequence) -> tuple[tuple[int, int, int], ...]:
        """(version, start, end) runs over the tokens that a sequence has so far."""
        if sequence.first_step is None:
            return ()
        first, count = sequence.first_step, self.tokens(sequence)
        spans: list[tuple[int, int, int]] = []
        at = bisect_right(self._versions, first, key=lambda v: v[0]) - 1
        for (begin, version), (end, _) in itertools.pairwise([*self._versions[at:], (first + count, 0)]):
            start, stop = max(0, begin - first), min(count, end - first)
            if start < stop:
                spans.append((version, start, stop))
        return tuple(spans)

    def next_change(self) -> float | None:
        """When the next sequence ends or is admitted, if nothing else happens before; None where nothing runs."""
        if not self._stepping:
            return None
        return self._step_start + self._step_s + (self._steps_to_change() - 1) * self._steady_s()

    def _begin(self) -> None:
        """Fill the free slots and (re)compute what the step that begins now will take."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            self._admit(self.waiting.popitem(last=False)[0])
        self._stepping = bool(self.running)
        self._step_s = self._steady_s() + self.cost.prefill_s * self._uncached

    def _admit(self, sequence: BatchedSequence) -> None:
        cached, reusable = self.cache.look_up(sequence.prompt_ids, sequence.version)
        sequence.first_step = self._steps
        sequence.uncached = len(sequence.prompt_ids) - cached
        self._uncached += sequence.uncached
        self.prompt_tokens += len(sequence.prompt_ids)
        self.cached_tokens += cached
        self.reusable_tokens += reusable
        # As in vLLM, the blocks of a prompt serve the next request already in the step that computes them.
        self.cache.insert(sequence.prompt_ids, sequence.version)
        self.running.add(sequence)
        heapq.heappush(self._ends, (self._steps + len(sequence.output_ids), next(self._order), sequence))

    def _take_ended(self) -> list[BatchedSequence]:
        ended: list[BatchedSequence] = []
        while self._ends and self._ends[0][0] <= self._steps:
            sequence = heapq.heappop(self._ends)[2]
            if sequence.ended is None:  # else it was aborted
                sequence.ended = len(sequence.output_ids)
                self.running.remove(sequence)
                self._keep(sequence)
                ended.append(sequence)
        return ended

    def _keep(self, sequence: BatchedSequence) -> None:
        # The last token was sampled but never went through the model: it has no keys and values.
        computed = sequence.output_ids[: max(0, (sequence.ended or 0) - 1)]
        self.cache.insert((*sequence.prompt_ids, *computed), sequence.version)

    def _steps_to_change(self) -> int:
        """Steps until a sequence ends or can be admitted, the one under way included."""
        while self._ends and self._ends[0][2].ended is not None:
            heapq.heappop(self._ends)
        if not self.running or (self.waiting and len(self.running) < self.max_num_seqs):
            return 1
        return self._ends[0][0] - self._steps

    def _steady_s(self) -> float:
        return self.cost.base_s + self.cost.per_sequence_s * len(self.running)

    def _open(self) -> bool:
        return self._stepping and self._now <= self._step_start + _SAME_S

    def _move(self, now: float) -> None:
        seconds = max(0.0, now - self._now)
        self._now += seconds
        self.busy_s += seconds if self.running else 0.0
        self.occupancy_s += seconds * len(self.running) / self.max_num_seqs
