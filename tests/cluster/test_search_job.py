"""`o1coder search` up to its first actor: bad input ends in one line and leaves nothing, good input gets through."""

import asyncio
import json
import os
import signal
from types import SimpleNamespace

import pytest
import yaml
from made_files import MODEL, TWO, WRONG, lines, one_line, write
from made_records import PROBLEM_ROW
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from actors.programs import ProgramJudge
from actors.sampling import EngineError
from actors.scheduler import SearchJob, SearchScheduler
from cluster import cli, memory, preflight, search_job
from cluster.config import load
from cluster.stop import STOP_SIGNALS
from reasoning.errors import InputError, MachineError
from reasoning.records import Suite
from reasoning.steps import StepCodec
from sandbox import Limits

RUN = search_job._run
HELD = [{**PROBLEM_ROW, "id": f"mine/{n}", "split": "heldout"} for n in range(2)]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """The command line in this process, with `tmp_path` as the working directory; returns the code, what was said on
    standard error, and the search that would have begun."""
    before = dict(os.environ)
    begun = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_job, "_run", lambda search, model: begun.append(search) or 0)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))

    def call(*arguments):
        given = arguments if {"--run-dir", "--resume"} & set(arguments) else ["--run-dir", "run", *arguments]
        begun.clear()
        code = cli.main(["search", *given])
        if begun:
            begun[0].run_dir.close()
        call.said, error = capfd.readouterr()  # on standard output
        return code, error, begun[0] if begun else None

    yield call
    os.environ.clear()
    os.environ.update(before)


CASES = {
    "unknown policy": (["--policy", "mcts"], {}, ["policy", "'mcts'", "puct, uct, gumbel, faithful, best-of-n, beam"]),
    "empty policy": (["--policy", ""], {}, ["policy", "''", "puct, uct"]),
    "policy as a setting": (["search.policy=mcts"], {}, ["search.policy", "'mcts'", "puct, uct"]),
    "unknown split": (["--split", "test"], {}, ["split", "'test'", "train, heldout, all"]),
    "a split that is empty": (
        ["--split", "train", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*HELD)},
        ["split", "'train'", "all, or other problems", "none of 2 problems"],
    ),
    "unknown option": (["--polcy", "x"], {}, ["--polcy", "o1coder search --help"]),
    "an option without its value": (["--policy"], {}, ["--policy", "expected one argument"]),
    "budget": (["--budget", "huge"], {}, ["config", "'huge'", "tiny, laptop"]),
    "seed": (["--seed", "-1"], {}, ["seed", "-1", "a whole number >= 0"]),
    "setting": (["search.sampels=8"], {}, ["search.sampels", "'search.samples'"]),
    "problems": (["--problems", "none.jsonl"], {}, ["problems", "none.jsonl", "an existing JSONL file"]),
    "unknown id": (["--ids", "nope"], {}, ["ids", "'nope'", "bundled"]),
    "no problem": (["--problems", "p.jsonl"], {"p.jsonl": "\n"}, ["problems", "at least one problem"]),
    "reference that fails": (
        ["--problems", "p.jsonl", "--model", "model"],
        {"p.jsonl": lines(PROBLEM_ROW, WRONG), **MODEL},
        ["problems", "'mine/wrong'", "references pass"],
    ),
    "no room for the prompt": (
        ["--problems", "p.jsonl", "--model", "model", "engine.max_model_len=256"],
        {"p.jsonl": lines(PROBLEM_ROW), **MODEL},
        ["problems", "'mine/double'", "engine.max_model_len="],
    ),
    "unknown model": (
        ["--model", "nope", "--problems", "p.jsonl"],
        {"p.jsonl": lines(*TWO)},
        ["model", "'nope'", "smollm2-135m"],
    ),
    "W&B mode": (["wandb.mode=maybe"], {}, ["wandb.mode", "'maybe'", "auto, online, offline, disabled"]),
    "resume of nothing": (["--resume", "none"], {}, ["resume", "'none'", "an earlier run"]),
    "resume and run-dir": (["--resume", "a", "--run-dir", "b"], {}, ["run-dir", "'b'", "either"]),
    "a directory that is no run": (["--run-dir", "taken"], {"taken/notes.txt": "mine"}, ["run-dir", "taken"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(command, tmp_path, name, capfd):
    arguments, files, says = CASES[name]
    write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    try:
        code, error, _ = command(*arguments)
    except SystemExit as ended:  # how the parser itself refuses
        code, error = ended.code, capfd.readouterr().err
    assert code == 2
    one_line(error, *says)
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_memory(command, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=3e9))
    code, error, _ = command("--problems", "p.jsonl", "--model", "model")
    assert code == 2
    one_line(error, "memory: got '3.0 GB free'", "5 GB of free memory")
    assert not (tmp_path / "run").exists()


def test_memory_for_training_is_not_asked_for(command, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=6e9))
    assert command("--problems", "p.jsonl", "--model", "model")[0] == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("place", ["problems_of", "check_references"])
