"""Reads that see one's own writes, and cost half where there are none."""

from __future__ import annotations

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import patience_of
from perinvoke.fleet.dynamodb.caller import client_of
from perinvoke.fleet.dynamodb.item_key import ItemKey
from perinvoke.fleet.dynamodb.steps import run
from perinvoke.fleet.dynamodb.values import plain
from perinvoke.fleet.dynamodb.versioned_protocol import look
from perinvoke.fleet.dynamodb.writes import has_written, is_token_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def read(
    table: str, key: Mapping[str, Any], *, after: str | None = None, consistent: bool | None = None, client: Any = None
) -> dict[str, Any] | None:
    """An item in Python's values (numbers are ``Decimal``); None where there is none.

    DynamoDB's ordinary reads may be late by a moment: an item that was just written is not found, or is the old one. A strongly
    consistent read isn't, and costs twice. This one is strongly consistent where

    * this invocation wrote that item before, or tried to: with the functions of this module, or a client of ``boto3_client`` or
      ``boto3_resource``, or one that ``note_writes`` was told of. Writes of such a client are noted from the import of
      ``read`` on: ``from perinvoke.fleet.dynamodb import read`` at the top of the handler's module;
    * ``after`` is the token of that item, which whoever wrote it got from ``read_token``. Another item's token changes nothing;
    * ``consistent=True``.

    ``consistent=False`` never is. Strong consistency is that of one region; with a global table another region's writes are seen
    late all the same, unless the table has multi-region strong consistency.

    Price: one read; 0.5 units for each 4 KB, 1 where it is strongly consistent. Blocks; repeats what was throttled or lost until
    the invocation's deadline less a margin, outside an invocation for 30 seconds. May be called from any thread and in a forked
    child.

    Args:
        table: the table's name or ARN.
        key: its key attributes; one, or two where the table has a sort key.
        after: a read token, or None.
        consistent: True or False: so or not, whatever was written.
        client: a low-level client of your own.

    Raises:
        TokenInvalid: ``after`` is no read token. ``as_http()`` is a 400.
        TableUnavailable: throttled, or no answer, for as long as there was time.
        TableMissing, TableForbidden, TableSchemaError, FixConfiguration: the table, the role or an argument is wrong.
    """
    where = ItemKey(table, key)
    given: object = consistent
    if given is not None and not isinstance(given, bool):
        raise FixConfiguration(f"consistent is {consistent!r}; allowed are True, False, or None for what was written here")
    asked = after is not None and is_token_of(after, where)
    strongly = (asked or has_written(where)) if consistent is None else consistent
    found = run(look(where, patience_of(), consistent=strongly), client_of(client))
    return None if found is None else plain(found)
