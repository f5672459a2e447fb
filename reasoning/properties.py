"""What inputs have in common: read from a question's words, and believed only where the given tests agree (section 2).

"A sorted array", "a positive integer", "two lists of the same length" say which inputs are legal, but not which of the
arguments is meant, and the same words may speak of the output. So a property counts for the arguments that have it in
all of the given tests. Some properties need no words, because inputs that lack them by chance are unlikely: a number
that is the length of a list every time, and a number argument that is never below zero.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Args = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Property:
    """`holds`: whether a list of arguments has it. `mended`: the arguments, changed so that they may have it."""

    name: str
    holds: Callable[[Sequence[Any]], bool]
    mended: Callable[[Args], Args]


def properties_of(question: str, given: Sequence[Sequence[Any]]) -> list[Property]:
    """What the question, and the `given` argument lists themselves, say of every argument list.

    None where nothing is given: there is nothing to tell which argument is meant.
    """
    given = [args for args in given if args]  # others are given by name
    if not given:
        return []
    places = range(min(map(len, given)))
    built = (_made_alike(given, place) for place in places)
    return [*built, *_of_one_place(question, given, places), *_of_two_places(question, given, places)]


def broken(args: Sequence[Any], properties: Sequence[Property]) -> str | None:
    """The name of the first property that the arguments lack; None where they have all."""
    return next((p.name for p in properties if not p.holds(args)), None)


def mended(args: Args, properties: Sequence[Property]) -> Args:
    """The arguments, changed so that they have the properties where that is easily done."""
    for one in properties:
        args = one.mended(args)
    return args


# --- what it is made of ---


def _made_alike(given: Sequence[Sequence[Any]], place: int) -> Property:
    """That lists have items of the types that some given list has there; of an empty list nothing is known."""
    known = frozenset[str]().union(*(_parts(args[place]) for args in given))

    def holds(args: Sequence[Any]) -> bool:
        return place >= len(args) or all(
            part in known for part in _parts(args[place]) if part.rpartition("/")[0] + "/" in known
        )

    return Property(f"argument {place + 1} is made of the same types", holds, _same)


def _parts(value: Any, path: str = "") -> set[str]:
    """Where in a value there is something of what type; a path with a slash at its end: there is something inside."""
    kind = "number" if _is_number(value) else type(value).__name__
    here = f"{path}/{kind}"
    inside = set[str]()
    if isinstance(value, dict):
        inside = set[str]().union(*(_parts(key, f"{here} key") | _parts(item, here) for key, item in value.items()))
        inside |= {f"{here} key/"} if value else set()
    elif isinstance(value, list | tuple | set | frozenset):
        inside = set[str]().union(*(_parts(item, here) for item in value))
    return {here, *inside, *([f"{here}/"] if inside else [])}


# --- one argument ---


def _of_one_place(question: str, given: Sequence[Sequence[Any]], places: Sequence[int]) -> Iterator[Property]:
    signs_matter = re.search(_SIGNS_MATTER, question.replace("non-negative", ""), re.IGNORECASE) or any(
        _is_number(value) and value < 0 for args in given for value in args
    )
    for name, (words, least, says, mend) in _VALUES.items():
        if (words and not _said(words, question)) or (says is _not_below_zero and signs_matter):
            continue
        for place in places:
            said = [says(args[place]) for args in given]
            if False not in said and said.count(True) >= least:
                yield _at(name, place, says, mend)


def _at(name: str, place: int, says: Callable[[Any], bool | None], mend: Callable[[Any], Any]) -> Property:
    def holds(args: Sequence[Any]) -> bool:
        return place >= len(args) or says(args[place]) is not False

    def changed(args: Args) -> Args:
        return args if holds(args) else (*args[:place], mend(args[place]), *args[place + 1 :])

    return Property(f"argument {place + 1} {name}", holds, changed)


def in_order(value: Any) -> bool:
    """Whether this is a list or a tuple whose items never fall."""
    if not isinstance(value, list | tuple):
        return False
    try:
        return all(a <= b for a, b in itertools.pairwise(value))
    except TypeError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> list[Any]:
    """The numbers of an argument: itself, or its items, also of lists within."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if _is_number(value) else []


def _each_number(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_each_number(item, change) for item in value])
    return change(value) if _is_number(value) else value


def _sorted(value: Any) -> bool | None:
    if not isinstance(value, list | tuple):
        return None
    return None if len(value) < 2 else in_order(value)


def _put_in_order(value: Any) -> Any:
    with contextlib.suppress(TypeError):
        return type(value)(sorted(value))
    return value


def _all_numbers(allowed: Callable[[Any], bool]) -> Callable[[Any], bool | None]:
    return lambda value: all(map(allowed, found)) if (found := _numbers(value)) else None


def _not_empty(value: Any) -> bool | None:
    return len(value) > 0 if isinstance(value, list | tuple | str | set | frozenset | dict) else None


