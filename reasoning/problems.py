"""Problems from rows: our own JSONL layout, MBPP's, HumanEval's, TACO's, and the bundled set.

Fetching a hub data set is done elsewhere.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reasoning.asserts import AssertedCase, AssertError, convert_assert, convert_check, imports_of
from reasoning.errors import InputError, RowError
from reasoning.records import Demonstration, Problem, ProblemTest
from reasoning.taco import from_taco
from reasoning.taco import row_id as taco_id
from sandbox import AssertCase

BUNDLED = Path(__file__).resolve().parent / "bundled"
HELD_OUT_SHARE = 0.25
MBPP_TEST_IDS = range(11, 511)

BadRow = Callable[[int, str, str], None]
"""Told of a row that is left out: its number (0 where that is no longer known), id and what is wrong with it."""


def bundled() -> list[Problem]:
    """The problems that ship with the project."""
    return load_jsonl(BUNDLED / "problems.jsonl")


def demonstrations() -> list[Demonstration]:
    """The worked solutions of bundled training problems."""
    lines = (BUNDLED / "demonstrations.jsonl").read_text(encoding="utf-8").split("\n")
    return [Demonstration.model_validate_json(line) for line in lines if line.strip()]


def load_jsonl(path: Path, ids: Sequence[str] = (), on_bad: BadRow | None = None) -> list[Problem]:
    """The problems of a file with one JSON object a line, in our layout or one of those that are known.

    `ids`: only these (an MBPP number or a whole id). Every row asked for must be good, unless `on_bad` is given.

    Raises:
        InputError: the file is missing, empty or a JSON array, a row is bad (its number and the reason), or an id is
            not there.
    """
    try:
        # Not splitlines: JSON strings may hold other line breaks (U+2028, U+0085) as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError("problems", str(path), "an existing JSONL file", (error.strerror or "").lower()) from None
    except UnicodeDecodeError:
        raise InputError("problems", str(path), "a JSONL file in UTF-8 that is not compressed") from None
    if _is_array(lines):
        legal = f"a JSONL file, one JSON object a line (jq -c '.[]' {path.name} prints one)"
        raise InputError("problems", str(path), legal, "it holds one JSON array")
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:  # also an int of thousands of digits, and deep nesting
                if on_bad is not None:
                    on_bad(number, "", str(error))
                    continue
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
        if problem.id in problems and on_bad is not None:
            on_bad(number, name, "a problem of this id is there already")
            continue
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
    if "task_id" in row and "canonical_solution" in row:
        return str(row["task_id"]).lower()
    if "input_output" in row:
        return taco_id(row)
    return str(row.get("id", ""))


def from_row(row: Any) -> Problem:
    """One problem. Raises RowError."""
    if not isinstance(row, Mapping):
        raise RowError(f"a JSON object is needed, not {type(row).__name__}")
    if "test_list" in row:
        return from_mbpp(row)
    if "canonical_solution" in row and "test" in row:
        return from_humaneval(row)
    if "input_output" in row:
        return from_taco(row)
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
    tests = [ProblemTest(case=_mbpp_case(a, entry_point, setup, code), shown=True) for a in asserts]
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


def _mbpp_case(text: str, entry_point: str, setup: str, code: str) -> AssertedCase:
    try:
        case = convert_assert(text, entry_point, setup)
    except AssertError as error:
        raise RowError(str(error)) from None
    if isinstance(case, AssertCase):
        # Run apart from the solution, so what its imports gave to the test has to come along.
        case = case.model_copy(update={"code": "\n".join(part for part in (imports_of(code), case.code) if part)})
    return case


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


# --- HumanEval ---


def from_humaneval(row: Mapping[str, Any]) -> Problem:
    """A row of HumanEval (`task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`). Raises RowError."""
    try:
        prompt, solution = str(row["prompt"]), str(row["canonical_solution"])
        entry_point, test, name = str(row["entry_point"]), str(row["test"]), str(row["task_id"])
    except KeyError as error:
        raise RowError(f"not in HumanEval's layout: no field {error}") from None
    try:
        cases = convert_check(test, entry_point)
        # What the prompt gives beside the function is the test's own, not the solution's to define.
        given = _given_beside(prompt, entry_point)
        cases = [
            c.model_copy(update={"code": f"{given}\n{c.code}"}) if isinstance(c, AssertCase) and given else c
            for c in cases
        ]
    except AssertError as error:
        raise RowError(str(error)) from None
    return Problem(
        id=name.lower(),
        question=f"Complete this function.\n\n{prompt.strip()}",
        entry_point=entry_point,
        references=(prompt + solution,),
        tests=tuple(ProblemTest(case=case) for case in cases),
        split="heldout",
    )


def _given_beside(prompt: str, entry_point: str) -> str:
    """Imports and helper functions of a prompt, as code. Raises RowError for a prompt that is no code."""
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowError(f"field prompt does not parse: {error}") from None
    kept = [n for n in body if not (isinstance(n, ast.FunctionDef) and n.name == entry_point)]
    return "\n".join(ast.unparse(node) for node in kept)


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
