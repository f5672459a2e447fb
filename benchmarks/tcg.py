"""How often the generator's outputs are right after SFT and after DPO: the paper's figure, over several seeds.

One run of `o1coder tcg train` per seed: it learns from the bundled training problems and MBPP's, and is measured on
problems of three sources that it never saw: bundled ones, MBPP's test split and TACO's. Output accuracy is the share of
different cases, of those that could be read and run, whose output the references give too, in the two modes of the
generator (`reference`: the prompt shows the code). The cases of all seeds count together; intervals are 95 % bootstraps
over problems. `gain`: DPO less SFT, in points, over the same resamples.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._data import rows_of
from benchmarks._results import keep, machine
from reasoning.estimators import bootstrap_ratio
from reasoning.problems import bundled, from_rows
from reasoning.records import Problem

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 3
TAUGHT_MBPP, MEASURED_MBPP = 60, 32
RUN_DEADLINE_S = 7_200.0
SETTINGS = (
    "tcg.policy_samples=0", "tcg.measure_problems=200", "tcg.prompts=2", "wandb.mode=offline",
    "skip_bad_rows=true",
)  # fmt: skip
STEPS = ("start", "sft", "dpo")
"""Of one of the first two a run has one: with `tcg.sft_epochs=0` the generator that it was given."""
MODES = ("reference", "question_only")


def problems(data: Path | None, quick: bool) -> list[Problem]:
    """All of them, each marked as taught or held out."""
    found = bundled()
    if quick:
        found = [p for p in found if p.split == "train"][:12] + [p for p in found if p.split == "heldout"][:4]
    if data is None:
        return found
    mbpp = from_rows(enumerate(rows_of(data / "mbpp" / "sanitized-mbpp.json")), "mbpp", on_bad=lambda *_: None)
    rng = random.Random(0)
    for split, count in (("train", TAUGHT_MBPP), ("heldout", MEASURED_MBPP)):
        mine = [p for p in mbpp if p.split == split]
        found += rng.sample(mine, min(len(mine), 2 if quick else count))
    taco = from_rows(enumerate(rows_of(data / "taco" / "train_easy_10.json.gz")), "taco", on_bad=lambda *_: None)
    # Those whose reference fails its own tests, or needs a library, the command leaves out.
    taco = taco[: 2 if quick else None]
    return found + [p.model_copy(update={"split": "heldout"}) for p in taco]


def trained(file: Path, run_dir: Path, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """What the training stage of one run measured. Raises RuntimeError where the run fails."""
    resume = (run_dir / "config.yaml").exists()
    where = ["--resume", str(run_dir)] if resume else ["--run-dir", str(run_dir), "--problems", str(file)]
    more = [] if resume else ["--seed", str(seed), *SETTINGS, *settings]
    command = [sys.executable, "-P", "-m", "cluster.cli", "tcg", "train", *where, *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"seed {seed}: {(done.stderr or done.stdout)[-500:]}")
    state = json.loads((run_dir / "state.json").read_text())
    found: dict[str, Any] = state["stages"]["1/tcg"]
    return found


def source(problem_id: str) -> str:
    """Where a problem comes from."""
    return problem_id.split("/")[0]


def counts(runs: Sequence[Mapping[str, Any]], step: str, mode: str) -> dict[str, list[int]]:
    """Right and known cases of each problem, over all runs."""
    found: dict[str, list[int]] = {}
    for run in runs:
        for name, (right, known) in run[step][mode]["by_problem"].items():
            mine = found.setdefault(name, [0, 0])
            mine[0], mine[1] = mine[0] + right, mine[1] + known
    return found


def accuracy(found: Mapping[str, list[int]]) -> list[float] | None:
    """Share with its interval."""
    right, known = [c[0] for c in found.values()], [c[1] for c in found.values()]
    if not sum(known):
        return None
    interval = bootstrap_ratio(right, known)
    return [round(x, 4) for x in (interval.mean, interval.low, interval.high)]


def gain(before: Mapping[str, list[int]], after: Mapping[str, list[int]], resamples: int = 2000) -> list[float] | None:
    """Difference of two accuracies with its interval, problems drawn together."""
    names = sorted(before.keys() & after.keys())
    rng = random.Random(0)

    def difference(drawn: Sequence[str]) -> float | None:
        shares = []
        for one in (after, before):
            known = sum(one[n][1] for n in drawn)
            if not known:
                return None
            shares.append(sum(one[n][0] for n in drawn) / known)
        return shares[0] - shares[1]

    whole = difference(names)
    if whole is None:
        return None
    found = sorted(d for _ in range(resamples) if (d := difference(rng.choices(names, k=len(names)))) is not None)
    return [round(x, 4) for x in (whole, found[int(0.025 * len(found))], found[int(0.975 * len(found)) - 1])]


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies by source and mode, with the gain of DPO."""
    steps = [step for step in STEPS if all(step in run for run in runs)]
    every = counts(runs, steps[0], MODES[0])
    groups = {
        "all": set(every),
        **{name: {i for i in every if source(i) == name} for name in sorted({*map(source, every)})},
    }
    result: dict[str, Any] = {}
    for name, ids in groups.items():
        result[name] = {"problems": len(ids)}
        for mode in MODES:
            by_step = {step: {i: c for i, c in counts(runs, step, mode).items() if i in ids} for step in steps}
            result[name][mode] = {step: accuracy(found) for step, found in by_step.items()}
            if len(steps) == 2:
                result[name][mode]["gain"] = gain(*by_step.values())
                result[name][mode]["cases"] = [sum(c[1] for c in found.values()) for found in by_step.values()]
    return result


def say(what: str) -> None:
    """A line on stderr: a whole run takes long."""
    print(f"tcg: {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and keep a full result."""
    parser = argparse.ArgumentParser(prog="./o1coder bench tcg", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few problems; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with mbpp and taco; without it bundled problems"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs here; the same again goes on from them")
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.runs or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "problems.jsonl"
        file.write_text("".join(p.model_dump_json() + "\n" for p in problems(options.data, options.quick)))
        runs = []
        for seed in range(1 if options.quick else SEEDS):
            say(f"seed {seed}")
            runs.append(trained(file, folder / f"seed-{seed}", seed, options.settings))
    found = summary(runs)
    whole = {"machine": machine(), "seeds": len(runs), "settings": [*SETTINGS, *options.settings], **found}
    whole["stopped"] = [bool(run.get("dpo_stopped")) for run in runs]
    whole["seconds"] = round(time.monotonic() - started, 1)
    if not options.quick:
        keep("tcg", whole)
    print(json.dumps(whole, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
