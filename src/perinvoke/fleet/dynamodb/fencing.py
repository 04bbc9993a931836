"""Fencing: writes that DynamoDB refuses once a later holder of the lease has written.

A holder that stood still for longer than its lease doesn't know that it is late; no clock can tell it between its last look and
its write. So the item itself remembers the highest token that has written it, and the write goes through only with the same or a
higher one. That holds as long as every write of the item, from every holder, is guarded.

What it does not do: an item that the successor has not written yet still takes the late holder's write; so guard the first write
of what belongs together, or check the lease in the same transaction (``condition_check``). And a deleted item has forgotten its
token. So a delete is refused here.
"""

from __future__ import annotations

import re

from perinvoke.fleet.dynamodb.conditions import KEY
from perinvoke.fleet.dynamodb.states import Lease
from perinvoke.fleet.dynamodb.values import is_typed, typed
from perinvoke.fleet.errors import LeaseError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from perinvoke.fleet.dynamodb.lease_protocol import Terms

ATTRIBUTE = "lease_token"  # remembers the token, unless another name is given

_ACTIONS = frozenset({"Update", "Put", "Delete", "ConditionCheck"})  # of a transaction
_OLD_FORM = ("AttributeUpdates", "Expected", "ConditionalOperator")  # DynamoDB's before 2014; not to be mixed with expressions
# The clause, not #set, :set, a path's part, or part of a longer word. No attribute can be named so: SET is a reserved word.
_SET = re.compile(r"(?<![\w#:.])SET\b(?!\s*[,=.])", re.IGNORECASE)


def guarded(write: Mapping[str, Any], token: int, *, attribute: str, lease: tuple[str, str]) -> dict[str, Any]:
    """A write with the token's condition added to it, and the token to what it writes.

    Args:
        write: arguments of ``update_item`` or ``put_item``, of a client or a ``Table``; or a transaction's ``Update`` or ``Put``.
        token: of the holder that writes.
        attribute: which one remembers the token.
        lease: table and key, for errors.

    Raises:
        LeaseError: it is something that can't be guarded.
    """
    given: object = attribute  # whatever a caller passed
    if not isinstance(given, str) or not given:
        raise _error(lease, f"attribute is {attribute!r}; it must be the name of the attribute that remembers the token")
    if not hasattr(write, "keys") or not write:
        raise _error(lease, f"guard got {write!r}; it takes the arguments of update_item or put_item, as a dictionary")
    if write.keys() <= _ACTIONS:
        return _guarded_action(write, token, attribute, lease)
    return _guarded(write, token, attribute, lease)


