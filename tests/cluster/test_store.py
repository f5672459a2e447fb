"""Process data on disk: what is written is read, by us and by `datasets`."""

import math

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_records import ids, paths, text, unit

from cluster.store import ProcessDataStore
from reasoning.records import (
    Action,
    GeneratedText,
    Path,
    ProblemTest,
    StepLabel,
    StepPair,
    StepRecord,
    Suite,
    TextPair,
    Trajectory,
)
from sandbox import CallCase, CloseValue, ExpressionCase, StdioCase, Verdict

per_test = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def labels(draw):
    tokens = draw(ids)
    n = draw(st.integers(0, 4)) if tokens else 0
    per_end = st.lists(unit, min_size=n, max_size=n).map(tuple)
    ends = tuple(draw(st.lists(st.integers(0, max(0, len(tokens) - 1)), min_size=n, max_size=n)))
    return StepLabel(problem_id=draw(text), token_ids=tokens, ends=ends, targets=draw(per_end), weights=draw(per_end))


positive = st.floats(0, 1, exclude_min=True)
pairs = st.builds(
    StepPair,
    problem_id=text,
    tree_id=text,
    prefix_ids=ids,
    chosen_ids=ids,
    rejected_ids=ids,
    chosen_value=unit,
    rejected_value=unit,
    margin=positive,
    weight=positive,
)
generated = st.builds(GeneratedText, problem_id=text, text=text, lost=st.booleans())


@st.composite
def trajectories(draw):
    tokens = draw(ids)
    n = len(tokens)
    numbers = st.lists(st.floats(-10, 10), min_size=n, max_size=n).map(tuple)
    return Trajectory(
        problem_id=draw(text),
        token_ids=tokens,
        loss_mask=tuple(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))),
        logprobs=draw(numbers),
        advantages=draw(numbers),
        outcome=draw(unit),
        temperature=draw(st.floats(0.1, 2)),
        weight_versions=tuple(draw(st.lists(st.integers(0, 9), max_size=2))),
    )


@pytest.fixture
def store(tmp_path):
    return ProcessDataStore(tmp_path / "data")


def read_by_datasets(file, tmp_path):
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "cache"))["train"]


PATH = Path(
    problem_id="p",
    tree_id="t",
    prompt_ids=(1, 2),
    steps=(
        StepRecord(action=Action.DEFINE, header_ids=(3,), token_ids=(4, 5), logprobs=(-0.5, -0.25), text="é\u2028\n"),
        StepRecord(
            action=Action.CODE,
            header_ids=(6,),
            token_ids=(7,),
            logprobs=(-1.0,),
            text="x",
            weight_spans=((1, 0, 1),),
            value=0.5,
        ),
    ),
    program="x = 1\n",
    verdict=Verdict.WRONG_ANSWER,
    compiles=True,
    tests_passed=1,
    tests_total=2,
    value=0.55,
)
LOST = PATH.model_copy(update={"verdict": None, "value": None, "program": None, "steps": PATH.steps[:1]})


@given(st.lists(paths, max_size=4))
@per_test
def test_paths(store, made):
    store.write_paths("shard", made)
    assert store.read_paths(["shard"]) == made


