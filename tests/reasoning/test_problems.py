"""Problems from rows: both layouts, every kind of bad row, the bundled set, splits."""

import asyncio
import datetime
import gzip
import json
from collections import Counter

import pytest

from reasoning.errors import InputError, RowError
from reasoning.problems import (
    MBPP_TEST_IDS,
    bundled,
    demonstrations,
    from_row,
    from_rows,
    load_jsonl,
    row_id,
    with_held_out,
)
from reasoning.records import Action, Problem
from reasoning.steps import check_order, extract_program, parse, render
from sandbox import AssertCase, CallCase, Limits, LocalPool, StdioCase, Submission, Verdict

OURS = {
    "id": "mine/double",
    "question": "Double it.",
    "entry_point": "double",
    "references": ["def double(n):\n    return 2 * n\n"],
    "tests": [
        {"case": {"kind": "call", "args": [2], "expected": 4}, "shown": True},
        {"case": {"kind": "call", "args": [-1], "expected": -2}},
    ],
}
MBPP = {
    "task_id": 601,
    "text": "Add one.",
    "code": "def inc(n):\r\n    return n + 1",
    "test_list": ["assert inc(1) == 2", "assert inc(-1) == 0", "assert inc(n=5) == 6"],
    "test_setup_code": "",
}


def ours(**changes):
    return {**OURS, **changes}


def mbpp(*asserts, **changes):
    return {**MBPP, **({"test_list": list(asserts)} if asserts else {}), **changes}


def write(folder, *rows, name="problems.jsonl"):
    target = folder / name
    target.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return target


# --- our layout ---


def test_our_layout(tmp_path):
    (problem,) = load_jsonl(write(tmp_path, OURS, "", "   "))
    assert problem.id == "mine/double"
    assert problem.tests[0].case == CallCase(args=[2], expected=4)
    assert [t.shown for t in problem.tests] == [True, False]
    assert (problem.split, problem.difficulty) == ("train", "unknown")
    assert problem.shown_tests + problem.hidden_tests == problem.tests


def test_typed_values_are_decoded():
    tagged = {"$tuple": [1, {"$set": [2]}, {"$dict": [[3, 4]]}, {"$float": "inf"}]}
    row = ours(tests=[{"case": {"kind": "call", "args": [tagged], "expected": tagged}}])
    assert from_row(row).tests[0].case.args == [(1, {2}, {3: 4}, float("inf"))]


def test_a_program_that_reads_stdin():
    row = ours(entry_point=None, tests=[{"case": {"kind": "stdio", "stdin": "2\n", "expected": "4\n"}}])
    assert from_row(row).tests[0].case == StdioCase(stdin="2\n", expected="4\n")


def test_line_breaks_inside_strings_do_not_end_a_row(tmp_path):
    text = "one\u2028two\u0085three\x0bfour"
    rows = json.dumps(ours(question=text), ensure_ascii=False)
    (problem,) = load_jsonl(write(tmp_path, rows))
    assert problem.question == text