def condition_check(terms: Terms) -> dict[str, Any]:
    """A transaction's action that lets it through only while the lease is this holder's, or nobody has taken it since."""
    return {
        "ConditionCheck": {
            "TableName": terms.table,
            "Key": {KEY: {"S": terms.record_key}},
            # The token too: the owner alone may be back, by a request for the lease that was thought lost and came late.
            "ConditionExpression": f"{Lease.OURS.expression} AND #token = :token",
            "ExpressionAttributeNames": {"#owner": "owner", "#token": "token"},
            "ExpressionAttributeValues": {":us": {"S": terms.owner}, ":token": {"N": str(terms.token)}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",  # tells who has it
        }
    }


def _guarded_action(action: Mapping[str, Any], token: int, attribute: str, lease: tuple[str, str]) -> dict[str, Any]:
    if len(action) != 1:
        raise _error(lease, f"a transaction's action has one kind, not {sorted(action)}: guard each action on its own")
    [(kind, write)] = action.items()
    if kind == "Delete":
        raise _error(
            lease,
            "a Delete can't be guarded: the token is deleted with the item, and after that a late holder could write it again. "
            "Put a tombstone in its place (guard an update that marks it as deleted), or let the transaction check the lease: "
            "transact([lock.condition_check(), delete])",
        )
    if kind == "ConditionCheck":
        raise _error(lease, "a ConditionCheck writes nothing that could be guarded: add lock.condition_check() beside it")
    return {kind: _guarded(write, token, attribute, lease)}


def _guarded(write: Mapping[str, Any], token: int, attribute: str, lease: tuple[str, str]) -> dict[str, Any]:
    keyed = write.get("Item", write.get("Key"))
    if not hasattr(keyed, "keys") or ("Item" in write and "Key" in write):
        raise _error(
            lease,
            f"a write with {', '.join(sorted(write))} can't be guarded: it needs the Key of an update_item, or the Item of a "
            "put_item. Guard the writes of a batch one by one: a batch takes no conditions",
        )
    if attribute in write.get("Key", ()):
        raise _error(lease, f"attribute {attribute!r} is the item's key; let another one remember the token: attribute=")
    old = [name for name in _OLD_FORM if name in write]
    if old:
        raise _error(lease, f"{', '.join(old)} can't be guarded: say it with UpdateExpression and ConditionExpression")
    result = dict(write)
    in_types = is_typed(keyed)
    value: object = {"N": str(token)} if in_types else token
    _spell_out(result, in_types=in_types)
    name, placeholder = _unused(result)
    result["ExpressionAttributeNames"] = {**(result.get("ExpressionAttributeNames") or {}), name: attribute}
    result["ExpressionAttributeValues"] = {**(result.get("ExpressionAttributeValues") or {}), placeholder: value}
    ours, theirs = f"attribute_not_exists({name}) OR {name} <= {placeholder}", result.get("ConditionExpression")
    result["ConditionExpression"] = f"{_in_parentheses(theirs)} AND ({ours})" if theirs else ours
    if "Item" in write:
        result["Item"] = {**keyed, attribute: value}
    else:
        result["UpdateExpression"] = _with_token(result.get("UpdateExpression") or "", f"{name} = {placeholder}")
    return result


def _spell_out(write: dict[str, Any], *, in_types: bool) -> None:
    """Write a condition of boto3's ``Attr`` as the expression that boto3's ``Table`` would make of it."""
    condition = write.get("ConditionExpression")
    if condition is None or isinstance(condition, str):
        return
    from boto3.dynamodb.conditions import ConditionExpressionBuilder  # noqa: PLC0415  # only those who use Attr pay for it

    used = {*(write.get("ExpressionAttributeNames") or ()), *(write.get("ExpressionAttributeValues") or ())}
    builder = ConditionExpressionBuilder()  # it counts on: each expression has placeholders of its own
    built = builder.build_expression(condition)
    while used & {*built.attribute_name_placeholders, *built.attribute_value_placeholders}:
        built = builder.build_expression(condition)
    values = built.attribute_value_placeholders
    write["ConditionExpression"] = built.condition_expression
    write["ExpressionAttributeNames"] = {**(write.get("ExpressionAttributeNames") or {}), **built.attribute_name_placeholders}
    if values:
        values = typed(values) if in_types else values
        write["ExpressionAttributeValues"] = {**(write.get("ExpressionAttributeValues") or {}), **values}


def _unused(write: Mapping[str, Any]) -> tuple[str, str]:
    """Placeholders for the attribute and the token that the write doesn't use itself."""
    used = {*(write.get("ExpressionAttributeNames") or ()), *(write.get("ExpressionAttributeValues") or ())}
    number = 0
    while True:
        stem = f"{ATTRIBUTE}{number or ''}"
        if not {f"#{stem}", f":{stem}"} & used:
            return f"#{stem}", f":{stem}"
        number += 1


def _in_parentheses(expression: str) -> str:
    """The expression as one operand. DynamoDB refuses parentheses within parentheses that say nothing."""
    expression, depth = expression.strip(), 0
    for at, character in enumerate(expression):
        depth += (character == "(") - (character == ")")
        if depth == 0:  # where its first operand ends; there are no quotes in expressions
            return expression if expression[0] == "(" and at == len(expression) - 1 else f"({expression})"
    return f"({expression})"


def _with_token(update: str, assignment: str) -> str:
    """The update expression with one assignment more, in its SET clause; the clauses may come in any order."""
    clause = _SET.search(update)
    if clause is None:
        return f"SET {assignment} {update}".strip()
    return f"{update[: clause.end()]} {assignment},{update[clause.end() :]}"


def _error(lease: tuple[str, str], problem: str) -> LeaseError:
    table, key = lease
    return LeaseError(f"lease {key!r} in table {table!r}: {problem}", table=table, key=key)
