"""What must be true before anything expensive starts."""

import asyncio
import io
import json
import os
import re
import signal
import struct
import threading
from types import SimpleNamespace

import psutil
import pytest
from made_records import PROBLEM_ROW
from rich.console import Console

from cluster import memory, preflight
from cluster.config import load
from cluster.preflight import (
    check_references,
    learner_need,
    load_problems,
    require_device_memory,
    require_memory,
    require_room,
)
from cluster.stop import Interrupted, interruptible
from reasoning.errors import InputError, MachineError
from sandbox import LocalPool
from sandbox.cell import Cell, CellError


def row(name, **changes):
    return {**PROBLEM_ROW, "id": f"mine/{name}", **changes}


@pytest.fixture
def problem_file(tmp_path):
    def write(*rows, name="problems.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return tmp_path / name

    return write


def config(problems, *overrides):
    return load("tiny", [f"problems={json.dumps(str(problems))}", *overrides])


def nothing_bad(*told):
    raise AssertionError(told)


def test_the_bundled_problems_and_a_choice_of_them():
    assert len(load_problems(config("bundled"), nothing_bad)) >= 64
    chosen = load_problems(config("bundled", "ids=['sum_of_evens', 'bundled/largest_number']"), nothing_bad)
    assert {p.id for p in chosen} == {"bundled/sum_of_evens", "bundled/largest_number"}
    assert sorted(p.split for p in chosen) == ["heldout", "train"]


def test_unknown_ids_are_named(problem_file):
    for source, known in (("bundled", "sum_of_evens"), (problem_file(row("a"), row("b")), "a")):
        with pytest.raises(InputError, match=r"ids: got 'nope,zero'.*not found"):
            load_problems(config(source, f"ids=[{known}, zero, nope]"), nothing_bad)


def test_a_file_of_problems(problem_file):
    problems = load_problems(config(problem_file(row("a"), row("b"))), nothing_bad)
    assert [p.id for p in problems] == ["mine/a", "mine/b"]


def test_a_bad_row_ends_the_start_unless_it_may_be_left_out(problem_file):
    file = problem_file(row("a"), row("b", tests=[]), row("c"))
    with pytest.raises(InputError, match=r"row 2'.*mine/b: field tests"):
        load_problems(config(file), nothing_bad)
    told = []
    problems = load_problems(config(file, "skip_bad_rows=true"), lambda *bad: told.append(bad))
    assert [p.id for p in problems] == ["mine/a", "mine/c"]
    assert [(number, name) for number, name, _ in told] == [(2, "mine/b")]


@pytest.mark.parametrize("source", ["nope", "none.jsonl", "/nowhere/problems.json", "."])
def test_sources_that_are_none(source):
    with pytest.raises(InputError, match="problems: got") as caught:
        load_problems(config(source), nothing_bad)
    assert source in str(caught.value)


def test_one_problem_cannot_be_split(problem_file):
    with pytest.raises(InputError, match="at least two problems"):
        load_problems(config(problem_file(row("a"))), nothing_bad)


def test_problems_of_the_test_split_alone_are_refused(problem_file):
    held = row("c", split="heldout")
    with pytest.raises(InputError, match=r"ids: got 'b,c'.*outside the held-out split"):
        file = problem_file(row("a"), row("b", split="heldout"), held)
        load_problems(config(file, "ids=[b, c]"), nothing_bad)


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import datasets

    def load_dataset(name):
        raise ConnectionError(f"cannot reach\n{name}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"problems: got 'mbpp-like/set'.*ConnectionError: cannot reach mbpp-like/set"):
        load_problems(config("mbpp-like/set"), nothing_bad)


def test_rows_from_the_hub(monkeypatch):
    import datasets

    asked = []
    rows = [
        {"task_id": n, "text": "Add one.", "code": "def inc(n): return n + 1", "test_list": ["assert inc(1) == 2"]}
        for n in (601, 12)
    ]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: asked.append(name) or {"train": rows[:1], "test": rows[1:]}
    )
    problems = load_problems(config("mbpp"), nothing_bad)
    assert asked == [preflight.MBPP_HUB]
    assert [(p.id, p.split) for p in problems] == [("mbpp/601", "train"), ("mbpp/12", "heldout")]


def test_a_problem_to_train_on_needs_a_reference(problem_file):
    bare = row("bare", references=[], split="train")
    with pytest.raises(InputError, match=r"problems: got 'mine/bare': it has no reference; use .*question_only"):
        load_problems(config(problem_file(row("a", split="heldout"), bare)), nothing_bad)
    held = load_problems(config(problem_file(row("a", split="train"), {**bare, "split": "heldout"})), nothing_bad)
    assert [p.references == () for p in held] == [False, True]


def test_what_cannot_be_trained_on_can_be_left_out(problem_file):
    """A large data set has a few rows without a solution, some twice, and wrong solutions."""
    wrong = row("wrong", references=["def double(n):\n    return n\n"])
    rows = [row("a", split="heldout"), row("b"), row("b"), row("bare", references=[]), wrong]
    made = config(problem_file(*rows), "skip_bad_rows=true")
    told = []
    problems = load_problems(made, lambda *line: told.append(line))
    assert [p.id for p in problems] == ["mine/a", "mine/b", "mine/wrong"]
    assert [(name, why) for _, name, why in told] == [
        ("mine/b", "a problem of this id is there already"),
        ("mine/bare", "it has no reference to learn from"),
    ]
    told.clear()
    kept = check_references(problems, made, on_bad=lambda *line: told.append(line))
    assert [p.id for p in kept] == ["mine/a", "mine/b"]
    assert told == [(0, "mine/wrong", "its reference gets wrong_answer on test 1: returned 2, expected 4")]


def test_the_test_split_of_a_data_set_is_never_trained_on(monkeypatch):
    import datasets

    rows = [row("a", split="train"), row("b", split="train")]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": rows[:1], "test": rows[1:]})
    assert [p.split for p in load_problems(config("some/set"), nothing_bad)] == ["train", "heldout"]


def checked(problem_file, *rows):
    made = config(problem_file(row("fine"), *rows))
    check_references(load_problems(made, nothing_bad), made)


def test_references_that_pass(problem_file):
    checked(problem_file, row("b"))


def test_references_may_import_packages_that_are_asked_for(problem_file):
    fine = row("fine", references=["import numpy\n\ndef double(n):\n    return numpy.int64(n) * 2\n"])
    path = problem_file(fine, row("other"))
    made = config(path, "sandbox.packages=[numpy]")
    check_references(load_problems(made, nothing_bad), made)


@pytest.mark.parametrize("name, says", [("no_such_package", "installed"), ("package_that_fails", "RuntimeError: no")])
def test_packages_that_cells_cannot_have(problem_file, tmp_path, monkeypatch, name, says):
    (tmp_path / "package_that_fails.py").write_text("raise RuntimeError('no')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    made = config(problem_file(row("a"), row("b")), f"sandbox.packages=[{name}]")
    with pytest.raises(InputError, match=rf"sandbox\.packages: got .*{name}.*{says}"):
        check_references(load_problems(made, nothing_bad), made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference, verdict",
    [
        ("def double(n):\n    return n * 3\n", "wrong_answer on test 1"),
        ("def double(n):\n    raise ValueError('a\\nb')\n", "on test 1"),
        ("def double(n:\n", "on test 1"),
        ("def triple(n):\n    return 3 * n\n", "on test 1"),
        ("#" + "x" * 300_000, "refused"),
    ],
    ids=["wrong", "raises", "no Python", "other name", "too long"],
)
def test_a_reference_that_fails_is_named_with_its_problem(problem_file, reference, verdict):
    good = PROBLEM_ROW["references"][0]
    with pytest.raises(InputError) as caught:
        checked(problem_file, row("broken", references=[good, reference]), row("too", references=[reference]))
    error = caught.value
    assert (error.field, error.value) == ("problems", "mine/broken")
    assert verdict in error.reason
    assert "(and so do 1 more: mine/too)" in error.reason
    assert "\n" not in str(error)


async def never(*_):
    await asyncio.sleep(60)


def test_long_checks_are_not_silent(problem_file, monkeypatch):
    judge, beaten = LocalPool.judge, threading.Event()

    class Out(io.StringIO):
        def write(self, text):
            if "1/2 references" in text:
                beaten.set()
            return super().write(text)

    async def slow(pool, submission):
        if "other" in submission.source:
            assert await asyncio.to_thread(beaten.wait, 20), "no heartbeat"
        return await judge(pool, submission)

    monkeypatch.setattr(LocalPool, "judge", slow)
    made = config(problem_file(row("a"), row("b", references=[PROBLEM_ROW["references"][0] + "# other\n"])))
    out = Out()
    check_references(load_problems(made, nothing_bad), made, Console(file=out), heartbeat_s=0.05)
    assert re.search(r"checks: 1/2 references", out.getvalue())
    assert re.search(r"checks: done in .*2/2 references", out.getvalue())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_the_checks_off_and_leaves_no_process(problem_file, monkeypatch, number):
    async def judge(*_):
        os.kill(os.getpid(), number)
        await never()

    monkeypatch.setattr(LocalPool, "judge", judge)
    made = config(problem_file(row("a"), row("b")))
    before = set(psutil.Process().children())
    with interruptible(), pytest.raises(Interrupted):
        check_references(load_problems(made, nothing_bad), made)
    assert set(psutil.Process().children()) <= before
    assert not [t for t in threading.enumerate() if t.name == "reference-checks"]


def test_a_sandbox_that_fails_is_not_the_problems_fault(problem_file, monkeypatch, capfd):
    async def lose(cell, spec):
        raise CellError("the zygote is gone")

    monkeypatch.setattr(preflight.LocalPool, "_tried", lambda pool, level: Cell.start(pool._options.at_level(level)))
    monkeypatch.setattr(Cell, "run", lose)
    with pytest.raises(MachineError, match=r"the sandbox failed, not the problem: test 1 of mine/.*zygote is gone"):
        checked(problem_file, row("b"))
    assert capfd.readouterr().err == ""


def test_too_little_memory(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    free = SimpleNamespace(available=3e9)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free)
    with pytest.raises(InputError, match=r"memory: got '3.0 GB free'.*11 GB of free memory"):
        require_memory(tmp_path)
    free.available = 11.1e9
    require_memory(tmp_path)


def test_a_control_group_may_leave_less_than_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    monkeypatch.setattr(memory, "cgroup_free", lambda *_: 3_000_000_000)
    with pytest.raises(InputError, match=r"3.0 GB free.*control group"):
        require_memory(tmp_path)


@pytest.fixture
def tiny_shape(tmp_path):
    """A model directory that says it has 135M parameters, and holds none."""
    shape = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "vocab_size": 49152}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [135_000_000], "data_offsets": [0, 270_000_000]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return tmp_path


def test_a_large_model_needs_more_memory(monkeypatch, tmp_path):
    weights = tmp_path / "model.safetensors"
    with open(weights, "wb") as file:
        file.truncate(2_000_000_000)  # sparse
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=20e9))
    with pytest.raises(InputError, match=r"20.0 GB free.*use a machine with 28 GB of free memory"):
        require_memory(tmp_path)


