"""The program that another sandbox runs to call a function: it carries what our own zygote would have at hand.

Its text is sent, followed by a call of `main` with the source of `sandbox.codec`; it reads one JSON object from
stdin. Nothing of ours exists over there, so only the standard library is used, and of that what Python 3.8 knows.

What it prints about itself stands on lines that begin with a marker which is new in every run:

    MARKER test JSON        the test that came along does not compile, and why; nothing else follows
    MARKER run              the source compiles, user code starts
    MARKER value JSON       the value, last of all

Nothing here decides a verdict: a program that finds its marker can write another answer, which it could return too.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import types
from typing import Any, NoReturn

FILE_NAME = "solution.py"
RECURSION_LIMIT = 1000
_write = os.write  # a solution that replaces it would only lose its own answer


def main(codec_source: str) -> None:
    """Run the task on stdin.

    It has: marker, mode, source (base64), entry_point, args, kwargs, setup, expression, rationals, truth.
    """
    task = json.loads(sys.stdin.read())
    out = os.dup(1)
    codec = types.ModuleType("codec")
    exec(compile(codec_source, "codec.py", "exec", dont_inherit=True), codec.__dict__)
    _prepare()
    try:
        code = compile(base64.b64decode(task["source"]), FILE_NAME, "exec", dont_inherit=True)
    except BaseException as error:
        _report(error)
        _leave(1)
    try:
        test = _compiled_test(task)
    except BaseException as error:
        _send(out, task["marker"] + " test " + json.dumps(f"{type(error).__name__}: {error}"))
        _leave(1)
    # Not `__main__` by name: a solution's own main part would read an input that nobody gave.
    module = types.ModuleType("solution")
    module.__dict__["__builtins__"] = __builtins__
    module.__dict__["__file__"] = FILE_NAME
    sys.modules["__main__"] = sys.modules["solution"] = module
    _send(out, task["marker"] + " run")
    try:
        arguments = codec.decode_value(task["args"])
        keywords = codec.decode_value(task["kwargs"])
        value = _value(code, test, module.__dict__, task, arguments, keywords)
        text = codec.dumps(bool(value) if task["truth"] else value, task["rationals"])
    except BaseException as error:
        _report(error)
        _leave(1)
    status = _flushed()
    if status == 0:
        _send(out, task["marker"] + " value " + text)
    os._exit(status)


def _prepare() -> None:
    """What every program of ours finds: UTF-8, argv, a fixed random state, all of the default recursion depth."""
    for stream, errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)
    sys.argv = [FILE_NAME]
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    random.seed(0)
    depth = 3  # down to the frame that will run the program
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(RECURSION_LIMIT + depth)


def _compiled_test(task: dict[str, Any]) -> tuple[Any, ...]:
    """Setup and expression, before any of the program has run. Raises whatever the compiler raises."""
    if task["mode"] == "call":
        return ()
    setup = compile(task["setup"], "setup.py", "exec", dont_inherit=True)
    return setup, compile(task["expression"], "expression.py", "eval", dont_inherit=True)


def _value(
    code: types.CodeType, test: tuple[Any, ...], names: dict[str, Any], task: dict[str, Any], *given: Any
) -> Any:
    exec(code, names)
    if task["mode"] == "call":
        return _entry_point(names, task["entry_point"])(*given[0], **given[1])
    exec(test[0], names)
    return eval(test[1], names)


def _entry_point(names: dict[str, Any], name: str) -> Any:
    """The same rules as at home: a function, `Class.method`, or a method of a class `Solution`."""
    owner, _, method = name.rpartition(".")
    if owner:
        return getattr(names[owner](), method)
    if name in names:
        return names[name]
    solution = names.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _send(out: int, line: str) -> None:
    """On a line of its own, whatever was printed before."""
    data = ("\n" + line + "\n").encode()
    while data:
        data = data[_write(out, data) :]


def _report(error: BaseException) -> None:
    """A traceback without the frames of this program, whose file name may be the same as the solution's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException:
        os.write(2, (type(error).__name__ + "\n").encode())


def _flushed() -> int:
    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            status = 120  # what the interpreter itself exits with in this case
    return status


def _leave(status: int) -> NoReturn:
    flushed = _flushed()
    os._exit(status or flushed)
