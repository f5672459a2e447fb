"""Files of cases: one JSON object a line."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from sandbox.records import AnyCase, AssertCase, CallCase, Case, ExpressionCase, StdioCase

_KINDS: Final[dict[str, Any]] = {
    "stdio": StdioCase, "call": CallCase, "expression": ExpressionCase, "assert": AssertCase,
}  # fmt: skip
_ADAPTER: Final[TypeAdapter[AnyCase]] = TypeAdapter(Case)


class BadCaseError(ValueError):
    """A line that is no case; the message names the line, the field, and what would be right."""


def read_cases(text: str, name: str = "cases") -> list[tuple[int, AnyCase]]:
    """The cases of a JSONL text with the numbers of their lines. `name`: of the file, for messages.

    Values are typed JSON (`{"$tuple": [...]}` and so on), as everywhere in files. Raises BadCaseError.
    """
    cases: list[tuple[int, AnyCase]] = []
    # Not splitlines: JSON strings may hold other line breaks as they are.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            try:
                cases.append((number, _ADAPTER.validate_json(line.encode("utf-8", "surrogateescape"))))
            except ValidationError as error:
                raise BadCaseError(f"{name}, line {number}: {_explain(error, line)}") from None
    if not cases:
        raise BadCaseError(f"{name} holds no case; one JSON object a line is needed")
    return cases


def _explain(error: ValidationError, line: str) -> str:
    first = error.errors(include_url=False)[0]
    kind, *path = [str(part) for part in first["loc"]] or [""]
    where = ".".join(path)
    if first["type"] == "json_invalid":
        hint = "; one JSON object a line is needed, not an array" if line.lstrip().startswith("[") else ""
        return f"not JSON: {first['ctx']['error']}{hint}"
    if first["type"].startswith("union_tag"):
        if path:
            return f"{where}: no such comparator: {_short(first['input'])}; see docs/sandbox.md for their kinds"
        return f"kind: {_short(_kind_of(line))} is none; use one of {', '.join(_KINDS)}"
    if first["type"] == "extra_forbidden":
        fields = f"; a case of kind {kind} has {', '.join(_KINDS[kind].model_fields)}" if len(path) == 1 else ""
        return f"{where}: unknown field{fields}"
    message = first["msg"].removeprefix("Value error, ")
    if "out of range" in message:
        message += '; write {"$float": "nan"}, "inf" or "-inf" for what is no JSON number'
    return f"{where or kind}: {message} (got {_short(first.get('input'))})"


def _kind_of(line: str) -> Any:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row.get("kind") if isinstance(row, dict) else row


def _short(value: Any) -> str:
    return repr(value)[:80]
