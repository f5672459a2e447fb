"""`Value`: a pydantic field type for any value that typed JSON can express (see `sandbox.codec`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo

from sandbox.codec import (
    MalformedValueError,
    UnserializableError,
    decode_value,
    dumps,
    encode_value,
    loads,
)

__all__ = [
    "TYPED_JSON",
    "MalformedValueError",
    "UnserializableError",
    "Value",
    "decode_value",
    "dumps",
    "encode_value",
    "loads",
]

# `model_validate(row, context=TYPED_JSON)`: the row was read by another JSON reader and still holds tags.
TYPED_JSON = {"typed_json": True}


def _validate(data: Any, info: ValidationInfo) -> Any:
    """A private copy with exact builtin types. Bad data becomes a validation error."""
    tagged = info.mode == "json" or bool(info.context and info.context.get("typed_json"))
    try:
        return decode_value(data if tagged else encode_value(data))
    except UnserializableError as error:
        raise ValueError(str(error)) from None


Value = Annotated[Any, PlainValidator(_validate), PlainSerializer(encode_value, when_used="json")]
