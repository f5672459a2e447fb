"""Bytes that nobody meant: whatever a program or a broken zygote sends, the trusted side stays on its feet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sandbox_bench import QUICK, Bench, described_fds, more_fds

from sandbox import AssertCase, CallCase, MalformedValueError, StdioCase, Submission, Verdict, decode_value
from sandbox.cell import Cell, CellError, RawRun, RunSpec, sealed_file
from sandbox.codec import dumps, loads
from sandbox.inside import wire
from sandbox.judging import case_result, infrastructure_failure, outcome, pair_outcome, run_output

MANY = pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
# For one small frame, on a machine with other work to do.
BOUND_S = 1.0

TAGS = (
    "$tuple",
    "$set",
    "$frozenset",
    "$dict",
    "$bytes",
    "$complex",
    "$float",
    "$int",
    "$str",
    "$",
    "$x",
    "$\ud800",
    "a",
)
LEAVES: tuple[Any, ...] = (
    None, True, False, 0, -1, -2, 2**61 - 1, 2**63, -(10**400), 0.0, -0.0, 1e308, math.inf, math.nan, "", "nan",
    "-inf", "0x1f", "-0x", "0x", "\ud800", "AAAA", "=", "/w==", "a" * 50, [], {}, [[], []], [1.0, 2.0],
)  # fmt: skip
FOREIGN: tuple[Any, ...] = ((), b"", {1}, 1j, object(), {1: 2}, {(): 1}, range(3), type)


def tree(rng: random.Random, depth: int, foreign: bool) -> Any:
    """Something like typed JSON."""
    kind = rng.randrange(8 if depth else 3)
    if kind < 3:
        return rng.choice(FOREIGN) if foreign and rng.random() < 0.1 else rng.choice(LEAVES)
    if kind < 5:
        return [tree(rng, depth - 1, foreign) for _ in range(rng.randrange(4))]
    if kind == 5:
        pairs = [[tree(rng, 1, foreign), tree(rng, depth - 1, foreign)] for _ in range(rng.randrange(4))]
        return {"$dict": pairs}
    return {rng.choice(TAGS): tree(rng, depth - 1, foreign) for _ in range(rng.choice((0, 1, 1, 1, 2)))}


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, lost, repeated or moved."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at, other = rng.randrange(len(changed) + 1), rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at:at] = rng.randbytes(rng.randrange(1, 4))
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2:
                changed[at:at] = changed[at:other]
            case _:
                changed[at : at + 1] = rng.choice(
                    (b'"', b"[", b"]", b"{", b"}", b",", b"$", b"9", b"\\", b"\xff", b"\0")
                )
    return bytes(changed)


def frames(rng: random.Random, count: int) -> Iterator[bytes]:
    for number in range(count):
        if number % 4 == 0:
            yield rng.randbytes(rng.randrange(40))
        else:
            text = json.dumps(tree(rng, 4, foreign=False)).encode()
            yield text if number % 4 == 1 else mutated(rng, text)


@MANY
def test_malformed_frames(count: int) -> None:
    rng = random.Random(1)
    slowest, read = 0.0, 0
    for frame in frames(rng, count):
        started = time.perf_counter()
        try:
            value = loads(frame)
        except MalformedValueError:
            value = None
        else:
            read += 1
            # What comes in can go out again, as the same.
            assert dumps(loads(dumps(value))) == dumps(value)
        slowest = max(slowest, time.perf_counter() - started)
    assert count // 50 < read < count
    assert slowest < BOUND_S


@MANY
def test_malformed_trees(count: int) -> None:
    rng = random.Random(2)
    read = 0
    for _ in range(count):
        with contextlib.suppress(MalformedValueError):
            dumps(decode_value(tree(rng, 5, foreign=True)))
            read += 1
    assert count // 50 < read < count


PERIOD = 2**61 - 1  # all multiples have one hash
FLOOD = ",".join(str(PERIOD * n) if n < 4 else f'{{"$int":"{hex(PERIOD * n)}"}}' for n in range(20_000))
TWINS = ",".join(
    '{"$tuple":[' + ",".join("-2" if number >> bit & 1 else "-1" for bit in range(14)) + "]}" for number in range(2**14)
)
NASTY = {
    "deep list": b"[" * 10**6,
    "deep list that ends": b"[" * 900 + b"]" * 900,
    "deep objects": b'{"a":' * 10**5,
    "deep tags": b'{"$tuple":[' * 10**5,
    "a long integer": b"9" * 10**6,
    "an integer just too long": b"9" * 4301,
    "a long hexadecimal integer": b'{"$int":"0x' + b"f" * 10**6 + b'"}',
    "a long float": b"0." + b"3" * 10**6,
    "a huge exponent": b"1e" + b"9" * 10**6,
    "out of range": b"[1e999]",
    "flooded set": f'{{"$set":[{FLOOD}]}}'.encode(),
    "flooded dict": f'{{"$dict":[{",".join(f"[{item},0]" for item in FLOOD.split(","))}]}}'.encode(),
    "set of twins": f'{{"$set":[{TWINS}]}}'.encode(),
    "too many parts": b"[" + b"0," * 2_000_001 + b"0]",
    "one key, many times": b"{" + b'"a":0,' * 10**5 + b'"a":0}',
    "a million tags": b"[" + b'{"$x":0},' * 10**5 + b"0]",
    "a long string that does not end": b'"' + b"\\u" * 10**6,
    "half a surrogate, often": b'"' + b"\\ud800" * 10**5 + b'"',
    "UTF-16": "[1]".encode("utf-16"),
    "UTF-32 cut short": "[1]".encode("utf-32")[:-1],
    "NUL": b"\0" * 10**6,
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_frames(name: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(MalformedValueError):
        dumps(loads(NASTY[name]))
    assert time.perf_counter() - started < 5 * BOUND_S


# --- what a zygote says ---


def random_reply(rng: random.Random) -> wire.Reply:
    """Any reply that a zygote could send, likely or not."""
    if rng.random() < 0.5:
        return wire.Reply(7, rng.choice((0, 1 << 8)), 0, 0.1, 0.1, 0.0, 1000, 1, 1000, b"BR")
    status = rng.choice((0, 0, 1 << 8, 3 << 8, 9, 31, 6, 24, 0xFF00, rng.randrange(1, 65) | 0x80 * rng.randrange(2)))
    stages = rng.choice((b"", b"B", b"BR", b"BR", b"BR", b"BC", b"E", b"Eno", b"RB", rng.randbytes(rng.randrange(5))))
    numbers = [rng.choice((0.0, 0.1, 4.0, -1.0, 1e300, math.inf, math.nan)) for _ in range(3)]
    sizes = [rng.choice((0, 1000, 300_000, 2**63)) for _ in range(2)]
    killed = rng.choice((0, 0, 0, 1, 2, 3, 200))
    return wire.Reply(7, status, killed, *numbers, sizes[0], rng.choice((0, 1, 1)), sizes[1], stages)


@MANY
def test_malformed_replies(count: int) -> None:
    rng = random.Random(3)
    read = 0
    for number in range(count):
        sent = [random_reply(rng) for _ in range(rng.choice((1, 2)))]
        data = wire.pack_replies(sent)
        whole = number % 10 == 0
        if not whole:
            data = mutated(rng, data) if number % 3 else rng.randbytes(rng.randrange(200))
        try:
            replies = wire.unpack_replies(data)
        except struct.error:
            assert not whole
        else:
            read += 1
            assert all(len(reply.stages) <= wire.STAGE_MAX for reply in replies)
            assert wire.pack_replies(replies) == data
    assert count // 10 <= read < count


def random_result(rng: random.Random) -> bytes:
    known = (b"", b"null", b"1", b'{"passed":true}', b'{"passed":1}', b'{"passed":false,"by":"gone"}')
    detail = rng.choice(("why", "\ud800", "x\x1b[2J", "MemoryError", 7, None))
    said = {"passed": rng.random() < 0.5, "by": rng.choice(("test", "solution", "gone", 1)), "detail": detail}
    if rng.random() < 0.4:
        return json.dumps(said).encode()
    return rng.choice((*known, json.dumps(tree(rng, 3, False)).encode(), rng.randbytes(9)))


def random_run(rng: random.Random) -> RawRun:
    stderr = rng.choice((b"", b"MemoryError\n", b"x\nValueError: \xff\x1b[2J\n", rng.randbytes(20)))
    stdout = rng.choice((b"", b"ok\n", rng.randbytes(8)))
    return RawRun(random_reply(rng), stdout, stderr, rng.choice((len(stderr), 10**6)), random_result(rng))


@pytest.mark.parametrize("cpu_s, verdict", [(0.01, None), (0.05, Verdict.COMPILE_ERROR)])
def test_a_compiler_that_got_no_processor_says_nothing_about_the_program(cpu_s: float, verdict: Verdict | None) -> None:
    """On a machine with too much to do; one that used its time is the program's fault."""
    reply = wire.Reply(1, signal.SIGKILL, wire.KILLED_WALL, cpu_s, 0.06, 0.0, 9000, 1, 9000, wire.STAGE_BOOT)
    raw = RawRun(reply, b"", b"", 0, b"")
    failure = infrastructure_failure(raw)
    assert (failure is None) == (verdict is not None)
    if verdict is not None:
        spec = RunSpec(wire.MODE_STDIO, -1, b"", 1.0, 0.06, 2**28, 10**5, 1, None)
        assert outcome(raw, spec).verdict is verdict


