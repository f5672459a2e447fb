"""Calls from a test into a solution that lives in another process.

The test's side holds a stub per name; the solution's side answers. Frames are a 32-bit length and JSON; arguments and
values are typed JSON, so nothing but plain values of builtin types ever crosses. A solution can send whatever it likes
into the channel: that is one more way to give an answer.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import struct
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from sandbox import codec

LENGTH: Final = struct.Struct("<I")
MAX_FRAME_BYTES: Final = 64 << 20
ERROR_CHARACTERS: Final = 500
READY: Final = "ready"
# In a test these would end a loop over calls as if all of them had been made.
ENDS_LOOPS: Final = frozenset({"StopIteration", "StopAsyncIteration", "GeneratorExit"})


class SolutionError(Exception):
    """The call failed in the solution, with an exception that is not a builtin one or an answer that is no value."""


class SolutionGone(BaseException):
    """The solution's process ended. Not an Exception: a test that expects an error must not take it for one."""


def send(fd: int, message: Any) -> None:
    """Write one frame. Raises OSError when the other side is gone."""
    text = json.dumps(message, separators=(",", ":")).encode()
    data = memoryview(LENGTH.pack(len(text)) + text)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> Any:
    """One frame, or None at the end. Raises ValueError for what is none."""
    head = _read_exactly(fd, LENGTH.size)
    if head is None:
        return None
    (size,) = LENGTH.unpack(head)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"an answer of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
    text = _read_exactly(fd, size)
    return None if text is None else json.loads(text)


def _read_exactly(fd: int, size: int) -> bytes | None:
    chunks: list[bytes] = []
    while size:
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


# --- the solution's side ---


def serve(fd: int, find: Callable[[str], Any], report: Callable[[BaseException], None]) -> None:
    """Say that all is defined, then answer calls until the test closes the channel. `find` gives a name's callable."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the test has gone: there is nobody to answer
        _serve(fd, find, report)


def _serve(fd: int, find: Callable[[str], Any], report: Callable[[BaseException], None]) -> None:
    send(fd, READY)
    while True:
        request = receive(fd)
        if request is None:
            return
        try:
            arguments = codec.decode_value(request["args"])
            keywords = codec.decode_value(request["kwargs"])
            value = find(request["name"])(*arguments, **keywords)
            answer: dict[str, Any] = {"value": codec.encode_value(value)}
            if any(type(item) in _IN_PLACE for item in arguments):
                after = codec.encode_value(arguments)
                if after != request["args"]:
                    answer["args"] = after
        except BaseException as error:
            report(error)
            answer = {"error": type(error).__name__, "text": _text(error)}
        send(fd, answer)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:ERROR_CHARACTERS]
    except BaseException:
        return "an exception whose text cannot be had"


# --- the test's side ---


class Remote:
    """A function of the solution, as the test sees it."""

    __slots__ = ("_caller", "_name")

    def __init__(self, caller: Caller, name: str) -> None:
        self._caller = caller
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._caller.call(self._name, args, kwargs)


class Caller:
    """The test's end of the channel. `failure` is the exception that the last failed call raised."""

    def __init__(self, fd: int) -> None:
        self.failure: BaseException | None = None
        self._fd = fd

    def wait(self) -> None:
        """Wait until the solution has defined what it defines. Raises SolutionGone when it ends before."""
        try:
            ready = receive(self._fd)
        except (OSError, ValueError, RecursionError):
            ready = READY  # nonsense: the first call will show it
        if ready is None:
            raise self._failed(SolutionGone("the solution ended before its first call"))

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `name` in the solution. Raises what it raised; SolutionGone when it does not answer any more."""
        request = {"name": name, "args": codec.encode_value(list(args)), "kwargs": codec.encode_value(kwargs)}
        try:
            send(self._fd, request)
            answer = receive(self._fd)
        except OSError:
            answer = None
        except (ValueError, RecursionError) as error:
            raise self._failed(SolutionError(f"the answer cannot be read: {error}")) from None
        if answer is None:
            raise self._failed(SolutionGone("the solution ended during a call"))
        return self._value(answer, args)

    def _value(self, answer: Any, args: tuple[Any, ...]) -> Any:
        try:
            if "error" in answer:
                failure = _exception(str(answer["error"]), str(answer["text"]))
            else:
                if "args" in answer:
                    _put_back(args, codec.decode_value(answer["args"]))
                return codec.decode_value(answer["value"])
        except (codec.MalformedValueError, TypeError, KeyError) as error:
            failure = SolutionError(f"the answer cannot be read: {error}")
        raise self._failed(failure)

    def _failed(self, error: BaseException) -> BaseException:
        self.failure = error
        return error

    def names(self, code: types.CodeType, entry_point: str) -> dict[str, Any]:
        """What a test finds before it defines anything: a stub for every name that it mentions.

        Names that the test assigns, imports or defines replace their stub; those of builtins are left alone.
        """
        stubs: dict[str, Any] = {}
        for name in _mentioned(code):
            if not hasattr(builtins, name) and not name.startswith("__"):
                stubs[name] = Remote(self, name)
        stubs[entry_point.partition(".")[0]] = stubs["candidate"] = Remote(self, entry_point)
        return stubs


def _mentioned(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _mentioned(constant)


def _exception(name: str, text: str) -> BaseException:
    """The builtin exception of that name, so that a test can expect it; another one as a SolutionError."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException) and name not in ENDS_LOOPS:
        try:
            return kind(text)
        except TypeError:
            pass  # one that is not made from a text alone
    return SolutionError(f"{name}: {text}")


_IN_PLACE: Final = (list, dict, set)


def _put_back(args: tuple[Any, ...], after: Any) -> None:
    """Give the caller's own lists, dictionaries and sets the contents that the call left in them."""
    if type(after) is not list or len(after) != len(args):
        raise TypeError("the arguments do not come back as they went")
    for own, new in zip(args, after, strict=True):
        if type(own) not in _IN_PLACE or type(own) is not type(new):
            continue
        if type(own) is list:
            own[:] = new
        else:
            own.clear()
            own.update(new)
