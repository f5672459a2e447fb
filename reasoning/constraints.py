"""What a question states of its inputs, where it can be read (method section 2): limits.

Read are chains of comparisons such as `1 <= n <= 10^5`, `0 < a, b < 100`, `1 ≤ len(s) ≤ 20`, `|s| <= 20`,
`1 <= nums.length`, `-10**9 <= nums[i] <= 10**9` and `a_i >= 0`, also in LaTeX. What cannot be read limits nothing.

What it says in words ("a sorted array") is read in `properties`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["value", "length", "item"]


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds of a parameter's value, of its length, or of each of its items; both inclusive, None where open."""

    name: str
    kind: Kind
    low: float | None
    high: float | None

    def allows(self, number: float) -> bool:
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)


_NUMBER = r"-?\s*\d[\d,_]*(?:\.\d+)?(?:\s*(?:\^|\*\*)\s*\{?\d+\}?|e\d+)?(?:\s*[*·]\s*10\s*(?:\^|\*\*)\s*\{?\d+\}?)?"
_SUBJECT = r"(?:len\(\s*\w+\s*\)|\|\s*\w+\s*\||\w+\.length|\w+\[\w+\]|[A-Za-z]\w*?_\{?[a-z]\}?|[A-Za-z]\w*)"
_SUBJECTS = rf"{_SUBJECT}(?:\s*,\s*{_SUBJECT})*"
_OPERATOR = r"(?:<=|>=|<|>)"
_CHAIN = re.compile(
    rf"(?<![\w.])(?:(?P<left>{_NUMBER})\s*(?P<first>{_OPERATOR})\s*)?(?P<subjects>{_SUBJECTS})"
    rf"(?:\s*(?P<second>{_OPERATOR})\s*(?P<right>{_NUMBER}))?(?![\w(])"
)
_SIGNS = {
    "≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "&lt;": "<", "&gt;": ">", "−": "-", "\u2013": "-", "×": "*",
    r"\leqslant": "<=", r"\geqslant": ">=", r"\leq": "<=", r"\geq": ">=", r"\le": "<=", r"\ge": ">=", r"\lt": "<",
    r"\gt": ">", r"\cdot": "*", r"\times": "*", r"\,": "", "$": " ", "`": " ",
}  # fmt: skip
"""Ways to write what is read; longer ones before those that they begin with."""


def limits_of(question: str) -> list[Limit]:
    """What a question says of its inputs, in the order of the text."""
    text = question
    for written, sign in _SIGNS.items():
        text = text.replace(written, sign)
    found: list[Limit] = []
    for match in _CHAIN.finditer(text):
        bounds = _bounds(match)
        if bounds is not None:
            found += [Limit(*_subject(one), *bounds) for one in match["subjects"].split(",")]
    return found


def _bounds(match: re.Match[str]) -> tuple[float | None, float | None] | None:
    """Lower and upper bound of the subjects of a chain; None where it states none, or contradicts itself."""
    low: float | None = None
    high: float | None = None
    # "3 < n" bounds as "n > 3" does.
    turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    for number, operator in ((match["left"], turned.get(match["first"] or "")), (match["right"], match["second"])):
        if number is None or operator is None:
            continue
        value = _number(number)
        if value is None:
            return None
        step = 1 if value == int(value) else 0
        if operator.startswith(">"):
            low = value + (step if operator == ">" else 0)
        else:
            high = value - (step if operator == "<" else 0)
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return None
    return low, high


def _number(text: str) -> float | None:
    plain = re.sub(r"[\s,_{}]", "", text).replace("^", "**").replace("·", "*")
    power = re.fullmatch(r"(-?)(?:(\d+)\*)?(\d+)\*\*(\d{1,2})", plain)
    if power:
        sign, factor, base, exponent = power.groups()
        return float(int(f"{sign}{int(factor or 1)}") * int(base) ** int(exponent))
    try:
        return float(plain)
    except ValueError:
        return None


def _subject(text: str) -> tuple[str, Kind]:
    text = text.strip()
    if match := re.fullmatch(r"len\(\s*(\w+)\s*\)|\|\s*(\w+)\s*\||(\w+)\.length", text):
        return next(name for name in match.groups() if name), "length"
    if match := re.fullmatch(r"(\w+)\[\w+\]|([A-Za-z]\w*?)_\{?[a-z]\}?", text):
        return next(name for name in match.groups() if name), "item"
    return text, "value"


def parameters(reference: str, entry_point: str) -> tuple[str, ...]:
    """Names of the function's positional parameters, without `self`; none where it is not found."""
    try:
        tree = ast.parse(reference)
    except (SyntaxError, ValueError):
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == entry_point:
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            return tuple(names[1:] if names[:1] == ["self"] else names)
    return ()


def violated(args: Sequence[Any], names: Sequence[str], limits: Iterable[Limit]) -> Limit | None:
    """The first limit that an argument list breaks; None where it breaks none that says anything about it."""
    by_name = dict(zip(names, args, strict=False))
    for limit in limits:
        if limit.name not in by_name:
            continue
        value = by_name[limit.name]
        if not all(limit.allows(number) for number in _measured(value, limit.kind)):
            return limit
    return None


def _measured(value: Any, kind: Kind) -> list[float]:
    """The numbers that a limit of this kind is about; none where the value has none."""
    if kind == "length":
        return [len(value)] if hasattr(value, "__len__") else []
    if kind == "item":
        return [one for one in _items(value) if _is_number(one)]
    return [value] if _is_number(value) else []


def _items(value: Any) -> Iterable[Any]:
    if not isinstance(value, list | tuple | set | frozenset):
        return
    for one in value:
        if isinstance(one, list | tuple):
            yield from _items(one)
        else:
            yield one


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def envelope(limits: Iterable[Limit], texts: Sequence[str]) -> tuple[float, float]:
    """The widest bounds that the limits put on any number that a program reads: which number is meant is not known.
    Limits that a number of the `texts` breaks were read wrongly; infinite where nothing is said."""
    stated = [limit for limit in limits if limit.kind != "length"]
    low = min((-math.inf if limit.low is None else limit.low for limit in stated), default=-math.inf)
    high = max((math.inf if limit.high is None else limit.high for limit in stated), default=math.inf)
    numbers = [number for text in texts for number in numbers_in(text)]
    return (low if all(n >= low for n in numbers) else -math.inf), (
        high if all(n <= high for n in numbers) else math.inf
    )


def numbers_in(text: str) -> list[float]:
    """The words of a text that are numbers."""
    return [float(word) for word in text.split() if re.fullmatch(r"-?\d{1,300}(?:\.\d{1,300})?", word)]