def test_a_signal_before_the_search(command, tmp_path, monkeypatch, place, number):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    monkeypatch.setattr(preflight, place, lambda *_, **__: os.kill(os.getpid(), number))
    handlers = [signal.getsignal(n) for n in STOP_SIGNALS]
    code, error, begun = command("--problems", "p.jsonl", "--model", "model")
    assert (code, error, begun) == (130, "o1coder: interrupted\n", None)
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == handlers
    assert not (tmp_path / "run").exists()


# --- what is searched, and how ---


def ids(search):
    return [t.problem.id for t in search.trees]


def test_all_problems_are_searched_and_one_is_enough(command, tmp_path):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    code, error, search = command("--problems", "p.jsonl", "--model", "model", "search.problems=1")
    assert (code, error) == (0, "")
    assert ids(search) == ["mine/double", "mine/other"]
    one = command("--run-dir", "one", "--problems", "p.jsonl", "--model", "model", "--ids", "mine/other")[2]
    assert ids(one) == ["mine/other"]
    assert one.trees[0].seed == search.trees[1].seed


def test_splits(command, tmp_path):
    rows = [*HELD, {**PROBLEM_ROW, "id": "mine/learned"}]
    write(
        tmp_path, {"p.jsonl": lines(*rows), "unmarked.jsonl": lines(*[{**r, "split": "train"} for r in rows]), **MODEL}
    )
    common = ("--model", "model", "--problems")
    assert ids(command("--run-dir", "a", *common, "p.jsonl", "--split", "heldout")[2]) == ["mine/0", "mine/1"]
    assert ids(command("--run-dir", "b", *common, "p.jsonl", "--split", "train")[2]) == ["mine/learned"]
    assert len(ids(command("--run-dir", "c", *common, "p.jsonl", "--split", "all")[2])) == 3
    # Where the file says nothing: as training would hold problems out.
    assert len(ids(command("--run-dir", "d", *common, "unmarked.jsonl", "--split", "heldout")[2])) == 1
    assert len(ids(command("--run-dir", "e", *common, "unmarked.jsonl", "--split", "train")[2])) == 2


def test_a_problem_is_in_one_split_whichever_others_are_chosen(command, tmp_path):
    rows = [{**PROBLEM_ROW, "id": f"mine/{n}", "split": "train"} for n in range(4)]
    write(tmp_path, {"p.jsonl": lines(*rows), **MODEL})
    common = ("--budget", "tiny", "--model", "model", "--problems", "p.jsonl")
    found = {"heldout": [], "train": []}
    for number in range(4):
        for split in found:
            code, error, search = command(
                "--run-dir", f"{number}{split}", *common, "--split", split, "--ids", str(number)
            )
            if code == 0:
                found[split] += ids(search)
            else:
                assert code == 2 and "none of 1 problems belongs to it" in error
    whole = {s: ids(command("--run-dir", s, *common, "--split", s)[2]) for s in found}
    assert found == whole and len(found["heldout"]) == 1
    _, _, search = command("--run-dir", "x", *common, "--split", "train", "--ids", "0", "1", "2", "3")
    assert f"left out: {whole['heldout'][0]}: it is not in the split 'train'" in command.said and len(ids(search)) == 3