def _different(value: Any) -> bool | None:
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    return len(_without_copies(value)) == len(value)


def _without_copies(value: Any) -> Any:
    try:
        return type(value)(dict.fromkeys(value))
    except TypeError:  # lists in it
        return type(value)({repr(item): item for item in value}.values())


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, str)]
    return [value] if isinstance(value, str) else []


def _is_permutation(value: Any) -> bool | None:
    if not isinstance(value, list | tuple) or not value or not all(type(item) is int for item in value):
        return None
    return sorted(value) in (list(range(len(value))), list(range(1, len(value) + 1)))


def _ranks(value: Any) -> Any:
    """The places that the items would have in order, from 1 on."""
    order = sorted(range(len(value)), key=lambda i: value[i])
    ranks = [0] * len(value)
    for rank, i in enumerate(order, start=1):
        ranks[i] = rank
    return type(value)(ranks)


def _is_letters(value: Any) -> bool | None:
    text = "".join(_texts(value))
    return text.isalpha() if text else None


def _in_case(same: Callable[[str], str]) -> Callable[[Any], bool | None]:
    def says(value: Any) -> bool | None:
        texts = [text for text in _texts(value) if any(c.isalpha() for c in text)]
        return all(same(text) == text for text in texts) if texts else None

    return says


def _put_in_case(same: Callable[[str], str]) -> Callable[[Any], Any]:
    def mend(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)([mend(item) if isinstance(item, str) else item for item in value])
        return same(value)

    return mend


def _rectangular(value: Any) -> bool | None:
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(r, list | tuple) for r in value):
        return None
    return len(set(map(len, value))) == 1


def _is_pair(value: Any) -> bool | None:
    return len(value) == 2 if isinstance(value, tuple) else None


def _is_letter(value: Any) -> bool | None:
    return len(value) == 1 if isinstance(value, str) else None


def _not_below_zero(value: Any) -> bool | None:
    return value >= 0 if _is_number(value) else None


def _same(value: Any) -> Any:
    return value


_THINGS = r"(?:array|list|tuple|sequence|vector|number|integer|int|arr|nums|row|string|word|float|value|element)s?\b"
_OF_RESULT = re.compile(
    r"(?:\b(?:returns?|outputs?|prints?|makes?|creates?|builds?|gets?|into|as|to)\W+(?:(?:a|an|the|all|new)\W+)*"
    r"|\b(?:is|are)\W+(?:all\W+)?|\b(?:whether(?: or not)?|if)\W+(?:(?:all|the|a|an|given|input)\W+)*)$",
    re.IGNORECASE,
)
"""What stands before words that say how the result is, or that ask whether the input is so."""
_SORTED = (
    rf"\b(?:sorted|ordered|ascending|increasing|non-?decreasing)\W+(?:\w+\W+){{0,2}}?{_THINGS}"
    # "a list nums of integers sorted in ascending order", "the list a is already sorted"
    r"|\b(?:array|list|tuple|sequence|vector|nums|arr)s?\s+(?:[`'\"]?\w{1,12}[`'\"]?\s+)?(?:of\s+(?:\w+\s+){1,2})?"
    r"(?:[`'\"]?\w{1,12}[`'\"]?\s+)?(?:(?:that|which|is|are|will|be|already|guaranteed|to|always|given|stored)\s+)*"
    r"(?:sorted\b|in\s+(?:ascending|increasing|non-?decreasing|sorted)\s+order)"
    r"|\b\w+[`'\"]?\s+(?:is|are)\s+(?:already\s+|guaranteed to be\s+|always\s+)?"
    r"(?:sorted|in (?:ascending|increasing) order)"
)
_SIGNS_MATTER = r"\bnegative|\bsigns?\b|\b(?:less than|below|smaller than|under) (?:0|1|zero|one)\b|\babsolute\b"