KINDS = {
    "labels": (StepLabel, labels()),
    "pairs": (StepPair, pairs),
    "trajectories": (Trajectory, trajectories()),
    "generated": (GeneratedText, generated),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@per_test
def test_records(store, kind, data):
    record, made_by = KINDS[kind]
    made = data.draw(st.lists(made_by, max_size=4))
    store.write_records(kind, "shard", made)
    assert store.read_records(kind, "shard", record) == made


def test_records_without_a_column_are_refused(store):
    with pytest.raises(ValueError, match="kind: got 'notes'; use one of paths, labels"):
        store.write_records("notes", "shard", [])
    pair = TextPair(problem_id="p", prompt="a", chosen="b", rejected="c")
    with pytest.raises(ValueError, match="pairs: got fields problem_id, prompt, chosen, rejected; use problem_id"):
        store.write_records("pairs", "shard", [pair])
    assert not list(store.root.rglob("*.parquet"))


def test_shards_are_read_in_order_replaced_and_leave_nothing_unfinished(store):
    other = PATH.model_copy(update={"tree_id": "u"})
    store.write_paths("round-2", [PATH])
    store.write_paths("round-1", [other, LOST])
    assert store.read_paths() == [other, LOST, PATH]
    assert store.read_paths(["round-2"]) == [PATH]
    store.write_paths("round-2", [])
    assert store.read_paths() == [other, LOST]
    assert sorted(p.name for p in store.root.rglob("*") if p.is_file()) == ["round-1.parquet", "round-2.parquet"]


def test_nothing_written_is_nothing_read(store):
    assert store.read_paths() == []
    with pytest.raises(FileNotFoundError):
        store.read_paths(["none"])


def test_a_write_that_fails_leaves_the_old_shard(store, monkeypatch):
    store.write_paths("shard", [PATH])

    def fails(writer, table):
        raise OSError("disk full")

    monkeypatch.setattr("cluster.store.pq.ParquetWriter.write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        store.write_paths("shard", [LOST])
    monkeypatch.undo()
    assert store.read_paths() == [PATH]
    assert [p.name for p in store.root.rglob("*") if p.is_file()] == ["shard.parquet"]


def test_a_shard_that_is_written_part_by_part_is_there_whole_at_the_end(store, monkeypatch):
    monkeypatch.setattr("cluster.store.ROW_GROUP", 3)
    many = [PATH.model_copy(update={"tree_id": f"t{n}"}) for n in range(8)]
    with store.shard("paths", "s") as add:
        add(many[:4])
        assert store.read_paths() == []
        add(many[4:])
    assert store.read_paths() == many
    with pytest.raises(RuntimeError), store.shard("paths", "s") as add:
        add(many[:1])
        raise RuntimeError
    assert store.read_paths() == many


def test_datasets_reads_paths(store, tmp_path):
    rows = read_by_datasets(store.write_paths("shard", [PATH, LOST]), tmp_path)
    assert len(rows) == 2
    assert rows[0]["problem_id"] == "p"
    assert rows[0]["verdict"] == "wrong_answer"
    assert rows[1]["value"] is None
    assert [s["token_ids"] for s in rows[0]["steps"]] == [[4, 5], [7]]
    assert rows[0]["steps"][1]["weight_spans"] == [[1, 0, 1]]


def test_datasets_reads_labels_and_trajectories(store, tmp_path):
    label = StepLabel(problem_id="p", token_ids=(1, 2), ends=(1,), targets=(0.5,), weights=(1.0,))
    rows = read_by_datasets(store.write_records("labels", "shard", [label]), tmp_path)
    assert rows[0] == {"problem_id": "p", "token_ids": [1, 2], "ends": [1], "targets": [0.5], "weights": [1.0]}
    trajectory = Trajectory(
        problem_id="p", token_ids=(1, 2), loss_mask=(0, 1), logprobs=(0.0, -0.5), advantages=(0.0, 1.0), outcome=1.0
    )
    rows = read_by_datasets(store.write_records("trajectories", "shard", [trajectory]), tmp_path)
    assert rows[0]["advantages"] == [0.0, 1.0]
    assert rows[0]["weight_versions"] == []


PAIR = StepPair(
    problem_id="p",
    tree_id="t",
    prefix_ids=(1, 2),
    chosen_ids=(3,),
    rejected_ids=(4, 5),
    chosen_value=1.0,
    rejected_value=0.25,
    margin=0.75,
    weight=0.5,
)


def test_datasets_reads_pairs(store, tmp_path):
    rows = read_by_datasets(store.write_records("pairs", "shard", [PAIR]), tmp_path)
    assert rows[0] == PAIR.model_dump(mode="json")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_shards_have_the_columns_of_their_kind(store, kind):
    record, _ = KINDS[kind]
    assert pq.read_schema(store.write_records(kind, "shard", [])).names == list(record.model_fields)
    assert store.read_records(kind, "shard", record) == []


def test_datasets_reads_paths_where_a_shard_is_empty(store, tmp_path):
    from datasets import load_dataset

    files = [str(store.write_paths("a", [])), str(store.write_paths("b", [PATH]))]
    rows = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["tree_id"] == ["t"]


def test_datasets_reads_shards_together_where_some_are_empty_or_hold_empty_lists(store, tmp_path):
    from datasets import load_dataset

    bare = PAIR.model_copy(update={"prefix_ids": (), "chosen_ids": (), "rejected_ids": ()})
    files = [str(store.write_records("pairs", name, made)) for name, made in [("a", [bare]), ("b", []), ("c", [PAIR])]]
    rows = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert [StepPair.model_validate(row) for row in rows] == [bare, PAIR]


SUITES = [
    Suite(
        problem_id="p",
        tests=(
            ProblemTest(case=CallCase(args=[(1, {2}), {3: b"x"}], expected=frozenset({1, (2,)}))),
            ProblemTest(case=CallCase(args=[math.inf, 1j, 1 << 80], expected=None, comparator=CloseValue(rel_tol=0.1))),
            ProblemTest(case=ExpressionCase(setup="import math", expression="f(1)", expected=[True, ()]), shown=True),
        ),
        holdout=(ProblemTest(case=StdioCase(stdin="1\n", expected="2\n")),),
        kill_rate=0.25,
        accepted=False,
        reason="weak",
    ),
    Suite(problem_id="q", tests=()),
]


def test_suites_with_values_of_any_type(store):
    store.write_suites("current", SUITES)
    read = store.read_suites("current")
    assert read == SUITES
    assert repr(read) == repr(SUITES)
    store.write_suites("current", SUITES[:1])
    assert store.read_suites("current") == SUITES[:1]
    assert [p.name for p in (store.root / "suites").iterdir()] == ["current.jsonl"]


def test_suites_with_other_line_breaks(store):
    suite = Suite(problem_id="p", tests=(ProblemTest(case=CallCase(args=["a\u2028b\u0085c"], expected="\x0b\x1c")),))
    store.write_suites("current", [suite])
    assert store.read_suites("current") == [suite]
