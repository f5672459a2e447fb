"""Running user code: the last trusted steps, and the ones that follow under its power.

From `execute` on, everything in this process is hostile. Nothing here decides a verdict; the worst that a program can
do to its own runner is to write another answer.
"""

from __future__ import annotations

import _sitebuiltins
import atexit
import builtins
import gc
import inspect
import io
import json
import os
import random
import sys
import threading
import types
from typing import Any, Final, NoReturn

from sandbox import codec
from sandbox.inside import calls, wire

FILE_NAME: Final = "solution.py"
TEST_FILE_NAME: Final = "test.py"
CHECKER_CALLED: Final = '"called"'
CHANNEL_FD: Final = 4
HERE: Final = os.path.dirname(__file__)  # noqa: PTH120 - strings, and no new objects in a run
OURS: Final = (HERE, os.path.dirname(HERE))  # noqa: PTH120
# Python's default; the frames of the runner are added, so that a program has all of it.
RECURSION_LIMIT: Final = 1000
STDIN_BUFFER: Final = 1 << 16


def prepare() -> None:
    """Set up what every program finds: standard streams, argv, a fixed random state.

    Called once in the zygote, whose descriptors 0-2 are /dev/null: the streams hold numbers, and a run puts its own
    files behind them. Doing this in each run would cost a tenth of it.
    """
    sys.stdin = _reader(0)
    sys.stdout = _writer(1, "strict")
    sys.stderr = _writer(2, "backslashreplace")
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    # The zygote starts without `site`, which is what gives programs these two.
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    codec.UnserializableError.__module__ = "builtins"  # named as programs know exceptions, without our modules
    sys.argv = [FILE_NAME]
    sys.set_int_max_str_digits(0)
    random.seed(0)


# Something of everything that programs are made of.
_SAMPLE: Final = b"""
from typing import Any, Dict, List, Optional, Set, Tuple, Union
import math, collections
Kinds = (List[int], List[float], List[str], List[bool], List[Any], List[List[int]], List[List[str]],
         List[Tuple[int, int]],
         Dict[str, int], Dict[int, int], Dict[str, Any], Dict[str, List[int]], Optional[int], Optional[str], Set[int],
         Tuple[int, int], Tuple[int, ...], Tuple[str, int], Union[int, float], Union[int, str], Optional[List[int]])
class Point:
    def __init__(self, x: int, y: int = 0) -> None:
        self.x, self.y = x, y
    def __repr__(self):
        return f"{self.x}:{self.y!r}"
def solve(numbers: List[int], gap=0.5, *rest, **named):
    seen = collections.Counter()
    for i, a in enumerate(numbers):
        if a % 2 == 0 and not seen.get(a):
            seen[a] += 1
        elif a > 3:
            continue
        while a:
            a //= 10
    try:
        out = sorted({str(k): [v, -v] for k, v in seen.items()}.items(), key=lambda p: p[0])
        return out, [math.sqrt(x) for x in numbers if x >= 0], " ".join(map(str, numbers)).split()
    except (ValueError, KeyError) as error:
        raise RuntimeError("no") from error
"""
_SAMPLE_TASK: Final = (
    b'{"entry_point": "solve", "args": [[1, 22, 3.5], {"$tuple": ["a", true]}], "kwargs": {"a": {"$set": [1]}}}'
)
WARM_UPS: Final = 20


def warm_up() -> None:
    """Do in the zygote what every run does first.

    The interpreter writes into the code that it meets for the first times, into its caches of methods and into the
    pages of new objects. What it has written before the fork costs no run a copy of a page.
    """
    for _ in range(WARM_UPS):
        task = json.loads(_SAMPLE_TASK)
        arguments = codec.decode_value(task["args"])
        keywords = codec.decode_value(task["kwargs"])
        module = types.ModuleType("solution")
        exec(compile_source(_SAMPLE), module.__dict__)
        value = _entry_point(module.__dict__, task["entry_point"])(arguments[0], *arguments, **keywords)
        codec.dumps((value, arguments), False).encode()


def _reader(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "r", closefd=False)
    return io.TextIOWrapper(io.BufferedReader(raw, STDIN_BUFFER), encoding="utf-8", errors="surrogateescape")


def _writer(fd: int, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    line_buffering = fd == 2
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=line_buffering)


def compile_source(source: bytes) -> types.CodeType:
    """The program as code. Raises whatever the compiler raises."""
    return compile(source, FILE_NAME, "exec", dont_inherit=True)


def compile_test(mode: int, payload: bytes) -> tuple[types.CodeType, ...]:
    """The code that a case brings along, before any of the program has run. Raises whatever the compiler raises."""
    if mode == wire.MODE_EXPRESSION:
        task = json.loads(payload)
        setup = compile(task["setup"], "setup.py", "exec", dont_inherit=True)
        return setup, compile(task["expression"], "expression.py", "eval", dont_inherit=True)
    if mode == wire.MODE_SHARED:
        return (compile(json.loads(payload)["test"], TEST_FILE_NAME, "exec", dont_inherit=True),)
    return ()


