"""Counting without reading first, once for each call: adding twice is not adding once.

An addition has no condition that would refuse its repetition. So botocore is kept from repeating it where its answer was lost.
Each one leaves a mark, of its own, beside the number; after a lost answer a read tells: ours is the last one, then it was carried
out, and the number is what it made. Another one says nothing, because each overwrites the one before. With a token it is a
transaction, which DynamoDB itself carries out once.
"""

from __future__ import annotations

from decimal import Decimal

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import patience_of
from perinvoke.fleet.dynamodb.answers import Answered
from perinvoke.fleet.dynamodb.caller import client_of
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.item_key import ItemKey
from perinvoke.fleet.dynamodb.steps import Call, run
from perinvoke.fleet.dynamodb.transact_actions import actions_of
from perinvoke.fleet.dynamodb.transaction import carry_out, checked_token
from perinvoke.fleet.dynamodb.values import plain, typed
from perinvoke.fleet.dynamodb.versioned_protocol import look
from perinvoke.fleet.dynamodb.write_marks import new_mark
from perinvoke.fleet.dynamodb.writes import note_write
from perinvoke.fleet.errors import OutcomeUnknown, TableSchemaError, TableUnavailable, TransactionCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Any

    from perinvoke.fleet.dynamodb.answers import Answer, Item
    from perinvoke.fleet.dynamodb.steps import Pause
    from perinvoke.fleet.patience import Patience

_ACTION = "dynamodb:UpdateItem"
# Of a number's attribute: where the last one who added to it leaves its mark. Not "_by", which items have for people.
_MARK = "_counted_by"


def increment(
    table: str,
    key: Mapping[str, Any],
    attribute: str,
    by: int | Decimal = 1,
    *,
    token: str | None = None,
    version: str | None = None,
    client: Any = None,
) -> int | Decimal:
    """Add to a number in an item, whoever else does at the same time; the new value. What isn't there counts as 0, and is made.

    Without a token an addition is done at most once. Where an answer was lost and it can't be told whether it was, because others
    have counted since, that is an error: repeating it might add twice. With a token it is done exactly once within ten minutes,
    so it may be repeated with the same one: by the next attempt of the same invocation, for example.

    Leaves a mark in ``<attribute>_counted_by``; with a token it doesn't. An item that ``update_versioned`` writes too needs its
    ``version`` here: otherwise what it read before is written over the addition.

    Price: one write; a lost answer costs a consistent read. With a token two writes' worth in one request, and a consistent read.
    Blocks; waits until the invocation's deadline less a margin, outside an invocation for 30 seconds. May be called from any
    thread and in a forked child.

    Args:
        table: the table's name or ARN.
        key: its key attributes; one, or two where the table has a sort key.
        attribute: of the item itself; not part of the key.
        by: how much; negative subtracts. Not 0, and no float: those don't add up.
        token: up to 36 characters, the same one for the same addition.
        version: the attribute that counts the item's writes, to be counted up as well.
        client: a low-level client of your own.

    Returns:
        What it made of the number: an int where it is whole. With a token it is what stood there a moment later, others'
        additions included; after a lost answer those that leave no mark may be in it.

    Raises:
        OutcomeUnknown: its answer was lost, and others have counted since. With a token it can't come to that.
        TransactionMismatch: the token was used for something else in the last ten minutes.
        TransactionCancelled: with a token: others stood in the way until there was no more time.
        TableUnavailable: throttled, or not reached, for as long as there was time. It was not carried out, unless with a token
            ``carried_out`` is None: then it may have been, or was and only the number can't be read. Ask again with the same one.
        TableSchemaError: what stands there isn't a number; another key than the table's.
        TableMissing, TableForbidden, FixConfiguration: the table, the role or an argument is wrong.
    """
    where = ItemKey(table, key)
    adds = _adds(where, attribute, by, version)
    checked = checked_token(token)
    patience = patience_of()
    note_write(where)
    if checked is None:
        return _number(where, attribute, run(_add(where, attribute, adds, new_mark(), patience), client_of(client)))
    _add_in_transaction(where, adds, checked, patience, client)
    return _number(where, attribute, run(_look_after_transaction(where, checked, patience), client_of(client)))


