"""Tree search alone through the command line: what it leaves behind, killed, told to stop, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from started import Started

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1500)]

IDS = ("sum_of_evens", "count_vowels", "is_even", "largest_number")
NAMES = [f"bundled-{name}" for name in sorted(IDS)]
LEAVES = 4
"""Expansions of a tree in flight at a time, as the budget has it."""


def logs(run_dir: Path) -> dict[str, bytes]:
    """The whole lines of each event log."""
    files = (run_dir / "trees" / "search").glob("*.jsonl")
    return {f.stem: data[: data.rfind(b"\n") + 1] for f in files for data in [f.read_bytes()]}


def told(data: bytes) -> int:
    return data.count(b'"event":"tell"')


def state(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "state.json").read_text())


# --- one that ends by itself ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("search") / "run"
    small = ("search.token_budget=200", "wandb.mode=offline")
    run = Started("search", "--budget", "tiny", "--policy", "gumbel", "--run-dir", str(run_dir), "--ids", *IDS, *small)
    run.until_end(600)
    return run_dir, run


def test_a_search_ends_and_leaves_no_process(finished):
    run_dir, run = finished
    assert run.process.returncode == 0, run.output
    assert len(run.seen) > 3
    assert run.left_behind(5) == []
    for part in ("Search finished", "sampled tokens", "tokens/s", "programs judged", "95 % interval", str(run_dir)):
        assert part in run.output


def test_every_problem_has_a_finished_tree_that_replays(finished):
    from cluster.store import ProcessDataStore
    from reasoning.event_log import Ended, decode, opening
    from reasoning.problems import bundled
    from reasoning.tree import SearchTree

    run_dir, _ = finished
    found = logs(run_dir)
    assert sorted(found) == NAMES
    problems = {p.id: p for p in bundled()}
    paths = ProcessDataStore(run_dir / "data").read_paths(["search"])
    for data in found.values():
        events = decode(data)
        tree = SearchTree.replay(events)
        assert isinstance(events[-1], Ended)
        assert opening(events).settings["policy"] == "gumbel"
        own = [p for p in paths if p.tree_id == tree.id]
        assert [p.steps for p in tree.paths()] == [p.steps for p in own]
        # All tests of the problem judge, and they alone.
        totals = {p.tests_total for p in own if p.program is not None}
        assert totals <= {len(problems[tree.problem_id].tests)}


def test_data_and_report_say_the_same(finished):
    from datasets import load_dataset

    from cluster.store import ProcessDataStore
    from reasoning.records import StepLabel, StepPair

    run_dir, run = finished
    data = run_dir / "data"
    paths = ProcessDataStore(data).read_paths(["search"])
    file = str(data / "paths" / "search.parquet")
    assert len(load_dataset("parquet", data_files=file, cache_dir=str(run_dir.parent / "hf"))["train"]) == len(paths)
    assert ProcessDataStore(data).read_records("labels", "search", StepLabel)
    assert all(p.margin >= 0.25 for p in ProcessDataStore(data).read_records("pairs", "search", StepPair))
    report = json.loads((run_dir / "report.json").read_text())
    solved = sorted({p.problem_id for p in paths if p.solved})
    assert (report["problems"], report["searched"], report["policy"]) == (4, 4, "gumbel")
    assert report["solved_ids"] == solved and report["solved"] == len(solved)
    assert report["paths"] == len(paths)
    assert report["programs"] == sum(p.program is not None for p in paths) > 0
    assert report["tokens"] >= 4 * 200 and report["tokens_per_s"] > 0 and report["lost"] == 0
    assert report["solved_share"]["n"] == 4
    assert all(problem_id in run.output for problem_id in solved)
    assert "Search finished" in (run_dir / "report.txt").read_text()


def test_solutions_have_the_published_layout(finished):
    from cluster.store import ProcessDataStore

    run_dir, _ = finished
    paths = ProcessDataStore(run_dir / "data").read_paths(["search"])
    files = sorted((run_dir / "solutions").glob("*.json"))
    assert [f.stem for f in files] == NAMES
    solutions = [s for f in files for s in json.loads(f.read_text())]
    assert len(solutions) == sum(p.complete and p.program is not None for p in paths)
    for solution in solutions:
        assert solution["0"]["node_id"] == 0 and solution["0"]["question"]
        for step in list(solution.values())[:-1]:
            assert 0 <= step["step_value"] <= 1 and len(step["edges"]) == 2 and step["ost_step"]


def test_metrics_are_written_as_the_search_goes_and_at_its_end(finished):
    run_dir, _ = finished
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    live = [row for row in rows if "trees/done" in row]
    assert len(live) >= 2 and live[-1]["trees/done"] == 4
    (last,) = [row for row in rows if "search/solved" in row]
    report = json.loads((run_dir / "report.json").read_text())
    assert (last["search/solved"], last["search/tokens"]) == (report["solved"], report["tokens"])
    assert live[-1]["trees/tokens"] == report["tokens"]
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


def test_going_on_with_a_finished_search_only_writes_its_outputs_again(finished):
    run_dir, _ = finished
    before, wrote = logs(run_dir), (run_dir / "data" / "pairs" / "search.parquet").read_bytes()
    note = json.loads((run_dir / "report.json").read_text())["wandb_note"]
    for name in ("report.json", "data/paths/search.parquet"):
        (run_dir / name).unlink()
    run = Started("search", "--resume", str(run_dir))
    run.until_end(60)
    assert run.process.returncode == 0, run.output
    assert "engine" not in run.output
    assert logs(run_dir) == before
    assert (run_dir / "data" / "pairs" / "search.parquet").read_bytes() == wrote
    report = json.loads((run_dir / "report.json").read_text())
    assert report["searched"] == 4 and report["wandb_note"] == note != ""
    assert (run_dir / "data" / "paths" / "search.parquet").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--policy", "uct"], "search.policy: got 'uct'"),
        (["--seed", "7"], "seed: got 7"),
        (["--problems", "mbpp"], "problems: got 'mbpp'"),
        (["--ids", "is_even"], "ids: got ('is_even',)"),
        (["--split", "train"], "split: got 'train'"),
        (["--budget", "laptop"], "got"),
        (["search.samples=2"], "search.samples: got 2"),
    ],
)
def test_a_resume_cannot_be_another_search(finished, arguments, says):
    run_dir, _ = finished
    before = {f: f.read_bytes() for f in (run_dir / "config.yaml", run_dir / "state.json")}
    run = Started("search", "--resume", str(run_dir), *arguments)
    run.until_end(60)
    assert run.process.returncode == 2
    assert says in run.output and run.output.count("\n") == 1
    assert "cannot change on a resume" in run.output
    assert {f: f.read_bytes() for f in before} == before


# --- one that is killed, told to stop, and gone on with ---


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("disturbed") / "run"
    # Budgets that one process does not reach before it is disturbed.
    ways = ("search.token_budget=1200", "search.expansion_budget=80", "search.enough_passing=99", "wandb.mode=offline")
    first = Started("search", "--budget", "tiny", "--run-dir", str(run_dir), "--ids", *IDS, *ways)
    first.until(lambda: sum(map(told, logs(run_dir).values())) >= 20, 600)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.until_end(30)
    first_left = first.left_behind(20)
    killed = logs(run_dir)
    second = Started("search", "--resume", str(run_dir))
    second.until(lambda: sum(map(told, logs(run_dir).values())) >= sum(map(told, killed.values())) + 12, 600)
    began = time.monotonic()
    os.killpg(second.process.pid, signal.SIGTERM)
    second.until_end(60)
    seconds = time.monotonic() - began
    stopped = logs(run_dir)
    broken = Started("search", "--resume", str(run_dir))
    broken.until(lambda: sum(map(told, logs(run_dir).values())) >= sum(map(told, stopped.values())) + 8, 600)
    for process in broken.seen.values():
        if process.is_running() and process.name().startswith("VLLM::Engine"):
            process.kill()
    broken.until_end(120)
    third = Started("search", "--resume", str(run_dir))
    third.until_end(900)
    return run_dir, (first, first_left, killed), (second, seconds, stopped), (broken, third)


def test_a_kill_ends_every_process(disturbed):
    _, (first, left, _), *_ = disturbed
    assert first.process.returncode == -signal.SIGKILL
    assert len(first.seen) > 3
    assert left == []


def test_a_kill_costs_only_what_was_in_flight(disturbed):
    from reasoning.event_log import Abandoned, Told, decode
    from reasoning.tree import SearchTree

    run_dir, (_, _, killed), _, _ = disturbed
    assert len(killed) == 4 and not any(b'"event":"end"' in data for data in killed.values())
    for name, after in logs(run_dir).items():
        before = killed[name]
        assert after.startswith(before), "the log was gone on with"
        in_flight = set(SearchTree.replay(decode(before)).in_flight)
        assert len(in_flight) <= LEAVES
        # First every expansion that was in flight is given up, and then the search goes on; nothing else is lost.
        following = decode(after)[before.count(b"\n") :]
        given_up = [
            e.id
            for e in following
            if getattr(e, "id", None) in in_flight
            and (isinstance(e, Abandoned) or (isinstance(e, Told) and e.outcome.pruned))
        ]
        assert set(given_up) == in_flight
        assert all(getattr(e, "id", None) in in_flight for e in following[: len(given_up)])


def test_a_signal_ends_a_search_in_seconds_and_leaves_whole_files(disturbed):
    run_dir, _, (second, seconds, stopped), _ = disturbed
    assert second.process.returncode == 130, second.output
    assert seconds < 40
    assert "trees: 0 ended, 4 to go on with, 0 new" in second.output
    assert "interrupted by SIGTERM" in second.output
    assert f"--resume {run_dir}" in second.output
    assert second.left_behind(5) == []
    assert all(logs(run_dir)[name].startswith(data) for name, data in stopped.items())


def test_a_dead_engine_ends_the_search_in_one_line(disturbed):
    run_dir, *_, (broken, _) = disturbed
    assert broken.process.returncode == 1, broken.output
    last = broken.lines[-1][1]
    assert last.startswith("o1coder: a worker failed: ") and f"--resume {run_dir}" in last
    assert "Traceback" not in broken.output
    assert "Search stopped early" in broken.output
    assert broken.left_behind(5) == []


def test_a_disturbed_search_comes_to_its_end(disturbed):
    run_dir, _, (_, _, stopped), (_, third) = disturbed
    assert third.process.returncode == 0, third.output
    assert re.search(r"trees: \d ended, \d to go on with, 0 new", third.output)
    assert third.left_behind(5) == []
    report = json.loads((run_dir / "report.json").read_text())
    assert (report["searched"], report["stopped_early"]) == (4, "")
    assert report["tokens"] >= 4 * 1200 * 0.9
    assert all(data.count(b'"event":"end"') == 1 for data in logs(run_dir).values())
    for name, data in stopped.items():
        if b'"event":"end"' in data:
            assert logs(run_dir)[name] == data, "a finished tree is not searched again"
    assert sorted(f.stem for f in (run_dir / "solutions").glob("*.json")) == NAMES
    assert state(run_dir)["seconds"] > 0
