"""Writes that lose nobody's: an item is written only if it is what was read, and made only once.

Lost answers are looked through (``write_marks.py``). For that items get attributes: versioned writes leave the version and
``<version>_by``, the marks of its last writers; ``create_once`` leaves ``created_once_by``. What is returned here is without the
marks of the one who returns it.
"""

from __future__ import annotations

from perinvoke.fleet.caller import patience_of
from perinvoke.fleet.dynamodb.caller import client_of
from perinvoke.fleet.dynamodb.etags import etag_of, parse_if_match
from perinvoke.fleet.dynamodb.item_key import ItemKey
from perinvoke.fleet.dynamodb.steps import run
from perinvoke.fleet.dynamodb.values import plain, shown
from perinvoke.fleet.dynamodb.versioned_protocol import CREATED, Terms, conflict, create, look, update, write
from perinvoke.fleet.dynamodb.write_marks import Version, new_mark
from perinvoke.fleet.dynamodb.writes import note_write
from perinvoke.fleet.errors import ChangeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def update_versioned(
    table: str,
    key: Mapping[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    version: str = "version",
    timeout: float | None = None,
    client: Any = None,
) -> dict[str, Any]:
    """Change an item so that no change of anybody's is lost who writes it in this way; the item as it was written.

    Reads the item, calls ``change(item)``, and writes what that returned if nobody has written in between; else once more from
    the beginning, after a pause. So ``change`` may be called several times. It gets a dict of its own each time: of an item that
    isn't there the key's attributes. It returns the whole item, which may be the same dict, changed; what isn't in it is removed.
    The version is counted up whatever ``change`` does to it.

    An item without a version gets one. All who write it must count it: ``increment`` does with ``version=``.

    Price: a consistent read and a write; both again for each conflict. A lost answer costs a write, and at most a read. Blocks;
    waits until the invocation's deadline less a margin, outside an invocation for 30 seconds. May be called from any thread and
    in a forked child.

    Args:
        table: the table's name or ARN.
        key: its key attributes; one, or two where the table has a sort key.
        change: as above. What it raises comes through, and nothing is written.
        version: the attribute that counts the writes.
        timeout: seconds, to wait no longer than that.
        client: a low-level client of your own.

    Raises:
        WriteConflict: somebody else wrote in between, every time until there was no more time. ``as_http()`` is a 409.
        ChangeError: ``change`` is no function; or returned something else than the item, another key, or ``<version>_by``.
        OutcomeUnknown: an answer was lost, and so many others have written since that the item doesn't tell.
        TableUnavailable: throttled, or no answer, for as long as there was time.
        TableSchemaError: another key than the table's; the version isn't a whole number; or ``<version>_by`` isn't its marks.
        TableMissing, TableForbidden, FixConfiguration: the table, the role or an argument is wrong.
    """
    terms = Terms(ItemKey(table, key), version, new_mark)
    if not callable(change):
        raise ChangeError(f"change is {shown(change)}; it must be a function that gets the item and returns it, changed")
    patience = patience_of(timeout)
    note_write(terms.key)
    return terms.shown(run(update(terms, change, patience), client_of(client)))


def create_once(
    table: str, key: Mapping[str, Any], item: Mapping[str, Any] | None = None, *, client: Any = None
) -> tuple[dict[str, Any], bool]:
    """Make an item unless there is one: ``(item, created)``. Of all who call at once exactly one gets ``created=True``.

    The others get the item that stands there. An answer that was lost changes nothing of that, as long as nobody removes the
    item meanwhile. The item gets an attribute ``created_once_by``; leave it there.

    Price: one write, also for those who come too late. Blocks; waits and threads as with ``update_versioned``.

    Args:
        table: the table's name or ARN.
        key: its key attributes.
        item: all other attributes; None for none.
        client: a low-level client of your own.

    Raises:
        OutcomeUnknown: an answer was lost, and the item was removed meanwhile, or has lost its ``created_once_by``.
        WriteConflict: others made and removed it, every time until there was no more time.
        TableUnavailable: throttled, or no answer, for as long as there was time.
        TableMissing, TableForbidden, TableSchemaError, FixConfiguration: the table, the role or an argument is wrong.
    """
    where = ItemKey(table, key)
    whole = where.whole({} if item is None else item)
    note_write(where)
    found, created = run(create(where, whole, new_mark(), patience_of()), client_of(client))
    return plain({name: value for name, value in found.items() if name != CREATED}), created


class VersionedItem:
    """An item to be written only if nobody has written it since it was read: here, or in an earlier request whose ETag came back.

    Lives as long as you keep it; no thread or process needs to be the one that read it. ::

        found = VersionedItem.read("orders", {"id": "x"})          # GET: answer found.item with the header ETag: found.etag
        VersionedItem.matching("orders", {"id": "x"}, headers.get("if-match")).write(item)      # PUT: with If-Match

    Attributes:
        item: what was read, without its marks; the key's attributes where nothing is there, or nothing was read.
        version: how often it was written; None where it isn't there or has none.
        exists: whether it is there.
        etag: a strong ETag in its quotes, for HTTP's header of that name (RFC 9110, 8.8.3). No two versions that were written
            with these functions have the same, nor has an item that was deleted and made anew with them.
    """

    def __init__(self, terms: Terms, seen: Version, item: dict[str, Any], client: Any) -> None:
        self._terms = terms
        self._seen = seen
        self._client = client
        self.item = item
        self.version = seen.number
        self.exists = seen.exists
        self.etag = etag_of(seen)

    @classmethod
    def read(
        cls, table: str, key: Mapping[str, Any], *, version: str = "version", timeout: float | None = None, client: Any = None
    ) -> VersionedItem:
        """The item as it is now, whoever wrote it last. Price: one consistent read.

        Blocks; waits, threads, arguments and errors as with ``update_versioned``.
        """
        terms = Terms(ItemKey(table, key), version, new_mark)
        found = run(look(terms.key, patience_of(timeout)), client_of(client))
        return cls(terms, terms.version_of(found), terms.shown(found), client)

    @classmethod
    def matching(
        cls, table: str, key: Mapping[str, Any], if_match: str | None, *, version: str = "version", client: Any = None
    ) -> VersionedItem:
        """The item as it was when it had that ETag: to be written. Costs nothing, and tells nothing of what stands there.

        Args:
            table: the table's name or ARN.
            key: its key attributes.
            if_match: the request's ``If-Match`` header as it came; None where it has none. One strong ETag is taken.
            version: the attribute that counts the writes.
            client: a low-level client of your own.

        Raises:
            TokenInvalid: there is none, or several, or it is ``*``, weak (``W/"…"``) or no ETag of ours. ``as_http()`` answers
                so.
            FixConfiguration: an argument is wrong.
        """
        terms = Terms(ItemKey(table, key), version, new_mark)
        return cls(terms, parse_if_match(if_match), terms.shown(None), client)

    def write(self, item: Mapping[str, Any], *, timeout: float | None = None) -> VersionedItem:
        """Write the whole item, if nobody has written it since; what was written, with its new ETag.

        Price: one write. It isn't repeated on a conflict: who made the change has to look at what stands there first.

        Args:
            item: all its attributes; the key's may be left out. What isn't in it is removed.
            timeout: seconds, to wait no longer than that.

        Raises:
            WriteConflict: somebody has. ``as_http()`` is a 409.
            OutcomeUnknown, TableUnavailable, TableMissing, TableForbidden, TableSchemaError, FixConfiguration: as with
                ``update_versioned``.
        """
        terms, patience = self._terms, patience_of(timeout)
        whole = terms.whole(item)
        note_write(terms.key)
        written = run(write(terms, whole, self._seen, patience), client_of(self._client))
        if written is None:
            raise conflict(terms.key, 1, patience)
        return VersionedItem(terms, terms.version_of(written), terms.shown(written), self._client)

    def __repr__(self) -> str:
        return f"<VersionedItem {self._terms.key} {self.etag}>"
