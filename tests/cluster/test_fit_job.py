"""`o1coder fit` up to its first actor: which earlier runs it takes, what it takes of them, and what it is told."""

import json
import os
from types import SimpleNamespace

import pytest
from made_files import MODEL, lines, one_line, write
from made_records import PROBLEM_ROW

from cluster import cli, fit_job, memory
from cluster.config import load
from cluster.fit_report import FitReport, render, training_rows
from cluster.run_dir import RunDir

ROWS = [{**PROBLEM_ROW, "id": f"mine/{n}", "split": "heldout" if n > 3 else "train"} for n in range(6)]
SHARDS = (
    *("paths/round-1-search", "paths/round-1-new", "paths/round-2-search", "paths/round-2-new", "paths/eval-before"),
    *("paths/rl-round-1", "paths/rl-round-2", "paths/samples-round-1", "paths/samples-round-2"),
    *("generated/round-1", "generated/round-1-sft-own-code", "generated/round-2-sft-own-code", "labels/round-1"),
    *("paths/eval-after-round-1", "paths/round-10-search", "paths/rl-round-10", "paths/samples-round-10"),
)
STAGES = {
    f"{r}/{stage}": {
        "seconds": 1.0,
        "models": {"policy": f"checkpoints/policy-{r}", "shots": 0, "tcg": "checkpoints/tcg"},
    }
    for r in (1, 2)
    for stage in ("tcg", "policy_sft", "prm", "policy_rl")
}


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """The command line in this process, in `tmp_path`; returns the code, standard error, and what would have begun."""
    before = dict(os.environ)
    begun = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit_job, "_run", lambda fit, model: begun.append(fit) or 0)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    write(tmp_path, {"p.jsonl": lines(*ROWS), **MODEL})

    def call(*arguments):
        given = arguments if {"--run-dir", "--resume"} & set(arguments) else [*arguments, "--run-dir", "fitted"]
        begun.clear()
        code = cli.main(["fit", *given])
        if begun:
            begun[0].run_dir.close()
        return code, capfd.readouterr().err, begun[0] if begun else None

    yield call
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def source(tmp_path):
    """An earlier run of two rounds, with files that say where they are from."""

    def make(**state):
        run = RunDir.create(tmp_path / "earlier", ["o1coder", "train"])
        config = load("tiny", (f"problems={tmp_path}/p.jsonl", f"model={tmp_path}/model", "seed=5"))
        run.write_atomic(run.config, config.dump())
        run.write_state({"stages": STAGES, "taken": {"1": [0, 2]}, **state})
        for shard in SHARDS:
            file = run.data / f"{shard}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(shard)
        for name in ("policy-1", "policy-2", "tcg"):
            (run.checkpoints / name).mkdir()
            (run.checkpoints / name / "config.json").write_text("{}")
        run.close()
        return run

    return make


def test_it_begins_where_the_stage_began(command, source, tmp_path):
    source()
    code, error, fit = command("policy-rl", "--data", "earlier", "rl.advantage=vine")
    assert (code, error) == (0, "")
    state = json.loads((tmp_path / "fitted" / "state.json").read_text())
    assert (state["kind"], state["what"], state["round"]) == ("fit", "policy-rl", 2)
    assert state["policy"] == state["began_with"] == str(tmp_path / "earlier" / "checkpoints" / "policy-2")
    assert (state["taken"], state["shots"]) == ({"1": [0, 2]}, 0)
    assert "stages" not in state
    assert (fit.config.rl.advantage, fit.config.seed) == ("vine", 5)
    assert fit.round_ == 2


def test_an_earlier_round_may_be_named(command, source, tmp_path):
    source()
    _, _, fit = command("prm", "--data", "earlier", "--round", "1")
    assert fit.round_ == 1
    assert fit.state["policy"] == str(tmp_path / "earlier" / "checkpoints" / "policy-1")


@pytest.mark.parametrize(
    ("what", "round_", "expected"),
    [
        ("policy-sft", 1, {"paths/round-1-search"}),
        ("prm", 2, {"paths/round-1-search", "paths/round-1-new", "paths/round-2-search"}),
        ("policy-rl", 1, {"paths/rl-round-1", "paths/round-1-search"}),
        ("tcg", 1, {"paths/samples-round-1", "generated/round-1-sft-own-code"}),
        (
            "tcg",
            2,
            {
                *("paths/samples-round-1", "paths/samples-round-2", "paths/rl-round-1", "paths/round-1-search"),
                *("paths/round-1-new", "generated/round-2-sft-own-code"),
            },
        ),
    ],
)
def test_it_takes_what_the_stage_had(source, tmp_path, what, round_, expected):
    run = source()
    for _ in range(2):  # the second time as on a resume
        fit_job.link_data(what, run.data, tmp_path / "data", round_)
        found = {str(f.relative_to(tmp_path / "data")) for f in (tmp_path / "data").rglob("*.parquet")}
        assert found == {f"{shard}.parquet" for shard in expected}
        assert all((tmp_path / "data" / f"{shard}.parquet").read_text() == shard for shard in expected)


