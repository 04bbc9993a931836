"""Python's values and DynamoDB's: ``1`` and ``{"N": "1"}``. What stands for them is boto3's own serializer."""

from __future__ import annotations

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from perinvoke.errors import FixConfiguration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SETS = frozenset({"SS", "NS", "BS"})
_TYPES = _SETS | {"S", "N", "B", "BOOL", "NULL", "M", "L"}
_SHOWN_CHARACTERS = 200  # of a value, in a message; arbitrary
_serializer, _deserializer = TypeSerializer(), TypeDeserializer()


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """DynamoDB's form of Python's values; the same in every process.

    Raises:
        FixConfiguration: a value that DynamoDB has no form for, such as a float, a date or an empty set. The error names the
            attribute.
    """
    result = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise FixConfiguration(f"an attribute is called {shown(name)}; DynamoDB's attributes have strings as names")
        try:
            result[name] = _settled(_serializer.serialize(value))
        except (TypeError, ValueError, ArithmeticError) as error:
            hint = ": use decimal.Decimal(str(value))" if isinstance(value, float) else ""
            raise FixConfiguration(
                f"attribute {name!r} is {shown(value)}, which DynamoDB has no type for{hint} ({error})"
            ) from error
    return result


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python's form of DynamoDB's values; numbers are ``decimal.Decimal``, as boto3's tables have them."""
    return {name: _deserializer.deserialize(value) for name, value in values.items()}


def is_typed(values: Mapping[str, Any]) -> bool:
    """Whether they are in DynamoDB's form. Of a key that is certain: its values are never dictionaries in Python's form."""
    return bool(values) and all(
        isinstance(value, dict) and len(value) == 1 and value.keys() <= _TYPES for value in values.values()
    )


def shown(value: object) -> str:
    """A value in a message: as Python writes it, but no more than its beginning."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _settled(value: dict[str, Any]) -> dict[str, Any]:
    """The same value with its sets in one order: Python's is another one in each process, and a token names one request."""
    [(kind, its)] = value.items()
    if kind in _SETS:
        if not its:
            raise ValueError("it has no empty sets: leave it out, or use a list")
        return {kind: sorted(its)}
    if kind == "L":
        return {kind: [_settled(one) for one in its]}
    if kind == "M":
        if not all(isinstance(name, str) for name in its):
            raise TypeError("a map's names must be strings")
        return {kind: {name: _settled(one) for name, one in its.items()}}
    return value