def _adds(key: ItemKey, attribute: str, by: int | Decimal, version: str | None) -> dict[str, int | Decimal]:
    """What is added to which attribute."""
    given: object = by
    if isinstance(given, bool) or not isinstance(given, int | Decimal):
        hint = " Use decimal.Decimal(str(value)): a float is not quite what it says" if isinstance(given, float) else ""
        raise FixConfiguration(f"by is {by!r}; it must be an int or a decimal.Decimal.{hint}")
    if (isinstance(by, Decimal) and not by.is_finite()) or by == 0:
        raise FixConfiguration(f"by is {by!r}; it must be a finite number other than 0. To read the number: read(table, key)")
    for name, what in ((attribute, "attribute"), (version, "version")):
        text: object = name
        if what == "version" and name is None:
            continue
        if not isinstance(text, str) or not text or {text, text + _MARK} & key.typed.keys():
            raise FixConfiguration(f"{what} is {name!r}; it must be the name of an attribute that isn't part of the key of {key}")
    if version in {attribute, attribute + _MARK}:
        raise FixConfiguration(f"version is {version!r}, which counts something else already; use another attribute")
    return {attribute: by} if version is None else {attribute: by, version: 1}


def _update(key: ItemKey, adds: Mapping[str, int | Decimal]) -> dict[str, Any]:
    """The request's parameters. Names and values are numbered: an attribute may be called anything."""
    return {
        "TableName": key.table,
        "Key": key.typed,
        "UpdateExpression": "ADD " + ", ".join(f"#a{number} :a{number}" for number in range(len(adds))),
        "ExpressionAttributeNames": {f"#a{number}": name for number, name in enumerate(adds)},
        "ExpressionAttributeValues": typed({f":a{number}": by for number, by in enumerate(adds.values())}),
    }


def _add(
    key: ItemKey, attribute: str, adds: Mapping[str, int | Decimal], mark: str, patience: Patience
) -> Generator[Call | Pause, Answer | None, Item | None]:
    """Add, step by step; the attributes as they are then.

    Raises:
        OutcomeUnknown, TableUnavailable: as above.
    """
    parameters = _update(key, adds)
    parameters["UpdateExpression"] += " SET #mark = :mark"
    parameters["ExpressionAttributeNames"]["#mark"] = attribute + _MARK
    parameters["ExpressionAttributeValues"][":mark"] = {"S": mark}
    call = Call("update_item", {**parameters, "ReturnValues": "UPDATED_NEW"}, once=True)
    try:
        answer = yield from insist(call, patience)
    except TableUnavailable as unavailable:
        if unavailable.carried_out is False:
            raise
        found = (yield from _look_after_silence(key, patience)) if patience.left() > 0 else None
        if found is not None and found.get(attribute + _MARK) == {"S": mark}:
            return found
        raise OutcomeUnknown(
            f"{attribute!r} of item {key} may have been added to, or not: the answer was lost ({unavailable.__cause__}). "
            "Look before you repeat it; or pass token=, with which it is done exactly once and may be repeated.",
            table=key.table,
            key=key.plain,
        ) from unavailable
    assert isinstance(answer, Answered)  # it has no condition
    return answer.attributes


def _look_after_silence(key: ItemKey, patience: Patience) -> Generator[Call | Pause, Answer | None, Item | None]:
    try:
        return (yield from look(key, patience))
    except TableUnavailable:
        return None


def _add_in_transaction(key: ItemKey, adds: Mapping[str, int | Decimal], token: str, patience: Patience, client: Any) -> None:
    try:
        carry_out(actions_of([{"Update": _update(key, adds)}]), token, patience, client)
    except TransactionCancelled as cancelled:
        if cancelled.conflict:
            raise
        raise TableSchemaError(
            f"{next(iter(adds))!r} of item {key} can't be added to: {_why(cancelled)}. It may be no number, or the key another "
            f"one than the table's: see the item, and perinvoke table describe {key.table}",
            table=key.table,
            action=_ACTION,
        ) from cancelled


def _why(cancelled: TransactionCancelled) -> str:
    return "; ".join(reason.message or reason.code for reason in cancelled.reasons) or "DynamoDB gave no reason"


def _look_after_transaction(key: ItemKey, token: str, patience: Patience) -> Generator[Call | Pause, Answer | None, Item | None]:
    try:
        return (yield from look(key, patience))
    except TableUnavailable as unavailable:
        # Whoever believes that it wasn't carried out takes another token.
        raise TableUnavailable(
            f"item {key} was added to with the token {token!r}, but can't be read: {unavailable} With the same token it is not "
            "added again.",
            table=unavailable.table,
            action=unavailable.action,
            attempts=unavailable.attempts,
            waited_seconds=unavailable.waited_seconds,
            carried_out=None,
        ) from unavailable


def _number(key: ItemKey, attribute: str, attributes: Item | None) -> int | Decimal:
    number = plain(attributes or {}).get(attribute)
    if not isinstance(number, Decimal):
        raise TableSchemaError(
            f"{attribute!r} of item {key} is {number!r} a moment after it was added to: somebody else has replaced or removed it",
            table=key.table,
            action=_ACTION,
        )
    return int(number) if number == number.to_integral_value() else number
