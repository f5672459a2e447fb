"""New inputs from known ones, of the same types and shapes (method section 2; type-aware mutation, Liu et al. 2023).

A mutation changes one place of an input, or puts in what another known input has at such a place. Whether the result is
a legal input is not known here: the references are run on it, and a problem's stated limits are checked before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from reasoning.literals import literal
from reasoning.properties import Args, Property, broken, mended

T = TypeVar("T")

LARGEST_GROWTH = 2
"""A container grows to at most this many times the longest of its kind that is known, and two more."""
EDGES = 3
"""One of so many inputs may be one at the edge."""
LETTERS = "abcxyzAZ"
MUTATIONS = (1, 1, 1, 2, 3)
"""How many changes an input is made by; most are small."""


def new_arguments(
    known: Sequence[Args], count: int, seed: int, properties: Sequence[Property] = (), attempts: int = 20
) -> list[Args]:
    """Up to `count` argument lists that are none of `known`, all different, each made from one of them: up to a third
    with one argument at the edge of its type (nothing in a list, a text of one letter, zero), the others by mutation.

    `properties`: what all of them have. `attempts`: for each. Fewer come where there is little to change. The same
    seed gives the same.
    """
    if not known:
        return []
    rng = random.Random(seed)
    pool = _Pool(known)
    edges = [args for args in _edges(known, rng) if not broken(mended(args, properties), properties)][: count // EDGES]

    def make() -> Args:
        return mended(edges.pop(0) if edges else pool.mutated(rng.choice(known), rng), properties)

    return _distinct(known, count, attempts, make, lambda args: not broken(args, properties))


def new_texts(known: Sequence[str], count: int, seed: int, attempts: int = 20) -> list[str]:
    """As `new_arguments`, for what a program reads: numbers and words of a text are changed, its lines stay.

    A number that counts the words of the line after it, or the lines that follow, is changed together with them.
    """
    if not known:
        return []
    rng = random.Random(seed)
    tables = [_table(text) for text in known]
    pool = _Pool([(word,) for table in tables for line in table for word in line])
    return _distinct(
        known, count, attempts, lambda: _text(_changed_table(rng.choice(tables), pool, rng)), lambda _: True
    )


def _distinct(
    known: Sequence[T], count: int, attempts: int, make: Callable[[], T], fits: Callable[[T], bool]
) -> list[T]:
    seen = {literal(one) for one in known}
    found: list[T] = []
    for _ in range(count * attempts):
        if len(found) >= count:
            break
        made = make()
        if literal(made) not in seen and fits(made):
            seen.add(literal(made))
            found.append(made)
    return found


def _edges(known: Sequence[Args], rng: random.Random) -> list[Args]:
    """Known inputs with one argument at the edge of its type; first one of each place and edge, then the other inputs
    with them."""
    found: dict[str, list[Args]] = {}
    for args in known:
        for place, value in enumerate(args):
            for edge in _edges_of(value):
                found.setdefault(f"{place} {literal(edge)}", []).append((*args[:place], edge, *args[place + 1 :]))
    columns = [rng.sample(one, len(one)) for one in found.values()]
    rows = itertools.zip_longest(*columns)
    return [args for row in rows for args in row if args is not None]


def _edges_of(value: Any) -> list[Any]:
    match value:
        case bool() | None:
            return []
        case int():
            return [0, 1, -1]
        case float():
            return [0.0]
        case str():
            return ["", value[:1]]
        case list() | tuple():
            return [value[:0], value[:1]]
        case set() | frozenset() | dict():
            return [type(value)()]
    return []


class _Pool:
    """Values that stand in the known inputs, by type."""

    def __init__(self, known: Sequence[Args]) -> None:
        self._values: dict[type, list[Any]] = {}
        self._longest: dict[type, int] = {}
        for args in known:
            for value in args:
                self._add(value)
        self._letters = "".join(sorted({c for text in self._values.get(str, []) for c in text})) or LETTERS

    def _add(self, value: Any) -> None:
        self._values.setdefault(type(value), []).append(value)
        if isinstance(value, str | list | tuple | set | frozenset | dict):
            self._longest[type(value)] = max(len(value), self._longest.get(type(value), 0))
        if isinstance(value, dict):
            for pair in value.items():
                for one in pair:
                    self._add(one)
        elif isinstance(value, list | tuple | set | frozenset):
            # The order of a set is another in every process.
            for one in sorted(value, key=literal) if isinstance(value, set | frozenset) else value:
                self._add(one)

    def mutated(self, args: Args, rng: random.Random) -> Args:
        """Other arguments: one to three small changes."""
        made = list(args)
        for _ in range(rng.choice(MUTATIONS)):
            if made:
                place = rng.randrange(len(made))
                made[place] = self.other(made[place], rng)
        return tuple(made)

    def other(self, value: Any, rng: random.Random) -> Any:
        """Another value of the same type; itself where there is none."""
        if rng.random() < 0.15:
            return rng.choice(self._values[type(value)]) if type(value) in self._values else value
        match value:
            case bool():
                return not value
            case int():
                return self._other_int(value, rng)
            case float():
                return rng.choice([value + 1, value - 1, -value, value / 2, value * 2, 0.0, value + 0.5])
            case str():
                return self._other_text(value, rng)
            case list():
                return self._other_items(value, rng)
            case tuple():
                return self._other_tuple(value, rng)
            case set() | frozenset():
                made = self._other_items(sorted(value, key=literal), rng)
                return type(value)(made) if _hashable(made) else value
            case dict():
                return self._other_dict(value, rng)
        return value

    def _other_int(self, value: int, rng: random.Random) -> int:
        spread = max(3, 2 * abs(value))
        return rng.choice([value + 1, value - 1, -value, 0, 1, value * 2, value // 2, rng.randint(-spread, spread)])

    def _other_text(self, text: str, rng: random.Random) -> str:
        place = rng.randint(0, len(text))
        letter = rng.choice(self._letters)
        changes = [text[:place] + letter + text[place:], text[::-1], text.swapcase(), ""]
        if text:
            at = min(place, len(text) - 1)
            before, after = text[:at], text[at + 1 :]
            changes += [before + after, before + letter + after, before + 2 * text[at] + after]
        return rng.choice([c for c in changes if len(c) <= self._room(str)])

    def _other_items(self, items: list[Any], rng: random.Random) -> list[Any]:
        if not items:
            known = [v for values in self._values.get(list, []) for v in values] if list in self._values else []
            return [rng.choice(known)] if known else [0]
        at = rng.randrange(len(items))
        changes = [
            [*items[:at], self.other(items[at], rng), *items[at + 1 :]],
            [*items[:at], self.other(items[at], rng), *items[at + 1 :]],
            [*items[:at], *items[at + 1 :]],
            [*items[:at], items[rng.randrange(len(items))], *items[at:]],
            [*items[:at], self.other(items[at], rng), *items[at:]],
            rng.sample(items, len(items)),
            items[::-1],
            [],
        ]
        return rng.choice([c for c in changes if len(c) <= self._room(list)])

    def _other_tuple(self, items: tuple[Any, ...], rng: random.Random) -> tuple[Any, ...]:
        # Items of one type may be a list in disguise; of several, they are fields.
        if len(items) > 2 and len({type(one) for one in items}) == 1 and rng.random() < 0.5:
            made = tuple(self._other_items(list(items), rng))
            return made if len(made) <= self._room(tuple) else items
        if not items:
            return items
        at = rng.randrange(len(items))
        return (*items[:at], self.other(items[at], rng), *items[at + 1 :])

    def _other_dict(self, items: dict[Any, Any], rng: random.Random) -> dict[Any, Any]:
        if not items:
            return items
        key = rng.choice(list(items))
        match rng.randrange(4):
            case 0:
                return {k: v for k, v in items.items() if k != key}
            case 1 if len(items) < self._room(dict) and _hashable([other := self.other(key, rng)]):
                return {**items, other: items[key]}
        return {**items, key: self.other(items[key], rng)}

    def _room(self, kind: type) -> int:
        return LARGEST_GROWTH * self._longest.get(kind, 0) + 2


def _hashable(items: list[Any]) -> bool:
    try:
        set(items)
    except TypeError:
        return False
    return True


# --- texts ---


def _table(text: str) -> list[list[Any]]:
    """Lines of words; whole numbers as int, other numbers as float where they are written as Python writes them."""
    return [[_word(word) for word in line.split(" ")] for line in text.split("\n")]


def _word(word: str) -> Any:
    for read in (int, float):
        try:
            value = read(word)
        except ValueError:
            continue
        if str(value) == word:
            return value
    return word


def _text(table: list[list[Any]]) -> str:
    return "\n".join(" ".join(str(word) for word in line) for line in table)


def _changed_table(table: list[list[Any]], pool: _Pool, rng: random.Random) -> list[list[Any]]:
    made = [list(line) for line in table]
    for _ in range(rng.choice(MUTATIONS)):
        places = [(row, column) for row, line in enumerate(made) for column, word in enumerate(line) if word != ""]
        if not places:
            break
        row, column = rng.choice(places)
        counted = _counted_by(made, row, column)
        if counted is None:
            made[row][column] = _one_word(pool.other(made[row][column], rng), made[row][column])
        else:
            _resize(made, row, column, counted, pool, rng)
            break  # what counts what was read from the lines as they were
    return made


def _one_word(word: Any, before: Any) -> Any:
    return before if isinstance(word, str) and (not word or any(c.isspace() for c in word)) else word


def _counted_by(table: list[list[Any]], row: int, column: int) -> str | None:
    """What a number counts: "words" of the next line, "lines" of the rest; None where it counts nothing."""
    value = table[row][column]
    if type(value) is not int or value < 1 or row + 1 >= len(table):
        return None
    rest = table[row + 1 :]
    while rest and rest[-1] == [""]:
        rest = rest[:-1]
    if len(rest) == value > 1:
        return "lines"
    return "words" if rest and len(rest[0]) == value and len(table[row]) == 1 else None


def _resize(table: list[list[Any]], row: int, column: int, counted: str, pool: _Pool, rng: random.Random) -> None:
    """One more or one less of what the number counts."""
    following: list[Any] = table[row + 1] if counted == "words" else table
    first = 0 if counted == "words" else row + 1
    at = first + rng.randrange(table[row][column])
    if rng.random() < 0.5 and table[row][column] > 1:
        del following[at]
        table[row][column] -= 1
        return
    copy = following[at]
    if counted == "words":
        following.insert(at, _one_word(pool.other(copy, rng), copy))
    else:
        following.insert(at, [_one_word(pool.other(word, rng), word) if word != "" else word for word in copy])
    table[row][column] += 1