@MANY
def test_any_run_has_a_verdict(count: int) -> None:
    rng = random.Random(4)
    seen: set[Verdict] = set()
    cases = {
        wire.MODE_STDIO: StdioCase(stdin="", expected="ok"),
        wire.MODE_CALL: CallCase(expected=1),
        wire.MODE_PAIR: AssertCase(code="assert f()"),
    }
    for _ in range(count):
        mode = rng.choice(tuple(cases))
        spec = RunSpec(
            mode, -1, b"", 1.0, 2.0, 2**28, rng.choice((4, 10**5)), 1, b"" if mode == wire.MODE_PAIR else None
        )
        raw = random_run(rng)
        if mode == wire.MODE_PAIR:
            raw = replace(raw, test=random_run(rng))
        failure = infrastructure_failure(raw)
        assert failure is None or failure
        last = raw if raw.test is None else raw.test
        end = outcome(raw, spec) if raw.test is None else pair_outcome(raw, raw.test, spec)
        seen.add(end.verdict)
        if end.verdict is Verdict.ACCEPTED:
            # A kernel that says otherwise cannot be talked round.
            assert (
                last.reply.wait_status == 0
                and last.reply.stages.startswith(b"BR")
                and last.reply.killed_by not in (1, 2)
            )
        if end.verdict is Verdict.SANDBOX_ERROR:
            assert raw.test is not None and not raw.test.reply.stages.startswith(b"BR")
        judged = case_result(raw, spec, cases[mode])
        assert json.loads(judged.result.model_dump_json())["verdict"] == judged.result.verdict.value
        if raw.test is None:
            assert run_output(raw, spec).verdict in Verdict
    assert seen >= set(Verdict) - {Verdict.NOT_RUN, Verdict.WRONG_ANSWER}


