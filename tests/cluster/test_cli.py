"""Bad input on the command line: exit code 2, one line that helps, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from made_files import MODEL, TWO, WRONG, lines, one_line, write
from made_records import PROBLEM_ROW

from cluster import cli, memory, models, preflight, train
from cluster.run_dir import RunDir
from cluster.stop import STOP_SIGNALS
from sandbox.cell import Cell, CellError

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
def inside(tmp_path, monkeypatch, capfd):
    """The command line in this process, with `tmp_path` as the working directory; no run may start."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_run", lambda *_: pytest.fail("a run was started"))

    def call(*arguments):
        given = arguments if {"--run-dir", "--resume"} & set(arguments) else ["--run-dir", "run", *arguments]
        code = cli.main(["train", *given])
        return code, capfd.readouterr().err

    yield call
    os.environ.clear()
    os.environ.update(before)


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
    "model without a tokenizer": (
        ["--model", "model", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*TWO), **{name: text for name, text in MODEL.items() if "tokenizer" not in name}},
        ["model", "no tokenizer", "smollm2-135m"],
    ),
    "model of another kind": (
        ["--model", "model", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*TWO), **MODEL, "model/config.json": '{"architectures": ["BertModel"]}'},
        ["model", "ForCausalLM", "found BertModel"],
    ),
    "model of nobody": (
        ["--model", "~nobody-here/model", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*TWO)},
        ["model", "~nobody-here/model", "no such path"],
    ),
    "problems of nobody": (["--problems", "~nobody-here/p.jsonl"], {}, ["problems", "~nobody-here", "existing"]),
    "run of nobody": (["--resume", "~nobody-here/run"], {}, ["resume", "~nobody-here/run", "run"]),
    "empty model": (["--model", ""], {}, ["model", "''", "text"]),
    "missing file": (["--problems", "none.jsonl"], {}, ["problems", "none.jsonl", "an existing JSONL file"]),
    "missing file with a number sign": (["--problems", "my #1.jsonl"], {}, ["problems", "my #1.jsonl", "existing"]),
    "bad row": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(PROBLEM_ROW, {**PROBLEM_ROW, "id": "mine/bad", "tests": []})},
        ["problems", "p.jsonl row 2", "mine/bad", "field tests", "docs/data.md"],
    ),
    "row that is no JSON": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(PROBLEM_ROW, "{")},
        ["p.jsonl row 2", "one JSON object"],
    ),
    "a JSON array": (
        ["--problems", "p.json"],
        {"p.json": json.dumps(TWO, indent=1)},
        ["problems", "p.json", "one JSON array", "JSONL"],
    ),
    "held-out problems alone": (
        ["--ids", "mine/double", "mine/other", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*[{**row, "split": "heldout"} for row in TWO])},
        ["ids", "'mine/double,mine/other'", "at least one problem outside the held-out split"],
    ),
    "row with a line break in its id": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines({**PROBLEM_ROW, "id": "a\nb", "tests": []})},
        ["p.jsonl row 1", "a b", "field tests"],
    ),
    "reference that fails": (
        ["--problems", "p.jsonl"],
        {"p.jsonl": lines(PROBLEM_ROW, WRONG)},
        ["problems", "'mine/wrong'", "wrong_answer on test 1", "references pass"],
    ),
    "unknown id": (["--ids", "sum_of_evens", "nope"], {}, ["ids", "'nope'", "bundled"]),
    "a directory that is no run": (
        ["--run-dir", "taken"],
        {"taken/notes.txt": "mine"},
        ["run-dir", "taken"],
    ),
    "a tokenizer that is none": (
        ["--problems", "p.jsonl", "--model", "model"],
        {"p.jsonl": lines(*TWO), **MODEL, "model/tokenizer.json": "{}"},
        ["model: got", "model'", "tokenizer loads"],
    ),
    "resume of nothing": (["--resume", "none"], {}, ["resume", "'none'", "run"]),
    "resume of what is no run": (
        ["--resume", "taken"],
        {"taken/config.yaml": "seed: 1\n"},
        ["resume", "taken", "run.json"],
    ),
    "resume and run-dir": (["--resume", "a", "--run-dir", "b"], {}, ["run-dir", "'b'", "either"]),
}


AS_A_PROCESS = ("unknown option", "misspelt key", "unknown model", "bad row")
"""One for each place that refuses: the parser, the settings, the model, the problems. The others need no process."""


