"""Training speed and memory of our learners against TRL's trainers: same model, items, precision and optimizer.

    sft     sequences of mixed length, one optimizer step of all of them
    dpo     pairs with cached reference log-probabilities: a solution and one with a planted fault
    grpo    the update alone, on groups of eight completions after one prompt
    tree    the same where half of every sequence is what its group shares

Both sides run in processes of their own and take turns, one optimizer step each, so that a busy moment of the machine
meets both; medians over the steps after the first. Tokens are those of the items, shared ones in every sequence.
`NAME_vs_trl`: tokens/s over those of the fastest of TRL's ways (padded or packed, bf16 weights or fp32 with autocast).
`memory_vs_trl`: our peak over TRL's with the same precision, fp32 weights that the optimizer works on and bf16 where
the model computes, of the worst task; `memory_vs_bf16`: over the smallest of TRL's with bf16 weights alone, which loses
updates smaller than a 256th of a weight. `computed_vs_ideal`: tokens that are computed, padding included, over those
that differ in what stands before them. `two_ranks`: tokens/s of two ranks
of one thread over those of one rank of one thread. `parity`: largest difference of the loss over 50 steps in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._data import rows_of
from benchmarks._results import FOLDER, draw, keep, machine
from reasoning.mutants import mutants
from reasoning.problems import bundled, from_rows
from reasoning.records import Problem

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m"
STEPS = 6
"""The first is not counted: kernels are chosen, memory is taken."""
PARITY_STEPS = 50
DEADLINE_S = 1_800.0
Items = list[dict[str, Any]]
PEERS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"trl_padded": {}, "trl_packed": {"packing": True}, "trl_mixed": {"mixed": True}},
    "dpo": {"trl_padded": {"micro": 4}, "trl_mixed": {"micro": 4, "mixed": True}},
    "grpo": {"trl_padded": {}, "trl_mixed": {"mixed": True}},
    "tree": {"trl_padded": {}, "trl_mixed": {"mixed": True}},
}
PARTS = ("sft", "dpo", "grpo", "tree", "two_ranks", "parity")
OWN: dict[str, dict[str, Any]] = {
    "ours_tree": {"packing": "tree", "micro_tokens": 2048, "row_tokens": 1024},
    "ours_padded": {"packing": "padded", "micro_tokens": 2048},
}


class Worker:
    """One trainer in a process of its own (`_trainers`)."""

    def __init__(self, job: dict[str, Any], folder: Path, name: str) -> None:
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**job, "scratch": str(folder)}))
        read, write = os.pipe()
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _AS_THREE, str(write), str(file)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd=ROOT, pass_fds=(write,),
                env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )  # fmt: skip
        os.close(write)
        self._in = os.fdopen(read)

    def told(self) -> dict[str, Any]:
        """The next line. Raises RuntimeError where the process ended instead."""
        line = self._in.readline()
        if not line:
            raise RuntimeError(f"{self.log.stem}: {self.log.read_text()[-800:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ready(self) -> None:
        """Wait until it could begin."""
        while not self.told().get("ready"):
            pass

    def step(self) -> dict[str, Any]:
        """One optimizer step."""
        self.begin()
        return self.told()

    def begin(self) -> None:
        """Have it take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(60)
        self._in.close()


_AS_THREE = """
import os, runpy, sys
given = int(sys.argv[1])
os.dup2(given, 3)
if given != 3:
    os.close(given)
sys.argv = ["benchmarks._trainers", sys.argv[2]]
runpy.run_module("benchmarks._trainers", run_name="__main__")
"""


# --- items ---


