"""The command line. Imports nothing heavy before it knows that the input is good."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.stop import EXIT_INTERRUPTED, Stop, interruptible
from reasoning.errors import InputError, MachineError

ROOT = Path(__file__).resolve().parent.parent
FAILED, BAD_INPUT = 1, 2


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        # `tcg train --mode x` must not be taken for --model.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(BAD_INPUT, f"o1coder: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="o1coder", description="Self-play reinforcement learning for code reasoning.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    train = commands.add_parser("train", help="run the self-play loop", description="Run the self-play loop.")
    train.add_argument(
        "--budget", default="laptop", metavar="NAME", help="tiny, laptop, or a YAML file (default: laptop)"
    )
    _add_run(train, "go on with the run in DIR from its last finished stage")
    words = "search every problem once, without learning, and write the trees"
    search = commands.add_parser("search", help="tree search alone", description=f"{words.capitalize()}.")
    search.add_argument("--budget", metavar="NAME", help="tiny, laptop, or a YAML file (default: laptop)")
    search.add_argument(
        "--policy", metavar="NAME", help="puct, uct, gumbel, faithful, best-of-n or beam (default: search.policy)"
    )
    search.add_argument("--split", metavar="NAME", help="train, heldout or all (default: all)")
    _add_run(search, "go on with the search in DIR")
    _add_tcg(commands)
    _add_fit(commands)
    show = commands.add_parser("config", help="print every setting with its value")
    show.add_argument("--budget", default="laptop", metavar="NAME")
    show.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")
    show.add_argument("overrides", nargs="*", metavar="section.key=value")
    test = commands.add_parser("test", help="run the tests: all, or `test unit`")
    test.add_argument("what", nargs="?", default="all", metavar="all|unit|PYTEST ARGUMENTS")
    commands.add_parser("lint", help="ruff, mypy and the import contract")
    bench = commands.add_parser("bench", help="run a benchmark of benchmarks/", add_help=False)
    bench.add_argument("name", nargs="?", metavar="NAME", help="a file of benchmarks/, without .py")
    return parser


def _add_tcg(commands: Any) -> None:
    words = "the test case generator alone: train it, have it write suites, report on them"
    actions = commands.add_parser("tcg", help=words, description=words.capitalize()).add_subparsers(
        dest="action", metavar="ACTION", parser_class=_Parser, required=True
    )
    for name, says in (
        ("train", "train the generator (SFT, DPO) and measure it on held-out problems"),
        ("generate", "write suites of tests and measure them"),
    ):
        action = actions.add_parser(name, help=says, description=says.capitalize())
        action.add_argument("--budget", metavar="NAME", help="tiny, laptop, or a YAML file (default: laptop)")
        if name == "generate":
            action.add_argument("--mode", metavar="NAME", help="reference or question_only (default: tcg.mode)")
            action.add_argument("--generator", metavar="DIR", help="a trained generator (default: tcg.generator)")
            action.add_argument("--split", metavar="NAME", help="train, heldout or all (default: all)")
        _add_run(action, "go on with the run in DIR")
    says = "print what a run's generator and suites are worth, by difficulty, and write it as a page"
    actions.add_parser("report", help=says, description=says.capitalize()).add_argument("run", metavar="RUN")


def _add_fit(commands: Any) -> None:
    words = "one learner alone, on what a run of `o1coder train` gathered"
    learners = commands.add_parser("fit", help=words, description=words.capitalize()).add_subparsers(
        dest="what", metavar="LEARNER", parser_class=_Parser, required=True
    )
    for name, says in (
        ("policy-sft", "fine-tune the policy on solved paths"),
        ("prm", "fit the process reward model to step values"),
        ("tcg", "train the test case generator"),
        ("policy-rl", "improve the policy on the paths that RL drew"),
    ):
        learner = learners.add_parser(name, help=says, description=says.capitalize())
        learner.add_argument("--data", metavar="RUN", help="the run whose data is learnt from; its settings hold too")
        learner.add_argument(
            "--round", metavar="N", help="of that run (default: the last in which the stage has ended)"
        )
        learner.add_argument("--run-dir", metavar="DIR", help="where the result goes (default: runs/TIME-ID)")
        learner.add_argument("--resume", metavar="DIR", help="go on with the fit in DIR")
        learner.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="any setting of `o1coder config`"
        )


def _add_run(command: argparse.ArgumentParser, resume: str) -> None:
    """The options of every command that works in a run directory."""
    command.add_argument("--run-dir", metavar="DIR", help="where the run goes (default: runs/TIME-ID)")
    command.add_argument("--resume", metavar="DIR", help=resume)
    command.add_argument("--seed", metavar="N")
    command.add_argument("--model", metavar="NAME", help="alias, directory or hub id (default: smollm2-135m)")
    command.add_argument(
        "--problems", metavar="SOURCE", help="bundled, mbpp, FILE.jsonl or a hub id (default: bundled)"
    )
    command.add_argument("--ids", metavar="ID", nargs="+", help="only these problems")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of `o1coder config`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(given)
    try:
        match options.command:
            case "train":
                return _train(options, rest, given)
            case "search":
                return _search(options, rest, given)
            case "tcg":
                return _tcg(options, rest, given)
            case "fit":
                return _fit(options, rest, given)
            case "config":
                return _config(options, rest)
            case "test":
                return _test(options.what, rest)
            case "lint":
                return _lint()
            case "bench":
                return _bench(options.name, rest)
            case _:
                parser.print_help()
                return 0 if not given else BAD_INPUT
    except InputError as error:
        return _end(BAD_INPUT, str(error))
    except MachineError as error:
        return _end(FAILED, str(error))
    except KeyboardInterrupt:
        return _end(EXIT_INTERRUPTED, "interrupted")


def _end(code: int, message: str) -> int:
    print(f"o1coder: {' '.join(message.split(chr(10)))}", file=sys.stderr)
    return code


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    # Names are quoted: YAML would read 123 as a number and end a path at " #".
    named = [f"seed={options.seed}"] if options.seed is not None else []
    named += [f"{n}={json.dumps(v)}" for n in ("model", "problems") if (v := getattr(options, n)) is not None]
    overrides = list(options.overrides)
    if options.ids:
        # argparse takes overrides that follow --ids for ids.
        ids = [i for i in options.ids if "=" not in i]
        overrides += [i for i in options.ids if "=" in i]
        named.append(f"ids={json.dumps(ids)}")
    return (*named, *overrides)


def _train(options: argparse.Namespace, rest: Sequence[str], given: Sequence[str]) -> int:
    _require_run(options, rest)

    def work(stop: Stop) -> int:
        from rich.console import Console

        from cluster.train import TrainRequest, train

        request = TrainRequest(options.budget, options.run_dir, options.resume, _overrides(options))
        return train(request, Console(), ["./o1coder", *given], stop)

    return _stoppable(work)


def _search(options: argparse.Namespace, rest: Sequence[str], given: Sequence[str]) -> int:
    _require_run(options, rest)

    def work(stop: Stop) -> int:
        from rich.console import Console

        from cluster.search_job import SearchRequest, search

        o = options
        request = SearchRequest(o.budget, o.run_dir, o.resume, o.policy, o.split, _overrides(o))
        return search(request, Console(), ["./o1coder", *given], stop)

    return _stoppable(work)


def _tcg(options: argparse.Namespace, rest: Sequence[str], given: Sequence[str]) -> int:
    from rich.console import Console

    if options.action == "report":
        if rest:
            raise InputError("argument", rest[0], "an option of `o1coder tcg report --help`", "unknown")
        from cluster import tcg_job

        return tcg_job.report(options.run, Console())
    _require_run(options, rest)

    def work(stop: Stop) -> int:
        from cluster import tcg_job

        o = options
        named = [f"tcg.{n}={json.dumps(v)}" for n in ("mode", "generator") if (v := getattr(o, n, None)) is not None]
        overrides = (*named, *_overrides(o))
        request = tcg_job.TcgRequest(o.action, o.budget, o.run_dir, o.resume, getattr(o, "split", None), overrides)
        return tcg_job.run(request, Console(), ["./o1coder", *given], stop)

    return _stoppable(work)


def _fit(options: argparse.Namespace, rest: Sequence[str], given: Sequence[str]) -> int:
    _require_run(options, rest)

    def work(stop: Stop) -> int:
        from rich.console import Console

        from cluster.fit_job import FitRequest, fit

        o = options
        request = FitRequest(o.what, o.data, o.round, o.run_dir, o.resume, tuple(o.overrides))
        return fit(request, Console(), ["./o1coder", *given], stop)

    return _stoppable(work)


def _require_run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    if rest:
        legal = f"an option of `o1coder {options.command} --help`, or section.key=value"
        raise InputError("argument", rest[0], legal, "unknown")
    if options.resume and options.run_dir:
        raise InputError("run-dir", options.run_dir, "either --run-dir or --resume", "--resume names the run already")


def _stoppable(work: Callable[[Stop], int]) -> int:
    with interruptible() as stop:
        try:
            return work(stop)
        except BaseException as error:
            # Whatever the signal's exception became on its way through libraries.
            if not stop.signal:
                raise
            became = "" if isinstance(error, KeyboardInterrupt) else f" ({type(error).__name__}: {error})"
            return _end(EXIT_INTERRUPTED, f"interrupted{became}")


def _config(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from cluster import config

    if rest:
        raise InputError("argument", rest[0], "an option of `o1coder config --help`, or section.key=value", "unknown")
    if options.markdown:
        print(config.describe(), end="")
        return 0
    print(config.load(options.budget, options.overrides).dump(), end="")
    return 0


def _test(what: str, rest: Sequence[str]) -> int:
    selections = {"all": [], "unit": ["-m", "not slow and not e2e and not gpu"]}
    arguments = selections.get(what, [what])
    return subprocess.call([sys.executable, "-m", "pytest", *arguments, *rest], cwd=ROOT)


def _bench(name: str | None, rest: Sequence[str]) -> int:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))
    if name is None:
        print(f"usage: o1coder bench NAME [--quick] [--json]\nNAME: {', '.join(names)}")
        return 0 if {"-h", "--help"} & set(rest) else BAD_INPUT
    if name not in names:
        raise InputError("bench", name, f"one of {', '.join(names)}", "there is no such benchmark")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.call([sys.executable, "-P", "-m", f"benchmarks.{name}", *rest], cwd=ROOT, env=environment)


def _lint() -> int:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    checks = (
        [str(scripts / "ruff"), "check", "."],
        [str(scripts / "ruff"), "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
        [str(scripts / "lint-imports")],
    )
    return max(subprocess.call(check, cwd=ROOT, env=environment) for check in checks)


if __name__ == "__main__":
    sys.exit(main())
