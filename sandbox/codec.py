"""Typed JSON: Python values as JSON that comes back with the same types.

Plain JSON stands for itself: None, bool, int, finite float, str, list, and dict with str keys of which none starts
with "$". Everything else is an object with one tag:

    {"$tuple": [...]}   {"$set": [...]}   {"$frozenset": [...]}   {"$dict": [[key, value], ...]}
    {"$bytes": "base64"}   {"$complex": [re, im]}   {"$float": "nan" | "inf" | "-inf"}   {"$int": "0x..."}
    {"$str": "base64 of UTF-8 with lone surrogates"}

Only exact builtin types leave `encode_value`; an instance of a subclass is read through the methods of its base, so
that overridden methods have no say. Standard library only: this module also runs inside the sandbox, where it encodes
what hostile code returned, and in the trusted parent, where it decodes bytes that hostile code may have written.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

MAX_DEPTH: Final = 100
MAX_NODES: Final = 2_000_000
# Ints from here on are tagged: JSON readers elsewhere would lose digits or refuse them.
BIG_INT: Final = 1 << 63
# Honest sets have almost no equal hashes; thousands of them would make decoding quadratic.
MAX_EQUAL_HASHES: Final = 1000

_MRO = type.__dict__["__mro__"]
_BASES: Final = (bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset)


class UnserializableError(TypeError):
    """The value cannot be expressed in typed JSON: an unknown type, too deep or too large."""


class MalformedValueError(ValueError):
    """The text is not typed JSON."""


def encode_value(value: object, rationals: bool = False) -> Any:
    """`value` as a tree of plain JSON types. Raises UnserializableError.

    rationals: take a Fraction or Decimal for the int that it is, or the nearest float.
    """
    return _Encoder(rationals).encode(value, 0)


def decode_value(data: Any) -> Any:
    """The value that a tree of plain JSON types stands for. Raises MalformedValueError."""
    return _Decoder().decode(data, 0)


_dump: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def compact_json(tree: Any) -> bytes:
    """A tree of plain JSON types as ASCII text, without blanks."""
    return _dump(tree).encode()


def dumps(value: object, rationals: bool = False) -> str:
    """`value` as ASCII typed JSON text, see `encode_value`. Raises UnserializableError."""
    return _dump(encode_value(value, rationals))


def loads(text: str | bytes) -> Any:
    """The value that typed JSON text stands for. Raises MalformedValueError, and nothing else."""
    try:
        return decode_value(json.loads(text, parse_constant=_refuse_constant))
    except MalformedValueError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise MalformedValueError(f"not JSON: {type(error).__name__}: {str(error)[:200]}") from None


def _refuse_constant(name: str) -> Any:
    raise MalformedValueError(f"{name} must be written as a $float tag")


class _Encoder:
    """One encoding, counting its nodes."""

    def __init__(self, rationals: bool) -> None:
        self.nodes = 0
        self.rationals = rationals

    def encode(self, value: object, depth: int) -> Any:
        kind = type(value)
        if self.rationals and isinstance(value, Fraction | Decimal):
            value = _plain_number(value)
            kind = type(value)
        if kind not in _BASES and value is not None:
            value = _as_base(value)
            kind = type(value)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise UnserializableError(f"the value has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise UnserializableError(f"the value is nested deeper than {MAX_DEPTH} levels")
        if value is None or kind is bool:
            return value
        encode: Callable[[_Encoder, Any, int], Any] = _ENCODERS[kind]
        return encode(self, value, depth)

    def _items(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.encode(item, depth + 1) for item in values]

    def _unordered(self, values: Iterable[Any], depth: int) -> list[Any]:
        """In the order of their texts: equal sets have equal encodings, whatever their hash seeds."""
        return sorted(self._items(values, depth), key=_dump)

    def _int(self, value: int, depth: int) -> Any:
        return value if -BIG_INT <= value < BIG_INT else {"$int": hex(value)}

    def _float(self, value: float, depth: int) -> Any:
        return value if math.isfinite(value) else {"$float": repr(value)}

    def _complex(self, value: complex, depth: int) -> Any:
        return {"$complex": [self._float(value.real, depth), self._float(value.imag, depth)]}

    def _str(self, value: str, depth: int) -> Any:
        if _has_surrogate(value):
            return {"$str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
        return value

    def _bytes(self, value: bytes, depth: int) -> Any:
        return {"$bytes": base64.b64encode(value).decode()}

    def _list(self, value: list[Any], depth: int) -> Any:
        return self._items(value, depth)

    def _tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return {"$tuple": self._items(value, depth)}

    def _set(self, value: set[Any], depth: int) -> Any:
        return {"$set": self._unordered(value, depth)}

    def _frozenset(self, value: frozenset[Any], depth: int) -> Any:
        return {"$frozenset": self._unordered(value, depth)}

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        if all(type(key) is str and key[:1] != "$" and not _has_surrogate(key) for key in value):
            return {key: self.encode(item, depth + 1) for key, item in value.items()}
        return {"$dict": [[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in value.items()]}


_ENCODERS: Final[dict[type, Any]] = {
    int: _Encoder._int,
    float: _Encoder._float,
    complex: _Encoder._complex,
    str: _Encoder._str,
    bytes: _Encoder._bytes,
    list: _Encoder._list,
    tuple: _Encoder._tuple,
    set: _Encoder._set,
    frozenset: _Encoder._frozenset,
    dict: _Encoder._dict,
}

# How to read a subclass instance without calling anything that the subclass defines.
_READERS: Final[dict[type, Callable[[Any], object]]] = {
    int: int.__index__,
    float: float.__float__,
    complex: lambda value: complex(complex.real.__get__(value), complex.imag.__get__(value)),
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
}


def _plain_number(value: Fraction | Decimal) -> int | float:
    """The int that a rational number is, else the nearest float."""
    try:
        whole = int(value)
        return whole if whole == value else float(value)
    except (OverflowError, ValueError):  # infinite, nan, or too large for a float
        return float("nan") if value != value else math.copysign(math.inf, value)


def _as_base(value: object) -> object:
    """The exact builtin value behind an instance of a subclass."""
    kind = type(value)
    for base in _MRO.__get__(kind):
        reader = _READERS.get(base)
        if reader is not None:
            return reader(value)
    # NumPy scalars and arrays offer their plain value themselves; it is encoded like any other value.
    if str(getattr(kind, "__module__", "")) == "numpy":
        plain = value.tolist()  # type: ignore[attr-defined]
        if type(plain) in _BASES:
            return plain
    raise UnserializableError(f"a value of type {kind.__name__!r} cannot be returned")


def _has_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


class _Decoder:
    """One decoding, counting its nodes; every method raises MalformedValueError on anything unexpected."""

    def __init__(self) -> None:
        self.nodes = 0

    def decode(self, data: Any, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise MalformedValueError(f"more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise MalformedValueError(f"nested deeper than {MAX_DEPTH} levels")
        kind = type(data)
        if data is None or kind is bool or kind is str or kind is int:
            return data
        if kind is float:
            if not math.isfinite(data):
                raise MalformedValueError("a number is out of range")
            return data
        if kind is list:
            return [self.decode(item, depth + 1) for item in data]
        if kind is dict:
            return self._object(data, depth)
        raise MalformedValueError(f"{kind.__name__} is not a JSON type")

    def _object(self, data: dict[Any, Any], depth: int) -> Any:
        if not all(type(key) is str for key in data):
            raise MalformedValueError("an object key is not a string")
        tag = next((key for key in data if key[:1] == "$"), None)
        if tag is None:
            return {key: self.decode(item, depth + 1) for key, item in data.items()}
        if len(data) != 1:
            raise MalformedValueError(f"{tag[:20]!r} must be the only key of its object")
        decode: Callable[[_Decoder, Any, int], Any] | None = _DECODERS.get(tag)
        if decode is None:
            raise MalformedValueError(f"unknown tag {tag[:20]!r}; known tags: {', '.join(_DECODERS)}")
        return decode(self, data[tag], depth)

    def _items(self, content: Any, depth: int) -> list[Any]:
        if type(content) is not list:
            raise MalformedValueError("a container tag needs a list")
        return [self.decode(item, depth + 1) for item in content]

    def _tuple(self, content: Any, depth: int) -> Any:
        return tuple(self._items(content, depth))

    def _set(self, content: Any, depth: int) -> Any:
        items = self._items(content, depth)
        _check_hashes(items)
        return set(items)

    def _frozenset(self, content: Any, depth: int) -> Any:
        return frozenset(self._set(content, depth))

    def _dict(self, content: Any, depth: int) -> Any:
        if type(content) is not list or not all(type(pair) is list and len(pair) == 2 for pair in content):
            raise MalformedValueError("$dict needs a list of [key, value] pairs")
        pairs = [(self.decode(key, depth + 1), self.decode(item, depth + 1)) for key, item in content]
        _check_hashes([key for key, _ in pairs])
        return dict(pairs)

    def _base64(self, content: Any) -> bytes:
        if type(content) is not str:
            raise MalformedValueError("a base64 string is expected")
        try:
            return base64.b64decode(content, validate=True)
        except ValueError as error:
            raise MalformedValueError(f"bad base64: {error}") from None

    def _bytes(self, content: Any, depth: int) -> Any:
        return self._base64(content)

    def _str(self, content: Any, depth: int) -> Any:
        try:
            return self._base64(content).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise MalformedValueError(f"bad $str: {error.reason}") from None

    def _complex(self, content: Any, depth: int) -> Any:
        parts = self._items(content, depth)
        if len(parts) != 2 or not all(type(part) is float for part in parts):
            raise MalformedValueError("$complex needs two floats")
        return complex(parts[0], parts[1])

    def _float(self, content: Any, depth: int) -> Any:
        if content not in ("nan", "inf", "-inf"):
            raise MalformedValueError("$float is one of nan, inf, -inf")
        return float(content)

    def _int(self, content: Any, depth: int) -> Any:
        digits = content[1:] if type(content) is str and content[:1] == "-" else content
        if type(digits) is not str or digits[:2] != "0x":
            raise MalformedValueError("$int needs a hexadecimal string")
        try:
            return int(content, 16)
        except ValueError:
            raise MalformedValueError("$int needs a hexadecimal string") from None


_DECODERS: Final[dict[str, Any]] = {
    "$tuple": _Decoder._tuple,
    "$set": _Decoder._set,
    "$frozenset": _Decoder._frozenset,
    "$dict": _Decoder._dict,
    "$bytes": _Decoder._bytes,
    "$str": _Decoder._str,
    "$complex": _Decoder._complex,
    "$float": _Decoder._float,
    "$int": _Decoder._int,
}


def _check_hashes(items: list[Any]) -> None:
    """Refuse unhashable items, and so many equal hashes that building a table would be quadratic."""
    try:
        distinct = len({hash(item) for item in items})
    except TypeError as error:
        raise MalformedValueError(str(error)) from None
    if len(items) - distinct > MAX_EQUAL_HASHES:
        raise MalformedValueError("too many items with equal hashes")