# --- a cell whose zygote is not itself ---


class Impostor:
    """The other end of a cell's socket, in a thread: answers each request with whatever `answers` makes of its id."""

    def __init__(self, answers: Callable[[int], list[bytes]]) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answers = answers
        self._socket = theirs
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._socket, contextlib.suppress(OSError):
            while data := self._socket.recv(4096, 0):
                for answer in self._answers(wire.Request.unpack(data).run_id):
                    if answer == b"late":
                        time.sleep(0.05)
                    elif answer == b"hang up":
                        return
                    else:
                        self._socket.send(answer)

    def join(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive()


def reply(run_id: int, stages: bytes = b"BR") -> bytes:
    return wire.Reply(run_id, 0, 0, 0.1, 0.1, 0.0, 1000, 1, 1000, stages).pack()


def strange_answers(rng: random.Random) -> Callable[[int], list[bytes]]:
    good = reply
    kinds: list[Callable[[int], list[bytes]]] = [
        lambda run: [rng.randbytes(rng.randrange(1, 200))],
        lambda run: [good(run)[: rng.randrange(1, wire.REPLY.size)]],
        lambda run: [mutated(rng, good(run)) or b"x"],
        lambda run: [good(run) + rng.randbytes(60_000)],
        lambda run: [good(run) * 1500],  # more than is received at once
        lambda run: [good(run + 1)],
        lambda run: [good(run - 1), good(run)],
        lambda run: [good(run), good(run), good(run + 1)],
        lambda run: [good(run) + good(run)],
        lambda run: [b"late", good(run)],
        lambda run: [b"late", b"hang up"],
        lambda run: [b"hang up"],
        lambda run: [good(run)],
        lambda run: [good(run, b"")],
        lambda run: [],
    ]
    return lambda run: rng.choice(kinds)(run)


@pytest.mark.parametrize("count", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_a_zygote_that_talks_nonsense(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.cell.REPLY_GRACE_S", 0.02)
    rng = random.Random(5)
    ends: dict[str, int] = {}

    async def one() -> None:
        impostor = Impostor(strange_answers(rng))
        process = subprocess.Popen(["/bin/true"])
        cell = Cell(process, impostor.ours, os.memfd_create("stderr"))
        source = sealed_file("source", b"")
        spec = RunSpec(wire.MODE_CALL, source, b"{}", 0.1, 0.1, 2**28, 1000, 1, rng.choice((None, b"")))
        try:
            for _ in range(4):
                raw = await cell.run(spec)
                assert raw.reply.run_id == cell.runs
                ends["run"] = ends.get("run", 0) + 1
        except CellError:
            ends["error"] = ends.get("error", 0) + 1
            assert not cell.alive
        await cell.close()
        os.close(source)
        impostor.join()

    async def scenario() -> None:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.01)

        heartbeat = asyncio.create_task(heart())
        await asyncio.sleep(0)
        before = described_fds()
        started = time.monotonic()
        for _ in range(count):
            await one()
        passed_s = time.monotonic() - started
        assert not more_fds(before)
        assert beats > passed_s * 5
        heartbeat.cancel()

    asyncio.run(scenario())
    assert set(ends) == {"run", "error"}, ends


HELLOS = [
    b"", b"{", b"[]", b"1", b"null", b'"error"', b"{}", b'{"layers": 1}', b'{"layers": {}, "landlock_abi": null}',
    b"[" * 60_000, b'{"error": null}', b'{"layers": {"a": []}, "landlock_abi": 1}', b"\xff\xfe", b"9" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HELLOS)))