_VALUES: dict[str, tuple[str, int, Callable[[Any], bool | None], Callable[[Any], Any]]] = {
    "is sorted": (
        _SORTED,
        1,
        _sorted,
        _put_in_order,
    ),
    "is above zero": (
        rf"\b(?:positive|natural)\W+(?:\w+\W+){{0,2}}?{_THINGS}",
        1,
        _all_numbers(lambda number: number > 0),
        lambda value: _each_number(value, lambda number: abs(number) or 1),
    ),
    "is not below zero": (
        rf"\b(?:non-?\s?negative|natural|whole)\W+(?:\w+\W+){{0,2}}?{_THINGS}",
        1,
        _all_numbers(lambda number: number >= 0),
        lambda value: _each_number(value, abs),
    ),
    "counts or measures": (
        r"\b(?:n'?th\b|first n\b|area\b|volume|perimeter|circumference|surface|radius|factorial|fibonacci|catalan)",
        2,
        _not_below_zero,
        abs,
    ),
    "is never below zero": ("", 3, _not_below_zero, abs),
    "is always a pair": ("", 2, _is_pair, _same),
    "is always one character": (
        r"\b(?:characters?|chars?|letters?|delimi?eter)\b",
        2,
        _is_letter,
        lambda text: text[:1],
    ),
    "is not empty": (rf"\bnon-?\s?empty\W+(?:\w+\W+){{0,2}}?{_THINGS}", 1, _not_empty, _same),
    "has no item twice": (
        r"\b(?:array|list|tuple|sequence)s?(?: [`'\"]?\w+[`'\"]?)? of (?:distinct|unique)\b"
        r"|\bnot contain (?:any )?duplicate",
        2,
        _different,
        _without_copies,
    ),
    "is a permutation": (r"\bpermutation of\b", 1, _is_permutation, _ranks),
    "is of letters": (
        r"\b(?:consist|contain|made up|lower-?\s?case|upper-?\s?case|English)\w* .{0,30}?letters\b",
        2,
        _is_letters,
        _same,
    ),
    "is in lower case": (r"\blower-?\s?case", 2, _in_case(str.lower), _put_in_case(str.lower)),
    "is in upper case": (r"\bupper-?\s?case", 2, _in_case(str.upper), _put_in_case(str.upper)),
    "has rows of one length": (r"\b(?:grid|matrix|rectang)", 1, _rectangular, _same),
}
"""Words (none: believed without), how many given tests have to show it, what a value says of it (None: nothing), and
how a value is given it."""


def _said(words: str, question: str) -> bool:
    """Whether the words are somewhere in the question, and there not about the result."""
    found = re.finditer(words, question, re.IGNORECASE)
    return any(not _OF_RESULT.search(question[max(0, match.start() - 40) : match.start()]) for match in found)


# --- two arguments ---

ALIKE = 3
"""Without words, so many given tests show that lists are of one length."""


def _of_two_places(question: str, given: Sequence[Sequence[Any]], places: Sequence[int]) -> Iterator[Property]:
    alike = _said(r"\b(?:same|equal) (?:length|size)|element-?\s?wise|index-?\s?wise", question)
    for one, other in itertools.permutations(places, 2):
        sizes = {_size(args[other]) for args in given}
        if None in sizes:
            continue
        # The same length each time may be chance.
        several = len(sizes) > 1
        if several and all(type(args[one]) is int and args[one] == len(args[other]) for args in given):
            yield _counts(one, other)
        equal = one < other and all(_size(args[one]) == _size(args[other]) for args in given)
        if equal and (alike or (several and len(given) >= ALIKE)):
            yield _side_by_side(one, other)


def _size(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple | str) else None


def _counts(number: int, counted: int) -> Property:
    def holds(args: Sequence[Any]) -> bool:
        return max(number, counted) >= len(args) or args[number] == _size(args[counted])

    def changed(args: Args) -> Args:
        return args if holds(args) else (*args[:number], _size(args[counted]), *args[number + 1 :])

    return Property(f"argument {number + 1} is the length of argument {counted + 1}", holds, changed)


def _side_by_side(one: int, other: int) -> Property:
    def holds(args: Sequence[Any]) -> bool:
        return max(one, other) >= len(args) or _size(args[one]) == _size(args[other])

    def changed(args: Args) -> Args:
        sizes = [_size(args[place]) for place in (one, other)] if max(one, other) < len(args) else []
        if not sizes or None in sizes or sizes[0] == sizes[1]:
            return args
        short = min(size for size in sizes if size is not None)
        return tuple(arg[:short] if place in (one, other) else arg for place, arg in enumerate(args))

    return Property(f"arguments {one + 1} and {other + 1} are of one length", holds, changed)


# --- what a program reads ---


def counts_of(known: Sequence[str]) -> frozenset[str]:
    """What the first number of a text counts in all of the known ones, where it is not the same each time: "words" of
    the second line, "lines" after the first."""
    found = [(first, _lines(text)) for text in known if (first := _first_number(text)) is not None]
    if len(found) < len(known) or len({first for first, _ in found}) < 2:
        return frozenset()
    words = all(len(lines) > 1 and len(lines[1]) == first for first, lines in found)
    lines_ = all(len(lines) - 1 == first for first, lines in found)
    return frozenset({*(["words"] if words else []), *(["lines"] if lines_ else [])})


def miscounted(text: str, counts: frozenset[str]) -> bool:
    """Whether the first number of a text counts something else than it should."""
    first, lines = _first_number(text), _lines(text)
    if first is None:
        return bool(counts)
    return ("words" in counts and (len(lines) < 2 or len(lines[1]) != first)) or (
        "lines" in counts and len(lines) - 1 != first
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _first_number(text: str) -> int | None:
    """The number that is alone on the first line."""
    first = text.split("\n", 1)[0].split()
    return int(first[0]) if len(first) == 1 and first[0].isdigit() and len(first[0]) < 10 else None