class Texts:
    """Problems as token ids."""

    def __init__(self, model: Path, problems: Sequence[Problem]) -> None:
        from actors.tokens import Tokens

        self.tokens = Tokens.load(model)
        self.problems = [p for p in problems if p.references]

    def prompt(self, problem: Problem) -> list[int]:
        return self.tokens.encode_chat([{"role": "user", "content": problem.question}])

    def program(self, source: str) -> list[int]:
        return [*self.tokens.encode(source), *self.tokens.end_ids]

    def sft(self, count: int) -> Items:
        """Reference solutions after their questions."""
        chosen = self.problems[:: max(1, len(self.problems) // count)][:count]
        return [{"prompt": self.prompt(p), "completion": self.program(p.references[0])} for p in chosen]

    def dpo(self, count: int) -> Items:
        """References against references with a planted fault."""
        found: Items = []
        for problem in self.problems[:: max(1, len(self.problems) // count)]:
            faulty = mutants(problem.references[0], 1, 0)
            if faulty and len(found) < count:
                chosen, rejected = (self.program(s) for s in (problem.references[0], faulty[0].source))
                found.append({"prompt": self.prompt(problem), "chosen": chosen, "rejected": rejected})
        return found

    def grpo(self, groups: int) -> Items:
        """Groups of eight programs after one prompt, with advantages that add up to nothing."""
        found: Items = []
        for problem in self.problems[:: max(1, len(self.problems) // groups)]:
            programs = [problem.references[0], *(m.source for m in mutants(problem.references[0], 7, 0))]
            if len(programs) == 8 and len(found) < 8 * groups:
                start = self.prompt(problem)
                found += [
                    {"prompt": start, "completion": self.program(source), "advantage": 1.0 if n % 2 else -1.0}
                    for n, source in enumerate(programs)
                ]
        return found

    def tree(self, groups: int, length: int) -> Items:
        """Groups of eight sequences of which half is the same."""
        text = [t for p in self.problems for t in [*self.prompt(p), *self.program(p.references[0])]]
        rng, found = random.Random(0), Items()
        for _ in range(groups):
            start = text[(at := rng.randrange(len(text) - length)) : at + length // 2]
            for n in range(8):
                own = rng.randrange(len(text) - length)
                sign = 1.0 if n % 2 else -1.0
                found.append({"prompt": start, "completion": text[own : own + length // 2], "advantage": sign})
        return found


def token_count(items: Items) -> int:
    """Of all sequences of the items."""
    one = [len(i["prompt"]) + len(i["completion"]) for i in items if "completion" in i]
    two = [2 * len(i["prompt"]) + len(i["chosen"]) + len(i["rejected"]) for i in items if "chosen" in i]
    return sum(one) + sum(two)


def sequences_of(item: dict[str, Any]) -> list[list[int]]:
    """Of an item: one, or the two of a pair."""
    return [item["prompt"] + item[name] for name in ("completion", "chosen", "rejected") if name in item]


def computed_tokens(items: Items, options: dict[str, Any]) -> int:
    """Of all micro-batches that our learner makes of the items, padding included."""
    from learners.loop import FitSettings, as_batch, groups

    settings = FitSettings(batch_size=len(items), **options)
    found = 0
    for group in groups(items, sequences_of, settings):
        every = [(ids, row) for item, row in zip(group.items, group.rows, strict=True) for ids in sequences_of(item)]
        batch = as_batch([ids for ids, _ in every], [[0]] * len(every), [row for _, row in every], settings)
        found += batch.token_ids.numel()
    return found


def ideal_tokens(items: Items) -> int:
    """Of all sequences, every shared beginning once: what has to be computed."""
    ends: dict[tuple[int, int], int] = {}
    for ids in (ids for item in items for ids in sequences_of(item)):
        node = 0
        for token in ids:
            node = ends.setdefault((node, token), len(ends) + 1)
    return len(ends)


# --- measuring ---


def side_by_side(jobs: dict[str, dict[str, Any]], folder: Path, steps: int) -> dict[str, list[dict[str, Any]]]:
    """The steps of several trainers in turn."""
    workers: dict[str, Worker] = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    try:
        for name, job in jobs.items():
            workers[name] = Worker(job, folder, name)
            workers[name].ready()
        for _ in range(steps):
            for name, worker in workers.items():
                found[name].append(worker.step())
    finally:
        for worker in workers.values():
            worker.end()
    return found


def compared(task: str, items: Items, model: Path, steps: int, quick: bool) -> dict[str, Any]:
    """One task on both sides."""
    say(f"{task}: {len(items)} items, {token_count(items)} tokens")
    kind = "grpo" if task == "tree" else task
    common = {"task": kind, "model": str(model), "dtype": "bfloat16", "items": items, "steps": steps, "rate": 1e-6}
    peers = dict(list(PEERS[task].items())[: 1 if quick else None])
    own = dict(list(OWN.items())[: 1 if quick else None])
    jobs = {name: {**common, "side": "ours", "options": options} for name, options in own.items()}
    jobs |= {name: {**common, "side": "trl", "options": options} for name, options in peers.items()}
    with tempfile.TemporaryDirectory() as scratch:
        found = side_by_side(jobs, Path(scratch), steps)
    tokens, result = token_count(items), {"tokens": token_count(items), "ideal_tokens": ideal_tokens(items)}
    for name, rows in found.items():
        seconds = [row["seconds"] for row in rows[1:]]
        result[name] = {
            "tokens_per_s": round(tokens / statistics.median(seconds), 1),
            "fastest": round(tokens / min(seconds), 1),
            "slowest": round(tokens / max(seconds), 1),
            "peak_mb": max(row["peak_mb"] for row in rows),
        }
    best = max(result[name]["tokens_per_s"] for name in peers)
    result["vs_trl"] = round(result["ours_tree"]["tokens_per_s"] / best, 3)
    for ratio, mixed in (("memory_vs_trl", True), ("memory_vs_bf16", False)):
        peaks = [result[name]["peak_mb"] for name, options in peers.items() if bool(options.get("mixed")) == mixed]
        result[ratio] = round(result["ours_tree"]["peak_mb"] / min(peaks), 3) if peaks else None
    for name, options in own.items():
        result[name]["computed_vs_ideal"] = round(computed_tokens(items, options) / result["ideal_tokens"], 3)
    return result


def parity(items: Items, model: Path, steps: int) -> dict[str, Any]:
    """The loss of both sides on the same items, step after step, in fp32."""
    common = {"task": "sft", "model": str(model), "dtype": "float32", "items": items, "steps": steps, "rate": 1e-5}
    jobs = {side: {**common, "side": side, "options": {}} for side in ("ours", "trl")}
    with tempfile.TemporaryDirectory() as scratch:
        found = side_by_side(jobs, Path(scratch), steps)
    ours, trl = ([round(row["loss"], 6) for row in found[side]] for side in jobs)
    return {"ours": ours, "trl": trl, "largest_difference": max(abs(a - b) for a, b in zip(ours, trl, strict=True))}


def two_ranks(items: Items, model: Path, steps: int) -> dict[str, Any]:
    """One rank against two, one thread each."""
    common = {"side": "ours", "task": "sft", "model": str(model), "dtype": "bfloat16", "items": items, "rate": 1e-6}
    common |= {"steps": steps}
    result: dict[str, Any] = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as scratch:
            options = {"threads": 1, "world": world, **OWN["ours_tree"], "micro_tokens": 1024}
            workers = [Worker({**common, "options": {**options, "rank": 0}}, Path(scratch), "rank-0")]
            try:
                port = workers[0].told()["port"]
                for rank in range(1, world):
                    job = {**common, "options": {**options, "rank": rank, "port": port}}
                    workers.append(Worker(job, Path(scratch), f"rank-{rank}"))
                for worker in workers:
                    worker.ready()
                rows = []
                for _ in range(steps):
                    for worker in workers:
                        worker.begin()
                    rows.append([worker.told() for worker in workers])
            finally:
                for worker in workers:
                    worker.end()
        seconds = statistics.median(max(row["seconds"] for row in one) for one in rows[1:])
        result[f"ranks_{world}"] = {"tokens_per_s": round(token_count(items) / seconds, 1), "loss": rows[0][0]["loss"]}
    one, two = (result[f"ranks_{n}"] for n in (1, 2))
    result["speedup"] = round(two["tokens_per_s"] / one["tokens_per_s"], 3)
    result["loss_difference"] = abs(one["loss"] - two["loss"])
    return result


def say(what: str) -> None:
    """A line on stderr: a whole run takes long."""
    print(f"learners: {what}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and keep a full result."""
    parser = argparse.ArgumentParser(prog="./o1coder bench learners", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="SFT alone, few items; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)}; the others stay in the kept result as they are",
    )  # fmt: skip
    parser.add_argument("--mbpp", type=Path, metavar="FILE", help="problems of MBPP (default: the bundled ones)")
    options = parser.parse_args()
    started = time.monotonic()
    from cluster import models

    model = models.resolve(MODEL)
    problems = bundled()
    if options.mbpp:
        problems = from_rows(enumerate(rows_of(options.mbpp)), "mbpp", on_bad=lambda *_: None)
    texts = Texts(model, problems)
    if options.quick:
        found: dict[str, Any] = {"sft": compared("sft", texts.sft(4), model, 2, quick=True)}
    else:
        file = FOLDER / "learners.json"
        found = json.loads(file.read_text()) if file.exists() and set(options.parts) != set(PARTS) else {}
    for part in () if options.quick else options.parts:
        found[part] = {**measured(part, texts, model), "machine": machine()}
        keep("learners", {**found, "ratios": ratios(found)})
    if "parity" in found:
        draw(
            "learners",
            curves(found["parity"]),
            "optimizer step",
            "loss (nats per token)",
            "SFT on the same items in fp32",
        )
    spent = round(found.get("seconds", 0.0) + time.monotonic() - started, 1)  # parts that were measured again included
    whole = {**found, "model": MODEL, "ratios": ratios(found), "machine": machine(), "seconds": spent}
    if not options.quick:
        keep("learners", whole)
    print(json.dumps(whole, indent=None if options.json else 1))
    return 0


def measured(part: str, texts: Texts, model: Path) -> dict[str, Any]:
    """One part of a full run."""
    if part == "two_ranks":
        return two_ranks(texts.sft(16), model, STEPS)
    if part == "parity":
        say("parity")
        return parity(sorted(texts.sft(16), key=lambda i: len(i["completion"]))[:3], model, PARITY_STEPS)
    items = {
        "sft": lambda: texts.sft(16), "dpo": lambda: texts.dpo(8), "grpo": lambda: texts.grpo(2),
        "tree": lambda: texts.tree(2, 256),
    }[part]()  # fmt: skip
    return compared(part, items, model, STEPS, quick=False)


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """What the parts that were measured come to."""
    tasks = [name for name in PEERS if name in found]
    result = {f"{name}_vs_trl": found[name]["vs_trl"] for name in tasks}
    for ratio in ("memory_vs_trl", "memory_vs_bf16"):
        if values := [found[name][ratio] for name in tasks if found[name][ratio] is not None]:
            result[ratio] = max(values)
    if "two_ranks" in found:
        result["two_ranks"] = found["two_ranks"]["speedup"]
        result["two_ranks_loss_difference"] = found["two_ranks"]["loss_difference"]
    if "parity" in found:
        result["parity"] = found["parity"]["largest_difference"]
    return result


def curves(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """The losses of both sides."""
    return {"o1coder": found["ours"], "TRL": found["trl"]}


if __name__ == "__main__":
    sys.exit(main())
