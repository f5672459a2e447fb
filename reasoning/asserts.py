"""Assert statements as test cases whose comparison happens outside the solution's process.

`assert f(args) == literal` and its variants become calls with an expected value and a comparator; what is no such thing
becomes an expression to evaluate, and what is not even that stays test code, run in a process of its own.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

from sandbox import AssertCase, CallCase, CloseValue, ExactValue, ExpressionCase, UnorderedValue

EQUAL: Final = ExactValue(bool_is_int=True)
"""What `==` of an assert means: 0 equals False."""
TRUTH: Final = ExactValue(truth=True)
"""What `assert f(x)` means: every value will do that counts as true."""
MAX_CONSTANT_BITS: Final = 4096

AssertedCase = CallCase | ExpressionCase | AssertCase


class AssertError(ValueError):
    """The text is not an assert statement that can be used; the message says why."""


class _NotConverted(Exception):
    """The statement compares in a way that no comparator has."""


def convert_assert(text: str, entry_point: str, setup: str = "") -> AssertedCase:
    """The strictest case that says the same as an assert statement after `setup`.

    Taken as a value to compare: `==`, `is`, truth (`assert f(x)`, `assert not f(x)`), `math.isclose(f(x), y, ...)`,
    `abs(f(x) - y) < tolerance`, `set(f(x)) == ...`, `sorted(f(x)) == ...`, the literal on either side. Raises
    AssertError for a text that is not one assert.
    """
    try:
        body = ast.parse(text.strip()).body
        if len(body) != 1 or not isinstance(body[0], ast.Assert):
            raise AssertError(f"test is not one assert: {text[:80]!r}")
        return _converted(body[0].test, entry_point, setup)
    except _NotConverted:
        code = "\n".join(part for part in (setup.strip(), text.strip()) if part)
        return AssertCase(code=code + "\n", entry_point=entry_point)
    except AssertError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # Values that no case holds (`...`, nesting without end), other arguments of isclose.
        raise AssertError(f"test cannot be converted: {text[:80]!r}") from None


def convert_check(code: str, entry_point: str) -> list[AssertedCase]:
    """The cases of test code with a function `check(candidate)`, as HumanEval has it.

    Where every statement of the function is an assert that becomes a call with an expected value, one case each; else
    the code as a whole as one case, in a process of its own. Raises AssertError for code without such a function.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise AssertError(f"test code does not parse: {error}") from None
    check = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    if check is None or len(check.args.args) != 1:
        raise AssertError("test code defines no check(candidate)")
    name = check.args.args[0].arg
    cases: list[AssertedCase] = []
    for statement in check.body:
        if _says_nothing(statement):
            continue
        case = None
        if isinstance(statement, ast.Assert):
            try:
                case = _converted(statement.test, name, "")
            except (_NotConverted, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                case = None
        if not isinstance(case, CallCase) or not _only_defines(tree, check):
            return [AssertCase(code=f"{code.rstrip()}\n\ncheck(candidate)\n", entry_point=entry_point)]
        cases.append(case)
    if not cases:
        raise AssertError("test code asserts nothing")
    return cases


def _only_defines(tree: ast.Module, check: ast.FunctionDef) -> bool:
    """Whether a module holds nothing beside the one function but imports and constants that no assert looks at."""
    others = [node for node in tree.body if node is not check]
    return all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["METADATA"])
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in others
    )


def _says_nothing(statement: ast.stmt) -> bool:
    """A docstring, `pass`, `assert True`."""
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and bool(statement.test.value)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _converted(condition: ast.expr, entry_point: str, setup: str) -> CallCase | ExpressionCase:
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
        return _comparison(condition, entry_point, setup)
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return _case(condition.operand, False, entry_point, setup, TRUTH)
    if isinstance(condition, ast.Call) and ast.unparse(condition.func) in {"math.isclose", "isclose"}:
        tolerances = {k.arg: _constant(k.value) for k in condition.keywords if k.arg}
        value, expected = condition.args
        if not _is_constant(expected):
            raise _NotConverted
        close = CloseValue(rel_tol=tolerances.get("rel_tol", 1e-9), abs_tol=tolerances.get("abs_tol", 0.0))
        return _case(value, _constant(expected), entry_point, setup, close)
    return _case(condition, True, entry_point, setup, TRUTH)


