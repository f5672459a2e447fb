"""The whole round through the command line: interrupted, resumed, and everything that it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from started import Started

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1500)]

STAGES = ("eval before", "tcg", "suites", "search", "policy_sft", "prm", "policy_rl", "new_data", "eval after")
METRICS = {
    "eval/pass_at_1": "round",
    "search/solved": "round",
    "search/tokens_per_s": "round",
    "sandbox/programs_per_s": "round",
    "sandbox/level": "round",
    "sandbox/cache_hits": "round",
    "tcg/output_accuracy": "round",
    "prm/ece": "round",
    "rl/mismatch_kl": "learner/step",
    "sync/version": "round",
    "sync/seconds": "round",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run that is told to stop in its search, then resumed to its end: its two processes. The signal goes to the
    whole group, as `timeout` and batch systems send it: Ray's own processes get it too, and answer no more."""
    run_dir = tmp_path_factory.mktemp("e2e") / "run"
    first = Started("train", "--budget", "tiny", "--run-dir", str(run_dir))
    first.until(lambda: sum(map(told, logs(run_dir).values())) >= 12, 900)
    os.killpg(first.process.pid, signal.SIGTERM)
    first.until_end(50)  # before Ray's client would give up
    (run_dir.parent / "logs-then.json").write_text(json.dumps(logs(run_dir)))
    second = Started("train", "--resume", str(run_dir))
    second.until_end(900)
    return run_dir, first, second


def logs(run_dir):
    """The whole lines of each event log of the search."""
    files = (run_dir / "trees" / "round-1-search").glob("*.jsonl")
    return {f.name: text[: text.rfind("\n") + 1] for f in files for text in [f.read_text()]}


def told(log):
    return log.count('"event":"tell"')


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_saves_and_leaves_no_process(finished):
    run_dir, run, _ = finished
    assert run.process.returncode == 130, run.output
    assert "interrupted by SIGTERM" in run.output
    assert f"--resume {run_dir}" in run.output
    assert len(run.seen) > 5
    assert run.left_behind() == []


def test_a_signal_to_the_whole_group_ends_everything_while_the_engine_loads(tmp_path):
    run = Started("train", "--budget", "tiny", "--run-dir", str(tmp_path / "run"))
    run.until_says("start: started", 120)
    time.sleep(6)
    os.killpg(run.process.pid, signal.SIGTERM)
    run.until_end(50)  # before Ray's client would give up
    assert run.process.returncode == 130, run.output
    assert "interrupted by SIGTERM" in run.output
    assert run.left_behind() == []
    assert json.loads((tmp_path / "run" / "state.json").read_text())
    assert not list(Path("/dev/shm").glob(f"o1coder-{json.loads((tmp_path / 'run' / 'run.json').read_text())['id']}*"))


def test_the_resumed_run_ends_and_leaves_no_process(finished):
    run_dir, *_, second = finished
    assert second.process.returncode == 0, second.output
    assert "eval before: skipped: finished earlier" in second.output or "finished earlier" in second.output
    assert second.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"o1coder-{json.loads((run_dir / 'run.json').read_text())['id']}*"))


def test_a_search_goes_on_from_the_trees_it_was_interrupted_in(finished):
    run_dir, *_ = finished
    then, now = json.loads((run_dir.parent / "logs-then.json").read_text()), logs(run_dir)
    assert sum(map(told, then.values())) >= 12
    for name, log in then.items():
        assert now[name].startswith(log)
    assert sum(map(told, now.values())) > sum(map(told, then.values()))
    assert all('"event":"end"' in log.splitlines()[-1] for log in now.values())


def test_every_stage_is_recorded_once(finished):
    run_dir, *_ = finished
    stages = json.loads((run_dir / "state.json").read_text())["stages"]
    assert {key.split("/", 1)[1] for key in stages} == set(STAGES)


