"""Who of SQLAlchemy's uses a connection that is lent: a ``Connection``, and perhaps an ORM session's transaction.

A connection that an invocation forgot is taken from them, and they may be used again: a session at a module's top level, or a
``scoped_session`` that nobody removes, is the next invocation's, too. Without being told they would go on, for as long as the
worker lives, with what they no longer have.

* A session's transaction is rolled back, so that the session begins anew when it is used next; also where its connection was lost
  before, as when the deadline interrupts a query. Not where a thread that is left over may be in the middle of it: that one would
  commit its second half.
* All others get SQLAlchemy's ``PendingRollbackError`` until they roll back themselves.
"""

from __future__ import annotations

import sys
import weakref

from sqlalchemy import event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

# In a record's record_info, for as long as it is lent: weak references.
_CONNECTION = "perinvoke.connection"
_TRANSACTION = "perinvoke.transaction"  # the session, and its outermost transaction

_sees_sessions = False


def watch(engine: Engine) -> None:
    """Have the connections of an engine, and of those that are made from it, noted."""
    for name in ("engine_connect", "begin", "begin_twophase"):  # a Connection that borrows anew tells so only when it begins
        event.listen(engine, name, _note_connection)


def lent(record: Any) -> None:
    """A record is lent anew: whoever used it before has returned it."""
    record.record_info.pop(_CONNECTION, None)
    record.record_info.pop(_TRANSACTION, None)
    _watch_sessions()


def _watch_sessions() -> None:
    """All of them, once the ORM is there. It isn't imported here: who doesn't use it needn't pay for it."""
    global _sees_sessions  # noqa: PLW0603  # once in a process; twice would do no harm
    session_class = None if _sees_sessions else getattr(sys.modules.get("sqlalchemy.orm"), "Session", None)
    if session_class is not None:
        event.listen(session_class, "after_begin", _note_transaction)
        _sees_sessions = True


def session_of(record: Any) -> Any:
    """The session that uses a record, for ``end_session``; the record knows it no more."""
    return record.record_info.pop(_TRANSACTION, ())


def end_session(references: Any) -> None:
    """Roll back a session, unless it has gone on; it then returns its connections. Raises what the driver does."""
    session, transaction = _alive(references, 2)
    if transaction is not None and session.get_transaction() is transaction:
        session.rollback()


def let_go(record: Any) -> None:
    """The record was taken back: a ``Connection`` that still refers to it borrows another one, once it is rolled back.

    But for one with an isolation level of its own, or the like: the next one wouldn't have that, and what is written in the
    belief that it is committed at once would be lost. That ``Connection`` is closed, and says so.
    """
    [connection] = _alive(record.record_info.pop(_CONNECTION, ()), 1)
    if connection is not None and not connection.closed:
        connection.invalidate()  # closes nothing: what it had has been returned
        if not connection.dialect.connection_characteristics.keys().isdisjoint(connection.get_execution_options()):
            connection.close()


def _alive(references: Any, count: int) -> tuple[Any, ...]:
    found = tuple(reference() for reference in references)
    return found if len(found) == count and None not in found else (None,) * count


def _note_connection(connection: Connection, *_: object) -> None:
    info = connection.connection.record_info
    if info is not None:  # else it was detached, and is nobody's
        info[_CONNECTION] = (weakref.ref(connection),)


def _note_transaction(session: Session, _: object, connection: Connection) -> None:
    """Of any engine's session."""
    info = connection.connection.record_info
    if info is not None and _CONNECTION in info:
        info[_TRANSACTION] = (weakref.ref(session), weakref.ref(session.get_transaction()))
