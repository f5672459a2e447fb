"""Bad input on the command line: exit code 2, one line that helps, nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cli

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "id": "mine/double",
    "question": "Double it.",
    "entry_point": "double",
    "references": ["def double(n):\n    return 2 * n\n"],
    "tests": [{"case": {"kind": "call", "args": [2], "expected": 4}, "shown": True}],
}
WRONG = {**GOOD, "id": "mine/wrong", "references": ["def double(n):\n    return n\n"]}
TWO = [GOOD, {**GOOD, "id": "mine/other"}]


@pytest.fixture(scope="module")
def no_ray(tmp_path_factory):
    """A folder whose `ray` ends the program: input that is wrongly accepted must not start a real cluster."""
    folder = tmp_path_factory.mktemp("no-ray")
    (folder / "ray.py").write_text("raise SystemExit('a run was started')\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(no_ray, tmp_path):
    """The command line, with `tmp_path` as the working directory."""

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "cluster.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{no_ray}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return call


def lines(*rows):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


CASES = {
    "misspelt key": (["search.sampels=8"], {}, ["search.sampels", "8", "'search.samples'"]),
    "wrong type": (["search.samples=many"], {}, ["search.samples", "'many'", "a whole number >= 1 and <= 64"]),
    "out of range": (["sft.learning_rate=2"], {}, ["sft.learning_rate", "2", "> 0 and < 1"]),
    "a date that is none": (["seed=2024-13-45"], {}, ["seed", "2024-13-45", "a whole number"]),
    "seed": (["--seed", "first"], {}, ["seed", "'first'", "a whole number"]),
    "budget": (["--budget", "huge"], {}, ["config", "'huge'", "tiny, laptop"]),
    "unknown option": (["--modle", "x"], {}, ["--modle", "o1coder train --help"]),
    "unknown model": (
        ["--model", "nope", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*TWO)},
        ["model", "'nope'", "smollm2-135m"],
    ),
    "empty model": (["--model", ""], {}, ["model", "''", "text"]),
    "missing file": (["--problems", "none.jsonl"], {}, ["problems", "none.jsonl", "an existing JSONL file"]),
    "missing file with a number sign": (["--problems", "my #1.jsonl"], {}, ["problems", "my #1.jsonl", "existing"]),
    "bad row": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(GOOD, {**GOOD, "id": "mine/bad", "tests": []})},
        ["problems", "p.jsonl row 2", "mine/bad", "field tests", "docs/data.md"],
    ),
    "row that is no JSON": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(GOOD, "{")},
        ["p.jsonl row 2", "one JSON object"],
    ),
    "row with a line break in its id": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines({**GOOD, "id": "a\nb", "tests": []})},
        ["p.jsonl row 1", "a b", "field tests"],
    ),
    "reference that fails": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(GOOD, WRONG)},
        ["problems", "'mine/wrong'", "wrong_answer on test 1", "references pass"],
    ),
    "unknown id": (["--ids", "sum_of_evens", "nope"], {}, ["ids", "'nope'", "bundled"]),
    "a directory that is no run": (
        ["--run-dir", "taken"],
        {"taken/notes.txt": "mine"},
        ["run-dir", "taken"],
    ),
    "resume of nothing": (["--resume", "none"], {}, ["resume", "'none'", "run"]),
    "resume of what is no run": (
        ["--resume", "taken"],
        {"taken/config.yaml": "seed: 1\n"},
        ["resume", "taken", "run.json"],
    ),
    "resume and run-dir": (["--resume", "a", "--run-dir", "b"], {}, ["run-dir", "'b'", "either"]),
}


@pytest.mark.parametrize("arguments, files, says", CASES.values(), ids=CASES)
def test_bad_input(run, tmp_path, arguments, files, says):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    given = arguments if {"--run-dir", "--resume"} & set(arguments) else ["--run-dir", "run", *arguments]
    before = sorted(tmp_path.rglob("*"))
    ended = run("train", *given)
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("o1coder: ")
    for part in says:
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_directories_made_for_a_refused_run_go_too(run, tmp_path):
    run("train", "--run-dir", "a/b/run", "--problems", "none.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["trian"], "invalid choice: 'trian'"),
        (["config", "serch.samples=1"], "use 'search'"),
        (["config", "--sead", "1"], "--sead"),
        (["config", "--budget", "none.yaml"], "existing YAML file"),
    ],
)
def test_bad_input_of_other_commands(run, arguments, says):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert says in ended.stderr
    assert ended.stdout == ""


def test_input_that_is_good_gets_as_far_as_the_cluster(run, tmp_path):
    (tmp_path / "p.jsonl").write_text(lines(*TWO), encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    ended = run("train", "--run-dir", "run", "--problems", "p.jsonl", "--model", "model")
    if "memory: got" in ended.stderr or "disk" in ended.stderr:
        pytest.skip(ended.stderr)
    assert "a run was started" in ended.stderr
    assert "1 to train on, 1 held out" in ended.stdout


def options(*arguments):
    return cli._parser().parse_known_args(["train", *arguments])[0]


def overridden(*arguments):
    from cluster.config import load

    return load("tiny", cli._overrides(options(*arguments)))


def test_names_on_the_command_line_are_taken_as_they_are():
    for name in ("123", "1e5", "yes", "my #1 model", "a: b", "~/x", "[a]", "null", "it's", 'a "b"', "2024-01-01"):
        assert overridden("--model", name).model == name
        assert overridden("--problems", name).problems == name
        assert overridden("--ids", name, name + "2").ids == (name, name + "2")


def test_overrides_may_follow_ids():
    config = overridden("--ids", "601", "602", "seed=3", "search.samples=2")
    assert (config.ids, config.seed, config.search.samples) == (("601", "602"), 3, 2)


def test_an_override_wins_over_an_option():
    assert overridden("--seed", "1", "seed=2").seed == 2


def test_config_prints_what_it_loads(tmp_path, capsys):
    from cluster.config import load

    assert cli.main(["config", "--budget", "tiny", "seed=5"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(tmp_path / "c.yaml") == load("tiny", ["seed=5"])


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "train" in capsys.readouterr().out
