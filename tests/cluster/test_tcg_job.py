"""`o1coder tcg` up to its first actor: bad input ends in one line and leaves nothing, good input gets through."""

import json
import os
from types import SimpleNamespace

import pytest
from made_files import MODEL, lines, one_line, write
from made_records import PROBLEM_ROW

from cluster import cli, memory, tcg_job
from cluster.config import CONFIGS, load
from cluster.store import ProcessDataStore
from reasoning.records import ProblemTest, Suite, SuiteQuality
from sandbox import CallCase

ROWS = [{**PROBLEM_ROW, "id": f"mine/{n}", "split": "heldout" if n > 3 else "train"} for n in range(6)]
BARE = {**PROBLEM_ROW, "id": "mine/bare", "references": [], "split": "train"}
COMMON = ("--problems", "p.jsonl", "--model", "model")


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """The command line in this process, in `tmp_path`; returns the code, standard error, and what would have begun."""
    before = dict(os.environ)
    begun = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tcg_job, "_run", lambda tcg, model: begun.append(tcg) or 0)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))

    def call(action, *arguments):
        given = arguments if {"--run-dir", "--resume"} & set(arguments) else ["--run-dir", "run", *arguments]
        begun.clear()
        code = cli.main(["tcg", action, *given])
        if begun:
            begun[0].run_dir.close()
        return code, capfd.readouterr().err, begun[0] if begun else None

    yield call
    os.environ.clear()
    os.environ.update(before)


def ids(problems):
    return [p.id for p in problems]