def test_metrics_have_their_axes(finished):
    run_dir, *_ = finished
    rows = metrics(run_dir)
    for name, axis in METRICS.items():
        with_it = [row for row in rows if name in row]
        if name == "rl/mismatch_kl" and not with_it:
            stage = json.loads((run_dir / "state.json").read_text())["stages"]["1/policy_rl"]
            assert "skipped" in stage, "RL ran but logged nothing"
            continue
        assert with_it, f"{name} was never logged"
        assert all(axis in row and "wall_s" in row for row in with_it)
    versions = [row["sync/version"] for row in rows if "sync/version" in row]
    assert versions == sorted(set(versions)), "versions must only rise"
    assert all(row["sync/probe_to_new"] < 0.15 for row in rows if "sync/probe_to_new" in row)


def test_something_was_said_at_least_every_half_minute(finished):
    *_, second = finished
    times = [at for at, _ in second.lines]
    assert max(b - a for a, b in itertools.pairwise(times)) < 36


def test_the_report_is_complete(finished):
    run_dir, *_, second = finished
    report = json.loads((run_dir / "report.json").read_text())
    assert report["eval_before"]["samples"] == report["eval_after"]["samples"] == 2
    assert report["problems_searched"] == 12
    assert report["tests_by_origin"]["given"] > 0
    assert report["difference"] is not None
    assert report["stopped_early"] == ""
    assert report["showcase"]["problem_id"].startswith("bundled/")
    assert str(run_dir) in second.output
    assert (run_dir / "report.txt").read_text().strip()


def test_process_data_is_readable_by_datasets_and_true_to_the_trees(finished):
    from datasets import load_dataset

    from cluster.store import ProcessDataStore

    run_dir, *_ = finished
    file = run_dir / "data" / "paths" / "round-1-search.parquet"
    table = load_dataset("parquet", data_files=str(file), cache_dir=str(run_dir.parent / "hf"))["train"]
    paths = ProcessDataStore(run_dir / "data").read_paths(["round-1-search"])
    assert len(table) == len(paths) > 0
    for path in paths:
        assert path.prompt_ids
        for step in path.steps:
            assert len(step.token_ids) == len(step.logprobs) > 0
            assert [s[0] for s in step.weight_spans] == sorted(s[0] for s in step.weight_spans)
            assert step.passed <= step.sampled


def test_trees_replay_from_their_event_logs(finished):
    from cluster.store import ProcessDataStore
    from reasoning.event_log import Ended, decode
    from reasoning.tree import SearchTree

    run_dir, *_ = finished
    files = sorted((run_dir / "trees" / "round-1-search").glob("*.jsonl"))
    assert len(files) == 12
    paths = ProcessDataStore(run_dir / "data").read_paths(["round-1-search"])
    for file in files:
        events = decode(file.read_bytes())
        tree = SearchTree.replay(events)
        assert tree.idle and isinstance(events[-1], Ended)
        assert [p.steps for p in tree.paths()] == [p.steps for p in paths if p.tree_id == tree.id]


def test_suites_hold_no_test_twice_and_reference_outputs_are_right(finished):
    import asyncio

    from cluster.store import ProcessDataStore
    from reasoning.problems import bundled
    from sandbox import LocalPool, Submission, Verdict

    run_dir, *_ = finished
    suites = ProcessDataStore(run_dir / "data").read_suites("current")
    problems = {p.id: p for p in bundled()}

    async def judge():
        async with LocalPool(slots=1) as pool:
            for suite in suites:
                problem = problems[suite.problem_id]
                for reference in problem.references:
                    cases = [t.case for t in suite.tests]
                    result = await pool.judge(
                        Submission(source=reference, entry_point=problem.entry_point, cases=cases)
                    )
                    assert result.verdict is Verdict.ACCEPTED, suite.problem_id

    asyncio.run(judge())
    for suite in suites:
        texts = [t.case.model_dump_json() for t in suite.tests]
        assert len(texts) == len(set(texts))
        assert not {t.case.model_dump_json() for t in suite.holdout} & set(texts)


