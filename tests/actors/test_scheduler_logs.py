"""The logs of searches that a scheduler runs: gone on with, refused, and whole after a kill."""

import asyncio
import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from search_fakes import CASES, FakeJudge, FakeSampler, config, job, logged, scheduler

from actors.sampling import EngineError
from reasoning.event_log import Ended, EventLogError, decode
from reasoning.nodes import BROKEN_OFF
from reasoning.records import Suite
from reasoning.steps import StepCodec
from reasoning.tree import SearchTree

ROOT = Path(__file__).resolve().parents[2]


def test_a_finished_log_is_not_searched_again_and_one_of_another_search_is_refused(tmp_path):
    first, _ = logged(tmp_path, FakeSampler(), FakeJudge())
    sampler = FakeSampler()
    again, _ = logged(tmp_path, sampler, FakeJudge())
    assert sampler.draws == []
    assert (again.reason, again.tree.paths()) == (first.reason, first.tree.paths())
    with pytest.raises(EventLogError, match="its settings differs"):
        logged(tmp_path, sampler, FakeJudge(), token_budget=500)
    fewer = dataclasses.replace(job(log=tmp_path / "t.jsonl"), suite=Suite(problem_id="p", tests=CASES[:1]))
    with pytest.raises(EventLogError, match="its judged_by differs"):
        asyncio.run(scheduler(sampler, FakeJudge()).search(fewer))
    (tmp_path / "t.jsonl").write_text("{}\n")
    with pytest.raises(EventLogError, match="line 1"):
        logged(tmp_path, sampler, FakeJudge())


def test_two_searches_do_not_write_one_log(tmp_path):
    log = tmp_path / "t.jsonl"

    async def work():
        made = scheduler(FakeSampler(delay=0.01), FakeJudge())
        return await asyncio.gather(*[made.search(job(log=log)) for _ in range(2)], return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(work(), 20))
    (error,) = [f for f in found if isinstance(f, EventLogError)]
    assert "t.jsonl: another process writes it" in str(error)
    (fine,) = [f for f in found if f is not error]
    assert SearchTree.replay(decode(log.read_bytes())).paths() == fine.tree.paths()


@pytest.mark.parametrize("spoilt", ["begin left out", "slot", "settings", "headers", "token ids"])
def test_a_log_that_does_not_follow_ends_that_search_alone(tmp_path, spoilt):
    """It is found out while another tree ends; nobody waits for ever."""
    log = tmp_path / "t1.jsonl"
    logged(tmp_path, FakeSampler(), FakeJudge())
    lines = (tmp_path / "t.jsonl").read_text().splitlines(keepends=True)[:-1]
    lines = [line.replace('"t"', '"t1"') for line in lines]
    match spoilt:
        case "begin left out":
            lines.pop(next(n for n, line in enumerate(lines) if '"begin"' in line))
        case "slot":
            lines = [line.replace('"slot":1,', '"slot":99,') for line in lines]
        case "settings":
            lines[0] = re.sub(r'"max_depth":\d+', '"max_depth":-1', lines[0])
        case "headers":
            lines[0] = re.sub(r'"headers":\[\[.*?\]\]\]', '"headers":[]', lines[0])
        case "token ids":
            lines = [re.sub(r'"token_ids":\[\d+', '"token_ids":[99999999999', line) for line in lines]
    log.write_text("".join(lines))
    with pytest.raises(EventLogError):
        SearchTree.replay(decode(log.read_bytes()))

    async def work():
        made = scheduler(FakeSampler(delay=0.001), FakeJudge(), outstanding=1, max_trees=1)
        names = ["t0", "t1", "t2"]
        jobs = [job(name, log=tmp_path / f"{name}.jsonl") for name in names]
        return await asyncio.gather(*[made.search(j) for j in jobs], return_exceptions=True)

    first, broken, last = asyncio.run(asyncio.wait_for(work(), 20))
    assert isinstance(broken, EventLogError) and "t1.jsonl" in str(broken)
    assert first.tree.idle and last.tree.idle


