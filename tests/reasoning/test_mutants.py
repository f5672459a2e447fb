"""Planted faults: each one parses, differs, and is one fault."""

import ast
import difflib

import pytest

from reasoning.mutants import constant_programs, mutants
from reasoning.problems import bundled

SOURCE = """
def f(items, limit=3):
    total = 0
    for x in items:
        if not x or x > limit and x != 7:
            total += x * 2 - 1
    return total if total in items else True
"""


def faults(source, limit=1000):
    """Every mutant as (kind, program)."""
    return {(m.fault, m.source.rstrip("\n")) for m in mutants(source, limit)}


def of(kind, *programs):
    return {(kind, program) for program in programs}


KINDS = {
    "r = a < b": of("comparison", "r = a <= b", "r = a >= b") | of("boundary", "r = a < b + 1", "r = a < b - 1"),
    "r = a <= 3": of("comparison", "r = a < 3", "r = a > 3") | of("constant", "r = a <= 4", "r = a <= 2"),
    "r = a in b": of("comparison", "r = a not in b"),
    "r = a is None": of("comparison", "r = a is not None"),
    "r = a == b": of("comparison", "r = a != b"),
    "a //= b": of("arithmetic", "a *= b") | of("removed statement", "pass"),
    "r = -a ** b": of("arithmetic", "r = +a ** b", "r = -(a * b)"),
    "r = a & b << c": of("arithmetic", "r = a | b << c", "r = a & b >> c"),
    "r = a and b": of("logic", "r = a or b"),
    "r = not a": of("logic", "r = not not a"),
    "r = a if c else b": of("logic", "r = b if c else a"),
    "r = True": of("constant", "r = False"),
    "r = 5": of("constant", "r = 6", "r = 4"),
    "r = 0.5": of("constant", "r = 1.5", "r = -0.5"),
    "r = 'text' + f(a.b[c])": of("arithmetic", "r = 'text' - f(a.b[c])") | of("constant", "r = '' + f(a.b[c])"),
    "r = a[b:]": of("slice", "r = a[:]", "r = a[b + 1:]"),
    "r = a[:b]": of("slice", "r = a[:]", "r = a[:b - 1]", "r = a[1:b]"),
    "r = a[::b]": of("slice", "r = a[:]"),
    "r = range(n)": of("loop bound", "r = range(n + 1)", "r = range(n - 1)", "r = range(1, n)"),
    "r = range(m, n, k)": of(
        "loop bound", "r = range(m, n + 1, k)", "r = range(m, n - 1, k)", "r = range(m + 1, n, k)"
    ),
    "r = f(a)": set(),
    "r = a = b": set(),
    "pass": set(),
}


@pytest.mark.parametrize("source", KINDS)
def test_every_kind_of_fault(source):
    assert faults(source) == KINDS[source]


def test_results_that_are_returned_wrong():
    assert of("return", "def f(a):\n    return not a in b") <= faults("def f(a):\n    return a in b")
    assert faults("def f(a):\n    return [x for x in a]") == of("return", "def f(a):\n    return []")
    assert faults("def f(a):\n    return a") == set()


BODY = '''
def f(a):
    """Doc."""
    n = g()
    n += a
    a = n
    h(a)
    while a:
        break
    return a
'''


def test_statements_that_are_missing_leave_no_name_without_a_value():
    removed = [m.source for m in mutants(BODY, 100) if m.fault == "removed statement"]
    original = ast.unparse(ast.parse(BODY)).splitlines()
    lost = [line.strip() for line in original if any(line not in source.splitlines() for source in removed)]
    assert lost == ["n += a", "a = n", "h(a)", "break"]
    assert len(removed) == 4
    assert all(source.count("pass") == 1 for source in removed)


def test_a_removed_not_keeps_the_program_running():
    source = "def f(items):\n    while not items:\n        items = ['put in']\n        break\n    return items"
    removed = next(m.source for m in mutants(source, 9) if m.fault == "logic")
    space = {}
    exec(removed, space)
    assert space["f"]([]) == []
    assert space["f"](["a"]) == ["put in"]


def test_mutants_are_distinct_programs_with_one_fault():
    original = ast.unparse(ast.parse(SOURCE)).splitlines()
    found = mutants(SOURCE, 1000)
    assert len(found) == len({m.source for m in found}) >= 15
    for mutant in found:
        changed = [d for d in difflib.ndiff(original, mutant.source.splitlines()) if d[0] in "+-"]
        removed = mutant.fault == "removed statement"  # may have had several lines
        assert [d[0] for d in changed].count("+") == 1 and (removed or len(changed) == 2), changed


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_the_limit_holds(limit):
    assert len(mutants(SOURCE, limit)) == limit


def test_the_kinds_of_fault_take_turns():
    kinds = [m.fault for m in mutants(SOURCE, 1000)]
    every = set(kinds)
    assert len(every) >= 5
    assert set(kinds[: len(every)]) == every


def test_the_seed_decides():
    assert mutants(SOURCE, 5, seed=1) == mutants(SOURCE, 5, seed=1)
    assert mutants(SOURCE, 5, seed=1) != mutants(SOURCE, 5, seed=2)
    assert set(mutants(SOURCE, 1000, seed=1)) == set(mutants(SOURCE, 1000, seed=2))


def test_a_program_that_does_not_parse():
    with pytest.raises(SyntaxError):
        mutants("def f(:", 5)


def test_the_bundled_references_can_be_broken():
    for problem in bundled():
        for mutant in mutants(problem.references[0], 8):
            compile(mutant.source, "mutant", "exec")
    assert sum(bool(mutants(p.references[0], 8)) for p in bundled()) > 0.8 * len(bundled())


def answer(source, entry_point, *arguments):
    names = {}
    exec(source, names)
    owner, _, method = entry_point.rpartition(".")
    return (getattr(names[owner](), method) if owner else names[entry_point])(*arguments)


@pytest.mark.parametrize("entry_point", ["f", "Solution.f"])
def test_constant_programs_give_no_answer_or_the_commonest(entry_point):
    programs = constant_programs(entry_point, [[2], [1], [1]])
    assert [answer(p, entry_point, 5) for p in programs] == [None, [1], [2]]
    assert len(constant_programs(entry_point, range(99))) == 5
    # What cannot be written down is passed over.
    assert [answer(p, entry_point) for p in constant_programs(entry_point, [float("inf")] * 3 + [7])] == [None, 7]
    assert len(constant_programs(entry_point, [None, None])) == len(constant_programs(entry_point, [])) == 1


def test_constant_programs_that_print(capsys):
    for program in constant_programs(None, ["YES\n", "NO\n", "YES\n"]):
        exec(program, {})
    assert capsys.readouterr().out == "YES\nNO\n"
