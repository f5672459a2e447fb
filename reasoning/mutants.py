"""Small faults planted in a reference program, to measure what a suite of tests can tell apart (method section 2)."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
}


def mutants(source: str, limit: int, seed: int = 0) -> list[str]:
    """Up to `limit` distinct programs, each with one fault: comparison, arithmetic, boolean, constant, or a removed
    `not`. Some may behave like the original; the caller screens them by execution.

    Raises SyntaxError where `source` does not parse.
    """
    tree = ast.parse(source)
    original = ast.unparse(tree)
    sites = [(i, variant) for i, node in enumerate(ast.walk(tree)) for variant in range(len(_variants(node)))]
    random.Random(seed).shuffle(sites)
    found: dict[str, None] = {}
    for position, variant in sites:
        if len(found) >= limit:
            break
        mutated = copy.deepcopy(tree)
        node = next(n for i, n in enumerate(ast.walk(mutated)) if i == position)
        _variants(node)[variant]()
        text = ast.unparse(ast.fix_missing_locations(mutated)) + "\n"
        if text.strip() != original.strip():
            found[text] = None
    return list(found)


def _variants(node: ast.AST) -> list[Callable[[], None]]:
    """Changes that can be made at `node`, as calls that make them."""
    changes: list[Callable[[], None]] = []
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            changes += [_set(node.ops, place, new()) for new in _COMPARE.get(type(op), ())]
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        changes += [_assign(node, "op", new()) for new in _ARITHMETIC.get(type(node.op), ())]
    elif isinstance(node, ast.BoolOp):
        changes.append(_assign(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            changes.append(_assign(node, "value", not node.value))
        elif isinstance(node.value, int):
            changes += [_assign(node, "value", node.value + 1), _assign(node, "value", node.value - 1)]
    elif isinstance(node, ast.IfExp):
        changes.append(_swap_branches(node))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        # A second `not` removes the first: `+x` would only raise where x is no number.
        changes.append(_assign(node, "operand", ast.UnaryOp(ast.Not(), node.operand)))
    return changes


def _set(items: list[ast.cmpop], place: int, value: ast.cmpop) -> Callable[[], None]:
    return lambda: items.__setitem__(place, value)


def _assign(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def _swap_branches(node: ast.IfExp) -> Callable[[], None]:
    def swap() -> None:
        node.body, node.orelse = node.orelse, node.body

    return swap
