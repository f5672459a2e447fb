"""Problems from rows: our own JSONL layout, MBPP's, and the bundled set. Fetching a hub data set is done elsewhere."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reasoning.errors import InputError
from reasoning.records import Demonstration, Problem, ProblemTest
from sandbox import CallCase, CloseValue, ExactValue, ExpressionCase

BUNDLED = Path(__file__).resolve().parent / "bundled"
HELD_OUT_SHARE = 0.25
MBPP_TEST_IDS = range(11, 511)
_EQUAL = ExactValue(bool_is_int=True)
"""What `==` of an assert means: 0 equals False."""


BadRow = Callable[[int, str, str], None]
"""Told of a row that is left out: its number, id and what is wrong with it."""


class RowError(ValueError):
    """A row that is not a problem; the message says why."""


def bundled() -> list[Problem]:
    """The problems that ship with the project."""
    return load_jsonl(BUNDLED / "problems.jsonl")


def demonstrations() -> list[Demonstration]:
    """The worked solutions of bundled training problems."""
    lines = (BUNDLED / "demonstrations.jsonl").read_text(encoding="utf-8").split("\n")
    return [Demonstration.model_validate_json(line) for line in lines if line.strip()]


def load_jsonl(path: Path, ids: Sequence[str] = (), on_bad: BadRow | None = None) -> list[Problem]:
    """The problems of a file with one JSON object a line, in our layout or MBPP's.

    `ids`: only these (an MBPP number or a whole id). Every row asked for must be good, unless `on_bad` is given.

    Raises:
        InputError: the file is missing, empty or a JSON array, a row is bad (its number and the reason), or an id is
            not there.
    """
    try:
        # Not splitlines: JSON strings may hold other line breaks (U+2028, U+0085) as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError("problems", str(path), "an existing JSONL file", type(error).__name__) from None
    except UnicodeDecodeError:
        raise InputError("problems", str(path), "a JSONL file in UTF-8") from None
    if _is_array(lines):
        legal = f"a JSONL file, one JSON object a line (jq -c '.[]' {path.name} prints one)"
        raise InputError("problems", str(path), legal, "it holds one JSON array")
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:  # also an int of thousands of digits, and deep nesting
                raise InputError("problems", f"{path} row {number}", "one JSON object a line", str(error)) from None
    return from_rows(rows, str(path), ids, on_bad)


def _is_array(lines: Sequence[str]) -> bool:
    """Whether the file as a whole is a JSON array, which is no JSONL."""
    if not next((line for line in lines if line.strip()), "").lstrip().startswith("["):
        return False
    try:
        return isinstance(json.loads("\n".join(lines)), list)
    except (ValueError, RecursionError):
        return False


def from_rows(
    rows: Iterable[tuple[int, Any]], source: str, ids: Sequence[str] = (), on_bad: BadRow | None = None
) -> list[Problem]:
    """Problems of numbered rows; see `load_jsonl`."""
    wanted = set(ids)
    problems: dict[str, Problem] = {}
    found: set[str] = set()
    for number, row in rows:
        name = row_id(row)
        if wanted and not wanted & {name, name.split("/")[-1]}:
            continue
        found |= {name, name.split("/")[-1]}
        try:
            problem = from_row(row)
        except RowError as error:
            if on_bad is not None:
                on_bad(number, name, str(error))
                continue
            legal = "a problem row (docs/data.md), or skip_bad_rows=true to go on without it"
            raise InputError("problems", f"{source} row {number}", legal, f"{name or 'no id'}: {error}") from None
        if problem.id in problems:
            raise InputError("problems", f"{source} row {number}", "distinct ids", f"{problem.id} is there already")
        problems[problem.id] = problem
    missing = sorted(wanted - found)
    if missing:
        raise InputError("ids", ",".join(missing[:5]), f"ids that {source} holds", "not found")
    if not problems:
        raise InputError("problems", source, "a file with at least one problem", "holds none that can be used")
    return list(problems.values())


def row_id(row: Any) -> str:
    """The id that a row will have, or "" where it has none."""
    if not isinstance(row, Mapping):
        return ""
    if "task_id" in row and "test_list" in row:
        return f"mbpp/{row['task_id']}"
    return str(row.get("id", ""))


def from_row(row: Any) -> Problem:
    """One problem. Raises RowError."""
    if not isinstance(row, Mapping):
        raise RowError(f"a JSON object is needed, not {type(row).__name__}")
    if "test_list" in row:
        return from_mbpp(row)
    try:
        # JSON text, so that typed values (tuples, sets) are decoded.
        text = json.dumps(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"is not JSON: {error}") from None
    try:
        problem = Problem.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RowError(f"field {where or 'row'}: {_explain(first)}") from None
    kinds = {test.case.kind for test in problem.tests}
    if problem.entry_point is None and kinds != {"stdio"}:
        raise RowError(f"field entry_point: tests of kind {sorted(kinds - {'stdio'})} need the name of the function")
    if problem.entry_point is not None and "stdio" in kinds:
        raise RowError("field tests: a problem with an entry_point cannot have tests of kind stdio")
    return problem


def _explain(error: Any) -> str:
    """What pydantic found, in words of a problem file."""
    if error["type"] == "extra_forbidden":
        if len(error["loc"]) > 1:
            return "unknown"
        close = difflib.get_close_matches(str(error["loc"][0]), list(Problem.model_fields), 1, 0.75)
        return "unknown" + (f"; use {close[0]!r}" if close else f"; a problem has {', '.join(Problem.model_fields)}")
    if error["type"] == "too_short":
        return f"needs at least {error['ctx']['min_length']}"
    return str(error["msg"])


# --- MBPP ---


def from_mbpp(row: Mapping[str, Any]) -> Problem:
    """A row of MBPP (`text` or `prompt`, `code`, `test_list`, `test_setup_code` or `test_imports`).

    Asserts become calls with an expected value; all of MBPP's three tests are shown. Raises RowError.
    """
    try:
        code, asserts = str(row["code"]), [str(t) for t in row["test_list"]]
        question = str(row.get("text") or row["prompt"])
        task = int(row["task_id"])
        setup = str(row.get("test_setup_code") or "") or "\n".join(row.get("test_imports") or [])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RowError(f"not in MBPP's layout: {type(error).__name__} {error}") from None
    code = code.replace("\r\n", "\n")
    if not question.strip():
        raise RowError("field text: is empty")
    if not asserts:
        raise RowError("field test_list: is empty")
    entry_point = _entry_point(code, asserts)
    tests = [ProblemTest(case=convert_assert(a, entry_point, setup), shown=True) for a in asserts]
    split = "heldout" if task in MBPP_TEST_IDS else "train"
    text = f"{question.strip()} The function is `{entry_point}`."
    return Problem(
        id=f"mbpp/{task}",
        question=text,
        entry_point=entry_point,
        references=(code,),
        tests=tuple(tests),
        split=split,
    )


def _entry_point(code: str, asserts: Sequence[str]) -> str:
    try:
        tree = ast.parse(code)
        called = [
            node.func.id
            for text in asserts
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else f"{type(error).__name__} {error}".strip()
        raise RowError(f"does not parse: {reason}") from None
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    for name in called:
        if name in defined:
            return name
    raise RowError("no test calls a function that the code defines")


def convert_assert(text: str, entry_point: str, setup: str = "") -> CallCase | ExpressionCase:
    """`assert f(args) == literal` and its usual variants as a case whose comparison happens outside.

    Also taken: truth (`assert f(x)`, `assert not f(x)`), `math.isclose(f(x), y, rel_tol=...)`, literal on the left.
    Raises RowError for anything else.
    """
    try:
        return _convert_assert(text, entry_point, setup)
    except RowError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # Values that no case holds (`...`, nesting without end), other arguments of isclose.
        raise RowError(f"test cannot be converted: {text[:80]!r}") from None


def _convert_assert(text: str, entry_point: str, setup: str) -> CallCase | ExpressionCase:
    body = ast.parse(text.strip()).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise RowError(f"test is not one assert: {text[:80]!r}")
    condition = body[0].test
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
        operator, left, right = condition.ops[0], condition.left, condition.comparators[0]
        if isinstance(operator, ast.Eq | ast.Is):
            if not _is_constant(right):
                left, right = right, left
            if _is_constant(right):
                return _case(left, _constant(right), entry_point, setup)
        raise RowError(f"test compares with something that is not a literal: {text[:80]!r}")
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return _case(condition.operand, False, entry_point, setup)
    if isinstance(condition, ast.Call) and ast.unparse(condition.func) in {"math.isclose", "isclose"}:
        tolerances = {k.arg: ast.literal_eval(k.value) for k in condition.keywords if k.arg}
        value, expected = condition.args
        if not _is_literal(expected):
            raise RowError(f"test compares with something that is not a literal: {text[:80]!r}")
        close = CloseValue(rel_tol=tolerances.get("rel_tol", 1e-9), abs_tol=tolerances.get("abs_tol", 0.0))
        return _case(value, ast.literal_eval(expected), entry_point, setup).model_copy(update={"comparator": close})
    return _case(condition, True, entry_point, setup)


def _case(call: ast.expr, expected: Any, entry_point: str, setup: str) -> CallCase | ExpressionCase:
    plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == entry_point
    if plain and not setup.strip():
        assert isinstance(call, ast.Call)
        named = {k.arg: k.value for k in call.keywords}
        if None not in named and all(_is_literal(a) for a in [*call.args, *named.values()]):
            return CallCase(
                args=[ast.literal_eval(a) for a in call.args],
                kwargs={str(k): ast.literal_eval(v) for k, v in named.items()},
                expected=expected,
                comparator=_EQUAL,
            )
    return ExpressionCase(setup=setup, expression=ast.unparse(call), expected=expected, comparator=_EQUAL)


_COLLECTIONS = {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple}


def _constant(node: ast.expr) -> Any:
    """The value of a literal, or of `set(literal)` and its like. Raises ValueError for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _COLLECTIONS:
        if len(node.args) != 1 or node.keywords:
            raise ValueError("not a constant")
        return _COLLECTIONS[node.func.id](ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def _is_constant(node: ast.expr) -> bool:
    try:
        _constant(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_literal(node: ast.expr) -> bool:
    return not isinstance(node, ast.Call) and _is_constant(node)


# --- splits ---


def with_held_out(problems: Sequence[Problem], ids: Sequence[str] = ()) -> list[Problem]:
    """The problems with at least one held out: where none is, a quarter by the hash of the id (at least one).

    A problem that is held out already stays so, whatever else was chosen: test problems are never trained on. `ids`:
    what the problems were chosen by, for the message.

    Raises InputError where there are fewer than two problems (one to train on and one to measure on are needed), or
    where all of them are held out.
    """
    if len(problems) < 2:
        raise InputError("problems", len(problems), "at least two problems, one to train on and one to measure on")
    splits = {p.split for p in problems}
    if splits == {"heldout"}:
        field, value = ("ids", ",".join(ids[:5])) if ids else ("problems", f"{len(problems)} problems")
        raise InputError(field, value, "at least one problem outside the held-out split", "all of them are held out")
    if splits == {"train", "heldout"}:
        return list(problems)
    ranked = sorted(problems, key=lambda p: hashlib.sha256(f"heldout:{p.id}".encode()).digest())
    chosen = {p.id for p in ranked[: max(1, int(len(problems) * HELD_OUT_SHARE))]}
    return [p.model_copy(update={"split": "heldout" if p.id in chosen else "train"}) for p in problems]
