"""What a function has returned, as a record keeps it: as JSON, the same that the Lambda runtime answers with.

So whoever sends a request twice gets the same answer twice. A caller in Python that got an object the first time gets what JSON
leaves of it from then on: lists for tuples, text where a number was a member's name, the nearest float for a ``Decimal``. A
result that can't be kept leaves the problem in its place: what was done must not be done again for that.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal

from perinvoke.fleet.dynamodb.idempotency_protocol import Run, other_bytes
from perinvoke.fleet.errors import ResultError, ResultNotJson, ResultTooLarge, TableSchemaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_ITEM_BYTES = 409_600  # DynamoDB's 400 KB
_ERRORS: dict[str, type[ResultError]] = {"ResultTooLarge": ResultTooLarge, "ResultNotJson": ResultNotJson}
_TOLD_CHARACTERS = 500  # of what somebody else's code says of its error; arbitrary, and nothing beside what a record may hold


class Kept:
    """What a record is completed with; lives as long as the call. ``result`` is JSON; ``problem`` too, or empty."""

    __slots__ = ("problem", "result")

    def __init__(self, result: str, problem: str = "") -> None:
        self.result = result
        self.problem = problem


def kept(run: Run, value: Any, expires_after_seconds: float) -> Kept:
    """A result in the form of a record; or why it has none."""
    try:
        text = as_json(value)
    except Exception as error:  # noqa: BLE001  # a result's own code may raise anything, and its effect has happened
        return Kept("", _not_json(run, value, error))
    size = len(text.encode())
    room = MAX_ITEM_BYTES - other_bytes(run.completed(text, "", expires_after_seconds), run.record_key)
    return Kept(text) if size <= room else Kept("", _too_large(run, size, room))


def raise_problem(run: Run, problem: str) -> None:
    """Raise what a record, or one to be, says of its result; nothing, if that is there.

    Raises:
        ResultNotJson: it was no JSON.
        ResultTooLarge: it was too large.
    """
    if problem:
        told = _parsed(run, problem)
        kind = _ERRORS.get(told.pop("error", "")) if isinstance(told, dict) else None
        if kind is None:
            raise _spoilt(run)
        raise kind(told.pop("message", ""), key=run.key, **told)


def result_of(run: Run, record: Mapping[str, Any]) -> Any:
    """What the first call returned, as JSON has it.

    Raises:
        ResultNotJson: it was no JSON.
        ResultTooLarge: it was too large.
        TableSchemaError: somebody has written something else there.
    """
    raise_problem(run, record["problem"])
    return _parsed(run, record["result"])


def as_json(value: Any) -> str:
    """As awslambdaric 4.2 writes a handler's result, but without blanks.

    Raises:
        TypeError: JSON has no form for it.
        ValueError: the same.
        RecursionError: it holds itself, or is nested too deep.
    """
    if isinstance(value, bytes | bytearray):
        raise TypeError("bytes, which the runtime answers with as they are")
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only escaped it can be sent
        return json.dumps(_plain(value), separators=(",", ":"))
    return text


def _plain(value: Any) -> Any:
    """Of what JSON knows. simplejson, which the runtime uses, takes more than Python's own: named tuples, bytes, decimals."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if not isinstance(value, type) and callable(getattr(value, "_asdict", None)):
        value = value._asdict()
    if isinstance(value, dict):
        return {name.decode() if isinstance(name, bytes) else name: _plain(member) for name, member in value.items()}
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else json.loads(str(value))
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a value of type {type(value).__name__}")


def _not_json(run: Run, value: object, error: Exception) -> str:
    why = "nested too deep" if isinstance(error, RecursionError) else str(error)[:_TOLD_CHARACTERS]
    return _problem(
        ResultNotJson,
        f"{run.name} has succeeded for key {run.key[:_TOLD_CHARACTERS]!r}, and its result, of type {type(value).__name__}, is no "
        f"JSON: {why}. It can't be answered again. Return what JSON knows",
    )


def _too_large(run: Run, size: int, room: int) -> str:
    return _problem(
        ResultTooLarge,
        f"{run.name} has succeeded for key {run.key[:_TOLD_CHARACTERS]!r}, and its result has {size:,} bytes as JSON; DynamoDB "
        f"can keep {room:,} beside this key. It can't be answered again. Put it in S3, and return where it is",
        bytes=size,
        max_bytes=room,
    )


def _problem(kind: type[ResultError], message: str, **fields: int) -> str:
    return json.dumps({"error": kind.__name__, "message": message, **fields})


def _parsed(run: Run, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _spoilt(run) from error


def _spoilt(run: Run) -> TableSchemaError:
    return TableSchemaError(
        f"item {run.record_key!r} of table {run.table!r} "
        "holds no result that was written here. Remove it: the call then runs again.",
        table=run.table,
        action="dynamodb:UpdateItem",
    )