def test_a_hello_that_is_none(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandbox import cell as module

    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.send(HELLOS[number])
        made = Cell(subprocess.Popen(["/bin/true"]), ours, os.memfd_create("stderr"))
        monkeypatch.setattr(Cell, "_spawn", classmethod(lambda cls, options: made))
        with theirs, pytest.raises(CellError):
            if not HELLOS[number]:
                theirs.close()
            await Cell.start(module.CellOptions(2))

    before = described_fds()
    asyncio.run(scenario())
    assert not more_fds(before)


# --- programs that write into their channels ---

SCRIBBLER = """
import os, json, random, struct
rng = random.Random({seed})
def junk():
    kind = rng.randrange(7)
    data = rng.randbytes(rng.randrange(60))
    said = {{"value": 1, "args": [[{{"$x": 1}}]], "error": rng.choice(["KeyError", "SystemExit", "\\ud800", 3, None]),
             "text": rng.choice(["\\udfff", "\\x1b[2J", 5]), "passed": True, "by": "test", "detail": "\\ud800"}}
    some = {{key: said[key] for key in rng.sample(sorted(said), rng.randrange(1, 5))}}
    text = json.dumps(some).encode()
    return [data, struct.pack("<I", len(data)) + data, struct.pack("<I", 2**32 - 1) + data, struct.pack("<I", 5),
            struct.pack("<I", len(text)) + text, text, struct.pack("<I", 2) + b"[]"][kind]
def scribble():
    for fd in (3, 4, 5, 1, 2):
        try:
            for _ in range(rng.randrange(4)): os.write(fd, junk())
        except OSError: pass
if rng.random() < 0.3: scribble()
def f(x):
    if rng.random() < 0.8: scribble()
    if rng.random() < 0.3: os._exit(rng.randrange(256))
    if rng.random() < 0.1: os.close(3)
    return rng.choice([1, 2, "\\ud800", [x], scribble])
f(0) if rng.random() < 0.2 else None
"""
PAIR = "try:\n    f([1])\nexcept Exception: pass\nassert f([2]) == 2, f([3])\n"


@pytest.mark.parametrize("count", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_programs_that_scribble(best: Bench, count: int) -> None:
    before = best.pool.stats()

    async def work() -> list[Any]:
        return await asyncio.gather(
            *(
                best.pool.judge(
                    Submission(
                        source=SCRIBBLER.format(seed=seed),
                        entry_point="f",
                        cases=[AssertCase(code=PAIR), CallCase(args=[2], expected="never")],
                        limits=QUICK,
                    )
                )
                for seed in range(count)
            )
        )

    results = best.call(work(), timeout=120)
    seen = {case.verdict for result in results for case in result.cases}
    assert {Verdict.RUNTIME_ERROR, Verdict.WRONG_ANSWER} <= seen
    assert Verdict.SANDBOX_ERROR not in seen
    # The answer that no program gives: what is written beside a returned value is no way to return one.
    assert all(result.cases[1].verdict is not Verdict.ACCEPTED for result in results)
    for result in results:
        assert json.loads(result.model_dump_json())["total"] == 2
    after = best.pool.stats()
    assert (after.sandbox_errors, after.retries) == (before.sandbox_errors, before.retries)
