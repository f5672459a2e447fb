"""Test cases as text: template and parser agree, and rejected completions are really wrong."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reasoning.problems import bundled
from reasoning.records import Origin, Problem, ProblemTest
from reasoning.test_cases import (
    CASES_PER_PROMPT,
    MAX_CASE_CHARACTERS,
    accepts,
    corrected_pair,
    corrupt,
    derange,
    input_text,
    make_test,
    new_cases,
    output_text,
    parse_cases,
    preference_pairs,
    ranked_pairs,
    render_cases,
    renderable,
    sft_completions,
    tcg_messages,
    training_tests,
)
from sandbox import AssertCase, CallCase, CloseValue, ExpressionCase, FloatComparator, StdioCase

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.binary(max_size=4)
)
keys = st.integers() | st.text(max_size=4) | st.tuples(st.integers(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
    ),
    max_leaves=8,
)
lines = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30)
seeds = st.integers(0, 10_000)


def function(*tests, name="f"):
    """A problem of calls; of a program without a name."""
    made = tuple(t if isinstance(t, ProblemTest) else ProblemTest(case=t) for t in tests)
    return Problem(id="p", question="Do it.", entry_point=name, references=("x",), tests=made)


def program(*cases):
    return Problem(id="p", question="Do it.", references=("x",), tests=tuple(ProblemTest(case=c) for c in cases))


def same(a, b):
    """Equal in value and in type."""
    return repr(a) == repr(b) or (a == b and type(a) is type(b))


# --- template and parser ---


@given(st.lists(st.tuples(st.lists(values, min_size=1, max_size=3), values), min_size=1, max_size=4))
@example([([""], "\nOutput:\n"), (["Input:\n1\nOutput:\n2"], "Input:")])
@example([([[1] * 900], [2] * 900)])
@example([([float("inf")], 1)])
def test_calls_come_back_as_they_were_written(pairs):
    tests = [ProblemTest(case=CallCase(args=args, expected=expected)) for args, expected in pairs]
    distinct = {repr(t.case.args): t for t in tests if renderable(t)}
    written = list(distinct.values())
    text = render_cases([input_text(t) for t in written], [output_text(t) for t in written])
    read = parse_cases(text, function(*tests))
    assert len(read) == len(written)
    for test, case in zip(written, read, strict=True):
        assert same(case.args, tuple(test.case.args))
        assert case.output_ok
        assert same(case.output, test.case.expected)


@given(st.lists(st.tuples(lines, lines), min_size=1, max_size=4))
@example([("", "1"), ("\n1", "2"), ("1\nOutput:\n2", "3"), ("4\n", "Input:\n5\nOutput:\n6")])
def test_programs_come_back_as_they_were_written(pairs):
    tests = [ProblemTest(case=StdioCase(stdin=i, expected=o)) for i, o in pairs]
    distinct = {t.case.stdin.rstrip("\n"): t for t in tests if renderable(t)}
    written = list(distinct.values())
    text = render_cases([input_text(t) for t in written], [output_text(t) for t in written])
    read = parse_cases(text, program(StdioCase(stdin="", expected="")))
    assert [c.stdin for c in read] == [t.case.stdin.rstrip("\n") + "\n" for t in written]
    for test, case in zip(written, read, strict=True):
        assert case.args is None
        if case.output_ok:
            assert test.case.comparator.accepts(case.output.encode(), test.case.expected)


@pytest.mark.parametrize("problem", bundled(), ids=lambda p: p.id)
def test_bundled_tests_can_be_written_and_read(problem):
    written = [t for t in problem.tests if renderable(t)]
    assert len(written) >= CASES_PER_PROMPT
    text = render_cases([input_text(t) for t in written], [output_text(t) for t in written])
    for test, case in zip(written, parse_cases(text, problem), strict=True):
        again = make_test(problem, case, case.output, Origin.GENERATED)
        assert again.case.model_dump(exclude={"comparator", "stdin"}) == test.case.model_dump(
            exclude={"comparator", "stdin"}
        ) or isinstance(test.case, StdioCase)


@pytest.mark.parametrize(
    "case",
    [
        ExpressionCase(expression="f(1)", expected=1),
        CallCase(args=[1], kwargs={"k": 1}, expected=1),
        CallCase(args=[], expected=1),
        CallCase(args=[float("nan")], expected=1),
        CallCase(args=[1], expected=float("inf")),
        CallCase(args=[1], expected="x" * MAX_CASE_CHARACTERS),
        StdioCase(stdin="\n1", expected="1"),
        StdioCase(stdin="a\nOutput:\nb", expected="1"),
        StdioCase(stdin="1", expected="Input:\n2"),
        StdioCase(stdin="1", expected="x" * MAX_CASE_CHARACTERS),
    ],
)
def test_what_the_template_cannot_hold_is_not_trained_on(case):
    assert not renderable(ProblemTest(case=case))


READABLE = [
    ("Input:\n1, [2]\nOutput:\n3", [((1, [2]), 3)]),
    ("chatter\nInput:\n'a'\nOutput:\nTrue\n\nInput:\n'b'\nOutput:\nFalse\n", [(("a",), True), (("b",), False)]),
    ("Input:\n[1,\n 2]\nOutput:\n3", [(([1, 2],), 3)]),
    ("Input:\n1\nOutput:\n2\nInput:\n1\nOutput:\n3", [((1,), 2)]),
    ("Input:\n1\nOutput:\nabout two", [((1,), None)]),
    ("Input:\n1\nOutput:\n...", [((1,), None)]),
    ("Input:\n1\nOutput:\n", [((1,), None)]),
]


@pytest.mark.parametrize("text, read", READABLE)
def test_reading(text, read):
    cases = parse_cases(text, function(CallCase(args=[1], expected=1)))
    assert [(c.args, c.output) for c in cases] == read
    assert [c.output_ok for c in cases] == [output is not None for _, output in read]


UNREADABLE = [
    "",
    "Input:",
    "Input:\n1",
    "Output:\n1\nInput:\n",
    "Input:\n\nOutput:\n1",
    "Input:\nx\nOutput:\n1",
    "Input:\nf(1)\nOutput:\n1",
    "Input:\n1) + (2\nOutput:\n1",
    "Input:\n*[1]\nOutput:\n1",
    "Input:\nk=1\nOutput:\n1",
    "Input:\n...\nOutput:\n...",
    "Input:\n[1, ..., 9]\nOutput:\n9",
    "Input:\n{[1]}\nOutput:\n1",
    "Input:\n" + "(" * 300 + "\nOutput:\n1",
    "Input:\n" + "[" * 150 + "]" * 150 + "\nOutput:\n1",
    "Input:\n'" + "x" * MAX_CASE_CHARACTERS + "'\nOutput:\n1",
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_has_no_readable_input_is_left_out(text):
    assert parse_cases(text, function(CallCase(args=[1], expected=1))) == []


@given(
    st.lists(
        st.sampled_from(
            ["Input:\n", "Output:\n", "\n", "1", "...", "'a'", "[", "]", ", ", "x", "\\", "(", ")", "{", "}", ":"]
        ),
        max_size=30,
    ).map("".join)
)
def test_whatever_a_model_writes_can_become_tests(text):
    for problem in (function(CallCase(args=[1], expected=1)), program(StdioCase(stdin="", expected=""))):
        for case in parse_cases(text, problem):
            test = make_test(problem, case, case.output, Origin.GENERATED)
            assert ProblemTest.model_validate_json(test.model_dump_json()) == test


def broken(seed):
    """A completion of three true cases with one to four things wrong with it."""
    rng = random.Random(seed)
    text = render_cases(["[3, 1, 2], True", "[], False", "['a b'], 0.5"], ["[1, 2, 3]", "[]", "{'a': (1, None)}"])
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.randint(1, 20))
        noise = "".join(
            rng.choice("[](){}'\",:\\\n\t \0\ud800é0.5eE-_ax=Input:Output:") for _ in range(rng.randint(1, 8))
        )
        text = rng.choice(
            [
                text[:at],
                text[at:],
                text[:at] + text[to:],
                text[:at] + noise + text[at:],
                text[:at] + text[at:to] * 50 + text[to:],
                text.replace("Input:", rng.choice(["input:", "Output:", "Input", "Input: "]), 1),
                text.replace("\n", rng.choice(["\r\n", " ", "\n\n"])),
                text.replace("[", "__import__('os').abort() or [", 1),
            ]
        )
    return text


def test_two_hundred_malformed_completions_give_values_or_nothing():
    """Whatever is left of a case can be written again; nothing is run on the way."""
    problem = function(CallCase(args=[1], expected=1))
    read = 0
    for seed in range(200):
        for case in parse_cases(broken(seed), problem):
            read += 1
            made = make_test(problem, case, case.output, Origin.GENERATED)
            if renderable(made):
                (again,) = parse_cases(render_cases([input_text(made)], [output_text(made)]), problem)
                assert same(again.args, case.args) and same(again.output, case.output)
    assert 100 < read < 500


def test_a_generated_test_takes_the_comparator_of_the_given_ones():
    close = CloseValue(rel_tol=0.01)
    problem = function(CallCase(args=[1], expected=1.0, comparator=close))
    (case,) = parse_cases("Input:\n2\nOutput:\n2.0", problem)
    made = make_test(problem, case, 2.0, Origin.REFERENCE)
    assert (made.case, made.origin, made.shown) == (
        CallCase(args=[2], expected=2.0, comparator=close),
        Origin.REFERENCE,
        False,
    )
    stdin = program(StdioCase(stdin="1", expected="1", comparator=FloatComparator()))
    (case,) = parse_cases("Input:\n2\nOutput:\n2.0", stdin)
    assert make_test(stdin, case, "2.0\n", Origin.REFERENCE).case.comparator == FloatComparator()


# --- training pairs ---


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), seeds)
@example(["a", "a", "b"], 0)
@example(["a", "a", "b", "b"], 0)
def test_a_derangement_changes_every_pair_where_the_outputs_allow(outputs, seed):
    deranged = derange(outputs, random.Random(seed))
    changed = sum(a != b for a, b in zip(outputs, deranged, strict=True))
    assert changed >= 1
    most = max(outputs.count(o) for o in outputs)
    if len(set(outputs)) > 1:
        assert sorted(deranged) == sorted(outputs)
    if 2 * most <= len(outputs):
        assert changed == len(outputs)


def test_derangements_differ():
    assert {tuple(derange(["a", "b", "c"], random.Random(s))) for s in range(20)} == {("b", "c", "a"), ("c", "a", "b")}


@given(st.text(max_size=40), seeds)
@example(".5", 0)
@example("", 0)
def test_corrupt_never_returns_the_same(output, seed):
    assert corrupt(output, random.Random(seed)) != output


LITERALS = [0, -1, 10**30, 0.5, 3.0, -2.25, 1e-5, True, None, "", "a", "abc", "aba", "a1", "x\n", "\x01", "it's 5"]
LITERALS += [[], [1, 2], [0.5], [True, False], {"a": 1}, (3,), {4}]


@pytest.mark.parametrize("value", LITERALS, ids=repr)
def test_a_corrupted_literal_is_another_literal_of_its_kind(value):
    text = repr(value)
    for seed in range(12):
        (case,) = parse_cases(
            f"Input:\n1\nOutput:\n{corrupt(text, random.Random(seed))}", function(CallCase(args=[1], expected=1))
        )
        assert case.output_ok
        assert case.output != value
        assert value is None or type(case.output) is type(value)


@pytest.mark.parametrize("problem", bundled(), ids=lambda p: p.id)
def test_training_pairs_of_the_bundled_problems(problem):
    for text in sft_completions(training_tests(problem, []), random.Random(1), 3):
        cases = parse_cases(text, problem)
        assert len(cases) == CASES_PER_PROMPT
        assert all(c.output_ok for c in cases)
    pairs = preference_pairs(problem, training_tests(problem, []), "the prompt", random.Random(1), 3)
    assert len(pairs) == 3
    for pair in pairs:
        assert (pair.problem_id, pair.prompt) == (problem.id, "the prompt")
        good, bad = parse_cases(pair.chosen, problem), parse_cases(pair.rejected, problem)
        assert [c.key for c in good] == [c.key for c in bad]
        truth = [make_test(problem, c, c.output, Origin.GIVEN).case for c in good]
        lies = [make_test(problem, c, c.output, Origin.GIVEN).case for c in bad]
        assert any(t.expected != lie.expected for t, lie in zip(truth, lies, strict=True))


def test_too_few_tests_make_no_pairs():
    problem = function(CallCase(args=[1], expected=1), CallCase(args=[2], expected=2))
    assert sft_completions(training_tests(problem, []), random.Random(0), 3) == []
    assert preference_pairs(problem, training_tests(problem, []), "", random.Random(0), 3) == []


def made(n, output):
    return ProblemTest(case=CallCase(args=[n], expected=output), origin=Origin.REFERENCE)


def test_a_generator_learns_nothing_of_what_is_held_out():
    problem = function(*[CallCase(args=[n], expected=n) for n in range(8)])
    learnt = training_tests(problem, [made(0, 0), made(9, 9), made(7, 7), made(10, "Output:\n" * 500)])
    assert sorted(t.case.args[0] for t in learnt) == [0, 1, 2, 3, 9]


SHOWN = ProblemTest(case=CallCase(args=[1, "a"], expected=1), shown=True)
PRINTED = ProblemTest(case=StdioCase(stdin="5 7\n", expected="12"), shown=True)


@pytest.mark.parametrize(
    ("problem", "copy", "other"),
    [
        (function(SHOWN), "1, 'a'\nOutput:\n1", "1.0, 'a'\nOutput:\n1"),
        (function(PRINTED, name=None), "5 7\nOutput:\n12", "7 5\nOutput:\n12"),
    ],
)
def test_a_copy_of_the_example_in_the_prompt_is_no_new_case(problem, copy, other):
    text = f"{copy}\n\nInput:\n{other}"
    assert [case.key for case in parse_cases("Input:\n" + text, problem)][1:] == [
        case.key for case in new_cases(text, problem)
    ]
    assert len(new_cases(text, problem)) == 1
    assert not training_tests(problem, [])


def test_of_a_text_count_as_many_cases_as_were_asked_for():
    text = render_cases([str(n) for n in range(5)], ["0"] * 5).removeprefix("Input:\n")
    assert [case.args for case in new_cases(text, function(CallCase(args=[9], expected=1)))] == [(0,), (1,), (2,)]


def test_answers_of_faulty_programs_are_rejected():
    problem = function(*[CallCase(args=[n], expected=n) for n in range(12)])
    tests = training_tests(problem, [])
    wrong = [{"1": "-1", "4": "40"}, {"3": "[]"}]
    pairs = preference_pairs(problem, tests, "", random.Random(3), 40, wrong)
    lies = []
    for pair in pairs:
        good, bad = parse_cases(pair.chosen, problem), parse_cases(pair.rejected, problem)
        assert [c.key for c in good] == [c.key for c in bad]
        assert all(c.output == c.args[0] for c in good)
        changed = {repr(b.args[0]): repr(b.output) for g, b in zip(good, bad, strict=True) if g.output != b.output}
        assert changed
        if any(changed.items() <= program.items() for program in wrong):
            lies.append(changed)
        else:  # the others keep to the true outputs of the three tests, in another order
            assert sorted(c.output for c in good) == sorted(c.output for c in bad)
    assert {given for changed in lies for given in changed} == {"1", "3", "4"}
    assert 10 < len(lies) < 30
    # Also where there is one pair of each problem.
    first = [preference_pairs(problem, tests, "", random.Random(n), 1, [{"1": "-1"}])[0].rejected for n in range(40)]
    assert 10 < sum("-1" in text for text in first) < 30


def test_the_generators_prompt():
    shown = ProblemTest(case=CallCase(args=[1], expected=2), shown=True)
    problem = function(shown, CallCase(args=[70], expected=80))
    system, user = tcg_messages(problem, "def f(): pass\n\n")
    assert (system["role"], user["role"]) == ("system", "user")
    assert "```python\ndef f(): pass\n```" in user["content"]
    assert "f(1) == 2" in user["content"]
    assert "70" not in user["content"]
    assert "```" not in tcg_messages(problem, None)[1]["content"]
    assert "Example" not in tcg_messages(function(CallCase(args=[1], expected=1)), None)[1]["content"]


def wrote(problem, *pairs):
    return parse_cases(render_cases([i for i, _ in pairs], [o for _, o in pairs]), problem)


def test_a_generators_own_text_is_put_right():
    problem = function(CallCase(args=[1], expected=1.0, comparator=CloseValue()))
    true = {repr((n,)): ProblemTest(case=CallCase(args=[n], expected=n / 2, comparator=CloseValue())) for n in range(5)}
    pair = corrected_pair(problem, wrote(problem, ("1", "0.5000000001"), ("2", "7"), ("9", "3")), true)
    # 9 is no legal input; 0.5000000001 is right in other words.
    assert pair.chosen == render_cases(["1", "2"], ["0.5", "1.0"])
    assert pair.rejected == render_cases(["1", "2"], ["0.5", "7"])
    assert corrected_pair(problem, wrote(problem, ("1", "0.5"), ("2", "1.0")), true) is None
    assert corrected_pair(problem, wrote(problem, ("1", "unreadable"), ("9", "7")), true) is None
    assert corrected_pair(problem, [], true) is None
    with pytest.raises(TypeError, match="code"):
        accepts(ProblemTest(case=AssertCase(code="assert f(1)")), 1)


def test_the_better_of_a_generators_own_texts_is_preferred():
    problem = function(CallCase(args=[1], expected=1))
    true = {repr((n,)): ProblemTest(case=CallCase(args=[n], expected=n)) for n in range(9)}
    none, one, two = (
        wrote(problem, ("1", "7"), ("2", "8")),
        wrote(problem, ("3", "3"), ("4", "8"), ("5", "9")),
        wrote(problem, ("6", "6"), ("99", "99"), ("7", "7")),
    )
    (pair,) = ranked_pairs(problem, [one, none, two], true)
    assert pair.chosen == render_cases(["6", "7"], ["6", "7"])  # 99 is no legal input
    assert pair.rejected == render_cases(["1", "2"], ["7", "8"])
    assert ranked_pairs(problem, [one, one], true) == []
    assert ranked_pairs(problem, [two, wrote(problem, ("99", "99")), []], true) == []
    assert ranked_pairs(problem, [], true) == []
    # Each text is in one pair, and pairs end where both are as good.
    first, second = ranked_pairs(problem, [none, one, two, one, none], true)
    assert (first.chosen, second.chosen) == (pair.chosen, render_cases(["3", "4", "5"], ["3", "8", "9"]))
    assert first.rejected == second.rejected == pair.rejected
    assert len(ranked_pairs(problem, [one, one, one, none], true)) == 1
