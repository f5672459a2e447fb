"""Inputs made from known ones: new, different, of the same types and of modest size; the known ones stay."""

import copy
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.inputs import new_arguments, new_texts
from reasoning.problems import bundled
from reasoning.properties import Property
from sandbox import CallCase, StdioCase

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text("ab é\n", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers(0, 9), max_size=4)
        | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
KNOWN = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[VALUES] * n), min_size=1, max_size=4))


def size(value):
    if isinstance(value, dict):
        return 1 + sum(size(k) + size(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return 1 + sum(map(size, value))
    return len(value) if isinstance(value, str) else 1


@given(KNOWN, st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_arguments_are_new_and_like_the_known_ones(known, seed):
    before = copy.deepcopy(known)
    made = new_arguments(known, 12, seed)
    assert known == before
    texts = [repr(args) for args in made]
    assert len(set(texts)) == len(texts) and not set(texts) & {repr(args) for args in known}
    assert repr(new_arguments(known, 12, seed)) == repr(made)
    for args in made:
        assert len(args) == len(known[0])
        for place, value in enumerate(args):
            assert type(value) in {type(one[place]) for one in known}
            assert size(value) <= 40 * (1 + max(size(one) for one in known))


def test_there_is_always_something_new_where_there_are_numbers_or_texts():
    for known in ([(3,)], [("ab",)], [([1, 2], True)], [({"a": 1},)], [((1, "x"),)]):
        assert len(new_arguments(known, 5, 1)) == 5
    assert new_arguments([], 5, 1) == [] and new_arguments([(None,)], 5, 1) == []


def test_some_inputs_are_at_the_edge():
    known = [("abc", [3, 1, 2], 7), ("xy", [5, 6], 8)]
    made = new_arguments(known, 60, 0)
    edges = [a for a in made if a[0] in ("", a[0][:1]) or len(a[1]) < 2 or a[2] in (0, 1, -1)]
    for place, edge in ((0, ""), (1, []), (2, 0), (2, 1), (2, -1)):
        assert any(args[place] == edge for args in edges)
        # Of every place, not of one alone, where only few are asked for.
        assert any(args[place] == edge for args in new_arguments(known, 30, 3))
    simple = [((9, 9, 9),)]
    assert ((),) in new_arguments(simple, 9, 0) and ((9,),) in new_arguments(simple, 9, 0)
    assert new_arguments([([],)], 3, 0)[0] == ([0],)


def test_no_more_than_a_third_is_at_the_edge():
    known = [([n] * 50, "a" * 50) for n in range(3, 9)]
    made = [args for seed in range(20) for args in new_arguments(known, 12, seed)]
    # Half of these edges have one item, which hardly any mutation leaves of fifty.
    assert sum(len(numbers) == 1 or len(text) == 1 for numbers, text in made) < len(made) / 3 / 2 * 1.2


def test_edges_are_made_of_every_type():
    known = [({1, 2}, {"a": 1}, 2.5, "ab", [1, 2], 7)]
    edges = ([set()], [{}], [0.0], ["", "a"], [[], [1]], [0, 1, -1])
    made = [new_arguments(known, 30, seed)[:10] for seed in range(3)]
    for place, values in enumerate(edges):
        for inputs in made:
            assert [args[place] for args in inputs if args[place] in values]


def test_inputs_lack_no_property_and_edges_that_do_are_passed_over():
    odd = Property("odd", lambda args: args[0] % 2 == 1, lambda args: args)
    made = new_arguments([(30,), (81,)], 12, 0, [odd])
    assert len(made) == 12 and all(n % 2 for (n,) in made)


def test_every_process_makes_the_same():
    code = (
        "from reasoning.inputs import new_arguments\n"
        "known = [({'ab', 'cd', 'ef'}, 'q'), ({'x', 'yy'}, 'r'), (frozenset({('a', 1), ('b', 2)}), 's')]\n"
        "print([(sorted(map(repr, a)), b) for a, b in new_arguments(known, 24, 0)])"
    )
    said = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": str(n)}, text=True)
        for n in range(3)
    }
    assert len(said) == 1


def test_a_seed_gives_other_inputs():
    known = [([3, 1, 2], "abc")]
    assert new_arguments(known, 8, 1) != new_arguments(known, 8, 2)


def test_a_number_that_counts_is_changed_with_what_it_counts():
    for text in new_texts(["3\n4 5 6\n"], 40, 3):
        count, words, end = text.split("\n")
        assert end == "" and int(count) == len(words.split(" "))
    for text in new_texts(["2\nab 1\ncd 2\n"], 40, 3):
        count, *lines = text.removesuffix("\n").split("\n")
        assert int(count) == len(lines)
        assert all(len(line.split(" ")) == 2 for line in lines)


@given(
    st.lists(
        st.lists(st.sampled_from(["1", "-7", "2.5", "ab", "é", "007"]), min_size=1, max_size=3), min_size=1, max_size=4
    )
)
@settings(max_examples=80, deadline=None)
def test_texts_keep_their_form(lines):
    text = "\n".join(" ".join(line) for line in lines) + "\n"
    made = new_texts([text], 8, 5)
    assert text not in made and len(set(made)) == len(made)
    for one in made:
        assert one.endswith("\n") and "  " not in one and one.isprintable() is text.isprintable()
        assert one.count("\n") <= 2 * text.count("\n") + 2


@pytest.mark.parametrize("kind", [CallCase, StdioCase])
def test_bundled_problems_get_as_many_as_asked_for(kind):
    for problem in bundled():
        cases = [t.case for t in problem.tests if isinstance(t.case, kind)]
        if not cases:
            continue
        make = (
            new_arguments([tuple(c.args) for c in cases], 20, 0)
            if kind is CallCase
            else new_texts([c.stdin for c in cases], 20, 0)
        )
        assert len(make) >= 15, problem.id
