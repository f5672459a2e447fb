"""Command line: `python -m sandbox doctor | judge | run | serve | bench`.

    doctor                              how isolated a run is here, level by level
    judge SOURCE --cases FILE.jsonl     the result as JSON on stdout
    run SOURCE < input                  the program's own output
    serve                               the SandboxFusion protocol over HTTP
    bench                               what a run costs here

Exit status: 0 accepted (`run`: it ended well), 1 not accepted, 2 bad input (one line on stderr), 3 trouble with the
sandbox, 130 after Ctrl-C. `serve`: 0 after SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from sandbox.case_files import BadCaseError, read_cases
from sandbox.isolation import LEVEL_NAMES, PackageError, SandboxUnavailableError
from sandbox.pool import LocalPool, detect
from sandbox.records import Limits, RunOutput, Submission, SuiteResult
from sandbox.verdicts import Verdict

EXIT_ACCEPTED: Final = 0
EXIT_NOT_ACCEPTED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_TROUBLE: Final = 3
EXIT_INTERRUPTED: Final = 130


class BadInputError(Exception):
    """What the caller gave cannot be judged; the message says what and where."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        commands = {"doctor": _doctor, "serve": _serve, "run": _run, "bench": _bench, "judge": _judge}
        return commands[options.command](options)
    except (BadInputError, BadCaseError, PackageError) as error:
        return _end(EXIT_BAD_INPUT, str(error))
    except SandboxUnavailableError as error:
        return _end(EXIT_TROUBLE, str(error))
    except OSError as error:  # what is printed goes nowhere: a full disk, a closed pipe
        return _end(EXIT_TROUBLE, f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        return _end(EXIT_INTERRUPTED, "interrupted")


def _end(status: int, message: str) -> int:
    if sys.stderr is not None:
        print(f"sandbox: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"sandbox: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m sandbox", description="Run untrusted programs and judge them.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="say how isolated a run is on this machine")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    judge = commands.add_parser("judge", help="judge a program by a file of cases")
    judge.add_argument("source", metavar="SOURCE", help="Python file; - for stdin")
    judge.add_argument("--cases", required=True, metavar="FILE.jsonl", help="one case per line")
    judge.add_argument("--entry-point", help="function that cases of kind 'call' call")
    judge.add_argument("--allow-shared", action="store_true", help="take test code that trusts the program")
    judge.add_argument("--stop", choices=["first_failure", "first_timeout", "never"], default="never")
    judge.add_argument("--slots", type=int, help="cases run at once; default: usable cores")
    run = commands.add_parser("run", help="run a program on the input that is given on stdin")
    run.add_argument("source", metavar="SOURCE", help="Python file; - for stdin, with no input then")
    for command in (judge, run):
        command.add_argument("--cpu-s", type=float, help="CPU seconds for each run (default: 4)")
        command.add_argument("--wall-s", type=float, help="seconds on the clock (default: 3 x CPU + 2)")
        command.add_argument("--memory-mb", type=int, help="MiB of memory for each run (default: 1024)")
        command.add_argument("--output-bytes", type=int, help="bytes of stdout and of stderr at most")
        command.add_argument("--threads", type=int, help="threads at once (default: 16)")
    _add_serve(commands)
    bench = commands.add_parser("bench", help="measure what a run costs here")
    bench.add_argument("--quick", action="store_true", help="fewer runs: seconds instead of a minute")
    bench.add_argument("--soak", type=int, metavar="N", help="make N runs instead, and say what has grown")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    for command in (judge, run, commands.choices["serve"]):
        command.add_argument("--package", action="append", default=[], metavar="NAME", help="also offer this package")
        command.add_argument("--min-level", type=int, choices=[1, 2, 3], default=1, help="lowest acceptable isolation")
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="answer SandboxFusion requests over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback need a token")
    serve.add_argument("--port", type=int, default=8080, help="0 for any free port")
    serve.add_argument("--slots", type=int, help="programs run at once; default: usable cores")
    serve.add_argument("--queue", type=int, default=256, help="runs that may wait; more are refused")
    serve.add_argument("--token-file", metavar="FILE", help="token that clients show; or O1CODER_SANDBOX_TOKEN")


def _serve(options: argparse.Namespace) -> int:
    # Loads aiohttp, which the other commands do not need.
    from sandbox.server import ServeInputError, Settings, read_token, serve

    for name, value, least in (("--slots", options.slots, 1), ("--queue", options.queue, 0)):
        if value is not None and value < least:
            raise BadInputError(f"{name} is {value}; at least {least} is needed")
    try:
        token = read_token(options.token_file)
        settings = Settings(
            options.host, options.port, options.slots, options.min_level, options.queue, token, tuple(options.package)
        )
        return asyncio.run(serve(settings))
    except ServeInputError as error:
        raise BadInputError(str(error)) from None


def _doctor(options: argparse.Namespace) -> int:
    levels: dict[str, Any] = {}
    best = None
    for level in (3, 2, 1):
        try:
            report = detect(level=level)
        except SandboxUnavailableError as error:
            levels[LEVEL_NAMES[level]] = error.attempts[level]
            continue
        levels[LEVEL_NAMES[level]] = report.model_dump()
        best = best or report
    if options.json:
        print(json.dumps({"best": best.model_dump() if best else None, "levels": levels}))
    else:
        _print_doctor(levels, best.level_name if best else None)
    return EXIT_ACCEPTED if best else EXIT_TROUBLE


