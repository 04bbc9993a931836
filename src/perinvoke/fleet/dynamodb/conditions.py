"""Records that pass from state to state: what a state is, which transitions there are, and the requests that make them.

A state is said once, as terms about a record's attributes. DynamoDB's condition expressions are made from them, and so is what
Python says of a record that was read; so the two can't differ.
"""

from __future__ import annotations

import operator
import re

from perinvoke.fleet.dynamodb.steps import Call
from perinvoke.fleet.dynamodb.values import typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

KEY = "id"  # the table's only key attribute; a string
TTL = "expiration"  # the attribute by which DynamoDB removes old records, within days; seconds since 1970

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PLACEHOLDER = re.compile(r"([#:])(\w+)")


class Term:
    """One thing that is so of a record: an attribute is there, or isn't, or compares with a value.

    Args:
        attribute: its name.
        comparison: ``exists``, ``missing``, or one of ``= < <= > >=``; an attribute that isn't there compares with nothing.
        value: the name of what it is compared with.
    """

    __slots__ = ("attribute", "comparison", "value")

    def __init__(self, attribute: str, comparison: str, value: str = "") -> None:
        self.attribute = attribute
        self.comparison = comparison
        self.value = value

    @property
    def expression(self) -> str:
        """As DynamoDB takes it."""
        if self.comparison == "exists":
            return f"attribute_exists(#{self.attribute})"
        if self.comparison == "missing":
            return f"attribute_not_exists(#{self.attribute})"
        return f"#{self.attribute} {self.comparison} :{self.value}"

    def holds(self, record: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        """Of a record that was read, in Python's values."""
        if self.comparison in {"exists", "missing"}:
            return (self.attribute in record) is (self.comparison == "exists")
        return self.attribute in record and _COMPARISONS[self.comparison](record[self.attribute], values[self.value])


class State:
    """A stage that a record passes through: all its terms hold, and no earlier state of its table is the record's."""

    __slots__ = ("name", "terms")

    def __init__(self, name: str, *terms: Term) -> None:
        self.name = name
        self.terms = terms

    @property
    def expression(self) -> str:
        """As DynamoDB takes it."""
        return " AND ".join(term.expression for term in self.terms)

    def can_be_told(self, values: Mapping[str, Any]) -> bool:
        """Whether all is known that its terms compare with."""
        return all(not term.value or term.value in values for term in self.terms)

    def __repr__(self) -> str:
        return self.name


class Transition:
    """A legal way from one state to another, and the one write that goes it.

    Args:
        name: what it does.
        starts: the states that it may begin in.
        end: the state that it leads to.
        sets: attributes and the expressions that they are set to; none and no ``removes``: the record is deleted.
        removes: attributes that are removed.
        returns: DynamoDB's ``ReturnValues``.
    """

    __slots__ = ("end", "name", "removes", "returns", "sets", "starts")

    def __init__(
        self,
        name: str,
        starts: Sequence[State],
        end: State,
        *,
        sets: Mapping[str, str] | None = None,
        removes: Sequence[str] = (),
        returns: str = "NONE",
    ) -> None:
        self.name = name
        self.starts = tuple(starts)
        self.end = end
        self.sets = sets or {}
        self.removes = tuple(removes)
        self.returns = returns

    def condition(self, values: Mapping[str, Any]) -> str:
        """What must be so of the record: that it is in one of the starting states, of those that can be told."""
        return " OR ".join(f"({state.expression})" for state in self.starts if state.can_be_told(values))

    @property
    def update(self) -> str:
        """DynamoDB's update expression; empty where the record is deleted."""
        sets = "SET " + ", ".join(f"#{name} = {to}" for name, to in self.sets.items()) if self.sets else ""
        removes = "REMOVE " + ", ".join(f"#{name}" for name in self.removes) if self.removes else ""
        return f"{sets} {removes}".strip()

    def call(self, table: str, key: str, values: Mapping[str, Any]) -> Call:
        """The write that goes this way, if the record is in one of its starting states; else it is refused, and told what is."""
        condition, update = self.condition(values), self.update
        used = _PLACEHOLDER.findall(f"{condition} {update}")
        known = typed({name: values[name] for name in sorted({name for mark, name in used if mark == ":"})})
        parameters: dict[str, Any] = {
            "TableName": table,
            "Key": {KEY: {"S": key}},
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {f"#{name}": name for name in sorted({name for mark, name in used if mark == "#"})},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if known:
            parameters["ExpressionAttributeValues"] = {f":{name}": value for name, value in known.items()}
        if not update:
            return Call("delete_item", parameters)
        return Call("update_item", {**parameters, "UpdateExpression": update, "ReturnValues": self.returns})

    def __repr__(self) -> str:
        return f"{self.name}: {' or '.join(state.name for state in self.starts)} -> {self.end.name}"


class StateTable:
    """Every state of a kind of record, in the order in which they are told apart, and every legal transition."""

    __slots__ = ("states", "transitions")

    def __init__(self, states: Sequence[State], transitions: Sequence[Transition]) -> None:
        self.states = tuple(states)
        self.transitions = tuple(transitions)

    def state_of(self, record: Mapping[str, Any] | None, values: Mapping[str, Any]) -> State | None:
        """Which state a record is in, as somebody sees it who knows these values; None for what is no record of this kind."""
        for state in self.states:
            if state.can_be_told(values) and all(term.holds(record or {}, values) for term in state.terms):
                return state
        return None
