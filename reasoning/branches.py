"""Which branches of a reference the tests of a suite reach (method section 2).

A branch is one way on from an `if`, `while`, `for`, conditional expression, `match` or `try`: into its body, or past
it. The program notes its own branches; it is run in the sandbox like any other, so nothing has to trace it there.
Conditions inside of expressions (`and`, `or`, comprehensions) are not told apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

COVERED = "_o1coder_branches"
"""The entry point of an instrumented function: the sorted numbers of the branches that a call took."""
_NOTE, _HITS = "_o1coder_note", "_o1coder_hits"
_MARK = "\x00branches:"
"""Before the branches on the last line of an instrumented program's output; no text output has a NUL."""


@dataclass(frozen=True, slots=True)
class Instrumented:
    """A program that notes its branches, and how many there are. `entry_point`: None for one that prints."""

    source: str
    entry_point: str | None
    branches: int


def instrumented(source: str, entry_point: str | None) -> Instrumented | None:
    """The program with notes; None where it has no branch, or is nested too deeply to be written down again. Raises
    SyntaxError where it does not parse."""
    try:
        return _instrumented(source, entry_point)
    except RecursionError:
        return None


def _instrumented(source: str, entry_point: str | None) -> Instrumented | None:
    notes = _Notes()
    tree = notes.visit(ast.parse(source))
    if not notes.count:
        return None
    future = [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    rest = [s for s in tree.body if s not in future]
    if entry_point is None:
        whole = ast.parse(_AROUND_PROGRAM)
        main = next(s for s in whole.body if isinstance(s, ast.Try))
        main.body = rest or [ast.Pass()]
        whole.body[:0] = future
    else:
        whole = ast.Module([*future, *ast.parse(_BEFORE).body, *rest, *ast.parse(_after(entry_point)).body], [])
    text = ast.unparse(ast.fix_missing_locations(whole))
    return Instrumented(text + "\n", None if entry_point is None else COVERED, notes.count)


def taken(value: object) -> frozenset[int]:
    """The branches that a run noted. `value`: what the call returned, or the output of the program; nothing where it
    does not end with a note."""
    if isinstance(value, str):
        _, mark, numbers = value.rpartition(_MARK)
        words = numbers.split()
        return frozenset(map(int, words)) if mark and all(w.isascii() and w.isdigit() for w in words) else frozenset()
    return frozenset(n for n in value if isinstance(n, int)) if isinstance(value, list) else frozenset()


def share(runs: Iterable[frozenset[int]], branches: int) -> float:
    """Share of all branches that one of the runs took."""
    return len(frozenset(range(branches)).intersection(frozenset().union(*runs))) / branches


_BEFORE = f"""
{_HITS} = set()

def {_NOTE}(number):
    {_HITS}.add(number)
"""
# A program may leave by sys.exit or an error: what it has noted by then counts. Its threads go on after its last line.
_AROUND_PROGRAM = f"""{_BEFORE}
try:
    pass
finally:
    import sys as _o1coder_sys, threading as _o1coder_threading
    for _o1coder_one in _o1coder_threading.enumerate():
        if _o1coder_one is not _o1coder_threading.current_thread() and not _o1coder_one.daemon:
            _o1coder_one.join()
    _o1coder_sys.stdout.write({_MARK!r} + ' '.join(map(str, sorted({_HITS}))))
"""


def _after(entry_point: str) -> str:
    """The function that calls the entry point as the sandbox does, and returns the branches."""
    owner, _, method = entry_point.rpartition(".")
    if owner:
        function = f"getattr({owner}(), {method!r})"
    else:
        function = f"(globals().get({entry_point!r}) or getattr(Solution(), {entry_point!r}))"
    return f"""
def {COVERED}(*arguments, **keywords):
    try:
        {function}(*arguments, **keywords)
    except Exception:
        pass
    return sorted({_HITS})
"""


class _Notes(ast.NodeTransformer):
    """Puts a note at the beginning of every branch."""

    def __init__(self) -> None:
        self.count = 0

    def _number(self) -> ast.expr:
        self.count += 1
        return ast.Call(ast.Name(_NOTE, ast.Load()), [ast.Constant(self.count - 1)], [])

    def _noted(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [ast.Expr(self._number()), *body]

    def _two_ways(self, node: ast.If | ast.While | ast.For) -> ast.AST:
        self.generic_visit(node)
        node.body, node.orelse = self._noted(node.body), self._noted(node.orelse)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        return self._two_ways(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._two_ways(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body = self._noted(node.body)
        # Nothing comes past `while True` but by a break, which is the end of a branch of its own.
        if not (isinstance(node.test, ast.Constant) and node.test.value):
            node.orelse = self._noted(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        # A note returns None: `note or value` is the value.
        node.body = ast.BoolOp(ast.Or(), [self._number(), node.body])
        node.orelse = ast.BoolOp(ast.Or(), [self._number(), node.orelse])
        return node

    def visit_Try(self, node: ast.Try | ast.TryStar) -> ast.AST:
        self.generic_visit(node)
        for handler in node.handlers:
            handler.body = self._noted(handler.body)
        return node

    def visit_TryStar(self, node: ast.TryStar) -> ast.AST:
        return self.visit_Try(node)

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        self.generic_visit(node)
        node.body = self._noted(node.body)
        return node
