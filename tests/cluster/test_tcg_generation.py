"""Texts of the generator that survive a kill, without engines: what was written is not written again."""

import json
from types import SimpleNamespace

import pytest

from cluster import flow, tcg_generation
from cluster.config import load
from cluster.store import ProcessDataStore
from reasoning.records import GeneratedText, Problem, ProblemTest, Sample
from sandbox import CallCase

TESTS = (ProblemTest(case=CallCase(args=[1], expected=1)),)
PROBLEMS = [Problem(id=f"p/{n}", question="q", entry_point="f", references=("x",), tests=TESTS) for n in range(4)]


class Killed(BaseException):
    pass


def sample(text):
    return Sample((1, 2), (-0.5, -0.5), text, "stop")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose workers answer at once; `asked`: the problems that were asked for, `left`: calls before a kill."""
    worker = SimpleNamespace(asked=[], left=99, lost=())

    def draw_samples(name, prompts, draw, seed):
        worker.asked.append(name)
        worker.left -= 1
        if worker.left < 0:
            raise Killed
        return name, [None if name in worker.lost else sample(f"{name} {seed}") for _ in prompts]

    def stream(calls, in_flight, deadline_s, what, on_result, on_tick):
        worker.in_flight = in_flight
        for call in calls:
            on_result(call())

    monkeypatch.setattr(flow, "stream", stream)
    return SimpleNamespace(
        config=load("tiny", ["tcg.prompts=2"]),
        dir=SimpleNamespace(data=tmp_path),
        store=ProcessDataStore(tmp_path),
        serving=tmp_path / "one",
        tokens=SimpleNamespace(encode=lambda text: [1], encode_chat=lambda messages: [len(messages)]),
        workers=SimpleNamespace(rollouts=[SimpleNamespace(draw_samples=SimpleNamespace(remote=draw_samples))]),
        display=SimpleNamespace(update=lambda *a, **k: None),
        live=lambda fields: lambda: None,
        worker=worker,
    )


def written(run):
    return tcg_generation.write_texts(run, PROBLEMS, "round-1", True, 2, run.config.tcg.prompts)


def test_all_texts_are_kept_with_those_that_were_lost(run):
    run.worker.lost = ("p/2",)
    texts = written(run)
    assert list(texts) == [p.id for p in PROBLEMS] and texts["p/2"] == [None, None]
    kept = run.store.read_records("generated", "round-1", GeneratedText)
    assert [(t.problem_id, t.lost) for t in kept][4:6] == [("p/2", True)] * 2 and len(kept) == 8
    assert not list(run.dir.data.rglob("*.jsonl"))


@pytest.mark.parametrize(("count", "problems"), [(1, 16), (4, 4), (100, 1)])
def test_the_engines_have_twice_what_they_hold_to_do_whatever_each_problem_asks(run, count, problems):
    run.config = load("tiny", ["engine.max_num_seqs=8"])
    tcg_generation.write_texts(run, PROBLEMS, "round-1", True, 2, count)
    assert run.worker.in_flight == problems


def test_a_kill_in_the_middle_repeats_nothing(run):
    whole = written(run)
    next(run.dir.data.rglob("*.made_by.json")).unlink()  # as if it had not ended
    run.worker.asked.clear()
    run.worker.left = 2
    with pytest.raises(Killed):
        written(run)
    partial = next(run.dir.data.rglob("*.jsonl"))
    with partial.open("a") as file:
        file.write('["p/3", ["torn')
    run.worker.left = 99
    run.worker.asked.clear()
    again = written(run)
    assert run.worker.asked == ["p/2", "p/3"]
    assert [again[name] for name in ("p/0", "p/1")] == [whole[name] for name in ("p/0", "p/1")]
    assert set(again) == set(whole)


def test_what_is_whole_is_not_written_again(run):
    whole = written(run)
    run.worker.asked.clear()
    told = {}
    again = tcg_generation.write_texts(run, PROBLEMS, "round-1", True, 2, run.config.tcg.prompts, told.__setitem__)
    assert again == told == whole and run.worker.asked == []
    run.config = load("tiny", ["tcg.prompts=2", "tcg.temperature=0.5"])
    written(run)
    assert run.worker.asked == [p.id for p in PROBLEMS]


def test_what_lacks_a_text_is_written_again(run):
    run.worker.lost = ("p/2",)
    written(run)
    run.worker.lost = ()
    assert None not in written(run)["p/2"]


@pytest.mark.parametrize("change", ["weights", "setting"])
def test_texts_of_other_weights_or_settings_are_not_taken_over(run, change):
    run.worker.left = 2
    with pytest.raises(Killed):
        written(run)
    run.worker.left = 99
    run.worker.asked.clear()
    if change == "weights":
        run.serving.mkdir()
        (run.serving / "model.safetensors").write_text("other")
    else:
        run.config = load("tiny", ["tcg.prompts=2", "tcg.temperature=0.5"])
    written(run)
    assert run.worker.asked == [p.id for p in PROBLEMS]


def test_equal_cases_of_several_texts_count_once():
    texts = ["1\nOutput:\n1\n\nInput:\n2\nOutput:\n2", None, "2\nOutput:\n3\n\nInput:\n4\nOutput:\n4", "no case"]
    cases = tcg_generation.cases_of(PROBLEMS[0], texts)
    assert [(c.args, c.output) for c in cases] == [((1,), 1), ((2,), 2), ((4,), 4)]
    assert tcg_generation.cases_of(PROBLEMS[0], []) == []


def test_a_text_counts_for_no_more_cases_than_it_was_asked_for():
    """Else more cases would be valid than were asked for."""
    more = "".join(f"Input:\n{n}\nOutput:\n{n}\n" for n in range(5)).removeprefix(tcg_generation.OPENING)
    assert [case.args for case in tcg_generation.cases_of(PROBLEMS[0], [more])] == [(0,), (1,), (2,)]
    assert len(tcg_generation.cases_of(PROBLEMS[0], [more, more.replace("1", "7")])) == 4


def test_a_file_that_holds_something_else_is_begun_anew(run):
    place = run.dir.data / "generated" / "round-1.partial.jsonl"
    place.parent.mkdir()
    place.write_text(json.dumps({"weights": "other"}) + "\n" + json.dumps(["p/0", ["old"]]) + "\n")
    assert "old" not in written(run)["p/0"]