def test_a_tree_that_infrastructure_errors_ended_is_gone_on_with(tmp_path):
    class Broken(FakeSampler):
        async def draw(self, *arguments):
            raise EngineError("down")

    first, _ = logged(tmp_path, Broken(), FakeJudge())
    assert first.reason == BROKEN_OFF and not first.tree.report(first.reason, 1.0).finished
    again, events = logged(tmp_path, FakeSampler(), FakeJudge())
    assert again.reason != BROKEN_OFF and again.tree.root.visits > 0
    assert [e.reason for e in events if isinstance(e, Ended)] == [BROKEN_OFF, again.reason]
    assert SearchTree.replay(events).paths() == again.tree.paths()


def test_a_log_with_other_headers_is_of_another_search(tmp_path):
    """Else the tree would hold prompts that nobody was asked for."""

    class Broken(FakeSampler):
        async def draw(self, *arguments):
            raise EngineError("down")

    logged(tmp_path, Broken(), FakeJudge())
    other = StepCodec(lambda text: [ord(c) + 1 for c in text])

    async def work():
        return await scheduler(FakeSampler(), FakeJudge(), codec=other).search(job(log=tmp_path / "t.jsonl"))

    with pytest.raises(EventLogError, match="its headers differ"):
        asyncio.run(work())


def test_a_log_that_cannot_be_written_ends_that_search_alone(tmp_path, monkeypatch):
    write = os.write

    def full(fd, data):
        if b"full" in data or (b'"id":3' in data and fd in fds):
            fds.add(fd)
        if fd in fds and b'"id":3' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    fds = set()
    monkeypatch.setattr(os, "write", full)

    async def work():
        sampler = FakeSampler(delay=0.01)
        made = scheduler(sampler, FakeJudge())
        lost = asyncio.create_task(made.search(job("full", log=tmp_path / "full")))
        fine = await made.search(job("fine", log=tmp_path / "fine"))
        with pytest.raises(OSError, match="No space left"):
            await lost
        await asyncio.sleep(0.05)
        return fine, made.outstanding, made.active, sampler.running

    fine, *left = asyncio.run(work())
    assert fds and fine.tree.idle and left == [0, 0, 0]


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from search_fakes import FakeJudge, FakeSampler, job, scheduler
async def work():
    made = scheduler(FakeSampler(delay=0.01), FakeJudge())
    logs = Path(sys.argv[2])
    changes = dict(token_budget=100_000, expansion_budget=5000)
    await asyncio.gather(*[made.search(job(f"t{i}", i, log=logs / f"t{i}.jsonl", **changes)) for i in range(4)])
asyncio.run(work())
"""


def test_after_kill_9_at_most_the_expansions_in_flight_are_lost(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)], cwd=ROOT)
    logs = [tmp_path / f"t{i}.jsonl" for i in range(4)]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.stat().st_size > 20_000 for log in logs):
        assert time.monotonic() < deadline and done.poll() is None
        time.sleep(0.02)
    os.kill(done.pid, signal.SIGKILL)
    done.wait(10)
    for number, log in enumerate(logs):
        before = SearchTree.replay(decode(log.read_bytes()))
        assert 0 < len(before.in_flight) <= config().leaves_in_flight
        nodes = [n.text for n in before.nodes]
        budget = before.expansions + 10

        async def go_on(number=number, log=log):
            changes = {"token_budget": 100_000, "expansion_budget": 5000}
            made = scheduler(FakeSampler(seed=7), FakeJudge())
            task = asyncio.create_task(made.search(job(f"t{number}", number, log=log, **changes)))
            while SearchTree.replay(decode(log.read_bytes())).expansions < budget:  # noqa: B023
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(asyncio.wait_for(go_on(), 60))
        after = SearchTree.replay(decode(log.read_bytes()))
        assert [n.text for n in after.nodes][: len(nodes)] == nodes
        assert after.pruned > 0 and after.expansions >= budget
