"""What a search plans, reads back from its event logs, and writes: without an engine, on trees grown with stand-ins."""

import asyncio
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.programs import ProgramJudge
from actors.sampling import Draw
from actors.scheduler import SearchJob, SearchScheduler
from cluster import trees
from cluster.run_dir import RunDir
from cluster.store import ProcessDataStore
from reasoning.errors import InputError
from reasoning.records import Action, Problem, ProblemTest, Sample, StepLabel, StepPair, Suite
from reasoning.search import SearchSettings
from reasoning.steps import END, STOPS, StepCodec
from sandbox import CallCase, Limits, SuiteResult, Verdict

CODEC = StepCodec(lambda text: [ord(c) for c in text])
TESTS = tuple(ProblemTest(case=CallCase(args=[n], expected=n)) for n in range(3))
SETTINGS = SearchSettings(token_budget=64, samples=2, root_samples=2, leaves_in_flight=2)


def problem(name):
    return Problem(id=name, question="q", entry_point="f", references=("x",), tests=TESTS)


class Sampler:
    """Pseudocode and programs, every third of which is right."""

    def __init__(self):
        self.rng = random.Random(0)

    async def draw(self, prompt_ids, draw: Draw, seed=None):
        await asyncio.sleep(0)
        name = self.rng.randrange(90)
        text = f"def f(x):\n    return {name}\n```" if draw.stop == STOPS[Action.CODE] else f"idea {name}\n{END}"
        return Sample((7, name), (-0.5, -0.25), text, "stop", ((0, 0, 2),))

    async def choose(self, prompt_ids, tokens):
        await asyncio.sleep(0)
        return dict.fromkeys(tokens, -0.7)


async def judge(submission):
    right = int(submission.source.split("return ")[1]) % 3 == 0
    total = len(submission.cases)
    verdict = Verdict.ACCEPTED if right else Verdict.WRONG_ANSWER
    passed = total if right else 1
    return SuiteResult.model_construct(verdict=verdict, compiles=True, passed=passed, total=total, cases=())


def grow(planned, settings=SETTINGS):
    """Search the planned trees with stand-ins, logs and all."""

    async def go():
        scheduler = SearchScheduler([Sampler()], ProgramJudge(judge, Limits()), CODEC, outstanding=8, max_trees=8)
        jobs = [
            SearchJob(
                t.tree_id, t.problem, (1, 2), Suite(problem_id=t.problem.id, tests=TESTS), settings, t.seed, t.log
            )
            for t in planned
        ]
        await asyncio.gather(*[scheduler.search(job) for job in jobs])

    asyncio.run(go())


@pytest.fixture
def planned(tmp_path):
    return trees.plan([problem("b/2"), problem("a/1")], 5, RunDir(tmp_path))


def test_a_plan_depends_on_nothing_but_seed_and_ids(tmp_path):
    many = trees.plan([problem(f"p/{n}") for n in range(9)], 5, RunDir(tmp_path))
    few = trees.plan([problem("p/3"), problem("p/1")], 5, RunDir(tmp_path))
    assert [t.problem.id for t in few] == ["p/1", "p/3"]
    assert {t.problem.id: t.seed for t in few}.items() <= {t.problem.id: t.seed for t in many}.items()
    assert len({t.seed for t in many}) == 9
    assert {t.seed for t in trees.plan([problem("p/1")], 6, RunDir(tmp_path))}.isdisjoint({t.seed for t in many})
    assert (few[0].tree_id, few[0].log) == ("search/p/1", tmp_path / "trees" / "search" / "p-1.jsonl")


@given(st.lists(st.text(min_size=1, max_size=130), unique=True, max_size=12))
def test_file_names_are_distinct_and_harmless(ids):
    names = trees.file_names(ids)
    assert len({name.lower() for name in names.values()}) == len(ids)
    for name in names.values():
        assert 0 < len(name) <= 120 and "/" not in name and not name.startswith(".") and name.isascii()


def test_a_name_made_from_a_hash_is_not_the_name_of_another_id():
    made = trees.file_names(["a/b", "a-b"])["a-b"]
    assert len(set(trees.file_names(["a/b", "a-b", made]).values())) == 3


def test_plain_ids_keep_their_names():
    names = trees.file_names(["mbpp/601", "a/b", "a-b", "bundled/is_even"])
    assert (names["mbpp/601"], names["bundled/is_even"]) == ("mbpp-601", "bundled-is_even")
    assert names["a/b"] != names["a-b"]


def test_the_digest_tells_changed_problems_and_no_other_order():
    first, second = problem("a"), problem("b")
    assert trees.digest([first, second]) == trees.digest([second, first])
    assert trees.digest([first, second]) != trees.digest([first])
    assert trees.digest([first]) != trees.digest([first.model_copy(update={"tests": TESTS[:2]})])


