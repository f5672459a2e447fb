"""Execution cache: the same program in front of the same cases is run once."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Final, Self

from sandbox.backend import SandboxBackend
from sandbox.records import Submission, SuiteResult, source_bytes
from sandbox.verdicts import Verdict

ENTRIES: Final = 10_000
PARSED_MAX_BYTES: Final = 32 * 1024  # parsing is done on the event loop, and can take seconds for sources made for it
REMEMBERED_KEYS: Final = 2048


def program_key(source: str) -> bytes:
    """A digest that programs share when they differ in layout and comments alone.

    The syntax tree decides, read from the bytes that would be run, so that a coding declaration counts. What is long or
    does not parse is its own key. A program that asks for its own line numbers or source text can behave differently
    from another with the same key; such programs are not told apart.
    """
    data = source_bytes(source)
    return _digest(b"text:" + data) if len(data) > PARSED_MAX_BYTES else _parsed_key(data)


@lru_cache(maxsize=REMEMBERED_KEYS)
def _parsed_key(data: bytes) -> bytes:
    parts: list[str] = []
    try:
        _spell(ast.parse(data), parts.append)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _digest(b"text:" + data)
    return _digest(b"tree:" + "\0".join(parts).encode("utf-8", "surrogatepass"))


def forget_keys() -> None:
    """Free the memory of remembered keys."""
    _parsed_key.cache_clear()


def _spell(node: ast.AST, add: Callable[[str], None]) -> None:
    """The parts of a syntax tree in order; as exact as ast.dump, at half its cost."""
    add(node.__class__.__name__)
    fields = node.__dict__
    for name in node._fields:
        value = fields.get(name)
        if isinstance(value, list):
            add("[")
            for one in value:
                if isinstance(one, ast.AST):
                    _spell(one, add)
                else:
                    add(repr(one))
            add("]")
        elif isinstance(value, ast.AST):
            _spell(value, add)
        else:
            add(repr(value))


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=20).digest()


def submission_key(submission: Submission) -> bytes:
    """A digest of the program and of everything that it is judged by: cases, limits, entry point, stop rule."""
    rest = submission.model_copy(update={"source": ""})
    try:
        suite = rest.model_dump_json().encode()
    except ValueError:  # a text that JSON cannot carry, such as an input with lone surrogates
        suite = repr(rest).encode("utf-8", "surrogatepass")
    return program_key(submission.source) + _digest(suite)


class CachedBackend:
    """Remembers the results of another backend; the least recently used of more than `entries` are forgotten.

    Submissions that are in work are waited for rather than run twice. A result with a sandbox_error is not kept.
    `hits` and `misses` count lookups. Closing it closes the backend.
    """

    def __init__(self, backend: SandboxBackend, entries: int = ENTRIES) -> None:
        if entries < 1:
            raise ValueError(f"entries is {entries}; at least 1 is needed")
        self.hits = 0
        self.misses = 0
        self._backend = backend
        self._entries = entries
        self._results: OrderedDict[bytes, SuiteResult] = OrderedDict()
        self._in_work: dict[bytes, asyncio.Task[SuiteResult]] = {}

    async def judge(self, submission: Submission) -> SuiteResult:
        """The backend's result, or the one that it gave before (then `cached`). Raises what the backend raises."""
        key = submission_key(submission)
        known = self._results.get(key)
        if known is not None:
            self._results.move_to_end(key)
            self.hits += 1
            return known.model_copy(update={"cached": True})
        task = self._in_work.get(key)
        shared = task is not None
        if task is None:
            task = self._in_work[key] = asyncio.ensure_future(self._judge(key, submission))
        self.hits, self.misses = self.hits + shared, self.misses + (not shared)
        # One caller that gives up must not take the result from the others.
        result = await asyncio.shield(task)
        return result.model_copy(update={"cached": True}) if shared else result

    async def _judge(self, key: bytes, submission: Submission) -> SuiteResult:
        try:
            result = await self._backend.judge(submission)
        finally:
            del self._in_work[key]
        if all(case.verdict is not Verdict.SANDBOX_ERROR for case in result.cases):
            self._results[key] = result
            while len(self._results) > self._entries:
                self._results.popitem(last=False)
        return result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop what is in work and close the backend."""
        tasks = list(self._in_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._backend.aclose()
