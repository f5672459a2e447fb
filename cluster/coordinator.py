"""The self-play loop: Algorithm 1 of the paper, one stage after the other, resumable between any two."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from cluster import best
from cluster.context import RunContext
from cluster.stage_eval import evaluate
from cluster.stage_learn import policy_sft, prm
from cluster.stage_rl import policy_rl
from cluster.stage_search import new_data, search
from cluster.stage_tcg import suites, tcg
from cluster.weight_sync import WeightSync, transfer_dir
from cluster.workers import ENGINE_START_S
from reasoning.steps import render

Stage = Callable[[RunContext, int], dict[str, Any]]

ROUND: tuple[tuple[str, Stage], ...] = (
    ("tcg", tcg),  # 1. train the test case generator
    ("suites", suites),  # what it writes, executed and measured: the tests that decide rewards
    ("search", search),  # 2. MCTS with the policy: D_process
    ("policy_sft", policy_sft),  # 3. fine-tune the policy on D+
    ("prm", prm),  # 4. fit the process reward model on step values
    ("policy_rl", policy_rl),  # 5. outcome and process rewards, aggregated: improve the policy
    ("new_data", new_data),  # 6. D <- D + D' with the updated policy
)
ESTIMATES = {"eval before": 75, "tcg": 90, "suites": 60, "search": 240, "policy_sft": 180, "prm": 60, "policy_rl": 170}
ESTIMATES |= {"eval sft": 75, "new_data": 90, "eval after": 75, "start": 30}
MODELS = ("policy", "shots", "reference", "prm", "critic", "tcg_sft", "tcg")
"""Keys of the state that name the checkpoints in use, and how the policy is prompted."""
PROBE_SEQUENCES = 4
PROBE_TOKENS = 96


class Coordinator:
    """Runs the stages of a run that are not finished yet."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        self.done: dict[str, Any] = run.state.setdefault("stages", {})

    def go(self) -> None:
        """Everything from the evaluation before to the evaluation after the last round, or after that by which nothing
        has got better for long enough."""
        self.stage("eval before", 0, lambda run, round_: evaluate(run, round_, "before"))
        for round_ in range(1, self.run.config.rounds + 1):
            for name, work in self.round():
                self.stage(name, round_, work)
            if self._settle(round_):
                self.run.display.message(
                    f"no gain on held-out problems in {self.run.config.patience} rounds: that is it"
                )
                return

    def round(self) -> list[tuple[str, Stage]]:
        """The stages of a round, with the evaluations that the configuration asks for."""
        stages: list[tuple[str, Stage]] = []
        for name, work in ROUND:
            stages.append((name, work))
            if name == "policy_sft" and self.run.config.eval.after_sft:
                stages.append(("eval sft", lambda run, r: evaluate(run, r, f"sft-round-{r}")))
        return [*stages, ("eval after", lambda run, r: evaluate(run, r, f"after-round-{r}"))]

    def names(self) -> list[str]:
        """The stages as they are shown."""
        rounds = self.run.config.rounds
        shown = ["start", "eval before"]
        for round_ in range(1, rounds + 1):
            shown += [self.label(name, round_) for name, _ in self.round()]
        return shown

    def stage(self, name: str, round_: int, work: Stage) -> None:
        """Run one stage, unless an earlier process finished it, and make its end durable."""
        key = f"{round_}/{name}"
        label = self.label(name, round_)
        if key in self.done:
            self.run.display.skip_stage(label, "finished earlier")
            return
        self.run.stop.check()
        self.run.display.start_stage(label)
        started = time.monotonic()
        models = {key: self.run.state.get(key) for key in MODELS}
        before = {**models, "learner_step": self.run.state.get("learner_step")}
        self.run.begin_stage(key)
        try:
            result = work(self.run, round_)
            began_with = {name: value for name, value in models.items() if value is not None}
            self.done[key] = {"seconds": round(time.monotonic() - started, 1), "models": began_with, **result}
        except BaseException:
            # The stage will run again from where it began: not from a model that it had already trained.
            for name, value in before.items():
                if value is None:
                    self.run.state.pop(name, None)
                else:
                    self.run.state[name] = value
            raise
        seconds = self.done[key]["seconds"]
        note = str(result.get("note") or result.get("skipped") or "")
        self.save()
        self.run.drop_snapshots()
        self.run.log({f"stage/{name.replace(' ', '_')}_s": seconds}, round_)
        self.run.display.end_stage(f"skipped: {note}" if "skipped" in result else note)

    def save(self) -> None:
        """Write `state.json`."""
        self.run.dir.write_state(self.run.state)

    def start(self) -> str:
        """Start engines, prompts and weight sync; returns a line for people."""
        run = self.run
        run.display.start_stage("start")
        need = sum(f.stat().st_size for f in run.model.glob("*.safetensors"))
        run.state["transfer"] = str(transfer_dir(run.dir.id, need, run.dir.path / "transfer"))
        starting = run.workers.launch_rollouts()
        _ = run.workers.learner  # its processes start while the engine does
        seconds = max(ray.get(starting, timeout=ENGINE_START_S))
        run.state.setdefault("shots", 0 if run.state.get("policy") else run.config.search.shots)
        run.tell_prompts()
        run.begin_serving(WeightSync(run.workers.rollouts, self._probe(), run.state.get("weight_version", 0)))
        if run.state.get("policy"):
            run.state["resumed_policy"] = run.state["policy"]
            run.serve(run.policy, run.config.rounds)
        run.display.end_stage(f"engine up in {seconds:.0f} s")
        return f"engine up in {seconds:.0f} s"

    def _probe(self) -> list[list[int]]:
        """Fixed texts on which weights are told apart: demonstrations after their prompts."""
        run = self.run
        problems = {p.id: p for p in run.demonstration_problems}
        chosen = run.demonstrations[:PROBE_SEQUENCES]
        texts = [problems[d.problem_id].question + "\n" + render(d.steps) for d in chosen]
        return [run.tokens.encode(text)[:PROBE_TOKENS] for text in texts]

    def _settle(self, round_: int) -> bool:
        """Remember the best policy on held-out problems, and go back to it where the round made things much worse.
        Returns whether training ends here."""
        run = self.run
        history = best.measured(self.done, round_)
        found = best.best(history)
        run.state["best"] = found.record()
        # A resumed run comes by again, perhaps with a later round begun.
        latest = not any(key.startswith(f"{round_ + 1}/") for key in self.done)
        if latest and best.fell(history, run.config.eval.rollback) and run.state.get("policy", "") != found.policy:
            run.state.update(policy=found.policy, shots=found.shots)
            run.serve(run.policy, round_)
            run.tell_prompts()
            says = (
                f"pass@1 fell from {found.pass_at_1:.3f} to {history[-1].pass_at_1:.3f}: "
                f"going on with the policy of {f'round {found.round}' if found.round else 'the start'}"
            )
            run.alarm("rolled_back_to_round", found.round, says, round_)
        self.save()
        return best.converged(history, run.config.patience)

    def label(self, name: str, round_: int) -> str:
        """A stage as it is shown."""
        return name if self.run.config.rounds == 1 or name == "eval before" else f"{name} (round {round_})"