def test_more_ranks_and_longer_sequences_need_more_memory(monkeypatch, tiny_shape):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=11.1e9))
    require_memory(tiny_shape, config=load("tiny"))
    for override in ("learner.ranks=4", "learner.max_tokens=8192"):
        with pytest.raises(InputError, match=r"11\.1 GB free.*for the learner: learner\.recompute=true"):
            require_memory(tiny_shape, config=load("tiny", [override]))
        # A command that does not learn takes none of it.
        require_memory(tiny_shape, preflight.MemoryNeed(11, 1, 0, learns=False), load("tiny", [override]))
    # On GPUs the host has none of it.
    require_memory(tiny_shape, config=load("tiny", ["learner.ranks=4", "learner.gpus=1"]))


def test_adapters_need_less_where_nothing_else_is_trained(tiny_shape):
    def need(*overrides):
        return learner_need(load("tiny", ["learner.lora_rank=8", *overrides]), tiny_shape).states

    plain = learner_need(load("tiny"), tiny_shape).states
    assert need() == plain  # the generator trains all of its weights
    small = need("tcg.lora_rank=1")
    assert need("tcg.sft_completions=0") == small < plain / 4 < need("tcg.lora_rank=64") < plain


def test_a_gpu_that_is_too_small_is_refused_with_what_helps(tiny_shape):
    made = load("tiny", ["learner.gpus=1"])
    need = learner_need(made, tiny_shape).device
    require_device_memory(made, tiny_shape, need)
    with pytest.raises(InputError, match=r"learner.gpus: got '\d\.\d GB free'.*learner.offload=optimizer"):
        require_device_memory(made, tiny_shape, need - 1)
    require_device_memory(load("tiny", ["learner.gpus=1", "learner.offload=optimizer"]), tiny_shape, need - 1)