def _comparison(condition: ast.Compare, entry_point: str, setup: str) -> CallCase | ExpressionCase:
    sign, left, right = condition.ops[0], condition.left, condition.comparators[0]
    if isinstance(sign, ast.Eq | ast.Is):
        if not _is_constant(right):
            left, right = right, left
        if _is_constant(right):
            same = ExactValue() if isinstance(sign, ast.Is) else None  # 1 is not True
            return _case(left, _constant(right), entry_point, setup, same)
    if isinstance(sign, ast.Lt | ast.LtE) and _is_constant(right):
        return _distance(left, _constant(right), entry_point, setup)
    raise _NotConverted


def _distance(left: ast.expr, tolerance: Any, entry_point: str, setup: str) -> CallCase | ExpressionCase:
    """`abs(f(x) - y) < tolerance`."""
    absolute = isinstance(left, ast.Call) and ast.unparse(left.func) in {"abs", "math.fabs"} and len(left.args) == 1
    if not absolute or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise _NotConverted
    assert isinstance(left, ast.Call)
    difference = left.args[0]
    if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
        raise _NotConverted
    value, expected = difference.left, difference.right
    if not _is_constant(expected):
        value, expected = expected, value
    if not _is_constant(expected):
        raise _NotConverted
    close = CloseValue(rel_tol=0.0, abs_tol=float(tolerance))
    return _case(value, _constant(expected), entry_point, setup, close)


_JUDGES: Final = (ast.Compare, ast.BoolOp, ast.Not, ast.comprehension, ast.Lambda, ast.NamedExpr)
_VIEWS: Final[dict[str, tuple[type, ...]]] = {"set": (set, frozenset), "frozenset": (set, frozenset), "sorted": (list,)}


def _case(
    call: ast.expr, expected: Any, entry_point: str, setup: str, comparator: CloseValue | ExactValue | None = None
) -> CallCase | ExpressionCase:
    made: ExactValue | CloseValue | UnorderedValue = comparator or EQUAL
    viewed = call
    if comparator is None and isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords:
        view = ast.unparse(call.func)
        # The answer itself is asked for, and compared the way in which the test looks at it.
        if type(expected) in _VIEWS.get(view, ()):
            if view == "sorted" and sorted(expected) != expected:
                raise _NotConverted  # no answer is right
            viewed = call.args[0]
            made = UnorderedValue(bool_is_int=True, ignore_repeats=view != "sorted")
    if any(isinstance(node, _JUDGES) for node in ast.walk(call)):
        raise _NotConverted  # the solution's own objects would be asked for the outcome
    plain = isinstance(viewed, ast.Call) and isinstance(viewed.func, ast.Name) and viewed.func.id == entry_point
    if plain:
        assert isinstance(viewed, ast.Call)
        named = {k.arg: k.value for k in viewed.keywords}
        values = [*viewed.args, *named.values()]
        if None not in named and all(_is_literal(value) for value in values) and _only_imports(setup):
            return CallCase(
                args=[_constant(a) for a in viewed.args],
                kwargs={str(k): _constant(v) for k, v in named.items()},
                expected=expected,
                comparator=made,
            )
    return ExpressionCase(setup=setup, expression=ast.unparse(call), expected=expected, comparator=comparator or EQUAL)


def _only_imports(setup: str) -> bool:
    """Whether what comes before a test only imports; literal arguments need nothing of it."""
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(setup).body)


_COLLECTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "set": set, "frozenset": frozenset, "list": list, "tuple": tuple,
}  # fmt: skip
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def _constant(node: ast.expr) -> Any:
    """The value of a literal, of `set(literal)` and its like, of sums and products of numbers.

    Raises ValueError for anything else.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _COLLECTIONS:
        if len(node.args) > 1 or node.keywords:
            raise ValueError("not a constant")
        return _COLLECTIONS[node.func.id](*(ast.literal_eval(arg) for arg in node.args))
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _number(node)


def _number(node: ast.expr) -> int | float:
    """The value of arithmetic on literal numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        try:
            value = _ARITHMETIC[type(node.op)](_number(node.left), _number(node.right))
        except ArithmeticError:
            raise ValueError("not a constant") from None
        if isinstance(value, int) and value.bit_length() > MAX_CONSTANT_BITS:
            raise ValueError("not a constant of modest size")
        return value if isinstance(value, int) else float(value)
    value = ast.literal_eval(node)
    if type(value) not in (int, float):
        raise ValueError("not a number")
    return value if isinstance(value, int) else float(value)


def _is_constant(node: ast.expr) -> bool:
    try:
        _constant(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_literal(node: ast.expr) -> bool:
    return not isinstance(node, ast.Call) and _is_constant(node)


def imports_of(code: str) -> str:
    """The import statements at the top level of a program: what its tests may rely on."""
    body: Sequence[ast.stmt] = ast.parse(code).body
    return "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