CASES = {
    "mode": ("generate", ["--mode", "both"], ["tcg.mode", "'both'", "one of reference, question_only"]),
    "generator": ("generate", ["--generator", "none"], ["tcg.generator", "'none'", "holds no model", "tcg-round-1"]),
    "a long name": ("generate", ["--generator", "x" * 5000], ["tcg.generator", "holds no model"]),
    "split": ("generate", ["--split", "half"], ["split", "'half'", "all, or other problems"]),
    "no reference": ("generate", [*COMMON[:1], "bare.jsonl"], ["problems", "'mine/bare'", "no reference"]),
    "few programs": (
        "generate",
        ["--mode", "question_only", "tcg.policy_samples=1"],
        ["tcg.policy_samples", "got 1", "2 or more"],
    ),
    "nothing to train": ("train", ["tcg.sft_completions=0"], ["tcg.sft_completions", "got 0", "1 or more"]),
    "no reference to learn from": ("train", [*COMMON[:1], "bare.jsonl"], ["problems", "'mine/bare'", "no reference"]),
    "rank": ("train", ["tcg.lora_rank=-1"], ["tcg.lora_rank", "-1", ">= 0"]),
    "setting": ("train", ["tcg.lora_rang=1"], ["tcg.lora_rang", "'tcg.lora_rank'"]),
    "argument": ("train", ["--mode", "reference"], ["--mode", "o1coder tcg --help"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(command, tmp_path, name):
    action, arguments, says = CASES[name]
    write(tmp_path, {"p.jsonl": lines(*ROWS), "bare.jsonl": lines(ROWS[5], BARE), **MODEL})
    given = arguments if "--problems" in arguments else [*COMMON, *arguments]
    code, error, begun = command(action, *given)
    assert (code, begun) == (2, None)
    one_line(error, *says)
    assert not (tmp_path / "run").exists()


def test_training_measures_on_the_held_out_problems(command, tmp_path):
    write(tmp_path, {"p.jsonl": lines(*ROWS), **MODEL})
    code, error, job = command("train", *COMMON)
    assert (code, error) == (0, "")
    assert ids(job.taught) == [f"mine/{n}" for n in range(4)] and sorted(ids(job.problems)) == ["mine/4", "mine/5"]
    few = command("train", "--run-dir", "few", *COMMON, "tcg.measure_problems=1")[2]
    assert len(few.problems) == 1


def test_generation_takes_a_split_a_generator_and_problems_without_references(command, tmp_path):
    write(tmp_path, {"p.jsonl": lines(*ROWS), "bare.jsonl": lines(BARE), **MODEL})
    job = command("generate", *COMMON, "--split", "heldout", "--generator", "model")[2]
    assert (job.taught, ids(job.problems)) == ([], ["mine/4", "mine/5"])
    assert job.config.tcg.generator == str(tmp_path / "model")
    bare = ("--problems", "bare.jsonl", "--model", "model", "--mode", "question_only", "tcg.policy_samples=4")
    assert ids(command("generate", "--run-dir", "bare", *bare)[2].problems) == ["mine/bare"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--split", "train"], "split: got 'train'"),
        (["--mode", "question_only"], "tcg.mode: got 'question_only'"),
        (["--seed", "3"], "seed: got 3"),
        (["tcg.kill_bar=0.9"], "tcg.kill_bar: got 0.9"),
    ],
)
def test_a_resume_cannot_become_another(command, tmp_path, arguments, says):
    write(tmp_path, {"p.jsonl": lines(*ROWS), **MODEL})
    assert command("generate", *COMMON)[0] == 0
    code, error, _ = command("generate", "--resume", "run", *arguments)
    assert code == 2
    one_line(error, says, "cannot change on a resume")
    assert command("generate", "--resume", "run")[0] == 0
    code, error, _ = command("train", "--resume", "run")
    assert code == 2
    one_line(error, "resume: got", "`o1coder tcg generate --resume`")


def test_report_of_a_run(command, tmp_path, capfd):
    write(tmp_path, {"p.jsonl": lines(*ROWS), **MODEL})
    command("generate", *COMMON)
    assert cli.main(["tcg", "report", "run"]) == 2
    one_line(capfd.readouterr().err, "run: got 'run'", "no generator was trained")
    quality = SuiteQuality(mutants=9, screened=8, killed=6, killed_by_given=2, redundancy=0)
    suite = Suite(problem_id="mine/0", tests=(ProblemTest(case=CallCase(args=[1], expected=2)),), quality=quality)
    ProcessDataStore(tmp_path / "run" / "data").write_suites("current", [suite])
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    state["stages"] = {"1/suites": {"seconds": 3.0}}
    (tmp_path / "run" / "state.json").write_text(json.dumps(state))
    assert cli.main(["tcg", "report", "run"]) == 0
    said = capfd.readouterr().out
    assert "75.0 %" in said and "25.0 %" in said and str(tmp_path / "run" / "tcg.html") in said.replace("\n", "")
    assert "75.0 %" in (tmp_path / "run" / "tcg.html").read_text()
    assert cli.main(["tcg", "report", "nowhere"]) == 2
    one_line(capfd.readouterr().err, "run: got 'nowhere'", "no config.yaml")


def test_every_config_that_ships_can_be_loaded():
    for file in CONFIGS.glob("*.yaml"):
        load(file)
    assert load(CONFIGS / "tcg_lora.yaml").tcg.lora_rank == 1


def test_problems_whose_references_fail_can_be_left_out(command, tmp_path, capfd):
    wrong = {"references": ["def double(n):\n    return n\n"]}
    rows = [{**r, **(wrong if r["id"] in ("mine/0", "mine/4") else {})} for r in ROWS]
    worse = [{**r, **(wrong if r["split"] == "heldout" else {})} for r in ROWS]
    write(tmp_path, {"p.jsonl": lines(*rows), "worse.jsonl": lines(*worse), **MODEL})
    assert command("train", *COMMON)[0] == 2
    job = command("train", *COMMON, "skip_bad_rows=true")[2]
    assert (ids(job.taught), ids(job.problems)) == ([f"mine/{n}" for n in range(1, 4)], ["mine/5"])
    code, error, _ = command(
        "train", "--run-dir", "b", "--problems", "worse.jsonl", "--model", "model", "skip_bad_rows=true"
    )
    assert code == 2
    one_line(error, "problems: got", "none is left in the split 'heldout'")
