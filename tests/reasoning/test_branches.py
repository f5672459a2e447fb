"""Branches that a program notes by itself: how many there are, which were taken, and that nothing else changes."""

import contextlib
import io

import pytest

from reasoning.branches import COVERED, instrumented, share, taken
from reasoning.problems import bundled
from sandbox import CallCase


def covered(source, *calls, entry_point="f"):
    """Branches of a function, and which of them each call takes."""
    made = instrumented(source, entry_point)
    runs = []
    for arguments in calls:
        names = {}
        exec(made.source, names)
        runs.append(taken(names[COVERED](*arguments)))
    return made.branches, runs


def printed(source, stdin=""):
    """What an instrumented program prints."""
    made = instrumented(source, None)
    out = io.StringIO()
    lines = iter(stdin.splitlines())
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        exec(made.source, {"input": lambda: next(lines), "__name__": "__main__"})
    return made.branches, out.getvalue()


CASES = {
    "if": ("def f(x):\n    if x:\n        return 1\n    return 2\n", [(0,), (1,)], 2),
    "elif": (
        "def f(x):\n    if x < 0:\n        x = 1\n    elif x:\n        x = 2\n",
        [(-1,), (0,), (1,)],
        4,
    ),
    "while": ("def f(x):\n    while x:\n        x -= 1\n", [(0,), (2,)], 2),
    "endless": ("def f(x):\n    while True:\n        if x:\n            break\n        x += 1\n", [(0,)], 3),
    "for": ("def f(x):\n    for i in x:\n        if i:\n            break\n", [([],), ([1],), ([0],)], 4),
    "expression": ("def f(x):\n    return 1 if x else 0\n", [(0,), (1,)], 2),
    "except": (
        "def f(x):\n    try:\n        1 / x\n    except ZeroDivisionError:\n        x = 1\n",
        [(0,)],
        1,
    ),
    "match": (
        "def f(x):\n    match x:\n        case 1:\n            return 1\n        case _:\n            return 2\n",
        [(1,), (2,)],
        2,
    ),
    "inside": ("def f(x):\n    return sorted(x, key=lambda y: -y if y < 0 else y)\n", [([1],), ([-1],)], 2),
}


@pytest.mark.parametrize("name", CASES)
def test_every_branch_is_counted_and_can_be_taken(name):
    source, calls, branches = CASES[name]
    counted, runs = covered(source, *calls)
    assert counted == branches
    assert share(runs, counted) == 1
    if len(calls) > 1:
        assert share(runs[:1], counted) < 1


def test_a_call_that_fails_counts_up_to_there():
    counted, (run,) = covered("def f(x):\n    if x:\n        raise ValueError\n    return 1\n", (1,))
    assert (counted, len(run)) == (2, 1)


def test_methods_are_found_as_the_sandbox_finds_them():
    source = "class Solution:\n    def f(self, x):\n        return 1 if x else 2\n"
    assert len(covered(source, (1,))[1][0]) == 1
    other = source.replace("Solution", "Other")
    assert len(covered(other, (1,), entry_point="Other.f")[1][0]) == 1


def test_a_program_without_branches_has_none():
    assert instrumented("def f(x):\n    return x\n", "f") is None
    with pytest.raises(SyntaxError):
        instrumented("def f(", "f")


def test_programs_print_their_branches_last_even_where_they_leave_early():
    source = "from __future__ import annotations\nn = int(input())\nif n > 2:\n    print('big')\n    exit()\nprint(n)\n"
    branches, out = printed(source, "5")
    assert branches == 2 and out.startswith("big\n") and len(taken(out)) == 1
    assert taken(out) | taken(printed(source, "1")[1]) == {0, 1}
    assert taken("no mark") == frozenset() == taken(None)


def test_programs_that_work_in_a_thread_are_waited_for():
    main = "def main():\n    n = int(input())\n    print('YES' if n else 'NO')\n"
    source = f"import threading\n{main}threading.Thread(target=main).start()\n"
    branches, out = printed(source, "1")
    assert branches == 2 and out.startswith("YES\n") and len(taken(out)) == 1
    assert taken(out + "YES") == frozenset()  # not the last line: nothing is known
    assert share([frozenset({0, 99})], 2) == 0.5


def test_notes_change_no_answer():
    """Of every bundled reference, on its own tests."""
    seen = 0
    for problem in bundled():
        made = instrumented(problem.references[0], problem.entry_point) if problem.entry_point else None
        if made is None:
            continue
        plain, noted = {}, {}
        exec(problem.references[0], plain)
        exec(made.source, noted)
        for test in problem.tests:
            if isinstance(test.case, CallCase) and problem.entry_point in plain:
                seen += 1
                a, b = (n[problem.entry_point](*test.case.model_copy(deep=True).args) for n in (plain, noted))
                assert a == b
    assert seen > 50
