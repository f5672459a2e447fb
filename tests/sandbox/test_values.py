"""The typed JSON codec and the pydantic field type on it."""

# ruff: noqa: E501 - tables and programs keep one entry per line

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sandbox import TYPED_JSON, CallCase, Case, MalformedValueError, UnserializableError, decode_value, encode_value
from sandbox.codec import dumps, loads

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(min_value=2**60) | st.floats() | st.complex_numbers()
    | st.binary(max_size=8) | st.text(alphabet=st.characters(codec=None), max_size=8) | st.sampled_from(["$", "$tuple", "\ud800"])
)  # fmt: skip
hashables = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$tuple", "$set", "$dict", "$int", "$float", "$bytes", "$complex", "$str", "$", "a"]),
            inner,
        )
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    """Equal with types, nan and the sign of zero included."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return math.isnan(a) if math.isnan(b) else a == b and math.copysign(1, a) == math.copysign(1, b)
    if type(a) is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) in (set, frozenset):
        left = list(b)
        for item in a:
            position = next((i for i, other in enumerate(left) if same(item, other)), None)
            if position is None:
                return False
            left.pop(position)
        return not left
    if type(a) is dict:
        return len(a) == len(b) and all(same(k, m) and same(a[k], b[m]) for k, m in zip(a, b, strict=True))
    return bool(a == b)


@given(values)
@settings(max_examples=300, deadline=None)
def test_codec_round_trip(value: Any) -> None:
    assert same(decode_value(encode_value(value)), value)
    assert same(loads(dumps(value)), value)


@given(values, values)
@settings(max_examples=200, deadline=None)
def test_record_round_trip(argument: Any, expected: Any) -> None:
    case = CallCase(args=[argument], kwargs={"k": expected}, expected=expected)
    text = case.model_dump_json()
    again = CallCase.model_validate_json(text)
    assert same(again.args[0], argument) and same(again.expected, expected) and same(again.kwargs["k"], expected)
    assert again.model_dump_json() == text
    from_rows = TypeAdapter(Case).validate_python(json.loads(text), context=TYPED_JSON)
    assert same(from_rows.expected, expected)
    assert same(CallCase.model_validate(case.model_dump()).expected, expected)


@given(json_trees)
@settings(max_examples=500, deadline=None)
def test_decoding_anything_never_crashes(tree: Any) -> None:
    try:
        value = decode_value(tree)
    except MalformedValueError:
        return
    assert same(decode_value(encode_value(value)), value)


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_loading_any_bytes_never_crashes(data: bytes) -> None:
    with contextlib.suppress(MalformedValueError):
        loads(data)


def test_plain_json_stands_for_itself() -> None:
    plain = {"a": [1, 2.5, None, True, "x", {"b": []}]}
    assert encode_value(plain) == plain
    assert encode_value((1, {2})) == {"$tuple": [1, {"$set": [2]}]}
    assert encode_value({1: 2}) == {"$dict": [[1, 2]]}
    assert encode_value({"$x": 1}) == {"$dict": [["$x", 1]]}
    assert encode_value(float("-inf")) == {"$float": "-inf"}
    assert encode_value(-(2**70)) == {"$int": hex(-(2**70))}


def test_subclasses_become_their_base() -> None:
    class Level(IntEnum):
        ONE = 1

    point = namedtuple("point", "x y")
    value = [Level.ONE, point(1, 2), Counter("aab"), OrderedDict(a=1), defaultdict(int, {2: 3})]
    decoded = decode_value(encode_value(value))
    assert same(decoded, [1, (1, 2), {"a": 2, "b": 1}, {"a": 1}, {2: 3}])


@pytest.mark.parametrize("bad", [object(), range(3), lambda: 0, iter([]), bytearray(b""), type, Exception()])
def test_other_types_are_refused(bad: Any) -> None:
    with pytest.raises(UnserializableError):
        encode_value([bad])


@pytest.mark.parametrize(
    "bad",
    [
        {"$nope": 1}, {"$tuple": 1}, {"$set": [[1]]}, {"$dict": [[1]]}, {"$dict": [[[], 1]]}, {"$bytes": "?"}, {"$bytes": 1},
        {"$complex": [1.0]}, {"$complex": [1, 2]}, {"$float": "1.0"}, {"$float": []}, {"$int": "12"}, {"$int": 12},
        {"$int": "0xg"}, {"$int": None}, {"$str": "/w=="}, {"$tuple": [], "a": 1}, {1: 2}, float("nan"), (1,), {"$set": {}},
    ],
)  # fmt: skip
def test_malformed_trees(bad: Any) -> None:
    with pytest.raises(MalformedValueError):
        decode_value(bad)
    with pytest.raises(ValidationError):
        CallCase.model_validate({"expected": bad}, context=TYPED_JSON)


def test_depth_is_capped() -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(UnserializableError):
        encode_value(deep)
    with pytest.raises(MalformedValueError):
        decode_value(deep)


def test_values_are_private_copies() -> None:
    given_list = [1]
    case = CallCase(args=[given_list], expected=given_list)
    given_list.append(2)
    assert case.args == [[1]] and case.expected == [1]
