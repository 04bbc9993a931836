"""Which item is meant: a table, and the key that its caller gave in Python's values or in DynamoDB's form."""

from __future__ import annotations

import hashlib
from decimal import Context, Decimal

from boto3.dynamodb.types import Binary

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.values import is_typed, plain, shown, typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Bytes. DynamoDB's limit of a partition key; of a sort key it is half of that, but which one is which the table knows.
MAX_KEY_BYTES = 2048
_MAX_KEY_ATTRIBUTES = 2
# And what Python has for their values in DynamoDB's form.
_KEY_TYPES: dict[str, tuple[type, ...]] = {"S": (str,), "N": (str,), "B": (bytes, bytearray, Binary)}
_DIGEST_BYTES = 16
# DynamoDB's numbers have up to 38 digits; Python's usual context has 28, or what the caller made it.
_NUMBERS = Context(prec=38)


class ItemKey:
    """Which item of which table; lives as long as one call.

    Args:
        table: the table's name or ARN.
        key: its key attributes and their values; one, or two where the table has a sort key.

    Raises:
        FixConfiguration: that can't be a table, or a key.
    """

    __slots__ = ("_given_typed", "plain", "table", "typed")

    def __init__(self, table: str, key: Mapping[str, Any]) -> None:
        given: object = key  # whatever a caller passed
        self.table = checked_table(table)
        if not isinstance(given, dict) or not 0 < len(given) <= _MAX_KEY_ATTRIBUTES:
            raise FixConfiguration(
                f"the key of an item in table {table!r} is {shown(key)}; it must be a dict of the table's key attributes, "
                f'one or two, such as {{"id": "a"}}'
            )
        self._given_typed = is_typed(given)
        self.typed: dict[str, Any] = dict(given) if self._given_typed else typed(given)
        for name, value in self.typed.items():
            _check(self.table, name, value)
        self.plain: dict[str, Any] = plain(self.typed)

    @property
    def first_name(self) -> str:
        """One of its attributes. An item that is there has all of them, so any one tells."""
        return next(iter(self.typed))

    def whole(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """An item in DynamoDB's form, with this key whether it had it or not; it must not have another one.

        Raises:
            FixConfiguration: it has another key, or a value that DynamoDB has no form for.
        """
        given: object = item
        if not isinstance(given, dict):
            raise FixConfiguration(f"the item for {self} is {shown(item)}; it must be a dict of attributes")
        # Without its key {"size": {"S": "small"}} may be either; then the item has the form that the key was given in.
        certain = self._given_typed or bool(given.keys() & self.typed.keys())
        its = dict(given) if certain and is_typed(given) else typed(given)
        for name, value in its.items():
            if name in self.typed and not (is_key_value(value) and plain({name: value})[name] == self.plain[name]):
                raise FixConfiguration(f"the item for {self} has {name!r} {shown(given[name])}; leave it out, or correct it")
        return {**its, **self.typed}

    def digest(self) -> bytes:
        """Stands for the table and the key."""
        return digest(self.table, self.typed)

    def __str__(self) -> str:
        return f"{self.plain} in table {self.table!r}"


def digest(table: str, key: Mapping[str, Any]) -> bytes:
    """Stands for a table and a key in DynamoDB's form, however the table is called and the numbers are written."""
    parts = [table.rpartition(":table/")[2]]
    for name in sorted(key):
        [(kind, value)] = key[name].items()
        parts.append(f"{name}\0{kind}\0{_canonical(kind, value)}")
    return hashlib.blake2b("\0\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def is_key_value(value: Any) -> bool:
    """Whether a value in DynamoDB's form may be part of a key."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    [(kind, its)] = value.items()
    return _is_of(kind, its) and 0 < _size(its) <= MAX_KEY_BYTES


def checked_table(table: object) -> str:
    """The same.

    Raises:
        FixConfiguration: that can't be a table's name.
    """
    if not isinstance(table, str) or not table:
        raise FixConfiguration(f"the table is {table!r}; it must be the name or the ARN of a DynamoDB table")
    return table


def _check(table: str, name: str, value: Mapping[str, Any]) -> None:
    [(kind, its)] = value.items()
    where = f"key attribute {name!r} of an item in table {table!r}"
    if kind not in _KEY_TYPES:
        raise FixConfiguration(
            f"{where} is {shown(plain({name: value})[name])}; a key is a string, a number or bytes, and all of it in Python's "
            "values or all in DynamoDB's form"
        )
    if not _is_of(kind, its):
        raise FixConfiguration(f"{where} is {shown(value)}, which is no value in DynamoDB's form")
    if not _size(its):
        raise FixConfiguration(f"{where} is empty, which DynamoDB doesn't take")
    if _size(its) > MAX_KEY_BYTES:
        raise FixConfiguration(f"{where} has {_size(its)} bytes; DynamoDB takes {MAX_KEY_BYTES} at most. Use a digest of it")


def _is_of(kind: object, its: object) -> bool:
    """Whether a key's attribute may have that type and value; however long."""
    return isinstance(its, _KEY_TYPES.get(str(kind), ())) and (kind != "N" or _is_number(str(its)))


def _is_number(text: str) -> bool:
    try:
        number: Decimal = plain({"": {"N": text}})[""]
    except ArithmeticError:
        return False  # none, or one of more than 38 digits
    return number.is_finite()


def _size(value: Any) -> int:
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else len(bytes(value))


def _canonical(kind: str, value: Any) -> str:
    if kind == "N":
        return str(_NUMBERS.normalize(_NUMBERS.add(Decimal(value), 0)))  # the sum has no negative zero
    return value if kind == "S" else bytes(value).hex()
