"""Learner ranks as Ray actors, and the driver's handle on a group of them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from learners import training
from learners.batches import require_readable
from learners.learner import Learner, LearnerError, LearnerSpec
from learners.loop import FitSettings
from learners.replay import set_aside

START_DEADLINE_S = 300.0
RESTARTS = 2
"""Of the ranks during one training: more deaths than that have a cause that stays."""
ANSWER_S, LOST_S = 10.0, 40.0
GONE = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
"""What Ray raises for a process that is no more."""
log = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_concurrency=2, max_restarts=0)
class LearnerRank:
    """One rank; a second thread answers `progress` while the first one trains."""

    def __init__(self, rank: int, world: int, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # learners only ever load local directories
        self._threads = threads
        self._learner = Learner(rank, world, threads)
        self._rows: list[dict[str, float]] = []

    def node_ip(self) -> str:
        return ray.util.get_node_ip_address()

    def pid(self) -> int:
        return os.getpid()

    def rendezvous(self, host: str) -> int:
        return self._learner.rendezvous(host)

    def join(self, host: str, port: int) -> None:
        self._learner.join(host, port)

    def device_memory(self) -> int | None:
        return self._learner.device_memory()

    def load(self, spec: LearnerSpec, seed: int) -> None:
        self._use_threads()
        self._learner.load(spec, seed)

    def fit(
        self, objective: str, data: Sequence[Any], settings: FitSettings, **options: float
    ) -> list[dict[str, float]]:
        """Run one of `sft`, `dpo`, `prm`, `prm_pairs`, `rl`; returns the rows of metrics, one per optimizer step.

        Raises ValueError for data that the model cannot learn from."""
        self._use_threads()
        if not data:
            raise ValueError("data: got nothing; use at least one sequence")
        require_readable(data, self._learner.vocabulary)
        self._rows = []
        run: Callable[..., list[dict[str, float]]] = getattr(training, objective)
        try:
            return run(self._learner, data, settings, report=self._rows.append, **options)
        except LearnerError as error:
            if not settings.bad_batches or not error.items:
                raise
            try:
                file = set_aside(Path(settings.bad_batches), self._learner, objective, settings, options, error.items)
            except OSError as refused:
                raise LearnerError(f"{error}; its batch could not be kept: {refused}") from error
            raise LearnerError(f"{error}; its batch is in {file} (python -m learners.replay)") from error

    def step_scores(self, labels: Sequence[Any], settings: FitSettings) -> list[list[float]]:
        self._use_threads()
        require_readable(labels, self._learner.vocabulary)
        return training.step_scores(self._learner, labels, settings)

    def completion_logprobs(self, examples: Sequence[Any], settings: FitSettings) -> list[float]:
        self._use_threads()
        require_readable(examples, self._learner.vocabulary)
        return training.completion_logprobs(self._learner, examples, settings)

    def token_logprobs(self, trajectories: Sequence[Any], settings: FitSettings) -> list[list[float]]:
        self._use_threads()
        require_readable(trajectories, self._learner.vocabulary)
        return training.token_logprobs(self._learner, trajectories, settings)

    def sequence_logprobs(self, sequences: Sequence[Any], settings: FitSettings) -> list[list[float]]:
        self._use_threads()
        require_readable(sequences, self._learner.vocabulary)
        return training.sequence_logprobs(self._learner, sequences, settings)

    def progress(self, after: int) -> list[dict[str, float]]:
        """The rows of the running `fit` from index `after` on."""
        return self._rows[after:]

    def export(self, target: str) -> None:
        self._learner.export(Path(target))

    def publish(self, file: str) -> None:
        self._learner.publish(Path(file))

    def release(self) -> None:
        self._learner.release()

    def close(self) -> None:
        self._learner.close()

    def _use_threads(self) -> None:
        # OpenMP's thread count belongs to the calling thread, and Ray sets it to the actor's num_cpus.
        torch.set_num_threads(self._threads)
        torch.set_default_device(self._learner.device)  # batches are made where the model is; also per thread


def _is_gone(call: Any) -> bool:
    try:
        ray.get(call)
    except GONE:
        return True
    return False


class LearnerGroup:
    """Owns the ranks of one learner. Every call has a deadline; `close` ends the actors."""

    def __init__(self, world: int, threads: int, num_gpus: float = 0.0) -> None:
        self.world = world
        self.restarts = 0
        self._threads, self._num_gpus = threads, num_gpus
        self._loaded: tuple[LearnerSpec, int] | None = None
        self._start()

    def _start(self) -> None:
        made = LearnerRank.options(num_gpus=self._num_gpus)  # type: ignore[attr-defined]
        self.ranks = [made.remote(r, self.world, self._threads) for r in range(self.world)]
        host = ray.get(self.ranks[0].node_ip.remote(), timeout=START_DEADLINE_S)
        port = ray.get(self.ranks[0].rendezvous.remote(host), timeout=START_DEADLINE_S)
        self._all("join", host, port, deadline=START_DEADLINE_S)

    def device_memory(self) -> int | None:
        """Bytes that are free on the GPU of the rank with least; None where ranks have none."""
        free = [one for one in self._all("device_memory", deadline=60) if one is not None]
        return min(free) if free else None

    def load(self, spec: LearnerSpec, seed: int) -> None:
        """Load a model on every rank (see `Learner.load`)."""
        self._all("load", spec, seed, deadline=START_DEADLINE_S)
        self._loaded = (spec, seed)

    def fit(
        self,
        objective: str,
        data: Sequence[Any],
        settings: FitSettings,
        deadline_s: float,
        on_row: Callable[[dict[str, float]], None],
        may_restart: Callable[[], bool] = lambda: True,
        **options: float,
    ) -> list[dict[str, float]]:
        """Train on `data`; `on_row` is called with each optimizer step's metrics as it happens.

        Where a rank dies, all of them are begun anew, as often as `RESTARTS`, and the training goes on from its last
        snapshot (`FitSettings.snapshots`), or else from its beginning; `restarts` counts. Not where `may_restart` says
        no: the whole cluster may be on its way out.

        Raises ray.exceptions.RayTaskError with the rank's error, RayActorError where ranks go on dying, or TimeoutError
        after `deadline_s`.
        """
        shared, seen, end = ray.put(list(data)), 0, time.monotonic() + deadline_s

        def tell(row: dict[str, float]) -> None:
            nonlocal seen
            seen += 1
            on_row(row)

        for left in reversed(range(RESTARTS + 1)):
            try:
                return self._fit(objective, shared, settings, end, lambda: seen, tell, options)
            except (*GONE, ray.exceptions.RayTaskError) as error:
                dead = self._dead(error) if left and may_restart() else []
                if not dead or not may_restart():
                    raise
                log.warning("learner ranks %s died in %s: %s", dead, objective, error)
                self._restart()
        raise AssertionError("unreachable")

    def _fit(
        self,
        objective: str,
        shared: Any,
        settings: FitSettings,
        end: float,
        seen: Callable[[], int],
        tell: Callable[[dict[str, float]], None],
        options: dict[str, float],
    ) -> list[dict[str, float]]:
        """`fit` without a second try. `end`: on the monotonic clock; `seen`: how many rows were told of before."""
        futures = [rank.fit.remote(objective, shared, settings, **options) for rank in self.ranks]
        done: list[Any] = []
        while len(done) < len(futures):
            done, waiting = ray.wait(futures, num_returns=len(futures), timeout=1.0)
            for failed in done:
                ray.get(failed)  # raises at once if one rank failed; the others would wait for it
            if time.monotonic() > end:
                raise TimeoutError(f"learner: {objective} did not finish within its deadline ({len(waiting)} ranks)")
            if waiting:
                for row in ray.get(self.ranks[0].progress.remote(seen()), timeout=60):
                    tell(row)
        history: list[dict[str, float]] = ray.get(futures[0], timeout=60)
        for row in history[seen() :]:
            tell(row)
        return history

    def _dead(self, error: Exception) -> list[int]:
        """The ranks whose process is gone. One that does not answer in time is not: it may be hard at work.

        What ends one rank may end a collective on another first, and Ray may take a while to see that a node is gone:
        after an error that no rank's own work explains it is asked for longer.
        """
        cause = getattr(error, "cause", error)
        alone = self.world == 1 or isinstance(cause, LearnerError) or not isinstance(cause, RuntimeError)
        deadline = time.monotonic() + (0 if alone else LOST_S)
        while True:
            calls = [rank.pid.remote() for rank in self.ranks]
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S)
            gone = [rank for rank, call in enumerate(calls) if call in done and _is_gone(call)]
            if gone or time.monotonic() >= deadline:
                return gone
            time.sleep(1.0)

    def _restart(self) -> None:
        """New ranks with the model that was loaded last."""
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        self.restarts += 1
        self._start()
        if self._loaded is not None:
            self._all("load", *self._loaded, deadline=START_DEADLINE_S)

    def step_scores(self, labels: Sequence[Any], settings: FitSettings, deadline_s: float) -> list[list[float]]:
        """PRM values at every step end of every label."""
        shared = ray.put(list(labels))
        return self._all("step_scores", shared, settings, deadline=deadline_s)[0]

    def completion_logprobs(self, examples: Sequence[Any], settings: FitSettings, deadline_s: float) -> list[float]:
        """The policy's summed log-probability (nats) of the tokens under the mask of every example; the ranks share the
        work."""
        shared = ray.put(list(examples))
        return self._all("completion_logprobs", shared, settings, deadline=deadline_s)[0]

    def token_logprobs(
        self, trajectories: Sequence[Any], settings: FitSettings, deadline_s: float
    ) -> list[list[float]]:
        """Of every trajectory the policy's log-probabilities of the tokens under its mask; the ranks share the work."""
        shared = ray.put(list(trajectories))
        return self._all("token_logprobs", shared, settings, deadline=deadline_s)[0]

    def sequence_logprobs(self, sequences: Sequence[Any], settings: FitSettings) -> list[list[float]]:
        """The policy's log-probabilities, for the probe of a weight sync."""
        return self._all("sequence_logprobs", list(sequences), settings, deadline=START_DEADLINE_S)[0]

    def export(self, target: Path) -> None:
        """Write the model in Hugging Face format into the existing directory `target`."""
        self._all("export", str(target), deadline=START_DEADLINE_S)

    def publish(self, file: Path) -> None:
        """Write the weights for the samplers into `file`."""
        self._all("publish", str(file), deadline=START_DEADLINE_S)

    def release(self) -> None:
        """Free the model; the ranks stay."""
        self._all("release", deadline=60)

    def close(self) -> None:
        """End the ranks, politely first."""
        try:
            self._all("close", deadline=15)
        except Exception:  # a rank that cannot say goodbye is ended all the same
            log.warning("a learner rank did not close", exc_info=True)
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)

    def _all(self, method: str, *args: Any, deadline: float) -> list[Any]:
        return ray.get([getattr(rank, method).remote(*args) for rank in self.ranks], timeout=deadline)
