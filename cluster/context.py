"""What the stages of a run share."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.tokens import Tokens
from cluster.config import RunConfig
from cluster.progress import ProgressDisplay
from cluster.run_dir import RunDir
from cluster.stop import Stop
from cluster.store import ProcessDataStore
from cluster.weight_sync import SyncReport, WeightSync
from cluster.workers import Workers
from learners.adapters import Lora
from learners.learner import LearnerSpec
from learners.loop import FitSettings
from learners.models import ModelKind
from reasoning.guards import crossed
from reasoning.prompts import PolicyPrompts
from reasoning.records import Demonstration, Problem
from reasoning.records import Path as SearchPath


@dataclass(slots=True)
class RunContext:
    """One run in progress. Stages read their inputs from disk and leave their outputs there; `state` is what
    `state.json` holds and all that a resume needs besides. `serving`: the model directory whose weights the engines
    hold. `stage`: the one at work, as the state names it. `replays`: a round of an earlier run is done again."""

    config: RunConfig
    dir: RunDir
    model: Path
    tokens: Tokens
    problems: list[Problem]
    demonstrations: list[Demonstration]
    demonstration_problems: list[Problem]
    workers: Workers
    display: ProgressDisplay
    state: dict[str, Any]
    sync: WeightSync | None = None
    serving: Path | None = None
    stop: Stop = field(default_factory=Stop)
    replays: bool = False
    stage: str = ""
    peak_memory: int = 0
    _ticked: float = 0.0
    _counters: tuple[float, int, int] = (0.0, 0, 0)
    _prompts: dict[int, PolicyPrompts] = field(default_factory=dict)
    _scores: dict[Path, list[list[float]]] = field(default_factory=dict)

    # --- problems and prompts ---

    @property
    def train(self) -> list[Problem]:
        return [p for p in self.problems if p.split == "train"]

    def train_of(self, round_: int, count: int | None = None) -> list[Problem]:
        """The training problems of a round: the next `search.problems` in turn, so that a small round does not see the
        same ones for ever. `count`: only so many of those.

        Which they are is decided when the round begins: a resume with another `search.problems` changes later rounds.
        """
        problems = sorted(self.train, key=lambda p: p.id)
        random.Random(self.config.seed).shuffle(problems)
        taken: dict[str, list[int]] = self.state.setdefault("taken", {})
        whole = min(self.config.search.problems, len(problems))
        begun = self.replays or f"{round_}/tcg" in self.state.get("stages", {})
        if str(round_) not in taken or not begun:
            first, size = taken.get(str(round_ - 1), [(round_ - 2) * whole, whole])
            taken[str(round_)] = [first + size, whole]
        start, size = taken[str(round_)]
        mine = [problems[(start + i) % len(problems)] for i in range(size)]
        return mine if count is None else mine[:count]

    @property
    def held_out(self) -> list[Problem]:
        return [p for p in self.problems if p.split == "heldout"]

    @property
    def store(self) -> ProcessDataStore:
        return ProcessDataStore(self.dir.data)

    @property
    def shots(self) -> int:
        """Demonstrations in the prompt: those of the config until SFT has taught the policy the step format, none
        after."""
        return int(self.state["shots"])

    def prompts(self, shots: int) -> PolicyPrompts:
        if shots not in self._prompts:
            by_id = {p.id: p for p in [*self.demonstration_problems, *self.problems]}
            self._prompts[shots] = PolicyPrompts(self.tokens.encode_chat, self.demonstrations, by_id, shots)
        return self._prompts[shots]

    def tell_prompts(self) -> None:
        """Tell the rollout workers which demonstrations to show."""
        known = [*self.demonstration_problems, *self.problems]
        calls = [w.set_prompts.remote(self.demonstrations, known, self.shots) for w in self.workers.rollouts]
        ray.get(calls, timeout=60)

    def with_own_prompt(self, path: SearchPath, problem: Problem) -> SearchPath:
        """The path after the prompt without demonstrations, as learners see it."""
        return path.model_copy(update={"prompt_ids": self.prompts(0).ids(problem)})

    # --- models ---

    @property
    def policy(self) -> Path:
        """The latest policy in Hugging Face format."""
        name = self.state.get("policy")
        return self.dir.path / name if name else self.model

    def checkpoint(self, name: str) -> str:
        """Export the learner's model to `checkpoints/<name>`; returns the path relative to the run."""
        scratch = self.dir.stage_dir(name)
        self.workers.learner.export(scratch)
        self.dir.publish_dir(scratch, f"checkpoints/{name}")
        return f"checkpoints/{name}"

    def spec(self, model: Path, kind: ModelKind, learning_rate: float) -> LearnerSpec:
        """What a learner is to train, as the configuration says: the policy or the PRM."""
        c = self.config.learner
        more = {"zero_stage": c.zero_stage, "recompute": c.recompute, "offload": c.offload}
        lora = Lora(c.lora_rank, c.lora_alpha) if c.lora_rank else None
        return LearnerSpec(str(model), kind, learning_rate, lora=lora, **more)

    def begin_serving(self, sync: WeightSync) -> None:
        """The engines are there, with the weights of the start."""
        self.sync, self.serving = sync, self.model
        self._scores[self.model] = sync.current_scores()

    def serve(self, model: Path, round_: int) -> None:
        """Have the engines, where the command has any, hold the weights of a model directory, proven by the learner
        unless they were before."""
        if self.sync is None or model == self.serving:
            return
        if model in self._scores:
            self._publish(model, model, round_)
        else:
            self.workers.learner.load(self.spec(model, "policy", 1e-6), self.config.seed)
            self.publish_learner(round_, model)
            self.workers.learner.release()

    def deploy(self, round_: int, model: Path) -> None:
        """Have the engines, where the command has any, hold the learner's weights, which are those of the checkpoint
        `model`, and show the policy the demonstrations of the state."""
        if self.sync is not None:
            self.publish_learner(round_, model)
            self.tell_prompts()

    def publish_learner(self, round_: int, model: Path) -> SyncReport:
        """Put the learner's weights, which are those of the checkpoint `model`, into every engine; the learner's own
        log-probabilities are the proof."""
        file = self.transfer / f"weights-{self.state.get('weight_version', 0) + 1}.safetensors"
        assert self.sync is not None
        try:
            self.workers.learner.publish(file)
            self._scores[model] = self.workers.learner.sequence_logprobs(self.sync.probe, self.fit_settings(1, 1))
            return self._publish(file, model, round_)
        finally:
            file.unlink(missing_ok=True)

    def _publish(self, source: Path, model: Path, round_: int) -> SyncReport:
        """Put the weights of `model`, which lie in `source`, into every engine, verified, and log the sync."""
        assert self.sync is not None
        report = self.sync.publish(source, self._scores[model])
        self.serving = model
        self.state["weight_version"] = report.version
        self.log(
            {
                "sync/version": report.version,
                "sync/seconds": report.seconds,
                "sync/probe_to_new": report.to_new,
                "sync/probe_to_old": report.to_old,
            },
            round_,
        )
        self.state.setdefault("sync_seconds", []).append(round(report.seconds, 3))
        return report

    @property
    def transfer(self) -> Path:
        return Path(self.state["transfer"])

    def fit_settings(self, batch_size: int, epochs: int) -> FitSettings:
        c = self.config
        return FitSettings(
            batch_size,
            epochs,
            micro_tokens=c.learner.micro_tokens,
            row_tokens=c.learner.row_tokens,
            pad_id=self.tokens.pad_id,
            seed=c.seed,
            packing=c.learner.packing,
            snapshots=str(self.snapshots) if c.learner.snapshot_s else "",
            snapshot_s=c.learner.snapshot_s,
            bad_batches=str(self.dir.logs / "bad-batches"),
        )

    def fit(
        self,
        objective: str,
        data: Sequence[Any],
        settings: FitSettings,
        round_: int,
        family: str = "",
        **options: float,
    ) -> list[Any]:
        """Train and show it: progress, and every optimizer step in the metrics, as `<family>/loss` and so on (default:
        the name of the objective)."""

        def on_row(row: dict[str, float]) -> None:
            step = self.state["learner_step"] = self.state.get("learner_step", 0) + 1
            done, total = (row.pop(f"{objective}/{name}") for name in ("step", "steps"))
            loss, speed = row.get(f"{objective}/loss", 0.0), row.get(f"{objective}/tokens_per_s", 0.0)
            named = {f"{family or objective}/{k.partition('/')[2]}": v for k, v in row.items()}
            tracked = {k: v for k, v in named.items() if v == v and abs(v) != float("inf")}
            self.log(tracked, round_, {"learner/step": step})
            self.display.update(done, total, unit="steps", loss=round(loss, 4), tokens_per_s=round(speed))
            self.tick()

        steps = settings.epochs * -(-len(data) // settings.batch_size)
        # What sampling showed before is over.
        self.display.update(0, steps, unit="steps", programs_per_s=None, solved=None, tokens_per_s=None)
        learner, before = self.workers.learner, self.workers.learner.restarts
        deadline = self.config.learner.deadline_s
        history: list[Any] = learner.fit(
            objective, data, settings, deadline, on_row, lambda: not self.stop.signal, **options
        )
        if learner.restarts > before:
            says = f"a learner rank died in {objective}, and all were begun anew"
            self.alarm("learner_restarts", learner.restarts, says, round_)
        return history

    # --- telling people ---

    def log(self, metrics: Mapping[str, float], round_: int, axes: Mapping[str, float] | None = None) -> None:
        """One line of metrics with its axes."""
        ray.get(self.workers.tracker.log.remote(dict(metrics), {"round": round_, **(axes or {})}), timeout=60)

    def alarm(self, name: str, value: float, says: str, round_: int) -> None:
        """Something that people should look at: shown, logged as `alarm/<name>`, and in the report. What is not a
        finite number is logged as 1e9."""
        self.log({f"alarm/{name}": value if math.isfinite(value) else 1e9}, round_)
        self.state.setdefault("alarms", {}).setdefault(self.stage or f"{round_}/end", {})[name] = says
        self.display.message(says)

    @property
    def alarms(self) -> tuple[str, ...]:
        """What was raised so far, each with its round."""
        stages: dict[str, dict[str, str]] = self.state.get("alarms", {})
        return tuple(f"round {key.split('/')[0]}: {says}" for key, own in stages.items() for says in own.values())

    def begin_stage(self, key: str) -> None:
        """A stage begins, perhaps again: what an interrupted attempt at it raised no longer counts."""
        self.stage = key
        self.state.get("alarms", {}).pop(key, None)

    def drop_snapshots(self) -> None:
        """What came of the stage's trainings is safe: nothing is to go on from."""
        shutil.rmtree(self.snapshots, ignore_errors=True)

    @property
    def snapshots(self) -> Path:
        return self.dir.path / "snapshots"

    def guard(self, now: Mapping[str, float], round_: int, before: Mapping[str, float] | None = None) -> None:
        """Raise an alarm for every bound that is crossed (`guards.crossed`)."""
        for name, (value, says) in crossed(now, before or {}, self.config.guards.bounds()).items():
            self.alarm(name, value, says, round_)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], round_: int) -> None:
        """A table for W&B."""
        ray.get(self.workers.tracker.log_table.remote(name, columns, rows, {"round": round_}), timeout=60)

    def tick(self) -> None:
        """Once in a while: stop if told to, note processes and memory."""
        self.stop.check()
        now = time.monotonic()
        if now - self._ticked > 10:
            self._ticked = now
            self.measure_memory()

    def measure_memory(self) -> None:
        """Look at the memory of all processes of the run now."""
        self.peak_memory = max(self.peak_memory, self.workers.note_processes())

    @property
    def sampled_tokens(self) -> int:
        """Sampled in this process, as of the last `speeds`."""
        return self._counters[1]

    def sandbox_metrics(self) -> dict[str, float]:
        """How isolated programs run (3 cell, 2 landlock, 1 seccomp), and how many were judged from memory so far."""
        counters = ray.get([w.counters.remote() for w in self.workers.rollouts], timeout=60)
        return {
            "sandbox/level": self.workers.isolation.level,
            "sandbox/cache_hits": sum(c.cache_hits for c in counters),
        }

    def speeds(self) -> dict[str, float]:
        """Sampled tokens/s and programs/s since the last call."""
        counters = ray.get([w.counters.remote() for w in self.workers.rollouts], timeout=60)
        now = (time.monotonic(), sum(c.sampled_tokens for c in counters), sum(c.programs for c in counters))
        before, self._counters = self._counters, now
        seconds = max(1e-6, now[0] - before[0])
        return {"tokens_per_s": (now[1] - before[1]) / seconds, "programs_per_s": (now[2] - before[2]) / seconds}

    def live(self, fields: Callable[[], dict[str, float | int | str]]) -> Callable[[], None]:
        """A tick for `flow.stream`: shows `fields` and the speeds, every two seconds."""
        last = 0.0

        def tick() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 2.0:
                last = now
                rates = {name: round(value, 1) for name, value in self.speeds().items()}
                self.display.update(**fields(), **rates)
                self.tick()

        return tick
