"""The actors of a run: started together, ended together, whatever happened in between."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from actors.sockets import remove_abandoned
from cluster.config import RunConfig
from cluster.driver_log import attempt
from cluster.preflight import require_device_memory
from reasoning.errors import InputError, MachineError

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
ENGINE_START_S = 900.0
SANDBOX_START_S = 120
SHUTDOWN_S = 30.0
PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 4
"""How often is looked for processes to end: each round ends all that there are."""


def prepare_environment() -> None:
    """What must be in the environment before anything imports ray, which other libraries do behind our back.

    A local cluster gets a token of its own: Ray's own default writes one under HOME, which a client with an explicit
    address then does not find.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray runs actors at niceness 15: anything else on the machine would starve engine and learner.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors inherit this: they find our rooms from whatever directory they start in.
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *paths])


def start_ray(run_id: str) -> str:
    """Join the cluster that `RAY_ADDRESS` names (a job has it), or start a local one; returns a line for people.

    `prepare_environment` must have been called before.

    Raises InputError where `RAY_ADDRESS` cannot be reached.
    """
    # Ray puts the driver's working directory before everything else on the path of its actors, where a folder
    # `cluster` of the user's would take the place of ours.
    with contextlib.chdir(ROOT):
        return _start_ray(run_id)


