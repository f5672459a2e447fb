"""What a round of learning comes to: with search and a reward model, and without, at equal sampled tokens.

One run of `o1coder train --budget laptop` per arm and seed, on the bundled problems:

    prm_grpo    trees, SFT on what they solve, a reward model of their steps, GRPO with its values
    dpo         the same, but DPO of paths that pass and of steps that search found better instead of GRPO
    flat_grpo   as many sampled tokens in flat chains, SFT on those that pass, GRPO with outcomes alone

All of them judge by the same suites, made without a generator. The policy is measured on held-out problems and on
training ones, without search: before, after SFT, after RL. Rates are means over the seeds of each problem's share of
samples that pass all of its tests; intervals are 95 % bootstraps over problems, differences paired by problem.

A run that is done is kept; `--runs DIR` keeps all of it, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._results import FOLDER, keep, machine
from reasoning.estimators import bootstrap

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 3
RUN_DEADLINE_S = 10_800.0
COMMON = (
    "tcg.sft_completions=0", "new_data.problems=0", "eval.after_sft=true", "eval.train_problems=24",
    "eval.greedy=false", "eval.rollback=1", "wandb.mode=offline",
)  # fmt: skip
ARMS: dict[str, tuple[str, ...]] = {
    "prm_grpo": ("rl.advantage=grpo",),
    "dpo": ("rl.algorithm=dpo",),
    "flat_grpo": ("search.policy=best-of-n", "rl.advantage=grpo", "rl.alpha=1"),
}
BASELINE = "flat_grpo"
STEPS = {"before": "0/eval before", "after_sft": "{}/eval sft", "after_rl": "{}/eval after"}
SPLITS = {"held_out": "rates", "train": "train_rates"}
QUICK = (
    "search.problems=4", "search.token_budget=300", "eval.problems=2", "eval.train_problems=2", "eval.samples=2",
    "rl.problems=2", "sft.demonstrations=8", "sft.epochs=1",
)  # fmt: skip

Rates = dict[str, dict[str, dict[str, float]]]
"""By step and split, each problem's rate."""


def trained(arm: str, seed: int, run_dir: Path, settings: Sequence[str]) -> dict[str, Any]:
    """What one run measured. Raises RuntimeError where it fails."""
    resume = (run_dir / "config.yaml").exists()
    new = ["--run-dir", str(run_dir), "--budget", "laptop", "--seed", str(seed), *COMMON, *ARMS[arm], *settings]
    where = ["--resume", str(run_dir)] if resume else new
    command = [sys.executable, "-P", "-m", "cluster.cli", "train", *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{arm}, seed {seed}: {(done.stderr or done.stdout)[-500:]}")
    return read(run_dir)


def read(run_dir: Path) -> dict[str, Any]:
    """What a finished run left."""
    stages = json.loads((run_dir / "state.json").read_text())["stages"]
    report = json.loads((run_dir / "report.json").read_text())
    last = max(int(key.split("/")[0]) for key in stages)
    steps = {name: stages[key.format(last)] for name, key in STEPS.items()}
    return {
        "rates": {step: {split: one[key] for split, key in SPLITS.items()} for step, one in steps.items()},
        "tokens_sampled": report["tokens_sampled"],
        "solved": report["problems_solved"],
        "rl": {name: value for name, value in stages[f"{last}/policy_rl"].items() if isinstance(value, int | float)},
        "seconds": round(sum(report["seconds_per_stage"].values()), 1),
    }


def by_problem(runs: Sequence[Mapping[str, Any]], step: str, split: str) -> dict[str, float]:
    """Each problem's mean rate over the runs that measured it."""
    rates = [run["rates"][step][split] for run in runs]
    names = sorted({name for one in rates for name in one})
    return {name: statistics.fmean(one[name] for one in rates if name in one) for name in names}


def interval(values: Sequence[float]) -> list[float] | None:
    """Mean and 95 % interval over problems."""
    if not values:
        return None
    found = bootstrap(list(values))
    return [round(x, 4) for x in (found.mean, found.low, found.high)]


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> list[float] | None:
    """Of the first less the second, over the problems that both have."""
    return interval([one[name] - other[name] for name in sorted(one.keys() & other.keys())])


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each arm its rates, what RL added to SFT, and the difference from the flat one."""
    result: dict[str, Any] = {}
    for arm, own in runs.items():
        found: dict[str, Any] = {"seeds": len(own), "tokens_sampled": [run["tokens_sampled"] for run in own]}
        for split in SPLITS:
            rates = {step: by_problem(own, step, split) for step in STEPS}
            found[split] = {step: interval(list(one.values())) for step, one in rates.items()}
            found[split]["rl_less_sft"] = difference(rates["after_rl"], rates["after_sft"])
            if arm != BASELINE and runs.get(BASELINE):
                flat = by_problem(runs[BASELINE], "after_rl", split)
                found[split][f"less_{BASELINE}"] = difference(rates["after_rl"], flat)
        result[arm] = found
    return result


def say(what: str) -> None:
    """A line on stderr: a whole run takes hours."""
    print(f"learning: {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and keep every run as soon as it is done."""
    parser = argparse.ArgumentParser(prog="./o1coder bench learning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one arm and seed, few problems; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs here; the same again goes on from them")
    parser.add_argument("--add", action="store_true", help="go on from the kept result: only what it lacks is run")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM")
    parser.add_argument("--settings", nargs="+", default=[], metavar="section.key=value", help="of all arms")
    options = parser.parse_args()
    started, file = time.monotonic(), FOLDER / "learning.json"
    before = json.loads(file.read_text()) if options.add and file.exists() and not options.quick else {}
    settings = [*COMMON, *options.settings]
    if before and before["settings"] != settings:
        parser.error(f"--add: the kept result has other settings, {' '.join(before['settings'])}")
    runs: dict[str, dict[str, Any]] = before.get("runs", {})
    result: dict[str, Any] = {}

    def told() -> None:
        shown = {arm: [runs[arm][seed] for seed in sorted(runs[arm])] for arm in ARMS if runs.get(arm)}
        seconds = round(time.monotonic() - started + before.get("seconds", 0.0), 1)
        result.update(machine=machine(), settings=settings, **summary(shown), seconds=seconds, runs=runs)

    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.runs or Path(scratch)).resolve()
        for seed in range(1 if options.quick else SEEDS):
            for arm in options.arms[: 1 if options.quick else None]:
                if str(seed) in runs.get(arm, {}):
                    continue
                say(f"{arm}, seed {seed}")
                more = [*options.settings, *(QUICK if options.quick else ())]
                runs.setdefault(arm, {})[str(seed)] = trained(arm, seed, folder / f"{arm}-{seed}", more)
                told()
                if not options.quick:
                    keep("learning", result)
    told()
    print(json.dumps(result, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