def execute(
    mode: int, code: types.CodeType, payload: bytes, test: tuple[types.CodeType, ...], result_fd: int
) -> NoReturn:
    """Run the program in the asked mode and end the process."""
    # In call mode the module is not `__main__` by name: a solution's own `if __name__ == "__main__":` part would
    # read an input that nobody gave.
    name = "__main__" if mode == wire.MODE_STDIO else "solution"
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = __builtins__
    module.__dict__["__file__"] = FILE_NAME
    sys.modules["__main__"] = module
    sys.modules[name] = module
    depth = 1
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    del frame
    sys.setrecursionlimit(RECURSION_LIMIT + depth)
    gc.enable()
    if mode == wire.MODE_STDIO:
        _run_script(code, module)
    if mode == wire.MODE_SERVE:
        _run_server(code, module, result_fd)
    if mode == wire.MODE_CHECK:
        _run_test(code, module, payload, result_fd)
    _run_for_value(mode, code, module, payload, test, result_fd)


def _run_script(code: types.CodeType, module: types.ModuleType) -> NoReturn:
    status = 0
    try:
        exec(code, module.__dict__)
    except SystemExit as end:
        status = _exit_status(end)
    except BaseException as error:
        status = 1
        _report(error)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _forget(module)
    except BaseException as error:
        status = status or 1
        _report(error)
    _leave(status)


def _exit_status(end: SystemExit) -> int:
    """The status that the interpreter would exit with."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _forget(module: types.ModuleType) -> None:
    """Destroy the program's globals, so that finalisers run as they do when an interpreter ends."""
    names = module.__dict__
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and name.startswith("_") == private:
                names[name] = None
    gc.collect()


def _run_for_value(
    mode: int,
    code: types.CodeType,
    module: types.ModuleType,
    payload: bytes,
    test: tuple[types.CodeType, ...],
    result_fd: int,
) -> NoReturn:
    try:
        task = json.loads(payload)
        # Decoded before user code exists: it could otherwise see to it that they come out differently.
        arguments = codec.decode_value(task.get("args", []))
        keywords = codec.decode_value(task.get("kwargs", {}))
        names = module.__dict__
        exec(code, names)
        if mode == wire.MODE_EXPRESSION:
            exec(test[0], names)
            value: Any = eval(test[1], names)
        elif mode == wire.MODE_SHARED:
            names.setdefault("candidate", _entry_point(names, task["entry_point"]))
            exec(test[0], names)
            value = True
        else:
            function = _entry_point(names, task["entry_point"])
            if mode == wire.MODE_CHECKER:
                inspect.signature(function).bind(*arguments, **keywords)
                _write(result_fd, CHECKER_CALLED)  # from here on a failure is the answer's
            value = function(*arguments, **keywords)
        _write(result_fd, codec.dumps(bool(value) if task.get("truth") else value, task.get("rationals", False)))
    except BaseException as error:
        _report(error)
        _leave(1)
    _leave(0)


def _run_server(code: types.CodeType, module: types.ModuleType, channel: int) -> NoReturn:
    """Define what the program defines, then answer the calls of its test."""
    names = module.__dict__
    try:
        exec(code, names)
        calls.serve(channel, lambda name: _entry_point(names, name), _report)
    except BaseException as error:
        _report(error)
        _leave(1)
    _leave(0)


def _run_test(code: types.CodeType, module: types.ModuleType, payload: bytes, result_fd: int) -> NoReturn:
    """Run test code whose calls go to the solution's process; say how it ended."""
    caller = calls.Caller(CHANNEL_FD)
    names = module.__dict__
    try:
        names.update(caller.names(code, json.loads(payload)["entry_point"]))
        caller.wait()
        exec(code, names)
        _write(result_fd, json.dumps({"passed": True}))
    except BaseException as error:
        _report(error)
        by = "test"
        if error is caller.failure:
            by = "gone" if isinstance(error, calls.SolutionGone) else "solution"
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _write(result_fd, json.dumps({"passed": False, "by": by, "detail": text[:500]}))
        _leave(1)
    _leave(0)


def _write(result_fd: int, text: str) -> None:
    """Put the result in place of whatever the program wrote there."""
    data = text.encode()
    os.ftruncate(result_fd, 0)
    done = 0
    while done < len(data):
        done += os.pwrite(result_fd, data[done:], done)


def _entry_point(names: dict[str, Any], name: str) -> Any:
    """The callable called `name`: a function, `Class.method`, or a method of a class `Solution`."""
    owner, _, method = name.rpartition(".")
    if owner:
        return getattr(names[owner](), method)
    if name in names:
        return names[name]
    solution = names.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _report(error: BaseException) -> None:
    """Print a traceback without our own frames: boot, runner, calls, codec."""
    trace = error.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) in OURS:  # noqa: PTH120
        trace = trace.tb_next
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException:
        os.write(2, f"{type(error).__name__}\n".encode())


def _leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            status = status or 120  # what the interpreter itself exits with in this case
    os._exit(status)
