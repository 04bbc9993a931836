"""Versioned writes, step by step: an item is written only if it still is what was read; and items that are made once.

The whole item is written, under a condition on what was read:

* nothing was there: there still is nothing;
* an item without a version: it is there, and still has none;
* a version: it is still that one, and of the same last writers. The number alone would also be that of an item that was deleted
  and made anew meanwhile.

What isn't guaranteed: who writes the item without counting its version up is not noticed. And where nothing was there, or an item
without marks, a write is made once more if its answer was lost, the item was removed, and others have made it anew since.
"""

from __future__ import annotations

from decimal import Decimal

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.answers import Answered
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.steps import Call, Pause
from perinvoke.fleet.dynamodb.values import plain, shown
from perinvoke.fleet.dynamodb.write_marks import Fate, Version, fate_of, marks_text, parse_marks
from perinvoke.fleet.errors import ChangeError, OutcomeUnknown, TableSchemaError, TableUnavailable, WriteConflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any, TypeVar

    from perinvoke.fleet.dynamodb.answers import Answer, Item
    from perinvoke.fleet.dynamodb.item_key import ItemKey
    from perinvoke.fleet.patience import Patience

    Result = TypeVar("Result")
    Steps = Generator[Call | Pause, Answer | None, Result]

# Who made an item that is made once. Not "created_by", which items have for people.
CREATED = "created_once_by"


class Terms:
    """Which item is written, and how its writes are told apart; lives as long as a call, or what was read until it is written.

    Args:
        key: of the item.
        version: the attribute that counts its writes.
        new_mark: makes a mark that no other write has.

    Raises:
        FixConfiguration: that can't be the version's attribute.
    """

    __slots__ = ("key", "marks", "new_mark", "version")

    def __init__(self, key: ItemKey, version: str, new_mark: Callable[[], str]) -> None:
        self.key = key
        self.version = version
        self.marks = f"{version}_by"
        self.new_mark = new_mark
        given: object = version
        if not isinstance(given, str) or not given or {self.version, self.marks} & self.key.typed.keys():
            raise FixConfiguration(f"version is {version!r}; it must be the name of an attribute that isn't part of the key")

    def version_of(self, item: Item | None) -> Version:
        """What an item says of its version.

        Raises:
            TableSchemaError: what it has there isn't a whole number; or it has something else where its marks would be.
        """
        if item is None:
            return Version(None, exists=False)
        marks = parse_marks(item.get(self.marks, {}).get("S"))
        if self.marks in item and not marks:
            raise TableSchemaError(
                f"attribute {self.marks!r} of item {self.key} is {shown(plain(item)[self.marks])}; it would be overwritten with "
                f"the marks of its writers, which belong to the version {self.version!r}. Name another attribute with version=",
                table=self.key.table,
                action="dynamodb:PutItem",
            )
        its = item.get(self.version)
        if its is None:
            return Version(None)
        number = plain({"": its})[""]
        if not isinstance(number, Decimal) or number != number.to_integral_value():
            raise TableSchemaError(
                f"attribute {self.version!r} of item {self.key} is {shown(number)}; as a version it must be a whole number. "
                "Name another attribute with version=",
                table=self.key.table,
                action="dynamodb:PutItem",
            )
        return Version(int(number), marks)

    def shown(self, item: Item | None) -> dict[str, Any]:
        """An item in Python's values, without its marks; of one that isn't there the key."""
        if item is None:
            return dict(self.key.plain)
        return plain({name: value for name, value in item.items() if name != self.marks})

    def whole(self, item: Mapping[str, Any]) -> Item:
        """What a caller wants to have written, in DynamoDB's form, with the key.

        Raises:
            FixConfiguration: it isn't an item, or not this one; or it has something of its own where the marks belong.
        """
        whole = self.key.whole(item)
        if self.marks in whole and not parse_marks(whole[self.marks].get("S")):
            raise FixConfiguration(
                f"the item for {self.key} has an attribute {self.marks!r}, which is kept for the marks of its writers. Call it "
                "otherwise, or name another attribute with version="
            )
        return whole

    def put(self, item: Item, seen: Version, next_: Version) -> Call:
        """The write of an item in the place of what was seen."""
        whole = {
            **{name: value for name, value in item.items() if name not in {self.version, self.marks}},
            self.version: {"N": str(next_.number)},
            self.marks: {"S": marks_text(next_.marks)},
        }
        names: dict[str, str] = {"#key": self.key.first_name}
        values: dict[str, Any] = {}
        if not seen.exists:
            condition = "attribute_not_exists(#key)"
        elif seen.number is None:
            names["#version"] = self.version
            condition = "attribute_exists(#key) AND attribute_not_exists(#version)"
        else:
            names, values = {"#version": self.version, "#marks": self.marks}, {":version": {"N": str(seen.number)}}
            condition = "#version = :version AND attribute_not_exists(#marks)"
            if seen.marks:
                values[":marks"] = {"S": marks_text(seen.marks)}
                condition = "#version = :version AND #marks = :marks"
        return put_if(self.key.table, whole, condition, names, values)


