"""The execution cache: what counts as the same program, what is remembered, what is not."""

from __future__ import annotations

import ast
import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import CachedBackend, CallCase, Limits, LocalPool, StdioCase, Submission, SuiteResult, Verdict
from sandbox.cache import program_key, submission_key

SAME = [
    ("x = 1", "x=1  # one"),
    ("def f(a):\n    return a", "def f(a): return a\n\n"),
    ("x = 'a'", 'x = "a"'),
    ("if x:\n  y", "if x:\n        y"),
    ("x = (1)", "x = 1"),
]
DIFFERENT = [
    ("x = 1", "x = 2"),
    ("x = 1", "x = 1.0"),
    ("x = 1", "y = 1"),
    ("x = 'a'", "x = b'a'"),
    ("def f(): pass", "async def f(): pass"),
    ("f(a, b)", "f(b, a)"),
    ("x = 1", "x = 1\nx = 1"),
    ("x = (", "x = ( "),
    ("x = True", "x = 1"),
    # The coding declaration is a comment, and changes what the bytes mean.
    ("# coding: utf-7\nprint('+AGE-')", "print('+AGE-')"),
    ("# coding: latin-1\nprint('é')", "print('é')"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_layout_and_comments_make_no_difference(a: str, b: str) -> None:
    assert program_key(a) == program_key(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_what_may_behave_differently_differs(a: str, b: str) -> None:
    assert program_key(a) != program_key(b)


def test_keys_tell_apart_what_syntax_trees_do() -> None:
    values = "1 1.0 True None ... 1j '1' b'1' u'1' x [1] (1,) {1} [[]] f(x,y) f(x)(y) f(x=y) f(*x) f(**x) x[y] x.y x@y"
    lines = [f"{target} = {value}" for target in ("a", "a: int", "a, b") for value in values.split()]
    lines += ["[x for y in z]", "{x for y in z}", "(x for y in z)"]
    sources = [*lines, *[f"def f():\n    {line}" for line in lines], *[f"if x: {line}\nelse: pass" for line in lines]]
    sources += [f"{a}\n{b}" for a in lines[:12] for b in lines[:12]]
    assert len({program_key(source) for source in sources}) == len({ast.dump(ast.parse(source)) for source in sources})
    assert len({program_key(source) for source in sources}) > 200


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_every_text_has_a_key(text: str) -> None:
    assert program_key(text) == program_key(text)


@pytest.mark.parametrize("source", ["(" * 5000, "1" + "+1" * 50_000, "-" * 50_000 + "1", "x = " + "9" * 5000, "\0"])
def test_source_bombs_have_a_key(source: str) -> None:
    assert program_key(source) != program_key(source + "#")


def suite(source: str = "print('ok')", **fields: Any) -> Submission:
    return Submission(source=source, cases=[StdioCase(stdin="", expected="ok")], **fields)


def test_everything_a_program_is_judged_by_is_in_the_key() -> None:
    base = suite()
    others = [
        suite(limits=Limits(cpu_s=1)),
        suite(stop="first_failure"),
        suite(entry_point="f"),
        Submission(source=base.source, cases=[StdioCase(stdin="x", expected="ok")]),
        Submission(source=base.source, cases=[StdioCase(stdin="", expected="no")]),
        Submission(source=base.source, cases=[*base.cases, *base.cases]),
        Submission(source=base.source, cases=[CallCase(args=[1], expected="ok")], entry_point="f"),
        Submission(source=base.source, cases=[CallCase(args=[1.0], expected="ok")], entry_point="f"),
        Submission(source=base.source, cases=[CallCase(args=[True], expected="ok")], entry_point="f"),
        Submission(source=base.source, cases=[CallCase(args=[(1,)], expected="ok")], entry_point="f"),
        Submission(source=base.source, cases=[CallCase(args=[[1]], expected="ok")], entry_point="f"),
    ]
    keys = [submission_key(submission) for submission in [base, *others]]
    assert len(set(keys)) == len(keys)


def test_long_sources_are_not_parsed() -> None:
    started = time.process_time()
    long = "x = f'" + "{1}" * 80_000 + "'\n"
    assert program_key(long) != program_key(long + "#")
    assert time.process_time() - started < 0.5


def test_texts_that_json_cannot_carry_have_a_key() -> None:
    keys = [
        submission_key(Submission(source="", cases=[StdioCase(stdin=text, expected=expected)]))
        for text, expected in (("\ud800", "a"), ("\ud801", "a"), ("\ud800", "b"), ("\ud800", "\udfff"))
    ]
    assert len(set(keys)) == 4


def test_results_are_those_of_the_pool_and_run_once() -> None:
    async def scenario() -> None:
        async with LocalPool(1) as pool:
            cache = CachedBackend(pool)
            first = await cache.judge(suite())
            again = await cache.judge(suite("print('ok')  # the same"))
            assert (first.cached, again.cached) == (False, True)
            assert again.model_copy(update={"cached": False}) == first
            assert pool.stats().programs == 1
            wrong = await cache.judge(suite("print('no')"))
            assert wrong.verdict is Verdict.WRONG_ANSWER and not wrong.cached
            assert (cache.hits, cache.misses) == (1, 2)

    asyncio.run(scenario())


class Slow:
    """A backend that answers when told to, and counts."""

    def __init__(self, verdicts: list[Verdict | Exception]) -> None:
        self.verdicts = verdicts
        self.calls = 0
        self.go = asyncio.Event()

    async def judge(self, submission: Submission) -> SuiteResult:
        self.calls += 1
        outcome = self.verdicts[min(self.calls, len(self.verdicts)) - 1]
        await self.go.wait()
        if isinstance(outcome, Exception):
            raise outcome
        return SuiteResult.model_validate(
            {
                "verdict": outcome, "compiles": True, "passed": 0, "total": 1, "cases": [{"verdict": outcome}],
                "isolation": {
                    "level": 3, "level_name": "cell", "layers": {}, "kernel": "", "landlock_abi": 0, "uid": 0,
                },
            }
        )  # fmt: skip

    async def aclose(self) -> None:
        self.go.set()


def test_submissions_in_work_are_shared() -> None:
    async def scenario() -> None:
        backend = Slow([Verdict.ACCEPTED])
        cache = CachedBackend(backend)
        waiting = [asyncio.ensure_future(cache.judge(suite())) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the one that began it
        backend.go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [result.verdict for result in results[1:]] == [Verdict.ACCEPTED] * 4  # type: ignore[union-attr]
        assert backend.calls == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", [Verdict.SANDBOX_ERROR, RuntimeError("gone")])
def test_trouble_is_not_remembered(trouble: Verdict | Exception) -> None:
    async def scenario() -> None:
        backend = Slow([trouble, Verdict.ACCEPTED])
        backend.go.set()
        cache = CachedBackend(backend)
        if isinstance(trouble, Exception):
            with pytest.raises(RuntimeError, match="gone"):
                await cache.judge(suite())
        else:
            assert (await cache.judge(suite())).verdict is trouble
        assert (await cache.judge(suite())).verdict is Verdict.ACCEPTED
        assert (await cache.judge(suite())).cached and backend.calls == 2

    asyncio.run(scenario())


def test_the_oldest_is_forgotten() -> None:
    async def scenario() -> None:
        backend = Slow([Verdict.ACCEPTED])
        backend.go.set()
        cache = CachedBackend(backend, entries=2)
        for n in (1, 2, 1, 3, 1):
            await cache.judge(suite(f"x = {n}"))
        assert backend.calls == 3
        await cache.judge(suite("x = 2"))
        assert backend.calls == 4
        with pytest.raises(ValueError, match="entries"):
            CachedBackend(backend, entries=0)

    asyncio.run(scenario())