@pytest.mark.parametrize("name", AS_A_PROCESS)
def test_bad_input_ends_the_program(run, tmp_path, name):
    arguments, files, says = CASES[name]
    write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    ended = run("train", "--run-dir", "run", *arguments)
    assert ended.returncode == 2
    one_line(ended.stderr, *says)
    assert "Traceback" not in ended.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name in CASES if name not in AS_A_PROCESS])
def test_bad_input(inside, tmp_path, name):
    arguments, files, says = CASES[name]
    write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    code, error = inside(*arguments)
    assert code == 2
    one_line(error, *says)
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


@pytest.mark.slow
def test_input_that_is_good_gets_as_far_as_the_cluster(run, tmp_path):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    ended = run("train", "--run-dir", "run", "--problems", "p.jsonl", "--model", "model")
    if "memory: got" in ended.stderr or "disk" in ended.stderr:
        pytest.skip(ended.stderr)
    assert "a run was started" in ended.stderr
    assert "1 to train on, 1 held out" in ended.stdout


def test_too_little_memory(inside, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=3e9))
    before = sorted(tmp_path.rglob("*"))
    code, error = inside("--problems", "p.jsonl", "--model", "model")
    assert code == 2
    one_line(error, "memory: got '3.0 GB free'", "11 GB of free memory")
    assert sorted(tmp_path.rglob("*")) == before


async def no_cell(*_):
    raise CellError("the kernel\nrefuses")


def test_no_isolation(inside, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO)})
    monkeypatch.setattr(Cell, "start", no_cell)
    code, error = inside("--problems", "p.jsonl")
    assert code == 2
    one_line(error, "sandbox.min_level: got 1", "seccomp", "no isolation", "the kernel refuses")
    assert not (tmp_path / "run").exists()


def test_a_sandbox_that_fails_is_told_in_one_line(inside, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO)})
    monkeypatch.setattr(preflight.LocalPool, "_tried", lambda pool, level: Cell.start(pool._options.at_level(level)))
    monkeypatch.setattr(Cell, "run", no_cell)
    code, error = inside("--problems", "p.jsonl")
    assert code == 1
    one_line(error, "the sandbox failed, not the problem", "the kernel refuses")
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_written(inside, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO), "cache": ""})
    monkeypatch.setenv("O1CODER_CACHE", str(tmp_path / "cache"))
    code, error = inside("--problems", "p.jsonl")
    assert code == 2
    one_line(error, f"O1CODER_CACHE: got '{tmp_path}/cache/models'", "O1CODER_CACHE=DIR")
    assert not (tmp_path / "run").exists()


# --- Ctrl-C and SIGTERM before the run ---


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("place", ["load_problems", "check_references", "convert", "create"])
def test_a_signal_before_the_run(inside, tmp_path, monkeypatch, place, number):
    def told(*given, **_):
        if place == "convert":
            (given[1] / "config.json").write_text("{}", encoding="utf-8")
        os.kill(os.getpid(), number)

    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    monkeypatch.setenv("O1CODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    build = RunDir._build
    match place:
        case "convert":
            monkeypatch.setattr(models, "_convert", told)
        case "create":
            monkeypatch.setattr(RunDir, "_build", lambda run, command: (build(run, command), told()))
        case _:
            monkeypatch.setattr(preflight, place, told)
    handlers = [signal.getsignal(n) for n in STOP_SIGNALS]
    code, error = inside("--problems", "p.jsonl", *(["--model", "model"] if place != "convert" else []))
    assert (code, error) == (130, "o1coder: interrupted\n")
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == handlers
    assert not list(tmp_path.glob("cache/models/.*"))
    assert not list(tmp_path.glob("cache/models/*"))
    if place == "create":  # whole or absent
        assert {"run.json", "config.yaml"} <= {p.name for p in (tmp_path / "run").iterdir()}
    else:
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_references_run(no_ray, tmp_path, number):
    slow = {**PROBLEM_ROW, "references": ["import time\ntime.sleep(4)\n" + PROBLEM_ROW["references"][0]]}
    write(tmp_path, {"p.jsonl": lines(*[{**slow, "id": f"mine/{n}"} for n in range(20)])})
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "train", "--run-dir", "run", "--problems", "p.jsonl"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{no_ray}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while "checks: started" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        patience = time.monotonic() + 30
        while not (cells := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < patience:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, "o1coder: interrupted\n")
    assert cells
    assert not psutil.wait_procs(cells, timeout=5)[1]
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


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
