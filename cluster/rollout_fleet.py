"""The rollout workers of a run while it runs: started, given the weights, watched, given work, replaced and retired.

`fleet.Fleet` decides; here that is carried out on Ray. One keeper thread waits for what control calls come to, asks
every worker now and then whether it is there, and does what is ordered; nothing in it waits without a deadline. Work is
given out by `stream`, in the thread of whoever has it: what a worker was at when it ended is done by another one.

A worker serves after it has the settings of all workers (`set_everywhere`) and the weights of now, proven: its
log-probabilities of the probe are those that the learner vouches for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.driver_log import attempt
from cluster.fleet import ENDED, Fleet, Order, State
from cluster.weight_sync import FIRST_TOLERANCE, SYNC_DEADLINE_S, SyncFailed, judge_probe, mean_difference
from cluster.work import Unit, Work
from reasoning.errors import MachineError

log = logging.getLogger(__name__)

TICK_S = 0.25
PROBE_EVERY_S = 5.0
PROBE_DEADLINE_S = 10.0
CONTROL_DEADLINE_S = 60.0
END_DEADLINE_S = 30.0

Scores = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Weights:
    """What all workers are to serve. `source`: a file or model directory; "": what a worker starts with. `expected`:
    log-probabilities of the probe by who made them; None where nobody vouches, and all have to say the same."""

    version: int
    source: str = ""
    expected: Scores | None = None


@dataclass(frozen=True, slots=True)
class Synced:
    """One worker's sync. `seconds`: from pause to resume; `to_new`, `to_old`: nats per token, see `judge_probe`."""

    version: int
    seconds: float
    to_new: float
    to_old: float


@dataclass(slots=True)
class _Call:
    """A control call under way. `then`: what its result is for."""

    name: str
    what: str
    deadline: float
    then: Callable[[Any], None]


@dataclass(slots=True)
class Worker:
    handle: Any
    scores: Scores | None = None
    probed: float = 0.0
    asked: bool = False
    synced: list[Synced] = field(default_factory=list)


