"""Values as Python text that is the same in every process."""

from __future__ import annotations

from typing import Any


def literal(value: Any) -> str:
    """`repr`, but with the members of sets in the order of their text: theirs depends on the process, and with it would
    a prompt that shows one."""
    kind = type(value)
    if kind is set:
        return "{" + ", ".join(sorted(map(literal, value))) + "}" if value else "set()"
    if kind is frozenset:
        return f"frozenset({literal(set(value))})" if value else "frozenset()"
    if kind is list:
        return "[" + ", ".join(map(literal, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(literal, value)) + (",)" if len(value) == 1 else ")")
    if kind is dict:
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)
