"""Deciding whether an output is right: pure functions of (output, expected), and the records that choose them.

These run in the trusted parent on data that hostile code produced: bytes for stdin/stdout cases, decoded typed JSON
(exact builtin types only) for values. No method of a foreign object is ever called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

_INT: Final = re.compile(rb"[+-]?[0-9]+")
_FLOAT: Final = re.compile(
    rb"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?|inf|infinity|nan)", re.IGNORECASE
)
_DECIMAL: Final = re.compile(rb"([+-]?)(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,5}))?")
# Pairing unordered items that are only nearly equal is quadratic; more leftovers than this are unequal.
MAX_UNPAIRED: Final = 2000
MAX_LOOKS: Final = 200_000
MAX_CHECKER_BYTES: Final = 256 * 1024


class _Comparator(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenComparator(_Comparator):
    """Lines of tokens: trailing and repeated blanks, blank lines and CRLF make no difference; line breaks do.

    Only ASCII white space separates tokens, so a no-break space is part of one. `decimal`: tokens that write the same
    number are the same (1.0 and 1, 1e3 and 1000, +5, 007), exactly, without a tolerance.
    """

    kind: Literal["token"] = "token"
    ignore_case: bool = False
    unordered_lines: bool = False
    decimal: bool = False

    def accepts(self, output: bytes, expected: str) -> bool:
        """Whether `output` says the same as `expected`."""
        data = expected.encode("utf-8", "surrogatepass")
        return tokens_match(output, data, self.ignore_case, self.unordered_lines, self.decimal)


class FloatComparator(_Comparator):
    """Tokens as in TokenComparator; a token pair of numbers may differ by a tolerance. Two integers may not."""

    kind: Literal["float"] = "float"
    rel_tol: float = Field(default=1e-6, ge=0, lt=1)
    abs_tol: float = Field(default=1e-6, ge=0, lt=1)

    def accepts(self, output: bytes, expected: str) -> bool:
        """Whether `output` says the same as `expected`, numbers within the tolerances."""
        return floats_match(output, expected.encode("utf-8", "surrogatepass"), self.rel_tol, self.abs_tol)


class CheckerProgram(_Comparator):
    """A program that looks at the answer, for tasks with several right ones. Runs in a process of its own.

    `entry_point` names a function of `source` that gets (input, output, expected): the stdin and stdout as text, or the
    list of arguments (with keywords {"args": [...], "kwargs": {...}}; None for an expression) and the returned value.
    Only True accepts the answer. A checker that fails on an answer refuses it; one that cannot be called at all is a
    sandbox_error.
    """

    kind: Literal["program"] = "program"
    source: str = Field(min_length=1, max_length=MAX_CHECKER_BYTES)
    entry_point: str = "check"


StdioComparator = Annotated[TokenComparator | FloatComparator | CheckerProgram, Field(discriminator="kind")]


class ExactValue(_Comparator):
    """The same value. Where a float is expected a number within the tolerances will do; everything else is exact.

    1 and 1.0 are the same, True and 1 are not (unless `bool_is_int`); list and tuple are the same only for
    `sequence_kind="any"`; nan equals nan; set equals frozenset. `rationals`: a returned Fraction or Decimal counts as
    the number that it is; otherwise it cannot be returned. `wrapped`: the expected value is a list with the answer as
    its only item, as some data sets store it; the answer itself will do as well. `truth`: only whether the value counts
    as true is looked at, as in `assert f(x)`; it may then be of a type that cannot be returned.
    """

    kind: Literal["exact"] = "exact"
    sequence_kind: Literal["exact", "any"] = "exact"
    bool_is_int: bool = False
    rationals: bool = False
    wrapped: bool = False
    truth: bool = False
    rel_tol: float = Field(default=1e-6, ge=0, lt=1)
    abs_tol: float = Field(default=1e-9, ge=0, lt=1)

    def accepts(self, returned: Any, expected: Any) -> bool:
        """Whether `returned` is the expected value."""
        if self.truth:
            return bool(returned) is bool(expected)
        rules = Rules(self.sequence_kind == "any", self.bool_is_int, self.rel_tol, self.abs_tol, close_ints=False)
        if values_match(returned, expected, rules):
            return True
        only = self.wrapped and type(expected) is list and len(expected) == 1
        return only and values_match(returned, expected[0], rules)


class CloseValue(_Comparator):
    """Like ExactValue, but every number may differ by a tolerance, wherever it stands."""

    kind: Literal["close"] = "close"
    rel_tol: float = Field(default=1e-9, ge=0, lt=1)
    abs_tol: float = Field(default=0.0, ge=0)
    sequence_kind: Literal["exact", "any"] = "exact"

    def accepts(self, returned: Any, expected: Any) -> bool:
        """Whether `returned` is close to the expected value in every number."""
        rules = Rules(self.sequence_kind == "any", False, self.rel_tol, self.abs_tol, close_ints=True)
        return values_match(returned, expected, rules)


class UnorderedValue(_Comparator):
    """The same items in any order; list, tuple and set are interchangeable at the top.

    Repeated items count, unless `ignore_repeats` (a test that compares `set(answer)`).
    """

    kind: Literal["unordered"] = "unordered"
    sequence_kind: Literal["exact", "any"] = "exact"
    bool_is_int: bool = False
    ignore_repeats: bool = False
    rel_tol: float = Field(default=1e-6, ge=0, lt=1)
    abs_tol: float = Field(default=1e-9, ge=0, lt=1)

    def accepts(self, returned: Any, expected: Any) -> bool:
        """Whether `returned` holds the expected items."""
        rules = Rules(self.sequence_kind == "any", self.bool_is_int, self.rel_tol, self.abs_tol, close_ints=False)
        collections = (list, tuple, set, frozenset)
        if type(returned) in collections and type(expected) in collections:
            ours, theirs = list(returned), list(expected)
            if self.ignore_repeats:
                ours, theirs = _distinct(ours), _distinct(theirs)
            return _same_items(ours, theirs, rules)
        return values_match(returned, expected, rules)


ValueComparator = Annotated[ExactValue | CloseValue | UnorderedValue | CheckerProgram, Field(discriminator="kind")]


def token_lines(text: bytes) -> list[list[bytes]]:
    """The tokens of every line that has any. A lone CR counts as a blank."""
    return [tokens for line in text.replace(b"\r\n", b"\n").split(b"\n") if (tokens := line.split())]


def tokens_match(
    output: bytes, expected: bytes, ignore_case: bool = False, unordered_lines: bool = False, decimal: bool = False
) -> bool:
    """The rule of TokenComparator."""
    if output == expected:
        return True
    if ignore_case:
        output, expected = _folded(output), _folded(expected)
    ours, theirs = token_lines(output), token_lines(expected)
    if decimal:
        ours, theirs = _numbers_spelt_alike(ours), _numbers_spelt_alike(theirs)
    if unordered_lines:
        ours, theirs = sorted(ours), sorted(theirs)
    return ours == theirs


def _numbers_spelt_alike(lines: list[list[bytes]]) -> list[list[bytes]]:
    return [[_spelling(token) for token in line] for line in lines]


def _spelling(token: bytes) -> bytes:
    """One spelling for each decimal number, the token itself for anything else: sign, digits, e, exponent."""
    parts = _DECIMAL.fullmatch(token)
    if parts is None:
        return token
    sign, whole, fraction, exponent = parts.groups(b"")
    kept = (whole + fraction).lstrip(b"0")
    digits = kept.rstrip(b"0")
    if not digits:
        return b"0"
    power = int(exponent or b"0") - len(fraction) + len(kept) - len(digits)
    return b"%s%se%d" % (b"-" if sign == b"-" else b"", digits, power)


def _folded(text: bytes) -> bytes:
    return text.decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")


def floats_match(output: bytes, expected: bytes, rel_tol: float, abs_tol: float) -> bool:
    """The rule of FloatComparator."""
    ours, theirs = token_lines(output), token_lines(expected)
    if [len(line) for line in ours] != [len(line) for line in theirs]:
        return False
    pairs = zip((t for line in ours for t in line), (t for line in theirs for t in line), strict=True)
    return all(_token_close(ours_token, theirs_token, rel_tol, abs_tol) for ours_token, theirs_token in pairs)


def _token_close(ours: bytes, theirs: bytes, rel_tol: float, abs_tol: float) -> bool:
    numbers = _FLOAT.fullmatch(ours) is not None and _FLOAT.fullmatch(theirs) is not None
    if not numbers:
        return ours == theirs
    if _INT.fullmatch(ours) and _INT.fullmatch(theirs):
        return _plain_int(ours) == _plain_int(theirs)
    return math.isclose(float(ours), float(theirs), rel_tol=rel_tol, abs_tol=abs_tol)  # nan is close to nothing


def _plain_int(token: bytes) -> bytes:
    """Sign and digits without leading zeros: integers of any length compare without being computed."""
    digits = token.lstrip(b"+-").lstrip(b"0")
    return (b"-" if token.startswith(b"-") and digits else b"") + digits


class Rules:
    """How two values are compared, all the way down; made anew for every comparison.

    `searching`: items are being tried against each other in vain perhaps, so that every look at two values counts.
    """

    __slots__ = ("abs_tol", "any_sequence", "bool_is_int", "close_ints", "looks_left", "rel_tol", "searching")

    def __init__(self, any_sequence: bool, bool_is_int: bool, rel_tol: float, abs_tol: float, close_ints: bool) -> None:
        self.any_sequence = any_sequence
        self.bool_is_int = bool_is_int
        self.rel_tol = rel_tol
        self.abs_tol = abs_tol
        self.close_ints = close_ints
        self.searching = False
        self.looks_left = MAX_LOOKS

    def look(self, weight: int = 1) -> bool:
        """Whether there is effort left for another look."""
        self.looks_left -= weight if self.searching else 0
        return self.looks_left >= 0


def values_match(returned: Any, expected: Any, rules: Rules) -> bool:
    """Whether two values of exact builtin types are the same under `rules`."""
    ours, theirs = type(returned), type(expected)
    if rules.searching and not rules.look(1 + (len(expected) >> 12 if theirs in (str, bytes) else 0)):
        return False
    if ours is bool or theirs is bool:
        if ours is theirs:
            return bool(returned == expected)
        return (
            rules.bool_is_int and ours in (bool, int, float) and theirs in (bool, int, float) and returned == expected
        )
    if theirs in (int, float, complex):
        return ours in (int, float, complex) and _numbers_match(returned, expected, rules)
    if theirs in (list, tuple):
        same_kind = ours is theirs or (rules.any_sequence and ours in (list, tuple))
        return same_kind and len(returned) == len(expected) and _all_match(returned, expected, rules)
    if theirs in (set, frozenset):
        return ours in (set, frozenset) and len(returned) == len(expected) and _sets_match(returned, expected, rules)
    if theirs is dict:
        return ours is dict and len(returned) == len(expected) and _dicts_match(returned, expected, rules)
    return ours is theirs and bool(returned == expected)


def _distinct(items: list[Any]) -> list[Any]:
    return list({_frozen(item): item for item in items}.values())


def _all_match(returned: Sequence[Any], expected: Sequence[Any], rules: Rules) -> bool:
    return all(values_match(a, b, rules) for a, b in zip(returned, expected, strict=True))


def _numbers_match(returned: Any, expected: Any, rules: Rules) -> bool:
    if type(expected) is complex or type(returned) is complex:
        if type(expected) is not complex and not rules.close_ints and type(expected) is not float:
            return bool(returned == expected)
        try:
            ours, theirs = complex(returned), complex(expected)
        except OverflowError:
            return bool(returned == expected)
        return _close(ours.real, theirs.real, rules) and _close(ours.imag, theirs.imag, rules)
    if type(expected) is float or (rules.close_ints and type(returned) is float):
        return _close(returned, expected, rules)
    if rules.close_ints:
        return bool(returned == expected) or _close(returned, expected, rules)
    return bool(returned == expected)


def _close(returned: float, expected: float, rules: Rules) -> bool:
    try:
        ours, theirs = float(returned), float(expected)
    except OverflowError:
        return bool(returned == expected)  # an int beyond the range of floats
    if math.isnan(theirs):
        return math.isnan(ours)
    return math.isclose(ours, theirs, rel_tol=rules.rel_tol, abs_tol=rules.abs_tol)


def _sets_match(returned: Any, expected: Any, rules: Rules) -> bool:
    return _same_items(list(returned), list(expected), rules)


def _dicts_match(returned: dict[Any, Any], expected: dict[Any, Any], rules: Rules) -> bool:
    if not rules.look(len(returned)):
        return False
    left: list[Any] = []
    own_keys = {_frozen(key): key for key in returned}
    for key, value in expected.items():
        own = own_keys.pop(_frozen(key), _ABSENT)
        if own is _ABSENT:
            left.append(key)
        elif not values_match(returned[own], value, rules):
            return False
    rest = list(own_keys.values())
    if len(left) != len(rest) or len(left) > MAX_UNPAIRED:
        return False
    return _paired(
        rest, left, lambda a, b: values_match(a, b, rules) and values_match(returned[a], expected[b], rules), rules
    )


_ABSENT: Final = object()


def _same_items(returned: list[Any], expected: list[Any], rules: Rules) -> bool:
    """Whether the two lists pair up, in any order."""
    if len(returned) != len(expected) or not rules.look(len(returned)):
        return False
    # Identical items pair off by a key; what is left may still be equal under the rules (floats, 1 and 1.0).
    counts: dict[Any, list[Any]] = {}
    for item in returned:
        counts.setdefault(_frozen(item), []).append(item)
    left = []
    for item in expected:
        same = counts.get(_frozen(item))
        if same:
            same.pop()
        else:
            left.append(item)
    rest = [item for same in counts.values() for item in same]
    if len(left) > MAX_UNPAIRED:
        return False
    return _paired(rest, left, lambda a, b: values_match(a, b, rules), rules)


def _paired(returned: list[Any], expected: list[Any], match: Callable[[Any, Any], bool], rules: Rules) -> bool:
    """Whether every expected item finds one of its own. Both are sorted first, so that near values meet early.

    Answers made to be compared in vain are unequal after MAX_LOOKS at parts of theirs.
    """
    outer, rules.searching = rules.searching, True
    try:
        remaining = sorted(returned, key=_place)
        for item in sorted(expected, key=_place):
            for position, other in enumerate(remaining):
                if rules.looks_left < 0:
                    return False
                if match(other, item):
                    remaining.pop(position)
                    break
            else:
                return False
        return not remaining
    finally:
        rules.searching = outer


def _place(value: Any) -> tuple[Any, ...]:
    """A sort key over all values, in which numbers that are near each other are neighbours."""
    kind = type(value)
    if kind in (bool, int, float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf if value > 0 else -math.inf
        return (0, math.inf) if math.isnan(number) else (0, number)
    if kind is complex:
        return (1, _place(value.real), _place(value.imag))
    if kind is str:
        return (2, value)
    if kind in (list, tuple):
        return (3, len(value), tuple(_place(item) for item in value))
    return (4, kind.__name__, len(value) if value is not None and kind is not bytes else 0)


def _frozen(value: Any) -> Any:
    """A hashable key that two values share only when they have the same types and the same contents.

    Numbers go in as text: anybody can find thousands of numbers with one hash, nobody texts.
    """
    kind = type(value)
    if kind in (list, tuple):
        return (kind.__name__, tuple(_frozen(item) for item in value))
    if kind in (set, frozenset):
        return ("set", frozenset(_frozen(item) for item in value))
    if kind is dict:
        return ("dict", frozenset((_frozen(key), _frozen(item)) for key, item in value.items()))
    if kind is int:
        return ("int", hex(value))
    if kind is float:
        return ("float", (value + 0.0).hex())  # a zero has no sign
    if kind is complex:
        return ("complex", _frozen(value.real), _frozen(value.imag))
    return (kind.__name__, value)