def test_files_keep_their_time_where_they_cannot_be_shared(source, tmp_path, monkeypatch):
    run = source()
    os.utime(run.data / "paths" / "samples-round-1.parquet", (1e9, 1e9))

    def other_file_system(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    fit_job.link_data("tcg", run.data, tmp_path / "data", 1)
    assert (tmp_path / "data" / "paths" / "samples-round-1.parquet").stat().st_mtime == 1e9


def test_a_round_after_a_rollback_begins_with_the_model_of_the_start(command, source):
    source(stages={"1/prm": {"seconds": 1.0, "models": {"policy": "", "shots": 2}}})
    code, error, fit = command("prm", "--data", "earlier")
    assert (code, error) == (0, "")
    assert (fit.state["policy"], fit.state["shots"]) == ("", 2)


def test_another_seed_is_another_fit_but_for_the_generator(command, source):
    source()
    code, _, fit = command("prm", "--data", "earlier", "seed=6")
    assert (code, fit.config.seed) == (0, 6)


def test_a_fit_goes_on(command, source, tmp_path):
    source()
    command("prm", "--data", "earlier")
    code, error, fit = command("prm", "--resume", "fitted", "learner.threads=1")
    assert (code, error) == (0, "")
    assert (fit.round_, fit.config.learner.threads) == (2, 1)
    code, error, _ = command("policy-sft", "--resume", "fitted")
    assert code == 2
    one_line(error, "learner", "'policy-sft'", "'prm', as the run began")


CASES = {
    "nothing": (["prm"], ["data", "use --data RUN_DIR"]),
    "both": (["prm", "--data", "earlier", "--resume", "earlier"], ["data", "either --data or --resume"]),
    "no run": (["prm", "--data", "none"], ["data", "'none'", "no config.yaml"]),
    "no such round": (["prm", "--data", "earlier", "--round", "3"], ["round", "'3'", "one of 1, 2"]),
    "no number": (["prm", "--data", "earlier", "--round", "x"], ["round", "'x'", "one of 1, 2"]),
    "another seed": (["tcg", "--data", "earlier", "seed=6"], ["seed", "got 6", "as the run began", "data is of that"]),
    "other problems": (["prm", "--data", "earlier", "problems=bundled"], ["problems", "as the run began"]),
    "a round to go on": (["prm", "--resume", "earlier", "--round", "1"], ["round", "either --round or --resume"]),
    "unknown": (["prm", "--data", "earlier", "--budget", "tiny"], ["--budget", "fit --help"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_and_leaves_nothing(command, source, tmp_path, case):
    source()
    arguments, says = CASES[case]
    code, error, begun = command(*arguments)
    assert (code, begun) == (2, None)
    one_line(error, *says)
    assert not (tmp_path / "fitted").exists()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"kind": "search"}, ["data", "it is a run of `o1coder search`"]),
        ({"stages": {"1/tcg": {}}}, ["data", "stage prm has ended"]),
        ({"stages": {"1/prm": {"seconds": 1.0}}}, ["data", "notes the models"]),
    ],
)
def test_runs_that_it_cannot_learn_from_are_refused(command, source, tmp_path, state, says):
    source(**state)
    code, error, _ = command("prm", "--data", "earlier")
    assert code == 2
    one_line(error, *says)


def test_checkpoints_that_are_gone_are_told_of_where_they_are_needed(command, source, tmp_path):
    run = source()
    (run.checkpoints / "tcg" / "config.json").unlink()
    assert command("prm", "--data", "earlier")[0] == 0
    (run.checkpoints / "policy-2" / "config.json").unlink()
    code, error, _ = command("policy-sft", "--data", "earlier", "--run-dir", "other")
    assert code == 2
    one_line(error, "data", "policy-2 is gone")


def test_a_run_without_the_data_is_refused_and_leaves_nothing(command, source, tmp_path):
    run = source()
    (run.data / "paths" / "rl-round-2.parquet").unlink()
    code, error, _ = command("policy-rl", "--data", "earlier")
    assert code == 2
    one_line(error, "data", "rl-round-2.parquet")
    assert not (tmp_path / "fitted").exists()


def test_of_a_step_that_was_done_twice_the_later_row_counts(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [
        {"learner/step": 1, "prm/loss": 0.9, "prm/tokens_per_s": 5.0},
        {"learner/step": 2, "prm/loss": 0.8},
        {"learner/step": 2, "prm/loss": 0.7},
        {"round": 1, "stage/prm_s": 3.0},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {name: [row["loss"] for row in own] for name, own in training_rows(file).items()} == {"prm": [0.9, 0.7]}
    assert training_rows(tmp_path / "none") == {}


def test_the_report_is_for_people(capsys):
    from rich.console import Console

    report = FitReport(
        run_dir="/r",
        what="prm",
        source="/s",
        round=1,
        model="m",
        seed=0,
        losses={"prm": [n / 7 for n in range(30)]},
        seconds=9.5,
    )
    render(report, Console(width=80))
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    for word in ("Fit finished: prm", "prm loss", "30", "0.000", "4.143", "9.5"):
        assert word in shown