def test_windows_line_ends(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(json.dumps(OURS).encode() + b"\r\n\r\n" + json.dumps(MBPP).encode() + b"\r\n")
    assert [p.id for p in load_jsonl(tmp_path / "p.jsonl")] == ["mine/double", "mbpp/601"]


BAD_ROWS = {
    "a list": ([1], "a JSON object is needed, not list"),
    "no question": ({k: v for k, v in OURS.items() if k != "question"}, "field question"),
    "unknown field": (ours(bogus=1), "field bogus: unknown; a problem has id, question"),
    "misspelt field": (ours(entrypoint="f"), "field entrypoint: unknown; use 'entry_point'"),
    "id is a number": (ours(id=5), "field id"),
    "no tests": (ours(tests=[]), "field tests: needs at least 1"),
    "split": (ours(split="test"), "field split"),
    "kind": (ours(tests=[{"case": {"args": [1], "expected": 2}}]), "kind"),
    "no expected": (ours(tests=[{"case": {"kind": "call", "args": [1]}}]), "expected"),
    "unknown tag": (ours(tests=[{"case": {"kind": "call", "args": [{"$nope": 1}], "expected": 2}}]), r"\$nope"),
    "call without a function": (ours(entry_point=None), "field entry_point"),
    "stdin with a function": (ours(tests=[{"case": {"kind": "stdio", "stdin": "", "expected": ""}}]), "field tests"),
    "lone surrogate": (ours(question="\ud800"), "Invalid JSON"),
    "not JSON": (ours(difficulty=datetime.date(2020, 1, 1)), "not JSON"),
    "MBPP without code": ({k: v for k, v in MBPP.items() if k != "code"}, "MBPP's layout.*code"),
    "MBPP without a number": (mbpp(task_id=None), "MBPP's layout"),
    "MBPP number infinite": (mbpp(task_id=float("inf")), "MBPP's layout"),
    "MBPP without text": (mbpp(text=None), "MBPP's layout.*prompt"),
    "MBPP empty text": (mbpp(text="", prompt=" "), "field text"),
    "MBPP no tests": (mbpp(test_list=[]), "field test_list"),
    "MBPP imports": (mbpp(test_imports=[5]), "MBPP's layout"),
    "MBPP code": (mbpp(code="def inc(n:"), "does not parse"),
    "MBPP null byte": (mbpp(code="def inc(n):\0"), "does not parse"),
    "MBPP surrogate": (mbpp(code="def inc(n): '\ud800'"), "does not parse"),
    "MBPP nesting": (mbpp(code="x = " + "-" * 100_000 + "1"), "does not parse"),
    "MBPP other function": (mbpp("assert other(1) == 2"), "no test calls"),
    "MBPP two statements": (mbpp("assert inc(1) == 2; inc(1)"), "not one assert"),
    "MBPP ellipsis": (mbpp("assert inc(...) == 1"), "cannot be converted"),
    "MBPP deep value": (mbpp(f"assert inc({'[' * 150}{']' * 150}) == 1"), "cannot be converted"),
    "MBPP isclose of one": (mbpp("assert math.isclose(inc(1))"), "cannot be converted"),
    "MBPP isclose by name": (mbpp("assert math.isclose(inc(1), 2, rel_tol=tol)"), "cannot be converted"),
    "MBPP isclose too loose": (mbpp("assert math.isclose(inc(1), 2, rel_tol=5)"), "cannot be converted"),
}


@pytest.mark.parametrize("row, says", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_says_why(row, says):
    with pytest.raises(RowError, match=says):
        from_row(row)


def test_a_bad_row_ends_the_reading_with_its_number(tmp_path):
    file = write(tmp_path, OURS, "", ours(id="b", tests=[]))
    with pytest.raises(InputError, match=r"problems: got .*problems.jsonl row 3': b: field tests.*skip_bad_rows=true"):
        load_jsonl(file)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_told_from_jsonl(tmp_path, indent):
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([ours(id="a"), ours(id="b")], indent=indent), encoding="utf-8")
    for on_bad in (None, lambda *bad: None):
        with pytest.raises(InputError, match=r"problems.json': it holds one JSON array; use a JSONL file"):
            load_jsonl(file, on_bad=on_bad)


def test_a_line_that_is_no_json_can_be_left_out_too(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(
        json.dumps(ours(id="a")) + '\n{"id": "b", "que\n' + json.dumps(ours(id="c")) + "\n", encoding="utf-8"
    )
    seen = []
    assert [p.id for p in load_jsonl(file, on_bad=lambda *bad: seen.append(bad[:2]))] == ["a", "c"]
    assert seen == [(2, "")]
    with pytest.raises(InputError, match=r"row 2': .*one JSON object a line"):
        load_jsonl(file)


def test_bad_rows_can_be_left_out_and_are_named(tmp_path):
    seen = []
    file = write(tmp_path, ours(id="a", bogus=1), OURS, mbpp("assert 1"))
    problems = load_jsonl(file, on_bad=lambda *row: seen.append(row))
    assert [p.id for p in problems] == ["mine/double"]
    assert [(number, name) for number, name, _ in seen] == [(1, "a"), (3, "mbpp/601")]
    assert all(reason for _, _, reason in seen)


def test_an_id_whose_row_was_left_out_is_not_missing(tmp_path):
    file = write(tmp_path, OURS, mbpp("assert 1"))
    skip = lambda *_: None  # noqa: E731
    assert [p.id for p in load_jsonl(file, ["601", "double"], skip)] == ["mine/double"]
    with pytest.raises(InputError, match="none that can be used"):
        load_jsonl(file, ["601"], skip)


@pytest.mark.parametrize(
    "line", ["{", "[" * 100_000, '{"id": ' + "9" * 5000 + "}", "{} {}"], ids=["cut", "deep", "digits", "two"]
)
def test_a_line_that_is_no_json(tmp_path, line):
    with pytest.raises(InputError, match=r"row 2'.*use one JSON object a line"):
        load_jsonl(write(tmp_path, OURS, line))


def test_missing_empty_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file or directory; use an existing JSONL file"):
        load_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is a directory"):
        load_jsonl(tmp_path)
    with pytest.raises(InputError, match="at least one problem"):
        load_jsonl(write(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(InputError, match="UTF-8"):
        load_jsonl(tmp_path / "latin.jsonl")


def test_ids_select_by_number_or_whole_id(tmp_path):
    file = write(tmp_path, OURS, MBPP, mbpp(task_id=602))
    assert [p.id for p in load_jsonl(file, ["602", "mine/double"])] == ["mine/double", "mbpp/602"]
    with pytest.raises(InputError, match=r"ids: got '603,604': not found"):
        load_jsonl(file, ["602", "604", "603"])


def test_a_bad_row_that_nobody_asked_for_does_not_matter(tmp_path):
    assert len(load_jsonl(write(tmp_path, ours(id="a", bogus=1), OURS), ["double"])) == 1


def test_ids_are_distinct(tmp_path):
    with pytest.raises(InputError, match=r"row 2'.*mine/double is there already"):
        load_jsonl(write(tmp_path, OURS, OURS))


def test_row_ids():
    assert [row_id(r) for r in (MBPP, OURS, {}, [1], {"id": 3})] == ["mbpp/601", "mine/double", "", "", "3"]


# --- MBPP's layout ---


def test_mbpp_layout():
    problem = from_row(MBPP)
    assert (problem.id, problem.entry_point, problem.split) == ("mbpp/601", "inc", "train")
    assert problem.question == "Add one. The function is `inc`."
    assert problem.references == ("def inc(n):\n    return n + 1",)
    assert [t.case.args for t in problem.tests] == [[1], [-1], []]
    assert problem.tests[2].case.kwargs == {"n": 5}
    assert all(t.shown for t in problem.tests)


def test_mbpp_sanitized_layout():
    row = {**MBPP, "prompt": MBPP["text"], "test_imports": ["import math"]}
    del row["text"], row["test_setup_code"]
    case = from_row(row).tests[0].case
    assert isinstance(case, CallCase)
    assert (case.args, case.expected) == ([1], 2)


@pytest.mark.parametrize("task, split", [(10, "train"), (11, "heldout"), (510, "heldout"), (511, "train")])
def test_mbpps_test_split_is_held_out(task, split):
    assert from_row(mbpp(task_id=task)).split == split


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_all_of_mbpp(shared_data):
    refused = []
    problems = load_jsonl(shared_data / "mbpp" / "mbpp.jsonl", on_bad=lambda _n, name, why: refused.append((name, why)))
    assert refused == []
    assert len(problems) == 974
    kinds = Counter(type(test.case) for problem in problems for test in problem.tests)
    assert kinds[CallCase] >= 2900
    assert [p.id for p in problems if any(isinstance(t.case, AssertCase) for t in p.tests)] == ["mbpp/596"]
    held = [p for p in problems if p.split == "heldout"]
    assert len(held) == len(MBPP_TEST_IDS) == 500
    assert all(p.entry_point and p.entry_point in p.references[0] for p in problems)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_all_of_sanitized_mbpp(shared_data):
    rows = json.loads((shared_data / "mbpp" / "sanitized-mbpp.json").read_text(encoding="utf-8"))
    refused = []
    problems = from_rows(enumerate(rows, 1), "sanitized", on_bad=lambda _n, name, why: refused.append((name, why)))
    assert (len(problems), refused) == (427, [])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_all_of_humaneval(shared_data):
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    problems = from_rows(enumerate(rows, 1), "HumanEval")
    assert len(problems) == 164
    assert all(p.split == "heldout" for p in problems)
    # Those that loop, draw random inputs or call other functions stay test code.
    whole = [p for p in problems if any(isinstance(t.case, AssertCase) for t in p.tests)]
    assert 5 <= len(whole) <= 40, [p.id for p in whole]
    assert all(len(p.tests) == 1 for p in whole)
    # The helper of the prompt is the test's: a solution cannot define it anew.
    polynomial = next(p for p in whole if p.id == "humaneval/32")
    assert "def poly(" in polynomial.tests[0].case.code


# --- the bundled set ---


@pytest.fixture(scope="module")
def problems():
    return bundled()


def test_bundled_counts(problems):
    styles = Counter("stdin" if p.entry_point is None else "function" for p in problems)
    splits = Counter(p.split for p in problems)
    assert styles["function"] >= 48
    assert styles["stdin"] >= 16
    assert splits["train"] >= 48
    assert splits["heldout"] >= 16
    assert {(p.split, p.entry_point is None) for p in problems} == {(s, b) for s in splits for b in (True, False)}


def test_bundled_problems_are_complete(problems):
    assert len({p.id for p in problems}) == len(problems)
    for p in problems:
        assert p.id.startswith("bundled/"), p.id
        assert len(set(p.references)) == 2, p.id
        assert len(p.tests) >= 8, p.id
        assert [t.shown for t in p.tests[:4]] == [True, True, True, False], p.id
        assert len(p.shown_tests) == 3, p.id
        assert all(r.isascii() for r in p.references), p.id
        inputs = [t.case.model_dump_json(exclude={"expected", "comparator"}) for t in p.tests]
        assert len(set(inputs)) == len(inputs), p.id


def test_no_held_out_question_is_trained_on(problems):
    assert len({p.question for p in problems}) == len(problems)


def test_demonstrations_belong_to_training_problems(problems):
    by_id = {p.id: p for p in problems}
    demos = demonstrations()
    assert len(demos) >= 24
    assert len({d.problem_id for d in demos}) == len(demos)
    for demo in demos:
        assert by_id[demo.problem_id].split == "train", demo.problem_id
        check_order([s.action for s in demo.steps])
        assert demo.steps[-1].action is Action.CODE, demo.problem_id
        assert parse(render(demo.steps)) == demo.steps, demo.problem_id


@pytest.mark.slow
def test_references_and_demonstrations_pass_every_test(problems):
    by_id = {p.id: p for p in problems}
    programs = [(p, r) for p in problems for r in p.references]
    programs += [(by_id[d.problem_id], extract_program(d.steps[-1].text)) for d in demonstrations()]

    async def judge():
        async with LocalPool() as pool:
            work = [
                pool.judge(
                    Submission(
                        source=source,
                        entry_point=problem.entry_point,
                        cases=[t.case for t in problem.tests],
                        limits=Limits(memory_mb=512),
                    )
                )
                for problem, source in programs
            ]
            return await asyncio.gather(*work)

    results = asyncio.run(judge())
    failed = [
        (p.id, r.verdict, r.passed, r.total)
        for (p, _), r in zip(programs, results, strict=True)
        if r.verdict is not Verdict.ACCEPTED
    ]
    assert not failed
    assert all(r.passed == r.total for r in results)


# --- splits ---


def many(count, split="train"):
    return [Problem.model_validate_json(json.dumps(ours(id=f"p{i}", split=split))) for i in range(count)]


def test_a_quarter_is_held_out_by_the_id_alone():
    chosen = {p.id for p in with_held_out(many(40)) if p.split == "heldout"}
    assert len(chosen) == 10
    assert chosen == {p.id for p in with_held_out(many(40)[::-1]) if p.split == "heldout"}
    assert sum(p.split == "heldout" for p in with_held_out(many(2))) == 1


def test_a_given_split_stands():
    given = [*many(3), Problem.model_validate_json(json.dumps(ours(id="h", split="heldout")))]
    assert with_held_out(given) == given


def test_one_problem_is_too_few():
    with pytest.raises(InputError, match="at least two problems"):
        with_held_out(many(1))


@pytest.mark.parametrize("ids, says", [((), "problems: got '3 problems'"), (("p0", "p1"), "ids: got 'p0,p1'")])
def test_held_out_problems_are_never_trained_on(ids, says):
    with pytest.raises(InputError, match="use at least one problem outside the held-out split") as caught:
        with_held_out(many(3, split="heldout"), ids)
    assert says in str(caught.value)
