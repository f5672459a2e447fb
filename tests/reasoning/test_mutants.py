"""Planted faults: each one parses, differs, and is one fault."""

import ast
import difflib

import pytest

from reasoning.mutants import mutants
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
    return [ast.unparse(ast.parse(m)) for m in mutants(source, limit)]


def test_every_kind_of_fault():
    assert set(faults("r = a < b")) == {"r = a <= b", "r = a >= b"}
    assert set(faults("r = a in b")) == {"r = a not in b"}
    assert set(faults("a //= b")) == {"a *= b"}
    assert set(faults("r = a and b")) == {"r = a or b"}
    assert set(faults("r = True")) == {"r = False"}
    assert set(faults("r = 5")) == {"r = 6", "r = 4"}
    assert set(faults("r = a if c else b")) == {"r = b if c else a"}
    assert faults("r = 'text' + f(a.b[c])") == ["r = 'text' - f(a.b[c])"]
    assert faults("r = f(a)") == []


def test_a_removed_not_keeps_the_program_running():
    source = "def f(items):\n    while not items:\n        items = ['put in']\n        break\n    return items"
    (removed,) = mutants(source, 9)
    space = {}
    exec(removed, space)
    assert space["f"]([]) == []
    assert space["f"](["a"]) == ["put in"]


def test_mutants_are_distinct_programs_with_one_fault():
    original = ast.unparse(ast.parse(SOURCE)).splitlines()
    found = mutants(SOURCE, 1000)
    assert len(found) == len(set(found)) >= 15
    for mutant in found:
        changed = [d for d in difflib.ndiff(original, mutant.splitlines()) if d[0] in "+-"]
        assert len(changed) == 2, changed


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_the_limit_holds(limit):
    assert len(mutants(SOURCE, limit)) == limit


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
            compile(mutant, "mutant", "exec")
    assert sum(bool(mutants(p.references[0], 8)) for p in bundled()) > 0.8 * len(bundled())