@pytest.mark.slow
def test_problems_that_cannot_be_searched_can_be_left_out(command, tmp_path):
    """One of a thousand should not keep the others from being searched, now and on a resume."""
    wrong = {**PROBLEM_ROW, "id": "mine/wrong", "references": ["def double(n):\n    return n\n"]}
    words = Tokenizer(WordLevel({"?": 0, "def": 1}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    long = {**PROBLEM_ROW, "id": "mine/long", "question": " ".join(map(str, range(20_000)))}
    write(tmp_path, {"p.jsonl": lines(PROBLEM_ROW, wrong, long), **MODEL, "model/tokenizer.json": words.to_str()})
    common = ("--budget", "tiny", "--model", "model", "--problems", "p.jsonl")
    assert command("--run-dir", "a", *common)[0] == 2
    code, _, search = command("--run-dir", "b", *common, "skip_bad_rows=true", "wandb.mode=offline")
    assert code == 0 and ids(search) == ["mine/double"]
    assert all(f"left out: {name}: its" in command.said for name in ("mine/wrong", "mine/long"))
    assert ids(command("--resume", "b")[2]) == ["mine/double"]


def test_the_policy_brings_its_numbers_and_settings_change_them(tmp_path):
    def settings(policy, *overrides):
        return load("tiny", [*search_job.policy_overrides(policy), *overrides]).search_settings()

    plain = load("tiny").search_settings()
    assert settings(None) == plain
    for policy in ("puct", "uct", "gumbel", "faithful", "best-of-n", "beam"):
        assert settings(policy) == plain.with_policy(policy)
    assert settings("faithful", "search.samples=5").samples == 5
    budget = tmp_path / "mine.yaml"
    budget.write_text("search: {policy: faithful, top_p: 0.9}")
    mine = load(budget).search_settings()
    assert (mine.leaves_in_flight, mine.samples, mine.top_p) == (1, 3, 0.9)
    # What was resolved once stays as it is.
    budget.write_text(load(budget, ["search.samples=4"]).dump())
    assert load(budget).search_settings() == mine.model_copy(update={"samples": 4})
    with pytest.raises(InputError, match="policy: got 'x'"):
        search_job.policy_overrides("x")


# --- resumes ---


@pytest.fixture
def begun(command, tmp_path):
    """A search that has begun, of a problem file of its own."""
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    arguments = ("--budget", "tiny", "--policy", "uct", "--problems", "p.jsonl", "--model", "model", "--split", "all")
    assert command(*arguments)[0] == 0
    return arguments


def test_a_resume_takes_its_settings_from_the_run(command, begun, tmp_path):
    code, _, search = command("--resume", "run", "search.trees_in_flight=3", "wandb.mode=offline")
    assert code == 0
    assert (search.settings.policy, search.config.search.trees_in_flight) == ("uct", 3)
    assert (search.split, ids(search)) == ("all", ["mine/double", "mine/other"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["wandb"]["mode"] == "offline"


def test_a_resume_may_repeat_what_was_said(command, begun):
    assert command("--resume", "run", *begun)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--policy", "puct"], "search.policy: got 'puct'"),
        (["--policy", "faithful"], "search.policy: got 'faithful'"),
        (["--seed", "3"], "seed: got 3"),
        (["--problems", "bundled"], "problems: got 'bundled'"),
        (["--ids", "mine/double"], "ids: got ('mine/double',)"),
        (["--model", "smollm2-135m"], "model: got 'smollm2-135m'"),
        (["--split", "train"], "split: got 'train'"),
        (["search.token_budget=100"], "search.token_budget: got 100"),
        (["search.shots=0"], "search.shots: got 0"),
        (["sandbox.cpu_s=2"], "sandbox.cpu_s: got 2"),
    ],
)
def test_a_resume_cannot_become_another_search(command, begun, tmp_path, arguments, says):
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file() and f.name != "lock"}
    code, error, search = command("--resume", "run", *arguments)
    assert (code, search) == (2, None)
    one_line(error, says, "as the run began", "cannot change on a resume")
    assert {f: f.read_bytes() for f in before} == before


def test_a_problem_file_that_has_changed_is_refused(command, begun, tmp_path):
    write(tmp_path, {"p.jsonl": lines(TWO[0], {**TWO[1], "question": "Triple it."})})
    code, error, _ = command("--resume", "run")
    assert code == 2
    one_line(error, "problems: got", "p.jsonl", "changed since", "or a new run")


def test_a_broken_event_log_is_refused_by_name(command, begun, tmp_path):
    folder = tmp_path / "run" / "trees" / "search"
    folder.mkdir(exist_ok=True)
    (folder / "mine-double.jsonl").write_text("no event\n", encoding="utf-8")
    code, error, _ = command("--resume", "run")
    assert code == 2
    one_line(error, "resume: got", "mine-double.jsonl", "event log: line 1", "remove the file")


def test_each_command_goes_on_with_its_own_runs(command, begun, tmp_path, capfd):
    assert cli.main(["train", "--resume", "run"]) == 2
    one_line(capfd.readouterr().err, "resume: got", "o1coder search --resume")
    (tmp_path / "run" / "state.json").write_text(json.dumps({"stages": {}}), encoding="utf-8")
    code, error, _ = command("--resume", "run")
    assert code == 2
    one_line(error, "resume: got", "o1coder train --resume")


def test_another_process_may_be_at_work(command, begun, tmp_path):
    from cluster.run_dir import RunDir

    other = RunDir.open(tmp_path / "run")
    code, error, _ = command("--resume", "run")
    other.close()
    assert code == 2
    one_line(error, "is working on this run")


# --- what is left over ---


class Dead:
    """An engine that fails whatever it is asked."""

    async def draw(self, prompt_ids, draw, seed=None):
        raise EngineError("the engine is gone")

    choose = draw


async def unjudged(submission):
    raise AssertionError("there is no program to judge")


def test_trees_that_the_machine_ended_are_an_error_and_are_gone_on_with(command, tmp_path, monkeypatch):
    """Problems that were not searched must not be counted as such: the exit code and the report say so."""
    codec = StepCodec(lambda text: [ord(c) for c in text])

    def search_with_a_dead_engine(search, model, workers):
        async def go():
            scheduler = SearchScheduler([Dead()], ProgramJudge(unjudged, Limits()), codec, outstanding=8, max_trees=8)
            suite = {t.problem.id: Suite(problem_id=t.problem.id, tests=t.problem.tests) for t in search.trees}
            jobs = [
                SearchJob(t.tree_id, t.problem, (1, 2), suite[t.problem.id], search.settings, t.seed, t.log)
                for t in search.left[:1]
            ]
            await asyncio.gather(*map(scheduler.search, jobs))

        asyncio.run(go())

    monkeypatch.setattr(search_job, "_run", RUN)
    monkeypatch.setattr(search_job, "_search_with", search_with_a_dead_engine)
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    code, error, _ = command("--problems", "p.jsonl", "--model", "model")
    assert code == 1
    one_line(error, "2 of 2 trees", "o1coder search --resume", str(tmp_path / "run"), "goes on")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["problems"], report["searched"], report["solved"]) == (2, 0, 0)
    monkeypatch.setattr(search_job, "_run", lambda search, model: begun.append(search) or 0)
    begun = []
    assert cli.main(["search", "--resume", "run"]) == 0
    begun[0].run_dir.close()
    assert ids(begun[0]) == [t.problem.id for t in begun[0].left] == ["mine/double", "mine/other"]


def test_workers_that_say_nothing_any_more_end_the_search_in_one_line(command, tmp_path, monkeypatch):
    write(tmp_path, {"p.jsonl": lines(*TWO), **MODEL})
    search = command("--problems", "p.jsonl", "--model", "model")[2]

    def silent(*_):
        raise TimeoutError("search: nothing came back for 600 s (2 in flight)")

    context = SimpleNamespace(tell_prompts=lambda: None)
    monkeypatch.setattr(search_job.job, "join_ray", lambda *_: "Ray: none")
    monkeypatch.setattr(search_job.job, "prepare", lambda *_: (context, ""))
    monkeypatch.setattr(search_job, "_grow", silent)
    monkeypatch.setattr("ray.get", lambda *_, **__: [0.0])
    with pytest.raises(MachineError, match=r"nothing came back for 600 s.*search --resume .* goes on"):
        search_job._search_with(search, tmp_path / "model", SimpleNamespace(launch_rollouts=list))
