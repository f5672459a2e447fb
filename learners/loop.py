"""The loop that all objectives share: optimizer steps over micro-batches, from where an earlier process left off.

Every rank is given the whole data and takes its share of each optimizer batch; micro-batches are formed before they are
dealt out, and a rank without one computes a copy that counts for nothing, so that all ranks run the same collectives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from learners.batches import Batch, micro_batches, optimizer_batches, pack, pad, padded_length
from learners.learner import Learner, LearnerError, StepResult
from learners.packing import Packing, rows
from learners.snapshots import Cursor, Snapshots

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = dict[str, float]
Report = Callable[[Row], None]
Ids = Sequence[int]
SequencesOf = Callable[[T], Sequence[Ids]]
"""The tokens of the sequences of an item: one, or the two of a pair."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """`batch_size`: sequences (or pairs) per optimizer step over all ranks. `micro_tokens`: tokens of a micro-batch,
    padding included. `row_tokens`: of a row with several sequences; attention takes time by its square. `pad_id`: any
    token id; padding is masked.

    `snapshots`: a directory that all ranks share, where the training is kept every `snapshot_s` seconds while it lasts;
    the same training again goes on from there, bit by bit as if nothing had happened. Empty: nothing is kept.
    `bad_batches`: a directory for the batch of a step whose loss is not finite (`replay`); empty: it is lost.
    """

    batch_size: int = 16
    epochs: int = 1
    micro_tokens: int = 2048
    row_tokens: int = 1024
    pad_id: int = 0
    seed: int = 0
    packing: Packing = "tree"
    snapshots: str = ""
    snapshot_s: float = 600.0
    bad_batches: str = ""


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """The items of a micro-batch, and for each the row that it stands in."""

    items: list[T]
    rows: list[int]


LossOf = Callable[[Any, Group[T], float], tuple[Tensor, dict[str, Tensor | float]]]


def groups(items: Sequence[T], sequences_of: SequencesOf[T], settings: FitSettings) -> list[Group[T]]:
    """The items of each micro-batch."""
    if settings.packing == "padded":

        def length(item: T) -> int:
            lengths = [len(ids) for ids in sequences_of(item)]
            return len(lengths) * padded_length(max(lengths))

        return [Group(g, [*range(len(g))]) for g in micro_batches(items, length, settings.micro_tokens)]
    most = min(settings.row_tokens, settings.micro_tokens)
    filled = rows(items, sequences_of, most, settings.packing == "tree", settings.micro_tokens)
    return [
        Group([item for own, _ in some for item in own], [row for row, (own, _) in enumerate(some) for _ in own])
        for some in micro_batches(filled, lambda row: row[1], settings.micro_tokens)
    ]


def as_batch(sequences: Sequence[Ids], points: Sequence[Ids], rows: Sequence[int], settings: FitSettings) -> Batch:
    """Sequences as tensors; `points`: where the output counts; `rows`: which row they stand in."""
    if settings.packing == "padded":
        return pad(sequences, points, settings.pad_id)
    return pack(sequences, points, rows, settings.pad_id, settings.packing == "tree")


def deal(
    batch: Sequence[T], sequences_of: SequencesOf[T], settings: FitSettings, learner: Learner
) -> list[tuple[Group[T], float]]:
    """This rank's micro-batches of an optimizer batch, each with its weight (0 for one that only keeps step)."""
    made = groups(batch, sequences_of, settings)
    share = -(-len(made) // learner.world)
    mine = [(g, 1.0) for g in made[learner.rank :: learner.world]]
    return mine + [(group, 0.0) for group in made[:1]] * (share - len(mine))


def train(
    learner: Learner,
    items: Sequence[T],
    settings: FitSettings,
    sequences_of: SequencesOf[T],
    count: Callable[[T], float],
    loss_of: LossOf[T],
    report: Report,
    prefix: str,
    enough: Callable[[Row], bool] | None = None,
    about: object = None,
) -> list[Row]:
    """All optimizer steps; returns a row of metrics of each. `loss_of(model, group, weight)` returns a sum and sums to
    report; a reported sum is divided by the count of the batch. Tokens are counted as they were given, shared ones in
    every sequence.

    `enough(row)`: whether training ends after this step; may add to the row before it is reported. Must decide by what
    is the same on every rank: all numbers but those of time are, being made of the same sums over ranks.

    `about`: what beside model and settings makes this training the same as another, of which a snapshot may be there;
    what the objective was given, and nothing that it computed. None: the items.

    Raises LearnerError where the loss is not finite; `items` of the error are those of the step's batch.
    """
    batches = optimizer_batches(items, settings.batch_size, settings.epochs, settings.seed)
    keeper = _Keeper(learner, settings, (prefix, items if about is None else about)) if settings.snapshots else None
    history = keeper.restore() if keeper else []
    for row in history:
        report(row)
    for number, batch in enumerate(batches[len(history) :], start=len(history) + 1):
        dealt = deal(batch, sequences_of, settings, learner)
        own = sum(count(item) for group, weight in dealt if weight for item in group.items)
        try:
            result = learner.step(dealt, lambda model, pair: loss_of(model, pair[0], pair[1]), own)
        except LearnerError as error:
            error.items = list(batch)
            raise
        tokens = sum(len(ids) for item in batch for ids in sequences_of(item))
        row = {**_row(prefix, result, tokens), f"{prefix}/step": number, f"{prefix}/steps": len(batches)}
        ended = enough is not None and enough(row)
        history.append(row)
        report(row)
        if ended:
            break
        if keeper and number < len(batches):
            keeper.keep(history)
    return history


def _row(prefix: str, result: StepResult, tokens: int) -> Row:
    found = {"loss": result.loss, "grad_norm": result.grad_norm, "tokens_per_s": tokens / max(result.seconds, 1e-9)}
    found |= {name: value / max(result.count, 1e-9) for name, value in result.sums.items()}
    return {f"{prefix}/{name}": value for name, value in found.items()}


class _Keeper:
    """Snapshots of one training on every rank; all methods are collectives."""

    def __init__(self, learner: Learner, settings: FitSettings, what: object) -> None:
        same = dataclasses.replace(settings, snapshots="", snapshot_s=0.0, bad_batches="")
        about = (what, learner.spec, learner.world, same)
        self._learner, self._every = learner, settings.snapshot_s
        self._all = Snapshots(Path(settings.snapshots), hashlib.sha256(repr(about).encode()).hexdigest())
        self._kept = time.monotonic()

    def restore(self) -> list[Row]:
        """Weights, optimizer and random numbers as they were when the latest snapshot was taken; returns its rows."""
        found = self._all.latest()
        steps = float(found[1].step) if found and self._learner.rank == 0 else 0.0
        agreed = self._learner.all_sum({"steps": steps})["steps"]
        if not agreed:
            return []
        if found is None or found[1].step != agreed:
            what = f"the snapshot of step {agreed:.0f} in {self._all.folder}"
            raise LearnerError(f"learner: rank {self._learner.rank} does not see {what}; ranks must share it")
        self._learner.restore(found[0], found[1].step)
        return list(found[1].rows)

    def keep(self, rows: list[Row]) -> None:
        """A snapshot after the last of these rows, if it is time for one: rank 0 says so. A disk that takes none costs
        the training nothing."""
        begun = self._learner.rank == 0 and time.monotonic() - self._kept >= self._every and self._begin(len(rows))
        if not self._learner.all_sum({"begun": float(begun)})["begun"]:
            return
        self._learner.save(self._all.scratch(len(rows)))
        self._learner.barrier()
        if self._learner.rank == 0:
            with _no_matter():
                self._all.publish(Cursor(len(rows), rows))
            self._kept = time.monotonic()

    def _begin(self, step: int) -> bool:
        """Rank 0: make room; whether there is enough, with what is kept until the new one is whole."""
        with _no_matter():
            self._all.begin(step)
            free, need = shutil.disk_usage(self._all.folder).free, 1.1 * self._learner.snapshot_bytes
            if free >= need:
                return True
            log.warning("no snapshot: %.1f GB free in %s, %.1f needed", free / 1e9, self._all.folder, need / 1e9)
        self._kept = time.monotonic()
        return False


@contextlib.contextmanager
def _no_matter() -> Iterator[None]:
    """A snapshot that cannot be written is told of and done without."""
    try:
        yield
    except OSError:
        log.warning("a snapshot could not be written", exc_info=True)
