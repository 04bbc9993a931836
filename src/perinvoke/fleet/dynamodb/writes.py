"""Which items this invocation has written, so that it reads them as it wrote them; and tokens that tell others to.

Lives and dies with the invocation; its threads and tasks share it. What is noted is that a write was asked for, before it is
sent: whether it was carried out doesn't matter, reading consistently without need costs money, not truth.

A put names an item, not its key: which attributes are the key is known once somebody names the key of an item in that table.
Until then the attributes that could be a key are kept. Who writes very many has the whole table noted.
"""

from __future__ import annotations

import base64
import re

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import notes_of_caller
from perinvoke.fleet.dynamodb.caller import prepare_workers_clients
from perinvoke.fleet.dynamodb.item_key import ItemKey, digest, is_key_value
from perinvoke.fleet.errors import TokenInvalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    Typed = Mapping[str, Any]

_NOTE = "dynamodb writes"
_EVENT_ID = "perinvoke-writes"
_EVENT = "before-parameter-build.dynamodb"
# Of one table, by one invocation. A digest takes about a hundred bytes, an item's attributes up to some thousand. Arbitrary.
_MAX_KEYS = 20_000
_MAX_ITEMS = 200

_TOKEN_START = "r1."  # noqa: S105  # no secret: it names an item
_TOKEN = re.compile(r"r1\.[\w-]{22}", re.ASCII)
_BAD_REQUEST = 400


class _Table:
    """What an invocation has written in one table; lives as long as the invocation.

    Threads may note and ask at once: each step of it is one operation on a set, list or attribute, which Python doesn't tear,
    and what two threads do at once makes it at worst larger.
    """

    __slots__ = ("all", "items", "key_names", "keys")

    def __init__(self) -> None:
        self.all = False  # all of it is read consistently
        self.keys: set[bytes] = set()
        self.items: list[Typed] = []
        self.key_names: frozenset[str] = frozenset()

    def name_key(self, key: Typed) -> frozenset[str]:
        """Which attributes the key is, says somebody. If two don't agree, puts may have been noted by the wrong ones."""
        names = frozenset(key)
        if self.key_names and names != self.key_names:
            self.all = True
        self.key_names = names
        return names

    def note_key(self, table: str, key: Typed) -> None:
        self.name_key(key)
        self.keys.add(digest(table, key))
        if len(self.keys) > _MAX_KEYS:
            self.all = True

    def note_item(self, table: str, item: Typed) -> None:
        names = self.key_names
        if names and names <= item.keys():
            self.note_key(table, {name: item[name] for name in names})
        elif not self.all:
            self.items.append({name: value for name, value in item.items() if is_key_value(value)})
            if len(self.items) > _MAX_ITEMS:
                self.all = True

    def has(self, key: ItemKey) -> bool:
        names = self.name_key(key.typed)
        wanted = key.digest()
        if self.all or wanted in self.keys:
            return True
        return any(
            names <= item.keys() and digest(key.table, {name: item[name] for name in names}) == wanted for item in self.items
        )


def note_write(key: ItemKey) -> None:
    """This invocation writes that item."""
    _note_key(key.table, key.typed)


def has_written(key: ItemKey) -> bool:
    """Whether this invocation has written that item, as far as it was noted; False outside one."""
    notes = notes_of_caller()
    if notes is None:
        return False
    table = notes.get(_NOTE, {}).get(_name(key.table))
    return table is not None and table.has(key)


def note_writes(target: Any) -> None:
    """Have the writes of a client of your own noted, so that ``read`` sees them: a client, a resource or a table of boto3.

    Noted are PutItem, UpdateItem, DeleteItem, BatchWriteItem and TransactWriteItems, a table's ``batch_writer`` too; not
    PartiQL's statements. Clients of ``boto3_client`` and ``boto3_resource`` are noted by themselves, from the import of this
    module on. Idempotent; doesn't block; costs each write some microseconds. It is for the thread that makes the client: others
    should not use it meanwhile.

    Raises:
        FixConfiguration: it is something else.
    """
    client = getattr(getattr(target, "meta", None), "client", target)
    meta = getattr(client, "meta", None)
    if getattr(getattr(meta, "service_model", None), "service_name", None) != "dynamodb":
        raise FixConfiguration(f"note_writes got {target!r}; it takes a client, a resource or a table of boto3 for DynamoDB")
    # The last to hear of it: a resource's values are in DynamoDB's form by then.
    client.meta.events.register_last(_EVENT, _on_call, unique_id=_EVENT_ID)


def read_token(table: str, key: Mapping[str, Any]) -> str:
    """What whoever reads this item next passes to ``read(…, after=token)``, to see at least what is written now.

    To be handed on: to the client that will ask, to another function. 25 characters, safe in URLs; tells nothing of the key.
    Costs no request.

    Raises:
        FixConfiguration: that can't be a table or a key.
    """
    return _TOKEN_START + base64.urlsafe_b64encode(ItemKey(table, key).digest()).decode().rstrip("=")


def is_token_of(token: object, key: ItemKey) -> bool:
    """Whether a read token is for that item.

    Raises:
        TokenInvalid: it is no read token.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise TokenInvalid(
            f"after is {token!r}; it must be what read_token(table, key) returned, as it came, or None",
            token=token if isinstance(token, str) else repr(token),
            status=_BAD_REQUEST,
        )
    return token == read_token(key.table, key.typed)


def _on_call(params: Any, model: Any, **_: Any) -> None:
    """Before a call of a client's is checked and sent."""
    note_low_level(model.name, params)


def note_low_level(operation: str, params: Any) -> None:
    """This invocation makes that call, in DynamoDB's form."""
    if notes_of_caller() is None:
        return
    try:
        for table, key, item in list(_written(operation, params)):
            if key is not None:
                _note_key(table, key)
            if item is not None:
                _of_table(table).note_item(table, item)
    except Exception:  # noqa: BLE001, S110  # whatever parameters were given: what is wrong with them botocore is about to say
        pass


def _written(operation: str, params: Any) -> Iterator[tuple[str, Typed | None, Typed | None]]:
    """Of each write that a call makes: the table, and the key or the item."""
    if operation in {"PutItem", "UpdateItem", "DeleteItem"}:
        yield params["TableName"], params.get("Key"), params.get("Item")
    elif operation == "TransactWriteItems":
        for action in params["TransactItems"]:
            for kind, its in action.items():
                if kind != "ConditionCheck":
                    yield its["TableName"], its.get("Key"), its.get("Item")
    elif operation == "BatchWriteItem":
        for table, requests in params["RequestItems"].items():
            for request in requests:
                for its in request.values():
                    yield table, its.get("Key"), its.get("Item")


def _note_key(table: str, key: Typed) -> None:
    if notes_of_caller() is not None:
        _of_table(table).note_key(table, key)


def _of_table(table: str) -> _Table:
    notes = notes_of_caller()
    if notes is None:  # the invocation has ended this very moment
        return _Table()
    tables: dict[str, _Table] = notes.setdefault(_NOTE, {})
    return tables.setdefault(_name(table), _Table())


def _name(table: str) -> str:
    """Of a table's ARN the name. The same name in two accounts is noted as one, which costs a consistent read at most."""
    return table.rpartition(":table/")[2]


prepare_workers_clients(note_writes)