def adopt_orphans() -> None:
    """Become the parent of whatever is below this process when its own parent is gone: workers of a Ray that was killed
    are found and ended then, too."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        log.warning("orphans cannot be adopted: %s", os.strerror(ctypes.get_errno()))


def _start_ray(run_id: str) -> str:
    address = os.environ.get("RAY_ADDRESS")
    import ray

    if address:
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as error:  # connection, authentication, version: one sentence for each
            legal = "the address of a running Ray cluster (and RAY_AUTH_MODE=token with its RAY_AUTH_TOKEN)"
            raise InputError("RAY_ADDRESS", address, legal, f"{type(error).__name__}: {error}") from error
        return f"Ray: joined {address}"
    temporary = _short_temporary_directory(run_id)
    adopt_orphans()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        num_cpus=os.cpu_count() or 1,
        object_store_memory=512 * 2**20,
        _temp_dir=str(temporary) if temporary else None,
        configure_logging=False,
    )
    return "Ray: local cluster"


def _short_temporary_directory(run_id: str) -> Path | None:
    # Ray's sockets live below it, and a socket's path may have 107 characters.
    base = Path(tempfile.gettempdir())
    return base / "o1coder-ray" if len(str(base)) <= 20 else None


class Workers:
    """Owns every actor of a run. `close` ends them and then looks for processes they left."""

    def __init__(self, config: RunConfig, model: Path, logs: Path) -> None:
        self.config, self._logs = config, logs
        self.sandboxes: list[Any] = []
        self.isolation: Any = None
        self.rollouts: list[Any] = []
        self.tracker: Any = None
        self.reward_model: Any = None
        self._learner: Any = None
        self.ray_is_gone = False
        self._model = model
        self._processes: set[psutil.Process] = set()

    def start_sandboxes(self) -> Any:
        """Start the sandbox workers; returns the isolation report of the one that is isolated least.

        Raises InputError without isolation and where the cluster has too few CPUs, MachineError when they do not come
        up in time.
        """
        import ray

        from actors.sandbox_pool import sandbox_workers

        s = self.config.sandbox
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if s.workers * s.slots > cpus:
            legal = f"sandbox.workers x sandbox.slots of at most {cpus}, the CPUs of this cluster"
            raise InputError("sandbox.workers", s.workers, legal, f"{s.workers} x {s.slots} CPUs are needed")
        self.sandboxes = sandbox_workers(s.workers, s.slots, s.min_level, s.packages)
        try:
            self.isolation = min(
                ray.get([w.report.remote() for w in self.sandboxes], timeout=SANDBOX_START_S), key=lambda r: r.level
            )
            return self.isolation
        except ray.exceptions.GetTimeoutError:
            reason = f"not up within {SANDBOX_START_S} s; are all CPUs of the cluster taken? (ray status)"
            raise MachineError(f"sandbox workers: {reason}") from None
        except ray.exceptions.RayTaskError as error:
            legal = "a machine with seccomp (Linux 4.14 or newer), or a lower sandbox.min_level"
            raise InputError("sandbox.min_level", s.min_level, legal, str(error.cause or error)) from None

    def launch_rollouts(self) -> list[Any]:
        """Create the rollout workers and begin to start their engines; returns references to wait for."""
        from actors.engine import EngineSettings
        from actors.rollout import RolloutWorker, concurrency

        e = self.config.engine
        settings = EngineSettings(e.max_model_len, e.max_num_seqs, e.kv_cache_gib, self.config.seed)
        calls = concurrency(e.max_num_seqs, self.config.search.trees_in_flight)
        worker = RolloutWorker.options(num_gpus=e.gpus, max_concurrency=calls).remote(
            str(self._model),
            settings,
            self.sandboxes,
            self.config.sandbox.limits(),
            self.config.sandbox.cache_entries,
        )
        self.rollouts = [worker]
        return [worker.start.remote() for worker in self.rollouts]

    @property
    def learner(self) -> Any:
        """The learner group, started on first use."""
        if self._learner is None:
            from learners.group import LearnerGroup

            c = self.config.learner
            self._learner = LearnerGroup(c.ranks, c.threads, c.gpus)
            free = self._learner.device_memory()
            if free is not None:
                require_device_memory(self.config, self._model, free)
        return self._learner

    def start_reward_model(self, checkpoint: Path, pad_id: int) -> None:
        """Serve a PRM checkpoint to the rollout workers."""
        import ray

        from actors.reward_model import RewardModel

        self.reward_model = RewardModel.remote(str(checkpoint), 1, pad_id)
        ray.get(self.reward_model.ready.remote(), timeout=ENGINE_START_S)
        ray.get([w.set_reward_model.remote(self.reward_model) for w in self.rollouts], timeout=60)

    def stop_reward_model(self) -> None:
        """Take the PRM away from the rollout workers and end it."""
        import ray

        if self.reward_model is not None:
            ray.get([w.set_reward_model.remote(None) for w in self.rollouts], timeout=60)
            ray.kill(self.reward_model)
            self.reward_model = None

    def note_processes(self) -> int:
        """Remember the processes below this one, so that `close` can end what is left of them; returns their memory in
        bytes (proportional set size, so that shared pages count once)."""
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
                self._processes.add(process)
        self._processes = {p for p in self._processes if p.is_running()}
        return total

    def look_for_ray(self, seconds: float) -> None:
        """Find out within `seconds` whether Ray's own processes of a local cluster are gone, and set `ray_is_gone`.

        SIGTERM to the whole process group (`timeout`, batch systems) ends them beside us. No call would be answered
        then, and after a minute Ray's client would abort this process.
        """
        import ray

        node = ray._private.worker._global_node
        if node is None or not node.is_head():
            return
        deadline = time.monotonic() + seconds
        while not self.ray_is_gone and time.monotonic() < deadline:
            self.ray_is_gone = bool(node.dead_processes())
            time.sleep(0.1)

    def _session(self) -> Path | None:
        """Ray's directory of this session, where it is ours to clean up: a cluster that was joined keeps its own."""
        import ray

        node = ray._private.worker._global_node
        return Path(node.get_session_dir_path()) if node is not None and node.is_head() else None

    def close(self) -> None:
        """End all actors, then Ray, then whatever is still there of what this process started."""
        import ray

        if not ray.is_initialized():
            return
        with attempt("looking for processes", log):
            self.note_processes()
        session = None
        with attempt("looking for Ray's logs", log):
            session = self._session()
        if not self.ray_is_gone:
            self._end_actors()
            with attempt("ending Ray", log):
                ray.shutdown()
        with attempt("ending processes that were left", log):
            end_all_below(self._processes)
        with attempt("removing the sockets of engines that were killed", log):
            remove_abandoned()
        if session is not None:
            _copy_logs(session / "logs", self._logs)
            shutil.rmtree(session, ignore_errors=True)

    def _end_actors(self) -> None:
        import ray

        with attempt("asking the workers to end", log):
            calls = [w.shutdown.remote() for w in self.rollouts] + [w.close.remote() for w in self.sandboxes]
            ray.wait(calls, num_returns=len(calls), timeout=SHUTDOWN_S)
        if self._learner is not None:
            with attempt("ending the learner", log):
                self._learner.close()
        for actor in [*self.rollouts, *self.sandboxes, self.reward_model, self.tracker]:
            if actor is not None:
                with attempt("ending an actor", log):
                    ray.kill(actor)


def _copy_logs(session: Path, target: Path) -> None:
    """What actors printed, from Ray's session into the run; empty files are left out."""
    for file in session.glob("worker-*"):
        with attempt(f"copying {file.name}", log):
            if file.suffix in {".out", ".err"} and file.stat().st_size:
                shutil.copyfile(file, target / file.name)


def end_all_below(known: set[psutil.Process]) -> None:
    """End the processes below this one, the `known` ones wherever they are now, and those that come up meanwhile: a
    worker that is being ended may just be starting another process."""
    for _ in range(ROUNDS):
        own = psutil.Process()
        left = {p for p in known | set(own.children(recursive=True)) if p != own and p.is_running()}
        if not left:
            return
        end_processes(left)


def end_processes(processes: set[psutil.Process], grace_s: float = 5.0) -> None:
    """Ask the processes that still run to end, then end them. psutil tells a process from a later one of its number."""
    for act in (psutil.Process.terminate, psutil.Process.kill):
        alive = [p for p in processes if p.is_running()]
        for process in alive:
            with contextlib.suppress(psutil.Error):
                act(process)
        psutil.wait_procs(alive, timeout=grace_s)