def _print_doctor(levels: dict[str, Any], best: str | None) -> None:
    print(f"best isolation here: {best or 'none; the sandbox refuses to run'}")
    for name, found in levels.items():
        if isinstance(found, str):
            print(f"\n{name}: not available: {found}")
            continue
        print(f"\n{name} (level {found['level']}): works, self-test passed")
        for layer, state in found["layers"].items():
            print(f"  {layer:<13}{state}")
    known = next((found for found in levels.values() if not isinstance(found, str)), None)
    if known:
        inside = f", in a container ({known['container_hint']})" if known["container_hint"] else ""
        print(f"\nkernel {known['kernel']}, Landlock ABI {known['landlock_abi']}, uid {known['uid']}{inside}")


def _judge(options: argparse.Namespace) -> int:
    submission = _submission(options)
    if options.slots is not None and options.slots < 1:
        raise BadInputError(f"--slots is {options.slots}; at least 1 is needed")
    result = asyncio.run(_judged(submission, options))
    print(result.model_dump_json(), flush=True)
    if result.verdict is Verdict.SANDBOX_ERROR:
        print(f"sandbox: {next(c.detail for c in result.cases if c.verdict is result.verdict)}", file=sys.stderr)
        return EXIT_TROUBLE
    return EXIT_ACCEPTED if result.verdict is Verdict.ACCEPTED else EXIT_NOT_ACCEPTED


async def _judged(submission: Submission, options: argparse.Namespace) -> SuiteResult:
    slots = options.slots or min(len(submission.cases), LocalPool().slots)
    async with _pool(options, slots) as pool:
        return await pool.judge(submission)


def _pool(options: argparse.Namespace, slots: int) -> LocalPool:
    return LocalPool(slots, min_level=options.min_level, packages=options.package)


def _run(options: argparse.Namespace) -> int:
    source, limits = _read(options.source), _limits(options)
    given = b"" if options.source == "-" or sys.stdin is None else sys.stdin.buffer.read()

    async def run() -> RunOutput:
        async with _pool(options, 1) as pool:
            try:
                return (await pool.run_stdin(source, [given], limits))[0]
            except ValueError as error:
                raise BadInputError(f"{options.source}: {error}") from None

    output = asyncio.run(run())
    if sys.stdout is not None:
        sys.stdout.buffer.write(output.stdout.encode("utf-8", "surrogatepass"))
        sys.stdout.buffer.flush()
    print(output.stderr_tail, file=sys.stderr, end="")
    if output.ok:
        return EXIT_ACCEPTED
    print(f"sandbox: {output.verdict}: {output.detail}", file=sys.stderr)
    return EXIT_TROUBLE if output.verdict is Verdict.SANDBOX_ERROR else EXIT_NOT_ACCEPTED


def _bench(options: argparse.Namespace) -> int:
    from sandbox import bench

    if options.soak is not None and options.soak < 1:
        raise BadInputError(f"--soak is {options.soak}; at least 1 run is needed, e.g. 100000")
    try:
        found = bench.soak(options.soak) if options.soak else bench.quick_report(options.quick)
    except bench.BenchError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return EXIT_TROUBLE
    print(json.dumps(found) if options.json else bench.as_text(found))
    return EXIT_ACCEPTED


def _limits(options: argparse.Namespace) -> Limits:
    given = {name: getattr(options, name) for name in ("cpu_s", "wall_s", "memory_mb", "output_bytes", "threads")}
    try:
        return Limits(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise BadInputError(f"{option} is {first['input']}: {first['msg']}") from None


def _submission(options: argparse.Namespace) -> Submission:
    limits, source, cases = _limits(options), _read(options.source), read_cases(_read(options.cases), options.cases)
    for number, case in cases:
        where = f"{options.cases}, line {number}"
        named = options.entry_point is not None or getattr(case, "entry_point", None) is not None
        if case.kind in ("call", "assert") and not named:
            raise BadInputError(f"{where}: a case of kind {case.kind!r} needs --entry-point NAME")
        if getattr(case, "trust", "") == "shared" and not options.allow_shared:
            raise BadInputError(f"{where}: trust 'shared' can be forged; it needs --allow-shared")
    try:
        return Submission(
            source=source,
            entry_point=options.entry_point,
            cases=[case for _, case in cases],
            limits=limits,
            stop=options.stop,
            allow_shared=options.allow_shared,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInputError(f"{options.source}: {first['msg'].removeprefix('Value error, ')}") from None


def _read(path: str) -> str:
    try:
        if path == "-":
            data = b"" if sys.stdin is None else sys.stdin.buffer.read()
        else:
            data = Path(path).read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from None
    # Bytes that are not UTF-8 are for the compiler to refuse or, with a coding cookie, to read.
    return data.decode("utf-8", "surrogateescape")


if __name__ == "__main__":
    sys.exit(main())
