"""Small faults planted in a reference program, to measure what a suite of tests can tell apart (method section 2)."""

from __future__ import annotations

import ast
import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

Fault = Literal[
    "comparison", "boundary", "arithmetic", "logic", "constant", "slice", "loop bound", "return", "removed statement"
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
_DISPLAYS: dict[type[ast.expr], str] = {
    ast.List: "[]",
    ast.ListComp: "[]",
    ast.Dict: "{}",
    ast.DictComp: "{}",
    ast.Set: "set()",
    ast.SetComp: "set()",
    ast.Tuple: "()",
    ast.JoinedStr: "''",
}
"""Expressions whose empty value is known."""


MAX_CONSTANTS = 5
MAX_CONSTANT_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class Mutant:
    """A program with one fault."""

    source: str
    fault: Fault


T = TypeVar("T")
Change = tuple[Fault, Callable[[], None]]


def mutants(source: str, limit: int, seed: int = 0) -> list[Mutant]:
    """Up to `limit` distinct programs, each with one fault; the kinds of fault take turns, the places are drawn.

    Some may behave like the original; the caller screens them by execution. None at all where the program is nested too
    deeply to be written down again. Raises SyntaxError where `source` does not parse.
    """
    try:
        return _mutants(source, limit, seed)
    except RecursionError:
        return []


def _mutants(source: str, limit: int, seed: int) -> list[Mutant]:
    tree = ast.parse(source)
    original = ast.unparse(tree)
    assigned = _assigned(tree)
    found: dict[str, Mutant] = {}
    for position, variant in _turns(tree, assigned, random.Random(seed)):
        if len(found) >= limit:
            break
        mutated = copy.deepcopy(tree)
        node = next(n for i, n in enumerate(ast.walk(mutated)) if i == position)
        fault, change = _changes(node, assigned)[variant]
        change()
        text = ast.unparse(ast.fix_missing_locations(mutated))
        if text != original:
            found.setdefault(text, Mutant(text + "\n", fault))
    return list(found.values())


def constant_programs(entry_point: str | None, expected: Sequence[Any]) -> list[str]:
    """Programs that always give the same answer: none, and the commonest of the `expected` ones (for a program that
    prints: of its outputs) that can be written down, `MAX_CONSTANTS` in all. A suite that one of them passes looks at
    nothing."""
    counts = Counter(text for value in expected if (text := _literal_text(value)) not in (None, repr(None)))
    answers = [repr(None), *(text for text, _ in counts.most_common())][:MAX_CONSTANTS]
    if entry_point is None:
        return [f"import sys\nsys.stdout.write({answer} or '')\n" for answer in answers]
    owner, _, method = entry_point.rpartition(".")
    if owner:
        return [
            f"class {owner}:\n    def {method}(self, *arguments, **keywords):\n        return {answer}\n"
            for answer in answers
        ]
    return [f"def {method}(*arguments, **keywords):\n    return {answer}\n" for answer in answers]


def shape(source: str) -> str:
    """The same for programs that differ in layout and in the names that they give alone; the text itself where it does
    not parse."""
    try:
        tree = ast.parse(source)
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    names.setdefault(name, f"n{len(names)}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = names.get(node.id, node.id)
            elif isinstance(node, ast.arg):
                node.arg = names.get(node.arg, node.arg)
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def _literal_text(value: object) -> str | None:
    """The value as source code; None where it has none, or a long one."""
    try:
        text = repr(value)  # refuses whole numbers of thousands of digits
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return text if len(text) <= MAX_CONSTANT_CHARACTERS else None


def _turns(tree: ast.AST, assigned: Counter[str], rng: random.Random) -> Iterator[tuple[int, int]]:
    """Every place (number of the node, number of its change), one of each kind of fault after the other."""
    sites: dict[Fault, list[tuple[int, int]]] = {fault: [] for fault in FAULTS}
    for position, node in enumerate(ast.walk(tree)):
        for variant, (fault, _) in enumerate(_changes(node, assigned)):
            sites[fault].append((position, variant))
    for places in sites.values():
        rng.shuffle(places)
    order = [fault for fault in FAULTS if sites[fault]]
    rng.shuffle(order)
    while order:
        for fault in order:
            yield sites[fault].pop()
        order = [fault for fault in order if sites[fault]]


def _changes(node: ast.AST, assigned: Counter[str]) -> list[Change]:
    """The faults that can be planted at a node, as calls that plant them."""
    changes: list[Change] = []
    match node:
        case ast.Compare():
            changes = _of_comparison(node)
        case ast.BinOp() | ast.AugAssign():
            changes = [("arithmetic", _assign(node, "op", new())) for new in _ARITHMETIC.get(type(node.op), ())]
        case ast.BoolOp():
            changes = [("logic", _assign(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))]
        case ast.UnaryOp(op=ast.Not()):
            # A second `not` removes the first: `+x` would only raise where x is no number.
            changes = [("logic", _assign(node, "operand", ast.UnaryOp(ast.Not(), node.operand)))]
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            changes = [("arithmetic", _assign(node, "op", ast.UAdd()))]
        case ast.IfExp():
            changes = [("logic", _swap_branches(node))]
        case ast.Constant():
            changes = [("constant", _assign(node, "value", value)) for value in _other_values(node.value)]
        case ast.Slice():
            changes = [("slice", change) for change in _of_slice(node)]
        case ast.Call(func=ast.Name(id="range"), args=[*args]) if args and not node.keywords:
            changes = [("loop bound", change) for change in _of_range(node)]
        case ast.Return(value=ast.expr()):
            changes = [("return", change) for change in _of_return(node)]
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if isinstance(statements, list):
            changes += [
                ("removed statement", _put(statements, place, ast.Pass()))
                for place, statement in enumerate(statements)
                if _removable(statement, assigned)
            ]
    return changes


def _of_comparison(node: ast.Compare) -> list[Change]:
    changes: list[Change] = []
    for place, op in enumerate(node.ops):
        changes += [("comparison", _put(node.ops, place, new())) for new in _COMPARE.get(type(op), ())]
        bound = node.comparators[place]
        if isinstance(op, _ORDER) and not isinstance(bound, ast.Constant):  # a constant is moved by its own fault
            changes += [("boundary", _put(node.comparators, place, _plus(bound, by))) for by in (1, -1)]
    return changes


def _other_values(value: object) -> list[object]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [value + 1.0, value - 1.0]
        case str() if value and not value.isspace():
            return [""]
    return []


def _of_slice(node: ast.Slice) -> list[Callable[[], None]]:
    changes = []
    for name, by in (("lower", 1), ("upper", -1)):
        bound = getattr(node, name)
        if bound is not None:
            changes += [_assign(node, name, None), _assign(node, name, _plus(bound, by))]
    if node.lower is None and node.step is None:
        changes.append(_assign(node, "lower", ast.Constant(1)))
    if node.step is not None:
        changes.append(_assign(node, "step", None))
    return changes


def _of_range(node: ast.Call) -> list[Callable[[], None]]:
    stop = min(len(node.args) - 1, 1)
    changes = [_put(node.args, stop, _plus(node.args[stop], by)) for by in (1, -1)]
    if len(node.args) == 1:
        changes.append(_assign(node, "args", [ast.Constant(1), node.args[0]]))
    else:
        changes.append(_put(node.args, 0, _plus(node.args[0], 1)))
    return changes


def _of_return(node: ast.Return) -> list[Callable[[], None]]:
    value = node.value
    if isinstance(value, ast.Compare | ast.BoolOp):
        return [_assign(node, "value", ast.UnaryOp(ast.Not(), value))]
    empty = _DISPLAYS.get(type(value)) if value is not None else None
    return [_assign(node, "value", ast.parse(empty, mode="eval").body)] if empty else []


def _removable(statement: ast.stmt, assigned: Counter[str]) -> bool:
    """Whether a program without the statement has another fault than a missing name or an empty body."""
    match statement:
        case ast.AugAssign() | ast.Break() | ast.Continue() | ast.Delete():
            return True
        case ast.Expr():
            return not isinstance(statement.value, ast.Constant)  # a docstring
        case ast.If():
            return not statement.orelse
        case ast.Assign(targets=[target]):
            return not isinstance(target, ast.Name) or assigned[target.id] > 1
    return False


def _assigned(tree: ast.AST) -> Counter[str]:
    """How often each name is given a value; `x += 1` needs one that was given before."""
    nodes = list(ast.walk(tree))
    names = Counter(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    names.subtract(n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name))
    names.update(n.arg for n in nodes if isinstance(n, ast.arg))
    return names


def _plus(value: ast.expr, by: int) -> ast.expr:
    if isinstance(value, ast.Constant) and type(value.value) is int:
        return ast.Constant(value.value + by)
    return ast.BinOp(value, ast.Add() if by > 0 else ast.Sub(), ast.Constant(abs(by)))


def _put(items: list[T], place: int, value: T) -> Callable[[], None]:
    return lambda: items.__setitem__(place, value)


def _assign(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def _swap_branches(node: ast.IfExp) -> Callable[[], None]:
    def swap() -> None:
        node.body, node.orelse = node.orelse, node.body

    return swap