def put_if(table: str, item: Item, condition: str, names: dict[str, str], values: dict[str, Any]) -> Call:
    """A write under a condition; if it is refused, what stands there is told."""
    parameters: dict[str, Any] = {
        "TableName": table,
        "Item": dict(item),
        "ConditionExpression": condition,
        "ExpressionAttributeNames": names,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    return Call("put_item", {**parameters, "ExpressionAttributeValues": values} if values else parameters)


def look(key: ItemKey, patience: Patience, *, consistent: bool = True) -> Steps[Item | None]:
    """Read an item; None where there is none."""
    answer = yield from insist(
        Call("get_item", {"TableName": key.table, "Key": key.typed, "ConsistentRead": consistent}), patience
    )
    assert isinstance(answer, Answered)  # a read has no condition
    return answer.item


def write(terms: Terms, item: Item, seen: Version, patience: Patience) -> Steps[Item | None]:
    """Write an item in the place of what was seen. As it was written; None: something else stands there, and it was not.

    Raises:
        OutcomeUnknown: it was refused after an answer was lost, and the item doesn't tell by whom.
        TableUnavailable: there was no answer for as long as there was time.
    """
    mark = terms.new_mark()
    call = terms.put(item, seen, seen.after(mark))
    written: Item = call.parameters["Item"]
    try:
        answer = yield from insist(call, patience)
    except TableUnavailable as unavailable:
        fate = Fate.UNKNOWN
        if unavailable.carried_out is None and patience.left() > 0:
            fate = yield from _fate_after_silence(terms, mark, seen, patience)
        if fate is Fate.UNKNOWN:
            raise
        return written if fate is Fate.CARRIED_OUT else None
    if isinstance(answer, Answered):
        return written
    if not answer.lost:
        return None
    # A server that doesn't tell what stands there, or nothing does: then a look says which.
    found = answer.item or (yield from look(terms.key, patience))
    fate = fate_of(mark, seen, terms.version_of(found))
    if fate is Fate.UNKNOWN:
        raise OutcomeUnknown(
            f"item {terms.key} may have been written, or not: an answer was lost, and others have written it since, or removed "
            "it. Read it before you repeat the change.",
            table=terms.key.table,
            key=terms.key.plain,
        )
    return written if fate is Fate.CARRIED_OUT else None


def _fate_after_silence(terms: Terms, mark: str, seen: Version, patience: Patience) -> Steps[Fate]:
    try:
        found = yield from look(terms.key, patience)
    except TableUnavailable:
        return Fate.UNKNOWN
    return fate_of(mark, seen, terms.version_of(found))


def update(terms: Terms, change: Callable[[dict[str, Any]], object], patience: Patience) -> Steps[Item]:
    """Read, change and write, until nobody else has written in between. The item as it was written.

    Raises:
        WriteConflict: somebody else had, every time, until there was no more time.
        ChangeError: what ``change`` returned can't be written.
        TableSchemaError, OutcomeUnknown, TableUnavailable: as above.
    """
    attempts = 0
    while True:
        found = yield from look(terms.key, patience)
        seen = terms.version_of(found)
        changed = item_of(terms, change(terms.shown(found)))
        attempts += 1
        written = yield from write(terms, changed, seen, patience)
        if written is not None:
            return written
        pause = patience.pause()
        if pause is None:
            raise conflict(terms.key, attempts, patience)
        yield Pause(pause)


def conflict(key: ItemKey, attempts: int, patience: Patience) -> WriteConflict:
    """Somebody else has written it."""
    waited = patience.waited_seconds()
    return WriteConflict(
        f"item {key} was changed by others meanwhile, in {attempts} attempt(s) over {waited:.3f} s; nothing was written. "
        "Read it again and repeat the change; if many write it at once, spread what they write over several items.",
        table=key.table,
        key=key.plain,
        attempts=attempts,
        waited_seconds=waited,
    )


def item_of(terms: Terms, changed: object) -> Item:
    """What a ``change`` returned, in DynamoDB's form.

    Raises:
        ChangeError: it isn't an item, or not this one.
    """
    key = terms.key
    if not isinstance(changed, dict):
        close = getattr(changed, "close", None)
        if hasattr(changed, "cr_frame") and close is not None:
            close()  # else there is a second complaint, of a coroutine that was never awaited
        raise ChangeError(
            f"change returned {type(changed).__name__} for item {key}: return the item, a dict with all its attributes. "
            "(It may be the one that it got, changed in place. To write nothing, raise an error of your own.)"
        )
    missing = key.typed.keys() - changed.keys()
    if missing:
        raise ChangeError(
            f"change returned an item without its key {', '.join(map(repr, sorted(missing)))}: return the whole item {key}, "
            "because what isn't in it is removed"
        )
    try:
        return terms.whole(changed)
    except FixConfiguration as error:
        raise ChangeError(f"change returned what can't be written: {error}") from error


def create(key: ItemKey, item: Item, mark: str, patience: Patience) -> Steps[tuple[Item, bool]]:
    """Write an item unless there is one. The item that stands there, and whether it is this one.

    Raises:
        WriteConflict: there was one at each write, and none at each look, until there was no more time.
        OutcomeUnknown: it was refused after an answer was lost, and the item doesn't tell who made it.
        TableUnavailable: there was no answer for as long as there was time.
    """
    attempts = 0
    while True:
        made = yield from _create(key, {**item, CREATED: {"S": mark}}, mark, patience)
        if made is not None:
            return made
        attempts += 1
        pause = patience.pause()
        if pause is None:
            raise conflict(key, attempts, patience)
        yield Pause(pause)


def _create(key: ItemKey, whole: Item, mark: str, patience: Patience) -> Steps[tuple[Item, bool] | None]:
    call = put_if(key.table, whole, "attribute_not_exists(#key)", {"#key": key.first_name}, {})
    found: Item | None
    try:
        answer = yield from insist(call, patience)
    except TableUnavailable as unavailable:
        if unavailable.carried_out is not None or patience.left() <= 0:
            raise
        found = yield from _found_after_silence(key, patience)
        if found is None:
            raise
        lost = True
    else:
        if isinstance(answer, Answered):
            return whole, True
        found, lost = answer.item or (yield from look(key, patience)), answer.lost
        if found is None and not lost:  # somebody has removed what was in the way
            return None
    maker = None if found is None else found.get(CREATED, {}).get("S")
    if found is None or (lost and maker is None):
        raise OutcomeUnknown(
            f"item {key} may have been made by this call, or not: an answer was lost, and the item "
            f"{'is gone' if found is None else f'has no {CREATED!r}'}. Read it before you repeat the call.",
            table=key.table,
            key=key.plain,
        )
    return found, maker == mark


def _found_after_silence(key: ItemKey, patience: Patience) -> Steps[Item | None]:
    try:
        return (yield from look(key, patience))
    except TableUnavailable:
        return None