def test_checkpoints_are_plain_hugging_face_directories(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir, *_ = finished
    policy = run_dir / json.loads((run_dir / "state.json").read_text())["policy"]
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert model.config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(policy).chat_template


def test_wandb_has_the_run_offline(finished):
    run_dir, *_ = finished
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    wandb = Path(sys.executable).with_name("wandb")
    seen = subprocess.run(
        [wandb, "leet", "inspect", "--json", files[-1]],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert "eval/pass_at_1" in seen.stdout
    assert "search/solved" in seen.stdout


FITS = {
    "prm": ("prm.labels=hard", "prm.token_budget=1500"),
    "policy-rl": ("rl.algorithm=dpo", "rl.sft_weight=0.5"),
    "tcg": ("tcg.dpo_pairs=4", "tcg.sft_epochs=1"),
}


@pytest.mark.parametrize("what", FITS)
def test_one_learner_can_be_fitted_alone(finished, tmp_path, what):
    source = finished[0]
    before = {f: f.stat().st_mtime_ns for f in source.rglob("*") if f.is_file()}
    run = Started("fit", what, "--data", str(source), "--run-dir", str(tmp_path / "fit"), *FITS[what])
    run.until_end(600)
    assert run.process.returncode == 0, run.output
    assert run.left_behind() == []
    assert {f: f.stat().st_mtime_ns for f in source.rglob("*") if f.is_file()} == before, "the run is left as it is"
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert (report["what"], report["source"], report["round"]) == (what, str(source), 1)
    assert "Fit finished" in run.output
    if report["skipped"]:  # a policy that solves nothing has no pairs to show
        assert what != "tcg", report["skipped"]
        return
    assert report["losses"]
    assert all((Path(path) / "config.json").exists() for path in report["checkpoints"])
    assert report["checkpoints"]


@pytest.fixture(scope="module")
def second_round(finished):
    """Another, smaller round on top of a copy of the finished run, with adapters, a critic and a reference."""
    run_dir = finished[0].with_name("two-rounds")
    shutil.copytree(finished[0], run_dir)
    smaller = (
        "search.problems=4", "tcg.sft_completions=0", "rl.problems=3", "new_data.problems=2", "prm.token_budget=1500",
        "rl.advantage=gae", "rl.kl_weight=0.01", "learner.lora_rank=4",
        "eval.rollback=1",  # six problems are noise enough to go back to the first policy
    )  # fmt: skip
    run = Started("train", "--resume", str(run_dir), "rounds=2", *smaller)
    run.until_end(900)
    return run_dir, run


def test_a_finished_run_goes_on_with_another_round(finished, second_round):
    run_dir, run = second_round
    assert run.process.returncode == 0, run.output
    assert run.left_behind() == []
    before = json.loads((finished[0] / "state.json").read_text())
    after = json.loads((run_dir / "state.json").read_text())
    assert set(after["stages"]) == {"0/eval before", *(f"{r}/{s}" for r in (1, 2) for s in STAGES[1:])}
    assert all(after["stages"][key] == stage for key, stage in before["stages"].items())
    searched = [set(after["stages"][f"{r}/search"]["searched"]) for r in (1, 2)]
    assert not searched[0] & searched[1], "the second round searches other problems"
    assert after["policy"].startswith("checkpoints/policy-round-2")
    with safe_open(run_dir / after["policy"] / "model.safetensors", "pt") as weights:
        assert not any("lora" in name for name in weights.keys())  # noqa: SIM118
    versions = [row["sync/version"] for row in metrics(run_dir) if "sync/version" in row]
    assert versions == sorted(set(versions)), "versions go on rising"
    assert {row["round"] for row in metrics(run_dir) if "eval/pass_at_1" in row} == {0, 1, 2}


def test_a_round_may_have_a_critic_and_a_reference(second_round):
    run_dir, _ = second_round
    state = json.loads((run_dir / "state.json").read_text())
    if "skipped" in state["stages"]["2/policy_rl"]:
        pytest.skip(f"RL had nothing to learn from: {state['stages']['2/policy_rl']['skipped']}")
    assert (run_dir / state["critic"] / "config.json").exists()
    rows = [row for row in metrics(run_dir) if row.get("round") == 2]
    assert any("critic/loss" in row for row in rows)
    assert all(row["rl/kl_reference"] >= 0 for row in rows if "rl/loss" in row)