class RolloutFleet:
    """Carries out what the fleet orders.

    make: creates the actor of a new member, without waiting for it; its methods are those of `RolloutWorker`. probe:
    token ids on which weights are told apart.
    """

    def __init__(
        self,
        fleet: Fleet,
        make: Callable[[str], Any],
        probe: Sequence[Sequence[int]] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        tolerance: float = FIRST_TOLERANCE,
    ) -> None:
        self.fleet, self._make, self.probe = fleet, make, [list(ids) for ids in probe]
        self._clock, self.tolerance = clock, tolerance
        self._weights = Weights(fleet.version)
        self._workers: dict[str, Worker] = {}
        self._calls: dict[Any, _Call] = {}
        self._everywhere: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="fleet-keeper", daemon=True)

    # --- from outside ---

    def open(self) -> None:
        """Begin to start workers and to watch them."""
        self._keeper.start()

    def close(self) -> None:
        """End all workers: they are asked to, and killed where they have not within `END_DEADLINE_S`."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join(timeout=CONTROL_DEADLINE_S)
        with self._lock:
            handles = [w.handle for w in self._workers.values()]
            self._workers.clear()
        with attempt("asking the workers to end", log):
            calls = [handle.shutdown.remote() for handle in handles]
            ray.wait(calls, num_returns=len(calls), timeout=END_DEADLINE_S)
        for handle in handles:
            with attempt("ending a worker", log):
                ray.kill(handle)

    def wait(self, serving: int, seconds: float) -> None:
        """Wait until so many serve. Raises MachineError, saying what became of the others, where they do not within
        `seconds`, or where so many died that nothing more is started."""
        deadline = self._clock() + seconds
        while len(self.routable()) < serving:
            self._require_hope()
            if self._clock() > deadline:
                raise MachineError(f"{serving} rollout workers do not serve within {seconds:.0f} s: {self.says()}")
            time.sleep(TICK_S)

    def routable(self) -> list[str]:
        """Who serves now."""
        with self._lock:
            return self.fleet.routable()

    def says(self) -> str:
        """The members by state, and why the last of them ended, for people."""
        with self._lock:
            counts = ", ".join(f"{count} {state}" for state, count in self.fleet.counts().items() if count)
            ended = [c for c in self.fleet.changes if c.after is State.DEAD]
        return f"{counts or 'none'}{f'; {ended[-1].name}: {ended[-1].why}' if ended else ''}"

    def wish(self, target: int) -> None:
        """How many workers there shall be. Raises ValueError outside the fleet's bounds."""
        with self._lock:
            self.fleet.wish(target)

    def set_everywhere(self, method: str, *args: Any) -> None:
        """Call a method on every worker, also on those that come later before they serve. Waits for those that serve.
        Who cannot is ended."""
        with self._lock:
            self._everywhere[method] = args
            handles = {n: self._workers[n].handle for n in self.fleet.routable()}
        calls = {getattr(handle, method).remote(*args): name for name, handle in handles.items()}
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=CONTROL_DEADLINE_S) if calls else ([], [])
        for call in done:
            try:
                ray.get(call)
            except ray.exceptions.RayError as error:
                self._lost(calls[call], f"{method}: {_first_line(error)}")
        for call in late:
            self._lost(calls[call], f"{method}: no answer within {CONTROL_DEADLINE_S:.0f} s")

    def publish(self, source: str, expected: Scores) -> list[Synced]:
        """Have all workers serve newer weights, and wait until each that was there does, or is given up.

        Raises SyncFailed where none does in the end, MachineError where there is nobody left to serve.
        """
        with self._lock:
            version = self.fleet.version + 1
            self._weights = Weights(version, source, expected)
            self.fleet.publish(version)
            concerned = [m.name for m in self.fleet.members.values() if m.state in (State.SERVING, State.STALE)]
        deadline = self._clock() + self.fleet.settings.sync_failures * 2 * SYNC_DEADLINE_S
        while True:
            with self._lock:
                states = {name: self.fleet.members[name] for name in concerned}
                left = [m for m in states.values() if m.state in (State.SERVING, State.STALE) and m.version != version]
                reports = [w.synced[-1] for n in concerned if (w := self._workers.get(n)) and w.synced]
            reports = [report for report in reports if report.version == version]
            if not left and reports:
                return reports
            if not left or self._clock() > deadline:
                raise SyncFailed(f"version {version}: {'; '.join(m.why for m in states.values()) or 'nobody serves'}")
            self._require_hope()
            time.sleep(TICK_S)

    def scores(self) -> Scores:
        """What some worker that serves said of the probe when it was synced last."""
        with self._lock:
            return next(w.scores for n in self.fleet.routable() if (w := self._workers[n]).scores is not None)

    def drain_node(self, node: str, deadline: float, why: str) -> list[str]:
        """A machine is about to go; see `Fleet.drain_node`."""
        with self._lock:
            return self.fleet.drain_node(node, self._clock(), deadline, why)

    # --- work ---

    def stream(
        self,
        units: Iterable[Unit],
        per_worker: int,
        deadline_s: float,
        what: str,
        on_result: Callable[[Any], None],
        on_tick: Callable[[], None] = lambda: None,
        attempts: int = 3,
    ) -> list[Unit]:
        """Have every unit done, at most `per_worker` at a time by each, and hand each result to `on_result` as it
        comes; `on_tick` is called at least once a second. What a worker was at when it ended another one does, up to
        `attempts` times, the last time alone, since one unit may be what ends them all. Returns the units that were
        lost all the same.

        Raises TimeoutError where nothing came back for `deadline_s`, MachineError where there is nobody left to do it,
        and what a worker raised.
        """
        with self._lock:
            self.fleet.capacity = per_worker
        work = Work(iter(units))
        last = self._clock()
        try:
            while True:
                self._give_out(work, attempts)
                if not work.running and not work.again and work.exhausted:
                    return work.lost
                for reference in self._ended(work):
                    last = self._clock()
                    self._take(work, reference, attempts, on_result)
                on_tick()
                if self._clock() - last > deadline_s:
                    raise TimeoutError(f"{what}: nothing came back for {deadline_s:.0f} s ({self.says()})")
        except BaseException:
            for reference, (unit, name, _) in work.running.items():
                ray.cancel(reference, force=False)
                with self._lock:
                    self.fleet.done(name, unit.name)
            raise
        finally:
            with self._lock:
                self.fleet.keep_for_nobody()

    def _give_out(self, work: Work, attempts: int) -> None:
        while (found := work.next()) is not None:
            unit, tried = found
            with self._lock:
                name = self.fleet.assign(unit.name, alone=0 < tried == attempts - 1)
                handle = self._workers[name].handle if name is not None else None
            if name is None or handle is None:
                work.again.appendleft(found)
                return
            work.running[getattr(handle, unit.method).remote(*unit.args)] = (unit, name, tried + 1)

    def _ended(self, work: Work) -> list[Any]:
        if not work.running:  # nobody serves just now
            self._require_hope()
            time.sleep(TICK_S)
            return []
        done, _ = ray.wait(list(work.running), num_returns=1, timeout=1.0)
        return list(done)

    def _take(self, work: Work, reference: Any, attempts: int, on_result: Callable[[Any], None]) -> None:
        unit, name, tried = work.running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            with self._lock:
                self.fleet.done(name, unit.name)
            if not _engine_is_dead(error):
                raise
            self._lost(name, _first_line(error))
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            with self._lock:
                self.fleet.done(name, unit.name)
            self._lost(name, _first_line(error))
        else:
            with self._lock:
                self.fleet.done(name, unit.name)
            on_result(result)
            return
        if tried >= attempts:
            work.lost.append(unit)
        else:
            work.again.append((unit, tried))

    def _require_hope(self) -> None:
        with self._lock:
            hopeless = self.fleet.exhausted(self._clock()) and not self.fleet.staying()
        if hopeless or (self._closing.is_set() or not self._keeper.is_alive()):
            raise MachineError(f"no rollout worker is left: {self.says()}")

    # --- the keeper ---

    def _keep(self) -> None:
        while not self._closing.is_set():
            try:
                self._tick()
            except Exception:  # whatever it is: the fleet must be kept
                log.exception("keeping the fleet")
                time.sleep(TICK_S)

    def _tick(self) -> None:
        with self._lock:
            waiting = list(self._calls)
        if waiting:
            done, _ = ray.wait(waiting, num_returns=1, timeout=TICK_S)
        else:
            done = []
            time.sleep(TICK_S)
        for reference in done:
            self._heard(reference)
        now = self._clock()
        with self._lock:
            late = [reference for reference, call in self._calls.items() if now > call.deadline]
            for reference in late:
                call = self._calls.pop(reference, None)  # those of a worker that was ended just now are gone
                if call is not None:
                    self._unanswered(call)
            self._probe(now)
            orders = self.fleet.orders(now)
        for order in orders:
            self._carry_out(order)

    def _heard(self, reference: Any) -> None:
        with self._lock:
            call = self._calls.pop(reference, None)
        if call is None:
            return
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            why = f"{call.what}: {_first_line(error)}"
            gone = isinstance(error, ray.exceptions.RayActorError) or _engine_is_dead(error)
            if call.what in ("sync", "score") and not gone:
                self._sync_failed(call.name, why)
            else:
                self._lost(call.name, why)
            return
        with self._lock:
            if call.name in self._workers:
                call.then(result)

    def _unanswered(self, call: _Call) -> None:
        now = self._clock()
        if call.what == "probe":
            if (worker := self._workers.get(call.name)) is not None:
                worker.asked = False
            self.fleet.missed(call.name, now)
        elif call.what in ("sync", "score"):
            self._sync_failed(call.name, f"{call.what}: no answer in time")
        else:
            self._lost(call.name, f"{call.what}: no answer in time")

    def _probe(self, now: float) -> None:
        for name, worker in self._workers.items():
            member = self.fleet.members[name]
            if worker.asked or member.syncing or now - worker.probed < PROBE_EVERY_S:
                continue
            if member.state in (State.STALE, State.SERVING, State.SUSPECT, State.DRAINING):
                worker.asked, worker.probed = True, now
                self._call(name, "probe", PROBE_DEADLINE_S, worker.handle.counters.remote(), self._answered(name))

    def _answered(self, name: str) -> Callable[[Any], None]:
        def then(_: Any) -> None:
            self._workers[name].asked = False
            self.fleet.seen(name, self._clock())

        return then

    def _carry_out(self, order: Order) -> None:
        match order.kind:
            case "start":
                self._start(order)
            case "sync":
                self._sync(order.name)
            case "kill":
                self._lost(order.name, order.why)
            case "retire":
                self._retire(order.name)

    def _start(self, order: Order) -> None:
        with self._lock:
            self.fleet.starting(order, self._clock())
            try:
                handle = self._make(order.name)
            except Exception as error:  # Ray refuses in several ways
                log.exception("creating %s", order.name)
                self.fleet.died(order.name, self._clock(), f"it could not be created: {_first_line(error)}")
                return
            self._workers[order.name] = Worker(handle)
            name, forever = order.name, 2 * self.fleet.settings.start_s  # the fleet gives up on it before
            self._call(name, "start", forever, handle.start.remote(), lambda _: self._set_up(name))

    def _set_up(self, name: str) -> None:
        """What `set_everywhere` was told, one after the other; then it is up."""
        left = deque(self._everywhere.items())

        def following(_: Any = None) -> None:
            if left:
                method, args = left.popleft()
                reference = getattr(self._workers[name].handle, method).remote(*args)
                self._call(name, method, CONTROL_DEADLINE_S, reference, following)
            else:
                self.fleet.started(name, self._clock())

        following()

    def _sync(self, name: str) -> None:
        with self._lock:
            if name not in self._workers or not self.fleet.syncing(name):
                return
            weights, handle = self._weights, self._workers[name].handle

            def score(seconds: float) -> None:
                reference = handle.score.remote(self.probe)
                self._call(name, "score", SYNC_DEADLINE_S, reference, lambda s: self._verify(name, weights, seconds, s))

            if weights.source:
                reference = handle.update_weights.remote(weights.source, weights.version)
                self._call(name, "sync", SYNC_DEADLINE_S, reference, score)
            else:
                score(0.0)

    def _verify(self, name: str, weights: Weights, seconds: float, scores: Scores) -> None:
        worker = self._workers[name]
        expected = weights.expected
        if expected is None:
            said = [w.scores for w in self._workers.values() if w.scores is not None]
            expected = said[0] if said else scores
        before = worker.scores if worker.scores is not None else scores
        to_new, to_old = mean_difference(scores, expected), mean_difference(scores, before)
        moved = mean_difference(expected, before) if worker.scores is not None else 0.0
        reason = judge_probe(to_new, to_old, moved, self.tolerance)
        if reason:
            self._sync_failed(name, f"{name}, version {weights.version}: {reason}")
            return
        worker.scores = scores
        worker.synced.append(Synced(weights.version, seconds, to_new, to_old))
        self.fleet.synced(name, weights.version, self._clock())

    def _sync_failed(self, name: str, why: str) -> None:
        log.warning("%s: %s", name, why)
        with self._lock:
            self.fleet.sync_failed(name, self._clock(), why)
            ended = name in self.fleet.members and self.fleet.members[name].state in ENDED
        if ended:
            self._forget(name)

    def _retire(self, name: str) -> None:
        with self._lock:
            worker = self._workers.get(name)
            why = self.fleet.members[name].why
        if worker is not None:
            with attempt(f"asking {name} to end", log):
                ray.wait([worker.handle.shutdown.remote()], timeout=END_DEADLINE_S)
        self._lost(name, why)

    def _lost(self, name: str, why: str) -> None:
        with self._lock:
            self.fleet.died(name, self._clock(), why)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """Kill the actor of a member that has ended: what it was at comes back as an error of its calls."""
        with self._lock:
            worker = self._workers.pop(name, None)
            self._calls = {ref: call for ref, call in self._calls.items() if call.name != name}
        if worker is not None:
            with attempt(f"ending {name}", log):
                ray.kill(worker.handle)

    def _call(self, name: str, what: str, seconds: float, reference: Any, then: Callable[[Any], None]) -> None:
        self._calls[reference] = _Call(name, what, self._clock() + seconds, then)


def _engine_is_dead(error: BaseException) -> bool:
    from actors.sampling import EngineDeadError

    return isinstance(getattr(error, "cause", None), EngineDeadError)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