def test_trees_go_to_the_worker_that_has_the_fewest():
    routes = trees.Fewest(3)
    assert [routes.take(name) for name in "abcd"] == [0, 1, 2, 0]
    routes.give_back("b")
    assert [routes.take(name) for name in "ef"] == [1, 1]
    for name in "acdef":
        routes.give_back(name)
    assert routes.load == [0, 0, 0]


def test_a_log_that_was_cut_short_is_told_from_a_finished_one(planned):
    grow(planned)
    whole = trees.read_reports(planned, SETTINGS)
    assert all(r.finished and r.paths and r.tokens for r in whole.values())
    log = planned[0].log
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join(lines[: len(lines) // 2]) + b'\n{"event":"te')
    cut = trees.read_reports(planned, SETTINGS)
    assert not cut["a/1"].finished
    assert cut["a/1"].tokens < whole["a/1"].tokens
    assert cut["b/2"] == whole["b/2"]
    log.write_bytes(b"")
    assert trees.read_reports(planned, SETTINGS).keys() == {"b/2"}


def test_a_log_of_another_search_is_refused(planned, tmp_path):
    grow(planned)
    with pytest.raises(InputError, match=r"resume: got .*a-1.jsonl.*another search: its settings differs.*remove"):
        trees.read_reports(planned, SETTINGS.model_copy(update={"samples": 3}))
    others = trees.plan([t.problem for t in planned], 6, RunDir(tmp_path))
    with pytest.raises(InputError, match="its seed differs"):
        trees.read_reports(others, SETTINGS)
    planned[0].log.write_bytes(b'{"event":"open"}\n' + planned[0].log.read_bytes())
    with pytest.raises(InputError, match=r"event log: line 1"):
        trees.read_reports(planned, SETTINGS)


def test_a_log_of_another_search_is_kept_where_it_is_in_nobodys_way(planned):
    grow(planned)
    assert trees.set_aside(planned, SETTINGS) == []
    other = SETTINGS.model_copy(update={"samples": 3})
    first = planned[0].log.read_bytes()
    moved = trees.set_aside(planned, other)
    assert [path.name for path in moved] == ["a-1.1.old", "b-2.1.old"]
    assert moved[0].read_bytes() == first
    assert trees.read_reports(planned, other) == {}
    grow(planned, other)
    assert trees.set_aside(planned, other, lambda t: {"prompt_ids": (1, 2)}) == []
    assert len(trees.set_aside(planned[:1], other, lambda t: {"prompt_ids": (1, 3)})) == 1
    grow(planned[:1], other)
    planned[1].log.write_bytes(b"no log\n")
    assert [path.name for path in trees.set_aside(planned, other)] == ["b-2.2.old"]
    assert trees.read_reports(planned, other).keys() == {"a/1"}


def test_rates_leave_out_what_an_earlier_process_did(planned):
    grow(planned)
    reports = list(trees.read_reports(planned, SETTINGS).values())
    whole, here = trees.metrics(reports, 2.0), trees.metrics(reports, 2.0, reports[:1])
    assert whole["search/tokens"] == here["search/tokens"] == sum(r.tokens for r in reports)
    assert whole["search/tokens_per_s"] == sum(r.tokens for r in reports) / 2
    assert here["search/tokens_per_s"] == reports[1].tokens / 2
    assert here["sandbox/programs_per_s"] == reports[1].programs / 2


def test_outputs_are_those_of_the_logs_and_replace_older_ones(planned, tmp_path):
    grow(planned)
    run = RunDir.create(tmp_path / "run")
    reports = trees.write_outputs(run, planned)
    again = trees.write_outputs(run, planned)
    assert reports == again == list(trees.read_reports(planned, SETTINGS).values())
    store = ProcessDataStore(run.data)
    paths = store.read_paths(["search"])
    expected = [path for t in planned for path in trees.read_tree(t)[0].paths()]
    assert [p.program for p in paths] == [p.program for p in expected]
    assert sum(p.program is not None for p in paths) == sum(r.programs for r in reports)
    labels = store.read_records("labels", "search", StepLabel)
    assert {label.problem_id for label in labels} == {"a/1", "b/2"}
    assert all(p.margin >= 0.25 for p in store.read_records("pairs", "search", StepPair))
    files = sorted((run.path / "solutions").glob("*.json"))
    assert [f.name for f in files] == ["a-1.json", "b-2.json"]
    programs = {f.stem: f.read_text() for f in (run.path / "solutions").glob("*.py")}
    assert programs.keys() == {f.stem for f, r in zip(files, reports, strict=True) if r.solved}
    right = {p.program for p in paths if p.solved}
    assert programs and all(text.removesuffix("\n") in right for text in programs.values())
    for file in files:
        solutions = json.loads(file.read_text())
        assert solutions and all(s["0"] == {"node_id": 0, "question": "q"} for s in solutions)


def test_a_problem_without_a_log_leaves_no_output(planned, tmp_path):
    grow(planned[:1])
    run = RunDir.create(tmp_path / "run")
    assert [r.problem_id for r in trees.write_outputs(run, planned)] == ["a/1"]
