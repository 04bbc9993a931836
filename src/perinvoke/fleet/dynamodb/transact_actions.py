"""A transaction's actions, checked and brought into DynamoDB's form; what is wrong with one names it.

Actions are counted from 0, as Python counts the list that they came in and DynamoDB its reasons.
"""

from __future__ import annotations

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.item_key import checked_table, digest, is_key_value
from perinvoke.fleet.dynamodb.values import is_typed, plain, shown, typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MAX_ACTIONS = 100  # DynamoDB's limit
# What each kind of action can't do without.
_NEEDS = {
    "Put": ("TableName", "Item"),
    "Update": ("TableName", "Key", "UpdateExpression"),
    "Delete": ("TableName", "Key"),
    "ConditionCheck": ("TableName", "Key", "ConditionExpression"),
}
_VALUES = "ExpressionAttributeValues"


class Action:
    """One action of a transaction, in DynamoDB's form; lives as long as the transaction's call."""

    __slots__ = ("index", "kind", "parameters", "table")

    def __init__(self, index: int, kind: str, parameters: dict[str, Any]) -> None:
        self.index = index
        self.kind = kind
        self.parameters = parameters
        self.table: str = parameters["TableName"]

    @property
    def low_level(self) -> dict[str, Any]:
        """As the client takes it."""
        return {self.kind: self.parameters}

    def key(self, key_names: frozenset[str]) -> dict[str, Any] | None:
        """Of the item that it is about, in DynamoDB's form; None where the key's names aren't known, and a put doesn't tell."""
        key: dict[str, Any] | None = self.parameters.get("Key")
        item = self.parameters.get("Item", {})
        if key is None and key_names and key_names <= item.keys():
            key = {name: item[name] for name in key_names}
        return key

    def __str__(self) -> str:
        subject = plain(self.parameters.get("Key") or self.parameters["Item"])
        return f"action {self.index}, {self.kind} of {self.table} {shown(subject)}"


def actions_of(items: Sequence[Mapping[str, Any]]) -> list[Action]:
    """The actions that a caller gave.

    Raises:
        FixConfiguration: none or too many, or one that can't be carried out.
    """
    given: object = items
    if not isinstance(given, list | tuple) or not 0 < len(given) <= MAX_ACTIONS:
        got = f"{len(given)} actions" if isinstance(given, list | tuple) else shown(items)
        raise FixConfiguration(f"transact got {got}; it takes a list of 1 to {MAX_ACTIONS} actions, which is DynamoDB's limit")
    actions = [_action(index, action) for index, action in enumerate(given)]
    _refuse_two_on_one_item(actions)
    return actions


def _action(index: int, action: object) -> Action:
    if not isinstance(action, dict) or len(action) != 1 or not action.keys() <= _NEEDS.keys():
        what = f"has {', '.join(map(str, action)) or 'nothing'}" if isinstance(action, dict) else f"is {shown(action)}"
        raise FixConfiguration(
            f"action {index} {what}; it must be a dict with exactly one of {', '.join(_NEEDS)}, such as "
            '{"Put": {"TableName": "orders", "Item": {"id": "x"}}}'
        )
    [(kind, parameters)] = action.items()
    if not isinstance(parameters, dict):
        raise FixConfiguration(f"action {index}, {kind}, is {shown(parameters)}; it must be a dict of its parameters")
    for name in _NEEDS[kind]:
        if not parameters.get(name):
            raise FixConfiguration(f"action {index}, {kind}, has no {name}; it needs {', '.join(_NEEDS[kind])}")
    try:
        checked_table(parameters["TableName"])
        its = _typed(dict(parameters))
    except FixConfiguration as error:
        raise FixConfiguration(f"action {index}, {kind}: {error}") from error
    if "ConditionExpression" in its:
        its.setdefault("ReturnValuesOnConditionCheckFailure", "ALL_OLD")  # so that the reason tells what stands there
    return Action(index, kind, its)


def _typed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Which form an action has its key or item tells: of those it is certain."""
    name = "Item" if "Item" in parameters else "Key"
    subject, values = parameters[name], parameters.get(_VALUES)
    for what, its in ((name, subject), (_VALUES, values)):
        if its is not None and not isinstance(its, dict):
            raise FixConfiguration(f"{what} is {shown(its)}; it must be a dict")
    if values and is_typed(values) is not is_typed(subject):
        raise FixConfiguration(
            f'{name} and {_VALUES} are not of one form: give both in Python\'s values, {{":n": 1}}, '
            'or both in DynamoDB\'s, {":n": {"N": "1"}}'
        )
    if is_typed(subject):
        return parameters
    parameters[name] = typed(subject)
    if values:
        parameters[_VALUES] = typed(values)
    return parameters


def _refuse_two_on_one_item(actions: Sequence[Action]) -> None:
    """As far as it can be told here: a table's key is known from an action that names one. Else DynamoDB tells."""
    names = {action.table: frozenset(action.parameters["Key"]) for action in actions if "Key" in action.parameters}
    seen: dict[bytes, Action] = {}
    for action in actions:
        key = action.key(names.get(action.table, frozenset()))
        if key is None or not all(map(is_key_value, key.values())):
            continue
        other = seen.setdefault(digest(action.table, key), action)
        if other is not action:
            raise FixConfiguration(
                f"{action} is on the same item as action {other.index}, {other.kind}: DynamoDB takes one action on an item. "
                "Make them one; an Update takes a condition, too"
            )