def test_a_model_of_unknown_shape_is_not_refused_for_it(tmp_path):
    assert learner_need(load("tiny"), tmp_path) is None
    require_device_memory(load("tiny"), tmp_path, 0)


def test_a_question_that_leaves_the_engine_no_room_is_named(problem_file):
    made = config(problem_file(row("short"), row("long", question="word " * 3000), row("other")))
    problems = load_problems(made, nothing_bad)
    words = lambda messages: [0] * sum(len(m["content"].split()) for m in messages)  # noqa: E731
    with pytest.raises(InputError) as error:
        require_room(problems, words, made)
    assert "mine/long" in str(error.value)
    needed = int(re.search(r"engine.max_model_len=(\d+)", str(error.value))[1])
    enough = config(problem_file(row("short"), row("long", question="word " * 3000)), f"engine.max_model_len={needed}")
    assert require_room(problems, words, enough) == problems
    with pytest.raises(InputError, match=r"the model's context has 2048; use skip_bad_rows=true"):
        require_room(problems, words, made, longest=2048)
    told = []
    kept = require_room(problems, words, made, on_bad=lambda *line: told.append(line))
    assert [p.id for p in kept] == ["mine/short", "mine/other"]
    assert [(number, name) for number, name, _ in told] == [(0, "mine/long")] and "3" in told[0][2]
